"""Prompts and what follows them, read in one pass: what a model predicts at each token that follows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unlock_lens.core.steering import SteeringHook, as_hooks, edits_for
from unlock_lens.core.variant import Tokens, Variant
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import Backend, Batch, Edits, Server, placed

AT_ONCE = 2**28
"""How many log-probabilities are in memory at once: a gigabyte of float32, whatever the vocabulary and the length."""
Steer = SteeringHook | Sequence[SteeringHook] | None


@dataclass(frozen=True, eq=False)
class Scored:
    """Predictions of a batch's completions: `log_probs[:, i]` predicts `tokens[:, i]`, which counts where `mask` is 1."""

    rows: Int[Tensor, " row"]
    log_probs: Float[Tensor, "row token vocabulary"]
    tokens: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]

    def of_tokens(self) -> Float[Tensor, "row token"]:
        return self.log_probs.gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Prompts, padded on the left, and what follows them, padded on the right."""

    backend: Backend
    host: Backend | Server
    prompts: Tokens
    following: list[list[int]]

    @classmethod
    def of(cls, variant: Variant, completions: Iterable[str]) -> Pairs:
        """Of prompts and texts that follow them."""
        completions = tuple(completions)
        if len(variant) != len(completions):
            raise InvalidInput(f"{len(variant)} prompts and {len(completions)} completions were given; one for each is needed")
        tokens, tokenizer = variant.tokens, variant.backend.tokenizer
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
        written = _continued(tokenizer, rows, variant.prompts, completions, variant.add_special_tokens)
        return cls(variant.backend, placed(variant.backend, variant.remote), tokens, written)

    @classmethod
    def of_halves(cls, variant: Variant) -> Pairs:
        """The first half of each text's tokens is the prompt, and the second follows it."""
        tokens = variant.tokens
        if int(tokens.lengths.min()) < 2:
            raise InvalidInput("a text of a single token was given; the price needs a prompt and what follows it")
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
        ids, mask = _right_padded([row[: len(row) // 2][::-1] for row in rows])
        prompts, following = Tokens(ids.flip(1), mask.flip(1)), [row[len(row) // 2 :] for row in rows]
        return cls(variant.backend, placed(variant.backend, variant.remote), prompts, following)

    def scored(self, steer: Steer, batch_size: int) -> Iterator[Scored]:
        edits: Edits = edits_for(self.backend, as_hooks(steer))
        longest = max(len(ids) for ids in self.following)
        affordable = max(1, AT_ONCE // max(1, longest * len(self.backend.tokenizer)))
        for rows in self.prompts.batches(min(batch_size, affordable)):
            prompts = self.prompts.rows(rows)
            tokens, mask = _right_padded([self.following[row] for row in rows.tolist()])
            # What follows a completion is not masked: no earlier token sees it, and hosts count positions by the mask.
            read = tokens[:, :-1]  # the last one is predicted alone
            batch = Batch(torch.cat([prompts.ids, read], 1), torch.cat([prompts.mask, torch.ones_like(read)], 1))
            log_probs = self.host.log_probs(batch, edits, prompts.ids.shape[1])
            yield Scored(rows, log_probs[:, : tokens.shape[1]], tokens, mask)


def _continued(
    tokenizer: Any, rows: Sequence[list[int]], prompts: Sequence[str], completions: Sequence[str], special: bool
) -> list[list[int]]:
    """Ids of completions as they follow the prompts' rows: a tokenizer may put a space before whatever stands first.

    Where a token of the whole text reaches over the border, which a model that goes on from the prompt cannot write, it is the
    completion's own tokens, after a line break instead of the prompt.
    """
    joint = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    wholes: list[list[int]] = tokenizer(joint, add_special_tokens=special)["input_ids"]
    found: list[list[int]] = []
    for row, whole, completion in zip(rows, wholes, completions, strict=True):
        if whole[: len(row)] == row:
            found.append(whole[len(row) :])
            continue
        own, before, after = tokenizer([completion, "\n", f"\n{completion}"], add_special_tokens=False)["input_ids"]
        found.append(after[len(before) :] if before and after[: len(before)] == before else own)
    return found


def _right_padded(rows: list[list[int]]) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row token"]]:
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long()
