"""Attention sinks: tokens, often the first, whose huge norm would rule every map that is fitted on them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

logger = logging.getLogger(__name__)
Sinks = Literal["keep", "drop", "whiten"]
SINKS = ("keep", "drop", "whiten")
SINK = 10.0
"""A token is an attention sink where its norm is above this many times the median norm of its layer."""


@dataclass(frozen=True, eq=False)
class SinkRule:
    """What becomes of attention sinks.

    Attributes:
        how: "keep" them, "drop" a token that is one at any layer of either model, or "whiten": bring it to the median norm.
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
        source, target = (side.norm(dim=-1).median(dim=-1).values for side in states)
        return cls(how, (source, target))

    def applied(self, states: tuple[Tensor, Tensor], fold: Int[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
        """The states of both sides and their folds, sinks dealt with."""
        source, target = states
        if self.how == "keep":
            return source, target, fold
        far = [self._far(side, typical) for side, typical in zip(states, self.typical, strict=True)]
        if self.how == "whiten":
            whitened = [
                torch.where(f[..., None], side * (typical[:, None] / side.norm(dim=-1).clamp_min(1e-30))[..., None], side)
                for f, side, typical in zip(far, states, self.typical, strict=True)
            ]
            return whitened[0], whitened[1], fold
        kept = ~(far[0].any(dim=0) | far[1].any(dim=0))
        logger.info("%d of %d calibration tokens are attention sinks and are left out", int((~kept).sum()), len(kept))
        return source[:, kept], target[:, kept], fold[kept]

    @staticmethod
    def _far(states: Float[Tensor, "layer n d"], typical: Float[Tensor, " layer"]) -> Bool[Tensor, "layer n"]:
        return states.norm(dim=-1) > SINK * typical[:, None]
