"""Which model something belongs to: all of its embedding counts, and in which basis its host holds it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unlock_lens.hosts.identity import fingerprint
from unlock_lens.hosts.transformer_lens import _basis  # pyright: ignore[reportPrivateUsage]


def embedding(rows: int = 2000) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("half", ["first", "last"])
def test_a_fingerprint_sees_the_whole_embedding(half: str) -> None:
    """More rows than are looked at: a change of either half of the vocabulary is seen."""
    changed = embedding()
    rows = slice(0, 1000) if half == "first" else slice(1000, 2000)
    changed[rows] *= -1
    assert fingerprint(changed) != fingerprint(embedding())


def test_a_fingerprint_ignores_precision_and_scale() -> None:
    assert fingerprint(embedding().bfloat16()) == fingerprint(3 * embedding()) == fingerprint(embedding())


@pytest.mark.parametrize(
    ("normalization", "left_over", "basis"),
    [
        ("LN", 0.0, "zero_mean"),
        ("LN", 1e-6, "zero_mean"),
        ("LN", 1e-4, "raw"),
        ("LNPre", 0.0, "zero_mean"),
        ("RMS", 0.0, "raw"),
    ],
)
def test_a_basis_is_zero_mean_where_the_embedding_has_no_mean(normalization: str, left_over: float, basis: str) -> None:
    """What rounding leaves of the d_model mean is a millionth of the weights; a hundred times that is a mean."""
    centered = embedding().double()
    centered -= centered.mean(dim=1, keepdim=True)
    centered += left_over * centered.abs().mean()
    model = SimpleNamespace(cfg=SimpleNamespace(normalization_type=normalization), W_E=centered)
    assert _basis(model) == basis


@pytest.mark.parametrize("mean", [1.0, -1.0])
def test_one_row_with_a_mean_makes_a_basis_raw(mean: float) -> None:
    """Of either sign; all other rows have none."""
    rows = embedding().double()
    rows -= rows.mean(dim=1, keepdim=True)
    rows[7] += mean
    assert _basis(SimpleNamespace(cfg=SimpleNamespace(normalization_type="LN"), W_E=rows)) == "raw"


def test_a_row_of_zeros_leaves_a_zero_mean_basis() -> None:
    """The embedding of a pad token, say."""
    rows = embedding().double()
    rows -= rows.mean(dim=1, keepdim=True)
    rows[0] = 0
    assert _basis(SimpleNamespace(cfg=SimpleNamespace(normalization_type="LN"), W_E=rows)) == "zero_mean"
