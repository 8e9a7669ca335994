"""Greedy completions of many arms that share their prompts: the prefix is read once, and finished rows leave the batch.

The paper's edit reaches the last prompt token alone, so what all tokens before it make of a prompt is the same for every arm.
`tests/evidence/test_study.py` compares the ids with `unlock_lens.generate`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unlock_lens import SteeringHook
from unlock_lens.hosts import backend_of
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.apply import Chunk, LayerEdit

SHRINK = 0.85
"""Finished rows leave when fewer than this share of the batch is unfinished: leaving copies the cache."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """Prompts that were read but for their last token."""

    last: Tensor
    mask: Tensor
    cache: Any

    def repeated(self, times: int) -> Prefix:
        """All prompts several times over, read once."""
        rows, cache = torch.arange(len(self.last), device=self.last.device).repeat(times), deepcopy(self.cache)
        cache.batch_select_indices(rows)
        return Prefix(self.last[rows], self.mask[rows], cache)


class Decoder:
    """An nnsight model's own module, run bare."""

    def __init__(self, model: Any) -> None:
        backend = backend_of(model)
        self.identity: ModelIdentity = backend.identity
        self.module, self.ends = model._module, frozenset(backend.end_tokens)
        self.blocks: Any = self.module.get_submodule(backend.blocks)  # pyright: ignore[reportAttributeAccessIssue]

    @torch.inference_mode()
    def prefix(self, ids: Tensor, mask: Tensor) -> Prefix:
        """Read all but the last token of prompts that are padded on the left."""
        ids, mask = ids.to(self.module.device), mask.to(self.module.device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, :-1]
        read = self.module.model(ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions, use_cache=True)
        return Prefix(ids[:, -1:], mask, read.past_key_values)

    @torch.inference_mode()
    def complete(
        self,
        prefix: Prefix,
        steer: SteeringHook | Sequence[SteeringHook | None] | None,
        max_new_tokens: int,
        forced: Sequence[Sequence[int]] = (),
    ) -> list[list[int]]:
        """Ids of each completion, its end token included where there is one.

        Args:
            prefix: the prompts.
            steer: edits the last prompt token; one for all prompts, or one for each.
            max_new_tokens: tokens at most.
            forced: for each prompt the ids that its completion begins with.
        """
        n = len(prefix.last)
        written: list[list[int]] = [[] for _ in range(n)]
        live, cache, mask, token = list(range(n)), deepcopy(prefix.cache), prefix.mask, prefix.last
        steers = [steer] * n if steer is None or isinstance(steer, SteeringHook) else list(steer)
        for step in range(max_new_tokens):
            positions = mask.sum(1, keepdim=True) - 1
            with self._edited(steers if step == 0 else ()):
                read = self.module(
                    token, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
            likeliest = read.logits[:, -1].argmax(-1).tolist()
            for row, new in zip(live, likeliest, strict=True):
                if not self._ended(written[row]):
                    start = forced[row] if forced else ()
                    written[row].append(start[step] if step < len(start) else new)
            going = [i for i, row in enumerate(live) if not self._ended(written[row])]
            if not going:
                break
            if len(going) <= SHRINK * len(live):
                kept = torch.tensor(going, device=mask.device)
                cache.batch_select_indices(kept)
                mask, live = mask[kept], [live[i] for i in going]
            token = torch.tensor([[written[row][-1]] for row in live], device=mask.device)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return written

    def _ended(self, written: Sequence[int]) -> bool:
        return bool(written) and written[-1] in self.ends

    @contextmanager
    def _edited(self, steers: Sequence[SteeringHook | None]) -> Generator[None, None, None]:
        """A pass over one token, the last of each prompt, in which the edits are made."""
        chunk = Chunk(prompt_length=1)
        of_layers: dict[int, list[tuple[list[int], LayerEdit]]] = {}
        for steer in dict.fromkeys(steer for steer in steers if steer is not None):
            rows = [row for row, other in enumerate(steers) if other is steer]
            for layer, edits in steer.edits(self.identity).items():
                of_layers.setdefault(layer, []).extend((rows, edit) for edit in edits)
        hooks = [self.blocks[layer].register_forward_hook(partial(_edit, edits, chunk)) for layer, edits in of_layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _edit(edits: Sequence[tuple[list[int], LayerEdit]], chunk: Chunk, _module: Any, _inputs: Any, output: Any) -> Any:
    """A block's output with the edits of its rows."""
    states = (output[0] if isinstance(output, tuple) else output).clone()
    for rows, edit in edits:
        states[rows] = edit(states[rows], chunk)
    return (states, *output[1:]) if isinstance(output, tuple) else states
