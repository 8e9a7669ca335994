"""Rank and ridge strength chosen by cross-validation on the calibration tokens alone, with the whole curve kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.methods import Factors, Method
from unlock_lens.method.moments import Moments

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDS = 5
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried, in mean squared singular values of the source."""


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Held-out R2 of every rank and ridge strength that was tried, at every target layer.

    Attributes:
        layers: target layers.
        ranks: ascending.
        ridges: ascending.
        r2: share of the target's variance that the source predicts on texts that the map was not fitted on.

    Source: docs/aligners.md.

    Example:
        >>> import torch
        >>> from unlock_lens.method.crossval import CrossValidation
        >>> CrossValidation((0,), ranks=(1, 2), ridges=(0.1,), r2=torch.tensor([[[0.5, 0.7]]])).best
        (2, 0.1)
    """

    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    ridges: tuple[float, ...]
    r2: Float[Tensor, "layer ridge rank"]

    @property
    def best(self) -> tuple[int, float]:
        """Rank and ridge of the highest R2, mean over layers; of equal ones the smallest rank, then the smallest ridge.

        A layer that is predicted worse than by its mean counts as 0: how much worse must not outvote the others.
        """
        mean = self.r2.clamp_min(0).mean(dim=0).T
        rank, ridge = (mean >= mean.max()).nonzero().tolist()[0]
        return self.ranks[rank], self.ridges[ridge]

    def frame(self) -> DataFrame:
        """One row for each layer, ridge and rank."""
        from pandas import DataFrame

        places = [(b, ridge, k) for b in self.layers for ridge in self.ridges for k in self.ranks]
        return DataFrame(places, columns=["layer", "ridge", "rank"]).assign(r2=self.r2.flatten().tolist())

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"layers": self.layers, "ranks": self.ranks, "ridges": self.ridges, "r2": self.r2.tolist()}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> CrossValidation:
        """What `to_json` gave."""
        r2 = torch.tensor(told["r2"], dtype=torch.float64)
        return cls(tuple(told["layers"]), tuple(told["ranks"]), tuple(told["ridges"]), r2)


def cross_validate(
    folds: Mapping[int, Sequence[Moments]],
    method: Method,
    centered: bool,
    rank: int | Literal["cv"] | None,
    ridge: float | Literal["cv"] | None,
) -> CrossValidation:
    """Fit on all folds but one, look at that one, in turn, at each target layer; "cv" tries a grid of ranks or of ridges.

    Raises:
        InvalidInput: fewer than two folds that hold tokens.
    """
    if any(sum(fold.n > 0 for fold in of_layer) < 2 for of_layer in folds.values()):
        raise InvalidInput("cross-validation needs calibration tokens of two texts at least; give more, or a rank and a ridge")
    widest = max(method.widest(*of_layer[0].cross.shape) for of_layer in folds.values())
    ranks = rank_grid(widest) if rank == "cv" else (rank or widest,)
    ridges = RIDGES if ridge == "cv" else (ridge or 0.0,)
    r2 = [_held_out_r2(of_layer, method, centered, ranks, ridges) for of_layer in folds.values()]
    return CrossValidation(tuple(folds), ranks, ridges, torch.stack(r2))


def rank_grid(widest: int) -> tuple[int, ...]:
    """Two ranks an octave: 1, 2, 3, 4, 6, 8, 12, 16, ... and the widest."""
    powers = [2**i for i in range(widest.bit_length())]
    grid = sorted({*powers, *(3 * power // 2 for power in powers if power > 1), widest})
    return tuple(rank for rank in grid if rank <= widest)


def _held_out_r2(
    folds: Sequence[Moments], method: Method, centered: bool, ranks: Sequence[int], ridges: Sequence[float]
) -> Float[Tensor, "ridge rank"]:
    missed, spread = torch.zeros(len(ridges), len(ranks), dtype=torch.float64), 0.0
    for fold in folds:
        if not fold.n:
            continue
        rest = reduce(add, (other for other in folds if other is not fold))
        pair = rest.pair(centered)
        spread += float(fold.about(*rest.means)[1].trace())
        seen = fold.about(*rest.points(centered))
        for i, ridge in enumerate(ridges):
            missed[i] += squared_errors(method.fit(pair, max(ranks), ridge), seen, ranks)
    return 1 - missed / max(spread, torch.finfo(torch.float64).tiny)


def squared_errors(factors: Factors, seen: tuple[Tensor, Tensor, Tensor], ranks: Sequence[int]) -> Float[Tensor, " rank"]:
    """||H_t - H_s W_k||^2 at each rank k, of states whose Gram and cross-Gram matrices are seen: tr G_t - 2 W.C + W.G_s W."""
    gram_s, gram_t, cross = seen
    agreement = factors.left @ cross @ factors.right.T
    read, written = factors.left @ gram_s @ factors.left.T, factors.right @ factors.right.T
    errors: list[Tensor] = []
    for k in ranks:
        core = factors.core[:k, :k]
        energy = ((core.T @ read[:k, :k] @ core) * written[:k, :k]).sum()
        errors.append(gram_t.trace() - 2 * (core * agreement[:k, :k]).sum() + energy)
    return torch.stack(errors)
