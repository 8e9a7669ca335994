"""Cross-validation: the one held-out R2, and the rank and ridge strength that it chooses on the calibration tokens alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.align import METHODS, Factors, MethodName, Pair
from unlock_lens.method.calibrate import Calibration, Moments, Scores
from unlock_lens.method.linalg import TINY

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDS = 5
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge strengths that are tried, in mean squared singular values of the source."""
TOLERANCE = 0.01
"""What rank "auto" gives up in held-out R2 for a smaller rank."""


@dataclass(frozen=True, eq=False)
class Split:
    """One fold held out.

    Attributes:
        k: which fold.
        pair: what a map is fitted from: the other folds.
        seen: Gram and cross-Gram matrices of the held-out tokens, seen from the other folds' means, or from zero.
        spread: squared distances of the held-out target states from the other folds' mean.
    """

    k: int
    pair: Pair
    seen: tuple[Tensor, Tensor, Tensor]
    spread: float


def splits(scores: Scores, centered: bool, held_out: Sequence[int] | None = None, ends_only: bool = False) -> Iterator[Split]:
    """Hold out each fold in turn, or those that are named; folds without tokens are passed over.

    With `ends_only` the last tokens of the held-out texts alone are looked at.

    Raises:
        InvalidInput: fewer than two folds that hold tokens.
    """
    folds: list[int] = scores.fold.unique().tolist()
    if len(folds) < 2:
        raise InvalidInput("cross-validation needs calibration tokens from at least two texts; give more, or a rank and ridge")
    whole = Moments.of(scores.source, scores.target)
    for k in folds if held_out is None else [k for k in held_out if k in folds]:
        out = Moments.of(scores.source[scores.fold == k], scores.target[scores.fold == k])
        rest = whole - out
        if ends_only and scores.ends is not None:
            looked_at = (scores.fold == k) & scores.ends
            if not bool(looked_at.any()):
                continue
            out = Moments.of(scores.source[looked_at], scores.target[looked_at])
        spread = float(out.target.about(rest.target.mean_x).trace())
        yield Split(k, rest.pair(centered), out.about(*rest.points(centered)), spread)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What maps miss on tokens that they were not fitted on.

    Attributes:
        missed: ||H_t - H_s W||^2 for each ridge strength and rank.
        spread: squared distances of the same target states from the mean of those that were fitted on.
        energy: ||H_t||^2, centered where the map is.
    """

    missed: Float[Tensor, "ridge rank"]
    spread: float
    energy: float

    @classmethod
    def nothing(cls, ridges: int, ranks: int) -> HeldOut:
        """Before any fold."""
        return cls(torch.zeros(ridges, ranks, dtype=torch.float64), 0.0, 0.0)

    def plus(self, split: Split, missed: Float[Tensor, "ridge rank"]) -> HeldOut:
        """With one more fold, of which the maps missed so much."""
        return HeldOut(self.missed + missed, self.spread + split.spread, self.energy + float(split.seen[1].trace()))

    @property
    def r2(self) -> Float[Tensor, "ridge rank"]:
        """Share of the target's variance that the source predicts."""
        return 1 - self.missed / max(self.spread, TINY)

    @property
    def error(self) -> Float[Tensor, "ridge rank"]:
        """The paper's transform error, ||H_t - H_s W|| / ||H_t||."""
        return (self.missed.clamp_min(0) / max(self.energy, TINY)).sqrt()


def held_out(found: Iterator[Split], method: MethodName, ranks: Sequence[int], ridges: Sequence[float]) -> HeldOut:
    """Fit at every ridge strength and rank, and sum over the folds what the maps miss."""
    total = HeldOut.nothing(len(ridges), len(ranks))
    for split in found:
        fitted = (METHODS[method].fit(split.pair, max(ranks), ridge) for ridge in ridges)
        total = total.plus(split, torch.stack([squared_errors(factors, split.seen, ranks) for factors in fitted]))
    return total


