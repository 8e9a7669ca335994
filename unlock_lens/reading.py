"""Reading the calibration texts: both models side by side, states held while they are few, summed when they are many."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens import capture
from unlock_lens.calibration import Calibration, HeldStates, StreamedMoments, held_states
from unlock_lens.capture import Chosen
from unlock_lens.errors import InvalidInput
from unlock_lens.moments import RunningMoments
from unlock_lens.progress import shown
from unlock_lens.sinks import SINK, SinkRule, Sinks
from unlock_lens.variant import Variant

logger = logging.getLogger(__name__)
SAMPLE = 64
"""Texts whose tokens say what norm is usual."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reader:
    """Runs both models over the calibration texts.

    Attributes:
        source: the model that directions come from, with the calibration texts.
        target: the model that they go to, with the same texts.
        layer_map: target layer -> source layer; no other layers are read.
        source_tokens: of each text, the tokens that are read in the source.
        target_tokens: as many, in the target.
        centered: whether maps are to be fitted on distances from the mean.
        sinks: what becomes of tokens with huge norms.
        folds: into how many folds texts are put, for cross-validation; 1 for none.
        batch_size: texts in one forward pass.
        progress: whether to show a progress bar.
    """

    source: Variant
    target: Variant
    layer_map: Mapping[int, int]
    source_tokens: Chosen
    target_tokens: Chosen
    centered: bool
    sinks: Sinks
    folds: int
    batch_size: int
    progress: bool

    def run(self) -> Calibration:
        """Hold the states of no more tokens than the wider model is wide, whose Gram matrix is the smaller one; sum others.

        Raises:
            InvalidInput: states that are not finite.
        """
        n = sum(len(tokens) for tokens in self.source_tokens)
        widest = max(variant.backend.identity.d_model for variant in (self.source, self.target))
        found = self._held() if n <= widest else self._streamed()
        if found.n < n:
            logger.warning(
                "%d of %d calibration tokens have more than %g times the median norm of their layer and were left out",
                n - found.n,
                n,
                SINK,
            )
        return found

    def _held(self) -> HeldStates:
        sides = [
            capture.at_tokens(variant, tokens, layers, self.batch_size, self.progress)
            for variant, tokens, layers in zip(self._variants, self._tokens, self._layers, strict=True)
        ]
        fold = torch.cat([self._fold_of[p].expand(len(tokens)) for p, tokens in enumerate(self.source_tokens)])
        return held_states(self.layer_map, self._layers, (sides[0], sides[1]), fold, self.centered, self.sinks)

    def _streamed(self) -> StreamedMoments:
        widths = [variant.backend.identity.d_model for variant in self._variants]
        running = RunningMoments(self.layer_map, widths[0], widths[1], self.folds)
        sinks = self._sink_rule()
        names = " and ".join(variant.backend.identity.name for variant in self._variants)
        for prompts in shown(self._batches(), f"reading {names}", self.progress):
            sides = self._states(0, prompts), self._states(1, prompts)
            if not sides[0].shape[1]:
                continue
            fold = torch.cat([self._fold_of[p].expand(len(self.source_tokens[p])) for p in prompts.tolist()])
            kept = sinks.applied(sides, fold)
            if len(kept[2]):
                running.add(*kept)
        return StreamedMoments(running, self.centered)

    def _sink_rule(self) -> SinkRule:
        """Typical norms are those of a sample of texts, the same whatever the batch size."""
        if self.sinks == "keep":
            return SinkRule.of("keep", (torch.empty(0), torch.empty(0)))
        sample = torch.linspace(0, len(self.source) - 1, min(SAMPLE, len(self.source))).round().long()
        read = [(self._states(0, prompts), self._states(1, prompts)) for prompts in sample.split(self.batch_size)]
        source, target = (torch.cat(side, dim=1) for side in zip(*read, strict=True))
        return SinkRule.of(self.sinks, (source, target))

    def _states(self, side: int, prompts: Int[Tensor, " prompt"]) -> Float[Tensor, "layer picked d_model"]:
        variant, chosen, layers = self._variants[side], self._tokens[side], self._layers[side]
        picked = sum(len(chosen[p]) for p in prompts.tolist())
        states = torch.empty(len(layers), picked, variant.backend.identity.d_model, dtype=torch.float32)

        def keep(layer: int, read: Tensor) -> None:
            states[layer] = read.to(states)

        if picked:
            capture.read(variant, layers, prompts, chosen, keep)
        return states

    def _batches(self) -> Sequence[Int[Tensor, " prompt"]]:
        """Texts of like length in both models, the longest first."""
        if self.batch_size < 1:
            raise InvalidInput(f"batch_size {self.batch_size} was given; at least 1 is needed")
        lengths = self.source.tokens.lengths + self.target.tokens.lengths
        return lengths.argsort(descending=True, stable=True).split(self.batch_size)

    @property
    def _variants(self) -> tuple[Variant, Variant]:
        return self.source, self.target

    @property
    def _tokens(self) -> tuple[Chosen, Chosen]:
        return self.source_tokens, self.target_tokens

    @cached_property
    def _layers(self) -> tuple[list[int], list[int]]:
        return sorted(set(self.layer_map.values())), sorted(self.layer_map)

    @cached_property
    def _fold_of(self) -> Int[Tensor, " text"]:
        """Texts go to folds whole: tokens of one text know of each other."""
        return torch.arange(len(self.source)) * self.folds // len(self.source)
