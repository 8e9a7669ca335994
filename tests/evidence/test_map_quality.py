"""What is measured of a map at one layer, where the truth is known."""

from __future__ import annotations

import pytest
import scipy.stats
import torch

from unlock_lens.evidence._map_quality import carried_over, correlation, cross_validate, reading
from unlock_lens.method.linalg import principal_cosines


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("centered", [True, False])
def test_an_exact_map_has_no_error(centered: bool) -> None:
    h = drawn(0, 90, 8)
    quality = cross_validate(h, h @ drawn(1, 8, 6), drawn(2, 8), rank=8, centered=centered)
    assert quality.r2 == pytest.approx(1, abs=1e-6)
    assert quality.error == pytest.approx(0, abs=1e-4)


def test_an_invertible_map_agrees_wholly_at_full_rank_and_less_below() -> None:
    h = drawn(0, 400, 8)
    moved = h @ drawn(1, 8, 8)
    assert cross_validate(h, moved, h[0], rank=8, centered=True).agreement == pytest.approx(1, abs=0.01)
    low = cross_validate(h, moved, h[0], rank=2, centered=True)
    assert low.agreement < low.full_agreement - 0.2
    assert low.full_agreement == pytest.approx(1, abs=0.01)


def test_unrelated_states_predict_nothing() -> None:
    quality = cross_validate(drawn(0, 4000, 8), drawn(1, 4000, 8), drawn(2, 8), rank=8, centered=True)
    assert abs(quality.r2) < 0.02
    assert abs(quality.agreement) < 0.1
    assert quality.error == pytest.approx(1, abs=0.02)


def test_cross_validation_is_on_tokens_that_were_not_fitted() -> None:
    """As many tokens as dimensions: in-sample everything would fit, held-out nothing does."""
    assert cross_validate(drawn(0, 40, 30), drawn(1, 40, 30), drawn(2, 30), rank=30, centered=True).r2 < 0


def test_agreement_is_about_the_direction_and_not_the_variance() -> None:
    """One axis of little variance that the models do not share: R2 is high, agreement along it is nil."""
    h = drawn(0, 2000, 8)
    h[:, 0] *= 0.05
    other = h.clone()
    other[:, 0] = 0.05 * drawn(1, 2000)
    axes = torch.eye(8)
    along, beside = (cross_validate(h, other, axes[i], rank=8, centered=True) for i in (0, 1))
    assert along.r2 > 0.99
    assert abs(along.agreement) < 0.1
    assert beside.agreement > 0.99


def test_a_reading_tells_one_where_the_direction_is_added() -> None:
    h, v = drawn(0, 500, 8) @ drawn(1, 8, 8), drawn(2, 8)
    found = reading(h, v)
    assert float(found @ v.double()) == pytest.approx(1)
    covariance = torch.cov(h.T.double(), correction=0)
    shrunk = covariance + 1e-3 * covariance.diagonal().mean() * torch.eye(8)
    true = torch.linalg.inv(shrunk) @ v.double()
    torch.testing.assert_close(found, true / (true @ v.double()))


def test_correlation_is_pearsons() -> None:
    a, b = drawn(0, 50).double(), drawn(1, 50).double()
    assert correlation(a, b) == pytest.approx(scipy.stats.pearsonr(a.numpy(), b.numpy())[0])
    assert correlation(torch.ones(5), drawn(0, 5)) == 0


def test_the_sources_span_carried_over() -> None:
    """By an orthogonal map the source's first axes go to the rows of that map."""
    h, turn = drawn(0, 400, 8) * torch.linspace(2, 1, 8), torch.linalg.qr(drawn(1, 8, 8)).Q
    h = h - h.mean(0)
    axes = torch.linalg.svd(h).Vh[:3]
    assert principal_cosines(carried_over(h, h @ turn, axes, centered=True), axes @ turn).min() > 0.999
