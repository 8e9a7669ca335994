"""W[b] = V_s^T M V_t, the linear map of one layer pair, always factored (method.md, section 2: align)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.decomposition import right_factors
from unlock_lens.errors import InvalidInput


def proportional_layer(target_layer: int, source_layers: int, target_layers: int) -> int:
    """a(b) = floor((L_s - 1) b / (L_t - 1)); the last source layer for a target of one layer."""
    if target_layers == 1:
        return source_layers - 1
    return (source_layers - 1) * target_layer // (target_layers - 1)


@dataclass(frozen=True)
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


def fit_layer(
    source: Float[Tensor, "n d_source"], target: Float[Tensor, "n d_target"], rank: int, centered: bool, pair: tuple[int, int]
) -> dict[str, Tensor]:
    """V_s, M, V_t of one layer pair: H_s V_s^T = U_s S_s, so M = pinv(H_s V_s^T) (H_t V_t^T) needs no pinv."""
    means = {"source_mean": source.double().mean(dim=0), "target_mean": target.double().mean(dim=0)}
    h_s, h_t = (h.double() - mean if centered else h.double() for h, mean in zip((source, target), means.values(), strict=True))
    for h, side, layer in ((h_s, "source", pair[0]), (h_t, "target", pair[1])):
        if not bool(h.isfinite().all()):
            row = int((~h.isfinite()).any(dim=1).nonzero()[0])
            raise InvalidInput(f"the {side} activations of layer {layer} are not finite at token {row}; leave that prompt out")
        if not bool(h.any()):
            raise InvalidInput(
                f"the {side} activations of layer {layer} do not vary over the calibration tokens; give more and other texts"
            )
    f_s, f_t = right_factors(h_s, rank), right_factors(h_t, rank)
    core = (f_s.scores.T @ f_t.scores) / f_s.values[:, None] ** 2
    padded = torch.zeros(rank, rank, dtype=core.dtype)
    padded[: core.shape[0], : core.shape[1]] = core
    found = {
        "source_factors": _padded(f_s.vectors, rank),
        "core": padded,
        "target_factors": _padded(f_t.vectors, rank),
        **means,
    }
    return {name: value.float() for name, value in found.items()}


def _padded(rows: Float[Tensor, "found d_model"], rank: int) -> Float[Tensor, "rank d_model"]:
    return torch.cat([rows, rows.new_zeros(rank - rows.shape[0], rows.shape[1])])
