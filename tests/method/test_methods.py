"""Each method is its formula, by way of dense matrices that the library never makes; all are nested in the rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import unlock_lens as ul
from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.method.align import METHODS
from unlock_lens.method.calibrate import Held

# Tokens fewer than, as many as, and more than the widths.
SHAPES = st.sampled_from([(6, 9, 7), (9, 9, 9), (40, 9, 7), (40, 7, 9)])
SEEDS = st.integers(0, 1000)
RIDGE = 0.3


def states(n: int, d_s: int, d_t: int, seed: int) -> tuple[Tensor, Tensor]:
    """A noisy linear relation, axes of unlike size."""
    g = torch.Generator().manual_seed(seed)
    source = torch.randn(n, d_s, generator=g) * torch.logspace(0, -1, d_s)
    return source, source @ torch.randn(d_s, d_t, generator=g) + 0.1 * torch.randn(n, d_t, generator=g)


def fitted(source: Tensor, target: Tensor, **options: Any) -> SubspaceAligner:
    return SubspaceAligner(centered=True, **options).fit_activations(source[None], target[None])


def centered(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return tuple((h - h.mean(dim=0)).double() for h in (source, target))  # pyright: ignore[reportReturnType]


def penalty(x: Tensor) -> float:
    """In mean squared singular values, of those that are there."""
    values = torch.linalg.svdvals(x)
    return RIDGE * float(values[values > 1e-6 * values[0]].square().mean())


def ridge_map(x: Tensor, y: Tensor, strength: float) -> Tensor:
    return torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1]).double(), x.T @ y)


def inverse_root(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, basis = torch.linalg.eigh(gram)
    return basis @ torch.diag(values.rsqrt()) @ basis.T, basis @ torch.diag(values.sqrt()) @ basis.T


def close(found: Tensor, true: Tensor) -> bool:
    return float((found.double() - true).norm() / true.norm()) < 1e-4


@given(SHAPES, SEEDS)
def test_ridge_is_penalised_least_squares(shape: tuple[int, int, int], seed: int) -> None:
    source, target = states(*shape, seed)
    x, y = centered(source, target)
    assert close(fitted(source, target, method="ridge", ridge=RIDGE).map(0), ridge_map(x, y, penalty(x)))


@given(SHAPES, SEEDS)
def test_ridge_at_rank_k_is_regression_on_principal_components(shape: tuple[int, int, int], seed: int) -> None:
    source, target = states(*shape, seed)
    x, y = centered(source, target)
    v = torch.linalg.svd(x).Vh[:3]
    true = v.T @ ridge_map(x @ v.T, y, penalty(x))
    assert close(fitted(source, target, method="ridge", ridge=RIDGE, rank=3).map(0), true)


@given(SHAPES, SEEDS)
def test_procrustes_is_the_nearest_rotation_with_scale(shape: tuple[int, int, int], seed: int) -> None:
    source, target = states(*shape, seed)
    x, y = centered(source, target)
    p, sigma, r = torch.linalg.svd(x.T @ y, full_matrices=False)
    there = sigma > 1e-9 * sigma[0]  # below it the rotation is anyone's guess
    true = sigma.sum() / x.square().sum() * p[:, there] @ r[there]
    assert close(fitted(source, target, method="procrustes").map(0), true)


@given(SHAPES, SEEDS, st.integers(1, 5))
def test_rrr_is_the_best_map_of_its_rank(shape: tuple[int, int, int], seed: int, k: int) -> None:
    """Ordinary ridge, then the leading principal components of what it predicts (augmented by the penalty)."""
    source, target = states(*shape, seed)
    x, y = centered(source, target)
    whole = ridge_map(x, y, penalty(x))
    predicted = torch.cat([x @ whole, penalty(x) ** 0.5 * whole])
    v = torch.linalg.svd(predicted).Vh[:k]
    assert close(fitted(source, target, method="rrr", ridge=RIDGE, rank=k).map(0), whole @ v.T @ v)


@given(st.sampled_from([(40, 9, 7), (40, 7, 9), (40, 8, 8)]), SEEDS, st.integers(1, 5))
def test_cca_predicts_the_whitened_target(shape: tuple[int, int, int], seed: int, k: int) -> None:
    source, target = states(*shape, seed)
    x, y = centered(source, target)
    grams = x.T @ x + penalty(x) * torch.eye(x.shape[1]).double(), y.T @ y + penalty(y) * torch.eye(y.shape[1]).double()
    (root_s, _), (root_t, back_t) = (inverse_root(gram) for gram in grams)
    p, rho, r = torch.linalg.svd(root_s @ x.T @ y @ root_t, full_matrices=False)
    true = root_s @ p[:, :k] @ torch.diag(rho[:k]) @ r[:k] @ back_t
    assert close(fitted(source, target, method="cca", ridge=RIDGE, rank=k).map(0), true)


@given(st.sampled_from([(40, 9, 7), (40, 7, 9)]), SEEDS)
def test_without_penalty_and_at_full_rank_all_regressions_are_one(shape: tuple[int, int, int], seed: int) -> None:
    source, target = states(*shape, seed)
    true = torch.linalg.lstsq(*centered(source, target)).solution
    full = max(shape[1:])
    for options in ({"method": "unlock"}, *({"method": m, "ridge": 0.0} for m in ("ridge", "rrr", "cca"))):
        assert close(fitted(source, target, rank=full, **options).map(0), true), options


@given(st.sampled_from(sorted(METHODS)), SHAPES, SEEDS, st.integers(1, 5))
def test_every_method_is_nested(method: str, shape: tuple[int, int, int], seed: int, k: int) -> None:
    source, target = states(*shape, seed)
    whole = fitted(source, target, method=method, rank=max(shape))
    fresh = fitted(source, target, method=method, rank=k)
    torch.testing.assert_close(whole.at_rank(k).map(0), fresh.map(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_rrr_leaves_no_more_error_than_any_other_method_of_its_rank(k: int) -> None:
    source, target = states(60, 9, 7, seed=3)
    x, y = centered(source, target)
    errors = {}
    for method in METHODS:
        options = {"ridge": 0.0} if METHODS[method].default_ridge is not None else {}
        errors[method] = float((y - x @ fitted(source, target, method=method, rank=k, **options).map(0).double()).norm())
    assert min(errors, key=lambda method: errors[method] - 1e-6 * (method == "rrr")) == "rrr"


# Not procrustes: axes of H_s^T H_t at 1e-16 of the largest are noise to anyone.
@pytest.mark.parametrize("method", ["unlock", "ridge", "rrr", "cca"])
@pytest.mark.parametrize(("n", "d_s", "d_t"), [(20, 60, 50), (200, 60, 50)], ids=["n<d", "n>d"])
def test_states_in_float64_are_decomposed_as_by_a_full_svd(method: str, n: int, d_s: int, d_t: int) -> None:
    """Condition 1e8, of which a Gram matrix in float64 would lose half the digits that there are."""
    g = torch.Generator().manual_seed(1)
    k = min(n, d_t)

    def ill(d: int) -> Tensor:
        u, v = (torch.linalg.qr(torch.randn(m, k, generator=g, dtype=torch.float64)).Q for m in (n, d))
        return u @ torch.diag(torch.logspace(0, -8, k, dtype=torch.float64)) @ v.T

    source, target = ill(d_s), ill(d_t)
    options: dict[str, Any] = {"ridge": 0.0} if METHODS[method].default_ridge is not None else {}
    found = SubspaceAligner(k, False, method=method, **options).fit_activations(source[None], target[None])  # pyright: ignore[reportArgumentType]
    u_s, s, v_s = torch.linalg.svd(source, full_matrices=False)
    u_t, t, v_t = torch.linalg.svd(target, full_matrices=False)
    coupling = u_s[:, :k].T @ u_t[:, :k]
    true = v_s[:k].T @ (coupling * t[:k] / s[:k, None]) @ v_t[:k]
    assert float((found.map(0) - true).norm() / true.norm()) < 1e-5
    for axis in v_s[:3]:  # where the directions are, though the axes at 1e-8 rule the map's norm
        carried = found.maps.carry(0, axis)
        assert float((carried - axis @ true).norm() / (axis @ true).norm()) < 1e-5


@pytest.mark.parametrize("method", sorted(METHODS))
def test_half_precision_gives_what_the_same_numbers_give_in_single(method: Any) -> None:
    source, target = (h.bfloat16() for h in states(40, 9, 7, seed=2))
    half, single = (fitted(source.to(kind), target.to(kind), method=method) for kind in (torch.bfloat16, torch.float32))
    torch.testing.assert_close(half.map(0), single.map(0), rtol=0, atol=0)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_collinear_prompts_give_a_map_of_the_rank_that_is_there(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One axis of variation: rank 1, no noise blown up, and the cut-off is told."""
    source, target = torch.outer(torch.arange(1.0, 13.0), torch.ones(9)), torch.outer(torch.arange(1.0, 13.0), torch.ones(7))
    found = fitted(source, target, method=method, rank=4)
    assert found.maps.spanned == [1]
    assert torch.linalg.matrix_rank(found.map(0)) == 1
    assert "span only rank 1 at target layer 0 (singular values are cut below 1e-06 of the largest)" in caplog.text


