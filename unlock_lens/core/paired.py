"""Reading the calibration texts: both models side by side, states held while they are few, summed when they are many."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens.core import capture
from unlock_lens.core.capture import Chosen
from unlock_lens.core.progress import shown
from unlock_lens.core.reducing import (
    How,
    Reading,
    Tokens,
    axes_of,
    factoring,
    factors,
    in_one_request,
    positions_of,
    runs_on_server,
)
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput
from unlock_lens.method.calibrate import Calibration, FactoredStates, HeldStates, StreamedMoments, held_states
from unlock_lens.method.moments import RunningMoments
from unlock_lens.method.sinks import SINK, SinkRule, Sinks

logger = logging.getLogger(__name__)
_SAMPLED_PER_AXIS = 4
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
        rank: of the maps; None where it is not known yet, or is all that the tokens span.
        leading_axes: whether maps need no more principal axes than the rank: a server ships what is asked for.
        how: batches, resuming, waiting.
    """

    source: Variant
    target: Variant
    layer_map: Mapping[int, int]
    source_tokens: Chosen
    target_tokens: Chosen
    centered: bool
    sinks: Sinks
    folds: int
    rank: int | None
    leading_axes: bool
    how: How

    def run(self) -> Calibration:
        """Hold the states of no more tokens than the wider model is wide, whose Gram matrix is the smaller one; sum others.

        Raises:
            InvalidInput: states that are not finite, or sinks that are to be dealt with on a server.
        """
        if runs_on_server(self.how, self.source, self.target):
            return self._factored()
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
            capture.at_tokens(variant, tokens, layers, self.how.batch_size, self.how.progress)
            for variant, tokens, layers in zip(self._variants, self._tokens, self._layers, strict=True)
        ]
        fold = torch.cat([self._fold_of[p].expand(len(tokens)) for p, tokens in enumerate(self.source_tokens)])
        return held_states(self.layer_map, self._layers, (sides[0], sides[1]), fold, self.centered, self.sinks)

    def _streamed(self) -> StreamedMoments:
        widths = [variant.backend.identity.d_model for variant in self._variants]
        running = RunningMoments(self.layer_map, widths[0], widths[1], self.folds)
        sinks = self._sink_rule()
        names = " and ".join(variant.backend.identity.name for variant in self._variants)
        for prompts in shown(self._batches(), f"reading {names}", self.how.progress):
            sides = self._states(0, prompts), self._states(1, prompts)
            if not sides[0].shape[1]:
                continue
            fold = torch.cat([self._fold_of[p].expand(len(self.source_tokens[p])) for p in prompts.tolist()])
            kept = sinks.applied(sides, fold)
            if len(kept[2]):
                running.add(*kept)
        return StreamedMoments(running, self.centered)

    def _factored(self) -> FactoredStates:
        """At least one model runs on a server: axes of all tokens come back, and the scores of a sample."""
        if self.sinks != "keep":
            raise InvalidInput(
                f"sinks={self.sinks!r} was given for a model on a server, where they are kept; "
                'centered=True loses at most an axis to them, skip_first=True leaves the usual ones out, or take sinks="keep"'
            )
        readings, axes = self.readings()
        sides = factors(readings, axes, self.centered)
        found = [dict(zip(layers, side, strict=True)) for layers, side in zip(self._layers, sides, strict=True)]
        counts = torch.tensor([int((places >= 0).sum()) for places in readings[0].places])
        text = torch.arange(len(self.source)).repeat_interleave(counts)
        return FactoredStates(self.layer_map, found[0], found[1], self._fold_of[text])

    def readings(self) -> tuple[list[Reading], int]:
        """What is read on servers, source and target, and how many axes come back."""
        places = self._sample()
        held = int(torch.cat(list(places)).max()) + 1
        # Parts of no more axes than the rank would not merge into those of all.
        enough = self.rank and self.leading_axes and in_one_request(self.how, *self._variants)
        asked = 0 if enough else axes_of(*self._variants)
        sampled = held < sum(map(len, places))
        if sampled and not self.leading_axes:  # all axes enter the least squares, which want several tokens for each
            asked = min(asked, held // _SAMPLED_PER_AXIS)
        if sampled and (self.rank or 0) * _SAMPLED_PER_AXIS > held:
            told = "the scores of %d tokens are few for rank %d; Remote(positions=...) asks for more"
            logger.warning(told, held, self.rank)
        axes = min(held, max(self.rank or 0, asked))
        readings = [
            Reading([Tokens(variant, chosen)], layers, factoring(variant, axes, self.centered), places, self.how)
            for variant, chosen, layers in zip(self._variants, self._tokens, self._layers, strict=True)
        ]
        return readings, axes

    def _sample(self) -> Chosen:
        """Of each text, the place of each of its tokens in a seeded sample of all, or -1; ascending."""
        counts = [len(tokens) for tokens in self.source_tokens]
        n, cap = sum(counts), positions_of(*self._variants)
        if n <= cap:
            return torch.arange(n).split(counts)
        logger.info("axes know all %d calibration tokens; the scores of %d of them come back", n, cap)
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:cap].sort().values
        places = torch.full((n,), -1)
        places[drawn] = torch.arange(cap)
        return places.split(counts)

    def _sink_rule(self) -> SinkRule:
        """Typical norms are those of a sample of texts, the same whatever the batch size."""
        if self.sinks == "keep":
            return SinkRule.of("keep", (torch.empty(0), torch.empty(0)))
        sample = torch.linspace(0, len(self.source) - 1, min(SAMPLE, len(self.source))).round().long()
        read = [(self._states(0, prompts), self._states(1, prompts)) for prompts in sample.split(self.how.batch_size)]
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
        if self.how.batch_size < 1:
            raise InvalidInput(f"batch_size {self.how.batch_size} was given; at least 1 is needed")
        lengths = self.source.tokens.lengths + self.target.tokens.lengths
        return lengths.argsort(descending=True, stable=True).split(self.how.batch_size)

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
