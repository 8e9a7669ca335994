"""How far the map of one layer can be trusted: on held-out tokens, and along a direction (docs/diagnosis.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.align import METHODS, MethodName
from unlock_lens.method.calibrate import Held, Scores
from unlock_lens.method.crossval import HeldOut, splits, squared_errors

SHRINKAGE = 1e-3
"""Share of the mean variance that is added to every variance, so that a reading does not live on noise."""
_TINY = 1e-30


@dataclass(frozen=True)
class MapQuality:
    """Of one layer pair, on tokens that the map was not fitted on; as in `LayerDiagnosis`."""

    error: float
    r2: float
    agreement: float
    full_agreement: float


def cross_validate(
    source: Float[Tensor, "n d_source"],
    target: Float[Tensor, "n d_target"],
    vector: Float[Tensor, " d_source"],
    rank: int,
    centered: bool,
    folds: int = 4,
    method: MethodName = "unlock",
    ridge: float = 0.0,
) -> MapQuality:
    """Fit the map on all folds but one, look at that one, in turn; folds are runs of neighbouring tokens."""
    n = source.shape[0]
    if folds < 2 or n < 2 * folds:
        raise InvalidInput(
            f"{n} tokens and {folds} folds were given; cross-validation needs at least 2 folds of 2 tokens: "
            "give more texts, or fewer folds"
        )
    fold, v = torch.arange(n) * folds // n, vector.double()
    (source_axes, scores_s), (target_axes, scores_t) = Held({0: 0}, {0: source}, {0: target}, fold, centered).sides(0)
    found = HeldOut.nothing(1, 1)
    readings: list[tuple[Tensor, Tensor, Tensor]] = []
    for split in splits(Scores(scores_s, scores_t, fold), centered):
        factors = METHODS[method].fit(split.pair, rank, ridge)
        found = found.plus(split, squared_errors(factors, split.seen, [rank])[None])
        left, right = factors.left @ source_axes.vectors, factors.right @ target_axes.vectors
        readings.append(_readings(source.double(), target.double(), fold == split.k, v, v @ left.T @ factors.core @ right))
    read, transported, full = (torch.cat(parts) for parts in zip(*readings, strict=True))
    error, r2 = float(found.error), float(found.r2)
    return MapQuality(error, r2, agreement=correlation(read, transported), full_agreement=correlation(read, full))


def _readings(h_s: Tensor, h_t: Tensor, out: Tensor, v: Tensor, transported: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How much of v is in the held-out source states, and of its image (by the map; without rank limit) in the target's."""
    kept_s, kept_t = h_s[~out], h_t[~out]
    mean_s, mean_t = kept_s.mean(dim=0), kept_t.mean(dim=0)
    filter_s = reading(kept_s, v)
    unlimited = ((kept_s - mean_s) @ filter_s) @ (kept_t - mean_t)
    apart_s, apart_t = h_s[out] - mean_s, h_t[out] - mean_t
    return apart_s @ filter_s, apart_t @ reading(kept_t, transported), apart_t @ reading(kept_t, unlimited)


def reading(states: Float[Tensor, "n d_model"], vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """The filter that best tells how much of `vector` is in a state: S^-1 v / (v' S^-1 v), S the shrunk covariance.

    It reads 1 more where v is added, and as little as can be of all else that varies. A projection on v would read mostly that.
    """
    spread = states.double() - states.double().mean(dim=0)
    covariance = spread.T @ spread / len(spread)
    floor = SHRINKAGE * covariance.diagonal().mean().clamp_min(_TINY)
    solved: Tensor = torch.linalg.solve(
        covariance + floor * torch.eye(len(covariance), dtype=covariance.dtype), vector.double()
    )
    return solved / (solved @ vector.double()).clamp_min(_TINY)


def correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(_TINY))


def carried_over(
    source: Float[Tensor, "n d_source"],
    target: Float[Tensor, "n d_target"],
    factors: Float[Tensor, "rank d_source"],
    centered: bool,
) -> Float[Tensor, "rank d_target"]:
    """Rows whose span is where the source's subspace goes in the target, with no limit on the target's side."""
    h_s, h_t = source.double(), target.double()
    if centered:
        h_s, h_t = h_s - h_s.mean(dim=0), h_t - h_t.mean(dim=0)
    return (h_s @ factors.double().T).T @ h_t
