"""How far the map of one layer can be trusted: on held-out tokens, along a direction, by its subspaces (docs/diagnosis.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.calibrate import pair_of
from unlock_lens.method.linalg import right_factors
from unlock_lens.method.methods import METHODS, Factors

SHRINKAGE = 1e-3
"""Share of the mean variance that is added to every variance, so that a reading does not live on noise."""
_TINY = 1e-30


@dataclass(frozen=True)
class MapQuality:
    """Of one layer pair, on tokens that the map was not fitted on.

    Attributes:
        error: ||H_t - predicted|| / ||H_t||, H_t centred where the map is.
        r2: share of the target's variance that the source predicts.
        agreement: correlation of the source's reading of the direction with the target's reading of the transported one.
        full_agreement: the same without a limit of rank: what the texts allow.
    """

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
    method: str = "unlock",
    ridge: float = 0.0,
) -> MapQuality:
    """Fit the map on all folds but one, look at that one, in turn; folds are runs of neighbouring tokens.

    Raises:
        InvalidInput: fewer than two folds, or fewer than two tokens a fold.

    Example:
        >>> import torch
        >>> from unlock_lens.evidence.diagnosis.map_quality import cross_validate
        >>> h = torch.randn(80, 8, generator=torch.Generator().manual_seed(0))
        >>> quality = cross_validate(h, 2 * h, h[0], rank=8, centered=True)
        >>> round(quality.r2, 3), round(quality.agreement, 3)
        (1.0, 1.0)
    """
    n = source.shape[0]
    if folds < 2 or n < 2 * folds:
        raise InvalidInput(
            f"{n} tokens and {folds} folds were given; cross-validation needs at least 2 folds of 2 tokens: "
            "give more texts, or fewer folds"
        )
    fold, v = torch.arange(n) * folds // n, vector.double()
    held: list[tuple[Tensor, ...]] = []
    for k in range(folds):
        kept = fold != k
        pair = pair_of(source[kept], target[kept], centered, METHODS[method].axes(rank))
        factors = METHODS[method].fit(pair, rank, ridge)
        held.append(_hold_out(source.double(), target.double(), v, fold == k, factors, centered))
    residual, read, transported, full = (torch.cat(parts) for parts in zip(*held, strict=True))
    h_t = target.double()
    spread = h_t - h_t.mean(dim=0)
    whole = spread if centered else h_t
    return MapQuality(
        error=float(residual.norm() / whole.norm().clamp_min(_TINY)),
        r2=float(1 - residual.square().sum() / spread.square().sum().clamp_min(_TINY)),
        agreement=correlation(read, transported),
        full_agreement=correlation(read, full),
    )


def _hold_out(
    h_s: Float[Tensor, "n d_source"],
    h_t: Float[Tensor, "n d_target"],
    v: Float[Tensor, " d_source"],
    out: Bool[Tensor, " n"],
    factors: Factors,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept_s, kept_t = h_s[~out], h_t[~out]
    mean_s, mean_t = kept_s.mean(dim=0), kept_t.mean(dim=0)
    from_s, from_t = (mean_s, mean_t) if centered else (torch.zeros_like(mean_s), torch.zeros_like(mean_t))
    predicted = (h_s[out] - from_s) @ factors.left.T @ factors.core @ factors.right + from_t
    filter_s = reading(kept_s, v)
    unlimited = ((kept_s - mean_s) @ filter_s) @ (kept_t - mean_t)
    transported = v @ factors.left.T @ factors.core @ factors.right
    centred_s, centred_t = h_s[out] - mean_s, h_t[out] - mean_t
    return (
        h_t[out] - predicted,
        centred_s @ filter_s,
        centred_t @ reading(kept_t, transported),
        centred_t @ reading(kept_t, unlimited),
    )


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


def coverage(vector: Float[Tensor, " d_model"], factors: Float[Tensor, "rank d_model"]) -> float:
    """Share of the vector's squared norm inside the span of the factors; rows of zeros do not count."""
    v, basis = vector.double(), right_factors(torch.nn.functional.normalize(factors, dim=1), min(factors.shape)).vectors
    return min(1.0, float((basis @ v).square().sum() / v.square().sum()))


def spectral_entropy(states: Float[Tensor, "n d_model"], centered: bool = True) -> float:
    """Entropy (nats) of the shares of variance along the principal axes; its exponential is the effective rank.

    Example:
        >>> import torch
        >>> from unlock_lens.evidence.diagnosis.map_quality import spectral_entropy
        >>> round(spectral_entropy(torch.eye(4), centered=False), 4)  # four equal axes: log 4
        1.3863
    """
    return entropy_of(singular_values(states, centered))


def entropy_of(values: Float[Tensor, " rank"]) -> float:
    """The spectral entropy (nats) of singular values; 0 where all of them are."""
    shares = values.double().square() / values.double().square().sum().clamp_min(_TINY)
    return float(torch.special.entr(shares).sum())


def singular_values(states: Float[Tensor, "n d_model"], centered: bool) -> Float[Tensor, " rank"]:
    """All of them, descending, by the smaller Gram matrix in float64."""
    h = states.double()
    h = h - h.mean(dim=0) if centered else h
    gram = h @ h.T if h.shape[0] < h.shape[1] else h.T @ h
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()


def principal_cosines(a: Float[Tensor, "rank_a d_model"], b: Float[Tensor, "rank_b d_model"]) -> Float[Tensor, " angle"]:
    """Cosines of the principal angles between the spans of the rows of a and of b, descending; zero rows do not count."""
    bases = [right_factors(rows, min(rows.shape)).vectors for rows in (a, b)]
    return torch.linalg.svdvals(bases[0] @ bases[1].T).clamp(0, 1)


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
