"""Paired: both models read at paired tokens; states are held or summed, whichever takes fewer bytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unlock_lens.core import read
from unlock_lens.core.progress import shown
from unlock_lens.core.read import How, Picked, Reading
from unlock_lens.core.tokens import Chosen
from unlock_lens.core.variant import Variant, check_batch_size
from unlock_lens.errors import InvalidInput
from unlock_lens.method.apply import at_least_float32
from unlock_lens.method.calibrate import (
    SINK,
    Calibration,
    Factored,
    Held,
    Layers,
    SinkRule,
    Sinks,
    Summed,
    by_layer,
    held_bytes,
    summed_bytes,
)
from unlock_lens.method.reduce import States

logger = logging.getLogger(__name__)
_SAMPLED_PER_AXIS = 4
SAMPLE = 64
"""Texts whose tokens define the usual norm."""
_SMALL = 2**26
"""Up to this many bytes, cross-validation holds states rather than sums."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reader:
    """Runs both models over the calibration texts.

    Attributes:
        source: the model that directions come from, with the calibration texts.
        target: the model that they go to, with the same texts.
        layer_map: target layer -> source layer; no other layers are read.
        source_tokens: the tokens of each text that are read in the source.
        target_tokens: the tokens in the target that they are paired with.
        centered: whether maps are fitted on distances from the mean.
        sinks: what to do with tokens that have huge norms.
        folds: number of folds for cross-validation; 1 for none.
        rank: rank of the maps; None if not known yet, or if it is all that the tokens span.
        leading_axes: whether maps need no more principal axes than the rank, so that a server returns only those.
        how: settings of batches, resuming and waiting.
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
        """Read the tokens of both models.

        Raises:
            InvalidInput: states are not finite, or sinks would have to be handled on a server.
        """
        if read.runs_on_server(self.how, self.source, self.target):
            return self._factored()
        check_batch_size(self.how.batch_size)
        n = sum(map(len, self.source_tokens))
        held, summed = held_bytes(n, self.layer_map, *self._widths), summed_bytes(self.layer_map, *self._widths)
        # Cross-validation holds a sample beside the sums, of as many bytes.
        holds = held <= (max(2 * summed, _SMALL) if self.folds > 1 else summed)
        found = self._held() if holds else self._summed()
        if found.n < n:
            logger.log(
                logging.INFO if self.sinks == "auto" else logging.WARNING,
                "%d of %d calibration tokens have more than %g times the median norm of their layer and were dropped",
                n - found.n,
                n,
                SINK,
            )
        return found

    def _held(self) -> Held:
        source, target = (
            by_layer(layers, read.states(side, layers, self.how))
            for side, layers in zip(self._tokens, self._layers, strict=True)
        )
        fold = self._fold_of[_text_of(self.source_tokens)]
        rule = SinkRule.of(self.sinks, source, target)
        first, ends = torch.cat(self._first), torch.cat(self._ends)
        return Held(self.layer_map, source, target, fold, self.centered, rule, first, ends)

    @cached_property
    def _first(self) -> list[Bool[Tensor, " token"]]:
        """For each text, which of its tokens come first in it (and not last, where directions are read)."""
        lengths = self.source.tokens.lengths.tolist()
        pairs = zip(self.source_tokens, self.target_tokens, lengths, strict=True)
        return [((source == 0) | (target == 0)) & (source != length - 1) for source, target, length in pairs]

    @cached_property
    def _ends(self) -> list[Bool[Tensor, " token"]]:
        """For each text, which of its tokens come last in it."""
        return [s == length - 1 for s, length in zip(self.source_tokens, self.source.tokens.lengths.tolist(), strict=True)]

    def _summed(self) -> Summed:
        """Both models side by side, batch after batch; cross-validation holds a sample too, of no more bytes than the sums."""
        sums, rule = Summed(self.layer_map, self.centered), self._rule()
        sampled = summed_bytes(self.layer_map, *self._widths) // held_bytes(1, self.layer_map, *self._widths)
        places = self._sample(sampled) if self.folds > 1 else None
        sample = [States(len(layers), sampled, width) for layers, width in zip(self._layers, self._widths, strict=True)]
        names = " and ".join(variant.backend.identity.name for variant in (self.source, self.target))
        for prompts in shown(self._batches(), f"reading {names}", self.how.progress):
            sides = self._states(prompts)
            if sides is None:
                continue
            if places is not None:
                place = torch.cat([places[p] for p in prompts.tolist()])
                for reduction, layers in zip(sample, sides, strict=True):
                    for i, states in enumerate(layers.values()):
                        reduction.add(i, states[place >= 0], place[place >= 0], 1)
            kept = rule.kept(*sides, torch.cat([self._first[p] for p in prompts.tolist()]))
            if bool(kept.any()):
                whole = bool(kept.all())
                tamed = [{b: rule.tamed(i, b, h) for b, h in layers.items()} for i, layers in enumerate(sides)]
                source, target = ({b: h if whole else h[kept.to(h.device)] for b, h in layers.items()} for layers in tamed)
                sums.add(source, target)
        if places is not None:
            sampled_of = torch.cat(list(places)) >= 0
            text = _text_of(places)[sampled_of]
            held = [by_layer(layers, one.result()["states"]) for layers, one in zip(self._layers, sample, strict=True)]
            first, ends = torch.cat(self._first)[sampled_of], torch.cat(self._ends)[sampled_of]
            sums.sample = Held(self.layer_map, held[0], held[1], self._fold_of[text], self.centered, rule, first, ends)
        return sums

    def _factored(self) -> Factored:
        """At least one model runs on a server: axes of all tokens come back, and the scores of a sample."""
        if self.sinks not in ("auto", "keep"):
            raise InvalidInput(
                f"sinks={self.sinks!r} was given for a model on a server, where sinks are always kept; "
                'use sinks="keep" (centered=True loses at most one axis to them), or skip_first=True to drop the usual ones'
            )
        readings, axes = self.readings()
        sides = read.factors(readings, axes, self.centered)
        source, target = (dict(zip(layers, side, strict=True)) for layers, side in zip(self._layers, sides, strict=True))
        sampled = torch.cat(list(readings[0].places)) >= 0
        text = _text_of(readings[0].places)[sampled]
        return Factored(self.layer_map, source, target, self._fold_of[text], torch.cat(self._ends)[sampled])

    def readings(self) -> tuple[list[Reading], int]:
        """What is read on servers, for source and target, and how many axes are returned."""
        places = self._sample(read.positions_of(self.source, self.target))
        held = int(torch.cat(list(places)).max()) + 1
        # Parts of no more axes than the rank would not merge into those of all.
        enough = self.rank and self.leading_axes and read.in_one_request(self.how, self.source, self.target)
        asked = 0 if enough else read.axes_of(self.source, self.target)
        sampled = held < sum(map(len, places))
        if sampled and not self.leading_axes:  # all axes enter the least squares, which want several tokens for each
            asked = min(asked, held // _SAMPLED_PER_AXIS)
        if sampled and (self.rank or 0) * _SAMPLED_PER_AXIS > held:
            message = "scores of only %d tokens for rank %d; request more with Remote(positions=...)"
            logger.warning(message, held, self.rank)
        axes = min(held, max(self.rank or 0, asked))
        readings = [
            Reading([side], layers, read.factoring(side.variant, axes, self.centered), places, self.how)
            for side, layers in zip(self._tokens, self._layers, strict=True)
        ]
        return readings, axes

    def _sample(self, at_most: int) -> Chosen:
        """For each text, the place of each of its tokens in a seeded sample of all, or -1; ascending."""
        counts = [len(tokens) for tokens in self.source_tokens]
        n = sum(counts)
        if n <= at_most:
            return torch.arange(n).split(counts)
        logger.info("of %d calibration tokens, %d are sampled", n, at_most)
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:at_most].sort().values
        places = torch.full((n,), -1)
        places[drawn] = torch.arange(at_most)
        return places.split(counts)

    def _rule(self) -> SinkRule:
        """Typical norms are those of a sample of texts, the same whatever the batch size."""
        if self.sinks == "keep" or (self.sinks == "auto" and not bool(torch.cat(self._first).any())):
            return SinkRule()
        texts = torch.tensor([i for i, tokens in enumerate(self.source_tokens) if len(tokens)])
        sample = texts[torch.linspace(0, len(texts) - 1, min(SAMPLE, len(texts))).round().long()]
        batches = [batch for prompts in sample.split(self.how.batch_size) if (batch := self._states(prompts))]
        source, target = (
            {layer: torch.cat([batch[side][layer] for batch in batches]) for layer in self._layers[side]} for side in (0, 1)
        )
        return SinkRule.of(self.sinks, source, target)

    def _states(self, prompts: Int[Tensor, " prompt"]) -> tuple[Layers, Layers] | None:
        """Of some texts, at the tokens that belong together, where the states are; None where there are no such tokens."""
        n = sum(len(self.source_tokens[p]) for p in prompts.tolist())
        if not n:
            return None
        sides = _AsRead(), _AsRead()
        for side, layers, found in zip(self._tokens, self._layers, sides, strict=True):
            read.run_pass(side.variant, prompts, read.one_pass(side, prompts, torch.arange(n)), layers, found)
        source, target = (
            {layer: found.states[i] for i, layer in enumerate(layers)}
            for layers, found in zip(self._layers, sides, strict=True)
        )
        return source, target

    def _batches(self) -> Sequence[Int[Tensor, " prompt"]]:
        """Texts of like length in both models, the longest first."""
        lengths = self.source.tokens.lengths + self.target.tokens.lengths
        return lengths.argsort(descending=True, stable=True).split(self.how.batch_size)

    @cached_property
    def _tokens(self) -> tuple[Picked, Picked]:
        return Picked(self.source, self.source_tokens), Picked(self.target, self.target_tokens)

    @cached_property
    def _layers(self) -> tuple[list[int], list[int]]:
        return sorted(set(self.layer_map.values())), sorted(self.layer_map)

    @property
    def _widths(self) -> tuple[int, int]:
        return self.source.backend.identity.d_model, self.target.backend.identity.d_model

    @cached_property
    def _fold_of(self) -> Int[Tensor, " text"]:
        """Texts go to folds whole: tokens of one text know of each other."""
        return torch.arange(len(self.source)) * self.folds // len(self.source)


class _AsRead:
    """Keeps the states of one pass on their device."""

    def __init__(self) -> None:
        self.states: dict[int, Tensor] = {}

    def add(self, i: int, states: Tensor, places: Tensor, sign: int) -> None:
        self.states[i] = at_least_float32(states)

    def result(self) -> dict[str, Tensor]:
        return {str(i): states for i, states in self.states.items()}


def _text_of(chosen: Chosen) -> Int[Tensor, " token"]:
    """The text of each token."""
    return torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(tokens) for tokens in chosen]))
