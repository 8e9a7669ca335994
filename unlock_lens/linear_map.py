"""W[b] = V_s^T M V_t, the linear map of one layer pair, always factored (docs/method.md, section 2: align)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.decomposition import RightFactors, right_factors
from unlock_lens.errors import InvalidInput


def proportional_layer(target_layer: int, source_layers: int, target_layers: int) -> int:
    """a(b) = floor((L_s - 1) b / (L_t - 1)); the last source layer for a target of one layer."""
    if target_layers == 1:
        return source_layers - 1
    return (source_layers - 1) * target_layer // (target_layers - 1)


@dataclass(frozen=True, eq=False)
class FactoredMaps:
    """W[b] = V_s^T M V_t for each mapped target layer b, in the order of `layer_map`; rows beyond a layer's rank are zero.

    Attributes:
        layer_map: target layer -> source layer.
        source_factors: V_s.
        core: M = S_s^-1 U_s^T U_t S_t.
        target_factors: V_t.
        source_mean: mean of the source's states at the calibration tokens, by which they were centred if they were.
        target_mean: the same of the target's states; minus this is the anti-mean control.
    """

    layer_map: Mapping[int, int]
    source_factors: Float[Tensor, "layer rank d_source"]
    core: Float[Tensor, "layer rank rank"]
    target_factors: Float[Tensor, "layer rank d_target"]
    source_mean: Float[Tensor, "layer d_source"]
    target_mean: Float[Tensor, "layer d_target"]

    @property
    def rank(self) -> int:
        return self.core.shape[-1]

    @property
    def spanned(self) -> tuple[list[int], list[int]]:
        """For each layer how many factors of source and target are above the tolerance."""
        source, target = (
            (factors != 0).any(dim=-1).sum(dim=-1).tolist() for factors in (self.source_factors, self.target_factors)
        )
        return source, target

    def at_rank(self, rank: int) -> FactoredMaps:
        return replace(
            self,
            source_factors=self.source_factors[:, :rank],
            core=self.core[:, :rank, :rank],
            target_factors=self.target_factors[:, :rank],
        )

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@dataclass(frozen=True, eq=False)
class Spanned:
    """What the calibration tokens span at one layer."""

    mean: Float[Tensor, " d_model"]
    factors: RightFactors


def decompose(states: Float[Tensor, "n d_model"], rank: int, centered: bool, name: str) -> Spanned:
    """The leading factors of one layer's states, centred if asked; `name` is for errors.

    Raises:
        InvalidInput: states that are not finite, or all zero once they are centred.
    """
    h = states.detach().to("cpu", torch.float64)
    if not bool(h.isfinite().all()):
        token = int((~h.isfinite()).any(dim=1).nonzero()[0])
        raise InvalidInput(f"the activations of {name} are not finite at token {token}; leave that prompt out")
    mean = h.mean(dim=0)
    h = h - mean if centered else h
    if not bool(h.any()):
        raise InvalidInput(f"the activations of {name} do not vary over the calibration tokens; give more and other texts")
    return Spanned(mean, right_factors(h, rank))


def fit_layer(source: Spanned, target: Spanned, rank: int) -> dict[str, Tensor]:
    """V_s, M, V_t of one layer pair: H_s V_s^T = U_s S_s, so M = pinv(H_s V_s^T) (H_t V_t^T) needs no pinv."""
    core = (source.factors.scores.T @ target.factors.scores) / source.factors.values[:, None] ** 2
    padded = torch.zeros(rank, rank, dtype=core.dtype)
    padded[: core.shape[0], : core.shape[1]] = core
    found = {
        "source_factors": _padded(source.factors.vectors, rank),
        "core": padded,
        "target_factors": _padded(target.factors.vectors, rank),
        "source_mean": source.mean,
        "target_mean": target.mean,
    }
    return {name: value.float() for name, value in found.items()}


def _padded(rows: Float[Tensor, "found d_model"], rank: int) -> Float[Tensor, "rank d_model"]:
    return torch.cat([rows, rows.new_zeros(rank - rows.shape[0], rows.shape[1])])
