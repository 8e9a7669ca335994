"""Reading the calibration texts: both models side by side, states held while they are few, summed when they are many."""

from __future__ import annotations

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
from unlock_lens.sinks import SinkRule, Sinks
from unlock_lens.variant import Variant


@dataclass(frozen=True, eq=False)
class Reader:
    """Runs both models over the calibration texts.

    Attributes:
        layer_map: target layer -> source layer; no other layers are read.
        source_tokens: of each text, the tokens that are read in the source.
        target_tokens: as many, in the target.
        sinks: what becomes of tokens with huge norms.
        folds: into how many folds texts are put, for cross-validation; 1 for none.
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
        """Hold the states where they take less room than the sums would.

        Raises:
            InvalidInput: states that are not finite.
        """
        n = sum(len(tokens) for tokens in self.source_tokens)
        widest = max(variant.backend.identity.d_model for variant in (self.source, self.target))
        return self._held() if n <= widest else self._streamed()

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
        sinks: SinkRule | None = None
        names = " and ".join(variant.backend.identity.name for variant in self._variants)
        for prompts in shown(self._batches(), f"reading {names}", self.progress):
            sides = self._states(0, prompts), self._states(1, prompts)
            if not sides[0].shape[1]:
                continue
            fold = torch.cat([self._fold_of[p].expand(len(self.source_tokens[p])) for p in prompts.tolist()])
            sinks = sinks or SinkRule.of(self.sinks, sides)  # the longest texts come first: typical norms are theirs
            running.add(*sinks.applied(sides, fold))
        return StreamedMoments(running, self.centered)

    def _states(self, side: int, prompts: Int[Tensor, " prompt"]) -> Float[Tensor, "layer picked d_model"]:
        variant, chosen, layers = self._variants[side], self._tokens[side], self._layers[side]
        picked = sum(len(chosen[p]) for p in prompts.tolist())
        states = torch.empty(len(layers), picked, variant.backend.identity.d_model)

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
