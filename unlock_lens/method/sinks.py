"""Attention sinks: tokens, often the first, whose huge norm would rule every map that is fitted on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Sinks = Literal["keep", "drop", "whiten"]
SINKS = ("keep", "drop", "whiten")
SINK = 10.0
"""A token is an attention sink where its norm is above this many times the median norm of its layer."""


@dataclass(frozen=True, eq=False)
class SinkRule:
    """What becomes of attention sinks.

    Attributes:
        how: "keep" them, "drop" a token that is one at any layer of either model, or "whiten":
            bring it to the median norm of its layer.
        typical: median norm of each layer, of source and target.

    Source: Sun et al., "Massive Activations in Large Language Models", arXiv:2402.17762.
    """

    how: Sinks
    typical: tuple[Float[Tensor, " layer_s"], Float[Tensor, " layer_t"]]

    @classmethod
    def of(cls, how: Sinks, states: tuple[Tensor, Tensor]) -> SinkRule:
        """With the median norms of these states [layer, n, d_model]."""
        if how == "keep":
            return cls(how, (torch.empty(0), torch.empty(0)))
        source, target = (_norms(side).median(dim=-1).values for side in states)
        return cls(how, (source, target))

    def applied(self, states: tuple[Tensor, Tensor], fold: Int[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
        """The states of both sides and their folds, sinks dealt with."""
        source, target = states
        if self.how == "keep":
            return source, target, fold
        far = [self._far(side, typical) for side, typical in zip(states, self.typical, strict=True)]
        if self.how == "whiten":
            whitened = [
                torch.where(f[..., None], (side / _norms(side)[..., None] * typical[:, None, None]).to(side), side)
                for f, side, typical in zip(far, states, self.typical, strict=True)
            ]
            return whitened[0], whitened[1], fold
        kept = ~(far[0].any(dim=0).cpu() | far[1].any(dim=0).cpu())
        return source[:, kept], target[:, kept], fold[kept]

    @staticmethod
    def _far(states: Float[Tensor, "layer n d"], typical: Float[Tensor, " layer"]) -> Bool[Tensor, "layer n"]:
        return _norms(states) > SINK * typical[:, None]


def _norms(states: Float[Tensor, "layer n d"]) -> Float[Tensor, "layer n"]:
    return torch.linalg.vector_norm(states, dim=-1, dtype=torch.promote_types(states.dtype, torch.float32))