def squared_errors(factors: Factors, seen: tuple[Tensor, Tensor, Tensor], ranks: Sequence[int]) -> Float[Tensor, " rank"]:
    """||H_t - H_s W_k||^2 = tr G_t - 2 <W_k, C> + <W_k, G_s W_k> at each rank k, without the states."""
    gram_s, gram_t, cross = seen
    agreement = factors.left @ cross @ factors.right.T
    read, written = factors.left @ gram_s @ factors.left.T, factors.right @ factors.right.T
    errors: list[Tensor] = []
    for k in ranks:
        core = factors.core[:k, :k]
        energy = einsum(core.T @ read[:k, :k] @ core, written[:k, :k], "t u, t u ->")
        errors.append(gram_t.trace() - 2 * einsum(core, agreement[:k, :k], "s t, s t ->") + energy)
    return torch.stack(errors)


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Held-out R2 of every rank and ridge penalty that was tried, at every target layer.

    Attributes:
        layers: target layers.
        ranks: ascending.
        ridges: ascending.
        r2: share of the target's variance that the source predicts on texts that the map was not fitted on.
        tolerance: how far below the highest R2 a smaller rank may stay.

    Source: docs/aligners.md.
    """

    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    ridges: tuple[float, ...]
    r2: Float[Tensor, "layer ridge rank"]
    tolerance: float = 0.0

    @property
    def best(self) -> tuple[int, float]:
        """Rank and ridge of the highest R2, mean over layers; of equal ones the smallest rank, then the smallest ridge.

        A layer that is predicted worse than by its mean counts as 0, so that it does not outweigh the others.

        Example:
            >>> import torch
            >>> from unlock_lens.method.crossval import CrossValidation
            >>> CrossValidation((0,), ranks=(1, 2), ridges=(0.1,), r2=torch.tensor([[[0.5, 0.7]]])).best
            (2, 0.1)
        """
        rank, ridge = self._best
        return self.ranks[rank], self.ridges[ridge]

    @property
    def share(self) -> float:
        """The held-out R2 of the best, mean over layers."""
        rank, ridge = self._best
        return float(self._mean[rank, ridge])

    @property
    def _mean(self) -> Float[Tensor, "rank ridge"]:
        return self.r2.clamp_min(0).mean(dim=0).T

    @property
    def _best(self) -> tuple[int, int]:
        rank, ridge = (self._mean >= self._mean.max() - self.tolerance).nonzero().tolist()[0]
        return rank, ridge

    def frame(self) -> DataFrame:
        """One row for each layer, ridge and rank."""
        from pandas import DataFrame

        places = [(b, ridge, k) for b in self.layers for ridge in self.ridges for k in self.ranks]
        return DataFrame(places, columns=["layer", "ridge", "rank"]).assign(r2=self.r2.flatten().tolist())

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        told = {"layers": self.layers, "ranks": self.ranks, "ridges": self.ridges, "r2": self.r2.tolist()}
        return {**told, "tolerance": self.tolerance}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CrossValidation:
        """What `to_json` gave."""
        r2 = torch.tensor(content["r2"], dtype=torch.float64)
        axes = tuple(content["layers"]), tuple(content["ranks"]), tuple(content["ridges"])
        return cls(*axes, r2, content.get("tolerance", 0.0))


def cross_validate(
    calibration: Calibration,
    layers: Sequence[int],
    method: MethodName,
    centered: bool,
    rank: int | Literal["auto", "cv"] | None,
    ridge: float | Literal["cv"] | None,
) -> CrossValidation:
    """Fit on all folds but one, look at that one, in turn; "cv" tries a grid of ranks or of ridges.

    Rank "auto" looks at the last tokens of the texts alone, where directions are taken and edits go in.

    One layer at a time, whose axes are forgotten again: the fit with what is chosen decomposes each layer once more.

    Raises:
        InvalidInput: fewer than two folds that hold tokens.
    """
    ridges = RIDGES if ridge == "cv" else (ridge or 0.0,)
    tried: list[tuple[int, ...]] = []
    curves: list[Tensor] = []
    for b in layers:
        scores = calibration.scores(b)
        spanned = METHODS[method].widest(scores.source.shape[1], scores.target.shape[1])
        tried.append((rank,) if isinstance(rank, int) else rank_grid(spanned) if rank in ("auto", "cv") else (spanned,))
        curves.append(held_out(splits(scores, centered, ends_only=rank == "auto"), method, tried[-1], ridges).r2)
    ranks = max(tried, key=lambda of_layer: of_layer[-1])
    # Beyond what a layer spans its map stays the same.
    places = [[min(bisect_left(of_layer, k), len(of_layer) - 1) for k in ranks] for of_layer in tried]
    r2 = torch.stack([curve[:, place] for curve, place in zip(curves, places, strict=True)])
    return CrossValidation(tuple(layers), ranks, ridges, r2, TOLERANCE if rank == "auto" else 0.0)


def rank_grid(widest: int) -> tuple[int, ...]:
    """Two ranks an octave: 1, 2, 3, 4, 6, 8, 12, 16, ... and the widest."""
    powers = [2**i for i in range(widest.bit_length())]
    grid = sorted({*powers, *(3 * power // 2 for power in powers if power > 1), widest})
    return tuple(rank for rank in grid if rank <= widest)
