"""Completions under several edits, by the Hugging Face model's own `generate` in a few calls: what is the same is read once.

An edit of the last prompt token leaves the KV cache of all tokens before it as it is. So that cache is read once for each batch
of prompts, and every arm goes on from a copy. After each call, rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from unlock_lens.hosts.positions import as_rows, from_rows
from unlock_lens.method.apply import Chunk, Edit, LayerEdit

SEGMENT = 32
"""Tokens at most in one call of the model's `generate`; the first calls are shorter. Rows leave between calls, and nothing of
ours runs inside one."""

_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version")
_PLAIN: dict[str, Any] = {
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict_in_generate": False,
    "typical_p": 1.0,
}
"""What options do nothing at, where they may not be None."""


def generation_options(
    max_new_tokens: int, use_cache: bool = True, sampling: Mapping[str, Any] = MappingProxyType({"do_sample": False})
) -> dict[str, Any]:
    """All that there are, so that of a model's own generation config nothing but its special tokens matters."""
    from transformers import GenerationConfig  # too slow to import before a model is there

    names = [name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in _KEPT]
    options: dict[str, Any] = dict.fromkeys(names)
    options |= {name: value for name, value in _PLAIN.items() if name in options}
    options |= {"max_new_tokens": max_new_tokens, "use_cache": use_cache}
    unlimited = {"top_k": 0, "top_p": 1.0} if sampling["do_sample"] else {}
    return {**options, **unlimited, **sampling}


def edited(states: Tensor, of_layer: Sequence[Any], chunk: Chunk, rows: int, tokens_first: bool = False) -> Tensor | None:
    """A block's states with the edits of its layer; None where no token of the chunk is meant."""
    residual = changed = as_rows(states, rows, states.shape[-3 if tokens_first else -2], tokens_first)
    for edit in of_layer:
        changed = edit(changed, chunk)
    return None if changed is residual else from_rows(changed, states, tokens_first)


@dataclass(frozen=True, eq=False)
class OfRows:
    """An edit of some of the rows."""

    rows: slice
    edit: LayerEdit

    def __call__(self, residual: Tensor, chunk: Chunk) -> Tensor:
        """The residual stream [batch, token, d_model]; the very same tensor where no token is meant."""
        before = residual[self.rows]
        after = self.edit(before, chunk)
        if after is before:
            return residual
        residual = residual.clone()
        residual[self.rows] = after
        return residual


def begins_at_the_end(edits: Mapping[int, Sequence[LayerEdit]]) -> bool:
    """Whether edits, and the gates that they ask, touch and read the last prompt token alone."""
    return all(edit.positions == "last_prompt" for of_layer in edits.values() for edit in of_layer if isinstance(edit, Edit))


@dataclass(frozen=True, eq=False)
class Rows:
    """Sequences that are being completed.

    Attributes:
        ids: [row, token], padded on the left.
        mask: of the same shape.
        cache: keys and values of all tokens but the last; None before anything was read.
    """

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]
    cache: Any = None

    def picked(self, rows: Int[Tensor, " picked"]) -> Rows:
        """Some of the rows, or each several times; the cache is changed in place."""
        self.cache.batch_select_indices(rows)
        return replace(self, ids=self.ids[rows], mask=self.mask[rows])


@dataclass(frozen=True, eq=False)
class Writer:
    """A Hugging Face model that completes rows greedily.

    Attributes:
        root: the model.
        ends: ids of the tokens that end a completion.
        pad: what ended rows are filled with until they leave.
        criterion: ends a row by its text (`endings.StopCriterion`); None where nothing but the end tokens does.
    """

    root: Any
    ends: tuple[int, ...]
    pad: int
    criterion: Any = None

    def read(self, ids: Int[Tensor, "row token"], mask: Int[Tensor, "row token"]) -> Rows:
        """Prompts of which all tokens but the last are read."""
        ids, mask = ids.to(self.root.device), mask.to(self.root.device)
        seen = mask[:, :-1].clone()
        seen[:, -1] = 1  # a row of a single token would read nothing; it reads padding, which is masked from then on
        found = self._run(Rows(ids[:, :-1], seen), 1)
        return Rows(ids, mask, found.past_key_values)

    def step(self, rows: Rows, tokens: int, **asked: Any) -> tuple[Rows, Any]:
        """The same rows after at most so many new tokens, fewer where all have ended; and all that the model gives."""
        criteria = {"stopping_criteria": [self.criterion]} if self.criterion else {}
        found = self._run(rows, tokens, **criteria, **asked)
        new = found.sequences.shape[1] - rows.ids.shape[1]
        mask = torch.cat([rows.mask, rows.mask.new_ones(len(rows.mask), new)], dim=1)
        return Rows(found.sequences, mask, found.past_key_values), found

    def written(self, rows: Rows, budget: int, editing: AbstractContextManager[None]) -> Int[Tensor, "row new_token"]:
        """Ids of the completions; the pass over the last prompt token is made inside `editing`."""
        start, done, live = rows.ids.shape[1], 0, torch.arange(len(rows.ids))
        written = torch.full((len(live), budget), self.ends[0] if self.ends else self.pad)
        with editing:
            rows, _ = self.step(rows, 1)
        while True:
            new = rows.ids[:, start + done :].cpu()
            written[live, done : done + new.shape[1]] = new
            done += new.shape[1]
            going = ~self._ended(rows.ids[:, start:])
            if done >= budget or not bool(going.any()):
                return written[:, :done]
            if not bool(going.all()):
                rows, live = rows.picked(going.nonzero().squeeze(1)), live[going.cpu()]
            rows, _ = self.step(rows, min(done + 1, SEGMENT, budget - done))

    def _run(self, rows: Rows, tokens: int, **asked: Any) -> Any:
        options = {**generation_options(tokens), "return_dict_in_generate": True, **asked}
        special = {"eos_token_id": list(self.ends) or None, "pad_token_id": self.pad}
        return self.root.generate(rows.ids, attention_mask=rows.mask, past_key_values=rows.cache, **special, **options)

    def _ended(self, new: Int[Tensor, "row new_token"]) -> Tensor:
        ended = torch.isin(new, torch.tensor(self.ends, dtype=torch.long, device=new.device)).any(dim=1)
        return ended if self.criterion is None else ended | self.criterion.held_by(new)


def completed_arms(
    writer: Writer,
    ids: Int[Tensor, "row token"],
    mask: Int[Tensor, "row token"],
    arms: Sequence[Mapping[int, Sequence[LayerEdit]]],
    budget: int,
    at_once: int,
    editing: Callable[[Mapping[int, Sequence[Any]], Chunk, int], AbstractContextManager[None]],
) -> list[Int[Tensor, "row new_token"]]:
    """Ids of the completions under each arm's edits, `at_once` arms in one batch."""
    prompts, n = writer.read(ids, mask), len(ids)
    chunk, found = Chunk(ids.shape[1], ids.shape[1] - 1), list[Tensor]()
    for first in range(0, len(arms), at_once):
        some = arms[first : first + at_once]
        is_last = first + at_once >= len(arms)  # which may use up what was read
        rows = prompts if is_last else replace(prompts, cache=deepcopy(prompts.cache))
        if len(some) > 1:
            rows = rows.picked(torch.arange(n, device=rows.ids.device).repeat(len(some)))
        edits: dict[int, list[OfRows]] = {}
        for i, arm in enumerate(some):
            for layer, of_layer in arm.items():
                edits.setdefault(layer, []).extend(OfRows(slice(i * n, (i + 1) * n), edit) for edit in of_layer)
        found += writer.written(rows, budget, editing(edits, chunk, len(rows.ids))).split(n)
    return found
