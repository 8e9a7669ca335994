"""W[b] = left^T core right, the linear map of each layer pair, always factored (docs/method.md, section 2: align)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.methods import Factors, Pair


def layer_map_of(wanted: Mapping[int, int] | None, source_layers: int, target_layers: int) -> dict[int, int]:
    """Target layer -> source layer, as wanted or (None) in proportion to depth.

    Raises:
        InvalidInput: none is mapped, or one that a model does not have.
    """
    if wanted is None:
        return {b: proportional_layer(b, source_layers, target_layers) for b in range(target_layers)}
    if not wanted:
        raise InvalidInput("the layer map is empty; map at least one target layer")
    for b, a in wanted.items():
        if not (0 <= b < target_layers and 0 <= a < source_layers):
            raise InvalidInput(
                f"the layer map sends target layer {b} to source layer {a}; "
                f"the target has layers 0 to {target_layers - 1}, the source 0 to {source_layers - 1}"
            )
    return dict(sorted(wanted.items()))


def proportional_layer(target_layer: int, source_layers: int, target_layers: int) -> int:
    """a(b) = floor((L_s - 1) b / (L_t - 1)); the last source layer for a target of one layer."""
    if target_layers == 1:
        return source_layers - 1
    return (source_layers - 1) * target_layer // (target_layers - 1)


@dataclass(frozen=True, eq=False)
class FactoredMaps:
    """W[b] = left^T core right for each mapped target layer b, in the order of `layer_map`; zero beyond a layer's rank.

    For the paper's method they are V_s, M = S_s^-1 U_s^T U_t S_t, and V_t. Leading rows, columns and blocks are the maps of
    smaller ranks.

    Attributes:
        layer_map: target layer -> source layer.
        source_factors: left.
        core: what joins them.
        target_factors: right.
        source_mean: mean of the source's states at the calibration tokens, by which they were centred if they were.
        target_mean: the same of the target's states; for the paper's calibration, minus this is the anti-mean control.
    """

    layer_map: Mapping[int, int]
    source_factors: Float[Tensor, "layer rank d_source"]
    core: Float[Tensor, "layer rank rank"]
    target_factors: Float[Tensor, "layer rank d_target"]
    source_mean: Float[Tensor, "layer d_source"]
    target_mean: Float[Tensor, "layer d_target"]

    @classmethod
    def of(
        cls, layer_map: Mapping[int, int], pairs: Sequence[Pair], factors: Sequence[Factors], dtype: torch.dtype
    ) -> FactoredMaps:
        """The factors of every layer pair together, in the precision of the states that they were made from."""
        rank = max(max(found.core.shape) for found in factors)
        parts = (
            [_padded(found.left, rank) for found in factors],
            [_padded(_padded(found.core, rank).T, rank).T for found in factors],
            [_padded(found.right, rank) for found in factors],
            [pair.source.mean for pair in pairs],
            [pair.target.mean for pair in pairs],
        )
        return cls(layer_map, *(torch.stack(part).to(dtype) for part in parts))

    @property
    def rank(self) -> int:
        return self.core.shape[-1]

    @property
    def spanned(self) -> list[int]:
        """The rank of each layer's map: how many factors the calibration tokens allowed."""
        sides = [(factors != 0).any(dim=-1).sum(dim=-1) for factors in (self.source_factors, self.target_factors)]
        return torch.minimum(*sides).tolist()

    def dense(self, target_layer: int) -> Float[Tensor, "d_source d_target"]:
        """W[b] in full."""
        i = list(self.layer_map).index(target_layer)
        return self.source_factors[i].T @ self.core[i] @ self.target_factors[i]

    def carry(self, target_layer: int, vector: Float[Tensor, " d_source"]) -> Float[Tensor, " d_target"]:
        """V W[b], in float64, without making W."""
        i = list(self.layer_map).index(target_layer)
        left, core, right = (part[i].double() for part in (self.source_factors, self.core, self.target_factors))
        return vector.double() @ left.T @ core @ right

    def at_rank(self, rank: int) -> FactoredMaps:
        return replace(
            self,
            source_factors=self.source_factors[:, :rank],
            core=self.core[:, :rank, :rank],
            target_factors=self.target_factors[:, :rank],
        )

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def _padded(rows: Float[Tensor, "found width"], rank: int) -> Float[Tensor, "rank width"]:
    return torch.cat([rows, rows.new_zeros(rank - rows.shape[0], rows.shape[1])])


def projected_out(
    vectors: Float[Tensor, "layer d_model"], axes: Float[Tensor, "layer d_model"], named: str = "the mean state"
) -> Float[Tensor, "layer d_model"]:
    """Each vector without its part along the axis of its layer.

    Raises:
        InvalidInput: nothing is left of one of them.
    """
    unit = torch.nn.functional.normalize(axes, dim=1)
    left = vectors - (vectors * unit).sum(dim=1, keepdim=True) * unit
    gone = left.norm(dim=1) <= 1e-6 * vectors.norm(dim=1)
    if bool(gone.any()):
        raise InvalidInput(
            f"vector {int(gone.nonzero()[0])} of {len(vectors)} is nothing but a multiple of {named}: "
            "with that projected out, nothing is left of it"
        )
    return left
