"""Trust: whether a batch gives each of its rows what the row gives alone, and a KV cache what the whole sequence gives.

A recurrent family reads its padding, and a few hosts get a mask or a cache wrong. This is measured once for each model, with a
handful of tokens, and what does not hold is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

LENGTHS = (5, 2)
"""Of the two rows that are compared."""
CACHED = (5, 1)
"""Of the rows that are completed with and without a KV cache: a single token, too, right after another row."""
REFUSALS = (NotImplementedError, ImportError, ValueError)
"""What hosts raise where they take no such batch, or do not generate."""
STEPS = 3
"""That are compared of a generation."""
_WINDOWS = (
    *("sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size", "window_size"),
    *("local_attention", "block_size", "chunk_size", "mamba_chunk_size"),
)
Read = Callable[[Tensor, Tensor | None], Tensor]
"""Takes ids and mask (None: all are tokens); gives numbers for each row and token."""
Decode = Callable[[Tensor, Tensor | None, bool], tuple[Tensor, Tensor]]
"""Takes ids, mask, and whether to use the KV cache; gives the tokens that are written and the logits that they come from."""


def ordinary_tokens(tokenizer: Any, n: int) -> Int[Tensor, " n"]:
    """The same each time."""
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(min(len(tokenizer), 4096)) if token not in special] or [0]
    return torch.tensor([ordinary[i * 37 % len(ordinary)] for i in range(1, n + 1)])


def two_rows(tokenizer: Any, even: bool = False) -> tuple[Int[Tensor, " one"], Int[Tensor, " other"]]:
    """Ordinary tokens in rows of different or of equal length."""
    long, short = ordinary_tokens(tokenizer, sum(LENGTHS)).split(LENGTHS)
    return long, long.flip(0) if even else short


def together(rows: tuple[Tensor, Tensor], pad: int) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row token"] | None]:
    """Both in one batch, padded on the left, and the mask; rows of equal length need none."""
    width = max(map(len, rows))
    ids, mask = torch.full((2, width), pad), torch.zeros(2, width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, width - len(tokens) :], mask[row, width - len(tokens) :] = tokens, 1
    return ids, None if bool(mask.all()) else mask


def batch_is_its_rows(read: Read, tokenizer: Any, dtype: torch.dtype, even: bool) -> bool:
    """Whether a batch, padded or of rows of equal length, gives the numbers of each row alone, without any mask."""
    rows = two_rows(tokenizer, even)
    try:
        batch = read(*together(rows, tokenizer.pad_token_id or 0))
    except REFUSALS:
        return False
    return all(
        close(found[-len(row) :], read(row.unsqueeze(0), None)[0], dtype) for found, row in zip(batch, rows, strict=True)
    )


def batch_writes_its_rows(decode: Decode, tokenizer: Any, dtype: torch.dtype, cached: bool, even: bool) -> bool:
    """The same of what is written."""
    rows = two_rows(tokenizer, even)
    try:
        batch = decode(*together(rows, tokenizer.pad_token_id or 0), cached)
    except REFUSALS:
        return False
    alone = [decode(row.unsqueeze(0), None, cached) for row in rows]
    return all(
        same_steps((batch[0][i], batch[1][i]), (tokens[0], logits[0]), dtype) for i, (tokens, logits) in enumerate(alone)
    )


def cache_is_the_sequence(decode: Decode, tokenizer: Any, dtype: torch.dtype, lengths: Sequence[int] = CACHED) -> bool:
    """Whether rows write with a KV cache what they write without."""
    rows = [ordinary_tokens(tokenizer, length).unsqueeze(0) for length in lengths]
    try:
        cached = [decode(row, None, True) for row in rows]
    except REFUSALS:
        return False
    whole = [decode(row, None, False) for row in rows]
    return all(
        same_steps((found[0][0], found[1][0]), (true[0][0], true[1][0]), dtype)
        for found, true in zip(cached, whole, strict=True)
    )


def sharing_is_generating(
    shared: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]], decode: Decode, tokenizer: Any, dtype: torch.dtype
) -> bool:
    """Whether rows that go on from a KV cache of their prompts, copied and cut, predict what they predict alone.

    `shared` takes ids, mask, and what the last row writes first; it gives the logits of each row's first token and of the last
    row's second, once the others have left.
    """
    long, single = ordinary_tokens(tokenizer, sum(CACHED)).split(CACHED)
    rows = long, single  # of the second, nothing is read before its last token
    ids, mask = together(rows, tokenizer.pad_token_id or 0)
    alone = [decode(row.unsqueeze(0), None, True) for row in rows]
    try:
        first, second = shared(ids, torch.ones_like(ids) if mask is None else mask, int(alone[-1][0][0, 0]))
    except (*REFUSALS, AttributeError, TypeError, KeyError, IndexError, RuntimeError):  # a cache that cannot be cut
        return False
    firsts = all(close(first[i], logits[0, 0], dtype) for i, (_, logits) in enumerate(alone))
    return firsts and close(second, alone[-1][1][0, 1], dtype)


def windows_below(config: Any, length: int) -> list[int]:
    """After how many tokens a sequence of that length leaves a window or a block, where caches begin to drop tokens."""
    told = {getattr(config, name, None) for name in _WINDOWS}
    return sorted(window for window in told if isinstance(window, int) and 1 < window < length)


def same_steps(found: tuple[Tensor, Tensor], true: tuple[Tensor, Tensor], dtype: torch.dtype) -> bool:
    """Whether the logits are the same in all steps that read the same tokens."""
    for step, (logits, of_true) in enumerate(zip(found[1], true[1], strict=False)):
        if not torch.equal(found[0][:step], true[0][:step]):
            break  # a near-tie fell otherwise; what follows reads other tokens
        if not close(logits, of_true, dtype):
            return False
    return True


def close(found: Tensor, true: Tensor, dtype: torch.dtype) -> bool:
    """Whether they are the same but for rounding in the model's dtype."""
    if found.shape != true.shape or not torch.equal(found.isfinite(), true.isfinite()):
        return False
    found, true = found[found.isfinite()].double(), true[true.isfinite()].double()
    return float((found - true).norm()) <= torch.finfo(dtype).eps ** 0.5 * float(true.norm())


def rope_looks_at_the_longest(config: Any, longest: int) -> bool:
    """Whether the rotary positions of a row depend on the longest row beside it."""
    told = getattr(config, "rope_parameters", None) or {}
    ropes = [rope for rope in (told, *told.values()) if isinstance(rope, Mapping)]
    for rope in ropes:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            original = rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", longest)
            if longest > original:
                return True
    return False


def factor_of(ours: Tensor, own: Tensor, cap: float | None, dtype: torch.dtype) -> float | None:
    """By what the model multiplies logits of its norm and unembedding, before its soft cap; None where that is not all.

    What is the same for all tokens of a place does not matter, nor tokens that the model never writes.
    """
    usable = (ours.isfinite() & own.isfinite()).flatten(0, -2).all(dim=0)
    ours, own = ours[..., usable].double(), own[..., usable].double()
    if cap:
        bounded = own.abs() < 0.99 * cap
        ours, own = ours[bounded], cap * torch.atanh(own[bounded] / cap)
    else:
        ours, own = (logits - logits.mean(dim=-1, keepdim=True) for logits in (ours, own))
    factor = float((ours * own).sum() / ours.square().sum())
    return factor if close(factor * ours, own, dtype) else None
