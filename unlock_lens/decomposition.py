"""The thin SVD of stacked activations, by the cheaper of the two Gram matrices, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RELATIVE_TOLERANCE = 1e-6
"""Singular values below this share of the largest are noise of float32 activations, and are cut."""


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


def right_factors(states: Float[Tensor, "n d_model"], rank: int) -> RightFactors:
    """The leading `rank` factors of the states, or fewer where they span less."""
    h = states.double()
    n, d_model = h.shape
    gram = h @ h.T if n < d_model else h.T @ h
    squared, basis = torch.linalg.eigh(gram)
    squared, basis = squared.flip(0).clamp_min(0), basis.flip(1)
    kept = min(rank, int((squared.sqrt() > RELATIVE_TOLERANCE * squared[0].sqrt()).sum()))
    values, basis = squared[:kept].sqrt(), basis[:, :kept]
    if n < d_model:
        return RightFactors(values, (basis.T @ h) / values[:, None], basis * values)
    return RightFactors(values, basis.T, h @ basis)
