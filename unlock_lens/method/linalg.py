"""The thin SVD of stacked activations: by the cheaper of the two Gram matrices, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.method.reduce import RELATIVE_TOLERANCE


@dataclass(frozen=True, eq=False)
class RightFactors:
    """H = U S V^T, without U: the factors of all smaller ranks are their leading rows.

    Attributes:
        values: singular values S, descending, only those above the tolerance.
        vectors: right singular vectors V, as rows.
        scores: H V = U S.
    """

    values: Float[Tensor, " rank"]
    vectors: Float[Tensor, "rank d_model"]
    scores: Float[Tensor, "n rank"]


def right_factors(states: Float[Tensor, "n d_model"], rank: int, exact: bool = False) -> RightFactors:
    """The leading `rank` factors of the states, or fewer where they span less.

    A Gram matrix squares the condition, and tells singular values down to 1e-8 of the largest: enough for activations that
    were computed in half or single precision. `exact` takes the SVD of states that are better than that.
    """
    h = states.double()
    return _by_svd(h, rank) if exact else _by_gram(h, rank)


def _by_gram(h: Float[Tensor, "n d_model"], rank: int) -> RightFactors:
    n, d_model = h.shape
    values, basis = spectrum(upper_gram(h if n < d_model else h.T))
    values, basis = values[:rank], basis[:, :rank]
    if n < d_model:
        return RightFactors(values, (basis.T @ h) / values[:, None], basis * values)
    return RightFactors(values, basis.T, h @ basis)


def upper_gram(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """The upper triangle of rows rows^T, float64; BLAS computes no more than that, at half the price of the product."""
    from scipy.linalg import blas  # not at import, which is to cost little beyond torch's

    by_column, transposed = (rows.T, 1) if rows.is_contiguous() else (rows, 0)  # as Fortran reads it, without a copy
    return torch.from_numpy(blas.dsyrk(1.0, by_column.numpy(), trans=transposed))  # pyright: ignore[reportAttributeAccessIssue]


def spectrum(gram: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " rank"], Float[Tensor, "d rank"]]:
    """Singular values of H, descending, and eigenvectors of its Gram matrix as columns; those above the tolerance.

    The upper triangle alone is read.
    """
    squared, basis = torch.linalg.eigh(gram, UPLO="U")
    values, basis = squared.flip(0).clamp_min(0).sqrt(), basis.flip(1)
    kept = int((values > RELATIVE_TOLERANCE * values[0]).sum())
    return values[:kept], basis[:, :kept]


def _by_svd(h: Float[Tensor, "n d_model"], rank: int) -> RightFactors:
    left, values, vectors = torch.linalg.svd(h, full_matrices=False)
    kept = min(rank, int((values > max(h.shape) * torch.finfo(h.dtype).eps * values[0]).sum()))
    return RightFactors(values[:kept], vectors[:kept], left[:, :kept] * values[:kept])
