"""The spectrum, the running Gram matrix, and what is read off subspaces, beside NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor

from unlock_lens.method.linalg import Gram, coverage, principal_cosines, projected_out, spectral_entropy, spectrum


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("n", "d_model"), [(30, 9), (9, 30), (17, 17)])
def test_the_spectrum_is_the_svd(n: int, d_model: int, exact: bool) -> None:
    h = drawn(0, n, d_model).double()
    found, true = spectrum(h, exact=exact), np.linalg.svd(h.numpy(), compute_uv=False)
    np.testing.assert_allclose(found.values.numpy(), true, rtol=1e-9)
    torch.testing.assert_close(found.scores @ found.vectors, h)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(len(true), dtype=torch.float64))
    leading = spectrum(h, rank=4, exact=exact)
    torch.testing.assert_close(leading.scores @ leading.vectors, found.scores[:, :4] @ found.vectors[:4])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("n", "d_model"), [(40, 12), (12, 40)])
def test_what_is_not_spanned_is_cut(n: int, d_model: int, exact: bool) -> None:
    h = drawn(0, n, 5).double() @ drawn(1, 5, d_model).double()
    assert len(spectrum(h, exact=exact).values) == 5


@pytest.mark.parametrize(("size", "spanned"), [(1e-3, 3), (1e-9, 2)])
def test_axes_are_noise_below_a_millionth_of_the_largest(size: float, spanned: int) -> None:
    """Float32 states resolve a thousandth of the largest singular value, and not a billionth."""
    h = torch.linalg.qr(drawn(0, 20, 3).double()).Q * torch.tensor([1.0, 0.5, size])
    assert len(spectrum(h).values) == spanned


def test_a_gram_matrix_is_the_same_in_batches_and_from_any_point() -> None:
    x, y = drawn(0, 50, 6).double() + 3, drawn(1, 50, 4).double() - 2
    found = Gram.around(x[:7].mean(dim=0), y[:7].mean(dim=0))
    for rows in torch.arange(50).split(7):
        found.add(x[rows], y[rows])
    p, q = drawn(2, 6).double(), drawn(3, 4).double()
    torch.testing.assert_close(found.about(p, q), (x - p).T @ (y - q))
    torch.testing.assert_close(found.mean_x, x.mean(dim=0))
    assert found.n == 50


def test_gram_matrices_are_taken_apart() -> None:
    x = drawn(0, 30, 5).double()
    rest = Gram.of(x, x) - Gram.of(x[:10], x[:10])
    assert rest.n == 20
    torch.testing.assert_close(rest.about(rest.mean_x), (x[10:] - x[10:].mean(dim=0)).T @ (x[10:] - x[10:].mean(dim=0)))


def test_a_far_mean_costs_no_digits() -> None:
    """A mean a million times the spread: what is summed is the distance from the first batch's mean."""
    x = drawn(0, 200, 6) + 1e6
    found = Gram.around(x[:20].double().mean(dim=0))
    for rows in torch.arange(200).split(20):
        found.add(x[rows])
    true = x.double() - x.double().mean(dim=0)
    torch.testing.assert_close(found.about(found.mean_x), true.T @ true, rtol=1e-9, atol=1e-9)


def test_a_vector_loses_its_part_along_an_axis() -> None:
    vectors, axes = torch.tensor([[3.0, 4.0], [2.0, 0.0]]), torch.tensor([[5.0, 0.0], [1.0, 0.0]])
    left, gone = projected_out(vectors, axes)
    assert left[0].tolist() == [0, 4]
    assert gone == [1]


def test_coverage_is_the_share_of_the_squared_norm() -> None:
    axes = torch.eye(8)[:3]
    assert coverage(torch.tensor([3.0, 0, 0, 4, 0, 0, 0, 0]), axes) == pytest.approx(9 / 25)
    assert coverage(torch.eye(8)[5], axes) == 0
    assert coverage(torch.eye(8)[1], axes) == 1


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_effective_rank_of_k_equal_singular_values_is_k(k: int) -> None:
    left, right = (torch.linalg.qr(drawn(seed, 20, k)).Q for seed in (0, 1))
    assert np.exp(spectral_entropy(spectrum(5 * left @ right.T).values)) == pytest.approx(k)


def test_spectral_entropy_is_scipys() -> None:
    h = drawn(0, 50, 8).double()
    values = np.linalg.svd((h - h.mean(0)).numpy(), compute_uv=False)
    found = spectral_entropy(spectrum(h - h.mean(0)).values)
    assert found == pytest.approx(scipy.stats.entropy(values**2 / (values**2).sum()))
    assert spectral_entropy(torch.zeros(3)) == 0


def test_principal_angles_are_scipys() -> None:
    a, b = drawn(0, 3, 10), drawn(1, 4, 10)
    true = np.cos(scipy.linalg.subspace_angles(a.T.double().numpy(), b.T.double().numpy()))
    np.testing.assert_allclose(np.sort(principal_cosines(a, b).numpy()), np.sort(true), atol=1e-6)
    padded = torch.cat([a, torch.zeros(2, 10)])
    torch.testing.assert_close(principal_cosines(padded, b), principal_cosines(a, b))


def test_a_cross_gram_of_equal_widths_is_seen_from_two_points() -> None:
    x, y, p, q = drawn(1, 9, 4).double(), drawn(2, 9, 4).double(), drawn(3, 4).double(), drawn(4, 4).double()
    torch.testing.assert_close(Gram.of(x, y).about(p, q), (x - p).T @ (y - q))