def test_a_nearly_singular_gram_is_cut_and_not_inverted(caplog: pytest.LogCaptureFixture) -> None:
    """A last axis at 1e-8 of the first is noise of float32: without the cut it would rule the map."""
    source, target = states(50, 9, 7, seed=4)
    source[:, -1] = 1e-8 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    found = fitted(source, target, method="ridge", ridge=0.0)
    assert found.maps.spanned == [8]
    assert "span only rank 8 at target layer 0" not in caplog.text  # 7 are all that the target allows
    assert float(found.map(0).abs().max()) < 100


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "pca"}, "no method 'pca'; use one of unlock, ridge, procrustes, rrr, cca"),
        ({"ridge": 0.1}, "the method 'unlock' has none; use ridge, rrr or cca"),
        ({"method": "procrustes", "ridge": "cv"}, "the method 'procrustes' has none"),
        ({"method": "rrr", "ridge": -1.0}, "ridge -1.0 was given; it must be at least 0"),
        ({"method": "rrr", "ridge": float("nan")}, "ridge nan was given; it must be at least 0"),
        ({"method": "rrr", "ridge": "best"}, "ridge 'best' was given; give a number"),
        ({"rank": "full"}, "rank 'full' was given; give an integer"),
        ({"rank": 2.5}, "rank 2.5 was given; give an integer"),
        ({"rank": 0}, "rank 0 was given; at least 1 is needed"),
        ({"sinks": "remove"}, "sinks 'remove' was given; take one of auto, keep, drop, rescale"),
        ({"positions": 0}, "positions 0 were given"),
        ({"positions": True}, "positions True were given"),
    ],
)
def test_options_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    from tests.checks import unchecked

    with unchecked(), pytest.raises(ul.InvalidInput, match=message):
        SubspaceAligner(**given)


def test_axes_beyond_the_rank_are_not_made_for_a_method_that_ignores_them() -> None:
    source, target = states(40, 9, 7, seed=5)
    held = Held({0: 0}, {0: source}, {0: target}, torch.zeros(40, dtype=torch.long), centered=True)
    leading = held.pair(0, METHODS["unlock"].axes(3))
    assert leading.coupling.shape == (3, 3)
    assert METHODS["rrr"].axes(3) is None
