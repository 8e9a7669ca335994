"""What a method of alignment is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Axes:
    """The states of one model at one layer in their principal axes, H = U S V, in float64.

    Attributes:
        mean: of the states, by which they were centred if they were.
        values: S, descending.
        vectors: V, orthonormal rows.
    """

    mean: Float[Tensor, " d_model"]
    values: Float[Tensor, " rank"]
    vectors: Float[Tensor, "rank d_model"]


@dataclass(frozen=True, eq=False)
class Pair:
    """A source and a target layer: all that a linear map between them can be made of.

    Attributes:
        source: H_s = U_s S_s V_s.
        target: H_t = U_t S_t V_t.
        coupling: U_s^T U_t, how the tokens' scores go together.
    """

    source: Axes
    target: Axes
    coupling: Float[Tensor, "rank_s rank_t"]

    def penalty(self, ridge: float) -> Float[Tensor, ""]:
        """Lambda: the ridge strength is told in mean squared singular values of the source, of those that are spanned."""
        return ridge * self.source.values.square().mean()


@dataclass(frozen=True, eq=False)
class Factors:
    """W = left^T core right; its leading k rows, columns and block are the map that a fit at rank k gives."""

    left: Float[Tensor, "rank_s d_source"]
    core: Float[Tensor, "rank_s rank_t"]
    right: Float[Tensor, "rank_t d_target"]


@dataclass(frozen=True)
class Method:
    """One way to make a map.

    Attributes:
        name: as `SubspaceAligner(method=...)` takes it.
        fit: gives the factors of one layer pair, for a rank and a ridge strength.
        default_rank: where none is asked for; None for all that the calibration tokens span.
        default_ridge: where none is asked for; None where the method knows no ridge.
        leading_axes: whether axes beyond the rank change nothing, so that they need not be computed.
        source_axes: whether the rank counts axes of the source alone.
    """

    name: str
    fit: Callable[[Pair, int, float], Factors]
    default_rank: int | None
    default_ridge: float | None
    leading_axes: bool = False
    source_axes: bool = False

    def widest(self, source: int, target: int) -> int:
        """The largest rank that means anything, of what the tokens span in source and target."""
        return source if self.source_axes else min(source, target)

    def axes(self, rank: int | None) -> int | None:
        """How many principal axes a fit at this rank needs; None for all."""
        return rank if self.leading_axes else None


def lifted(pair: Pair, left: Tensor, core: Tensor, right: Tensor, rank: int) -> Factors:
    """Factors in the residual streams of factors in principal axes."""
    found = Factors(left[:rank] @ pair.source.vectors, core, right[:rank] @ pair.target.vectors)
    k = min(found.left.shape[0], found.right.shape[0])
    return Factors(found.left[:k], core[:k, :k], found.right[:k])


def diagonal(values: Float[Tensor, " rank"]) -> Float[Tensor, "rank rank"]:
    """A core that is diagonal."""
    return torch.diag_embed(values)
