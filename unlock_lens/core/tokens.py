"""Which tokens are read, and how tokens of source and target are paired (docs/aligners.md, "Which tokens")."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput, caution
from unlock_lens.hosts import Backend

logger = logging.getLogger(__name__)
Positions = Literal["last", "all"] | int
Span = tuple[int, int]
Chosen = Sequence[Int[Tensor, "_"]]
"""For each prompt, the tokens that are read, counted from 0 without padding."""


def one_token(variant: Variant, position: int = -1) -> Chosen:
    """The token of each prompt at a position; negative positions count from the end.

    Raises:
        InvalidInput: a prompt lacks that token.
    """
    check_position(variant, position)
    if position == -1 and isinstance(variant.backend, Backend):  # pyright: ignore[reportUnnecessaryIsInstance]  a plan has none
        check_last_token(variant)
    tokens = torch.full_like(variant.tokens.lengths, position) + (variant.tokens.lengths if position < 0 else 0)
    return tokens.split(1)


def all_tokens(variant: Variant, skip_first: bool = False) -> Chosen:
    """Every token of each prompt, or all except the first.

    Raises:
        InvalidInput: no tokens are left.
    """
    lengths: list[int] = variant.tokens.lengths.tolist()
    if skip_first and max(lengths) == 1:
        raise InvalidInput("every prompt has only one token, which skip_first leaves out; give longer texts")
    return [torch.arange(int(skip_first), length) for length in lengths]


def check_position(variant: Variant, position: int) -> None:
    """Raise InvalidInput unless every prompt has a token at that position."""
    needed = -position if position < 0 else position + 1
    short = (variant.tokens.lengths < needed).nonzero()
    if len(short):
        prompt = int(short[0])
        raise InvalidInput(
            f"position {position} was requested, but prompt {prompt} ({variant.prompts[prompt][:40]!r}) has "
            f"{int(variant.tokens.lengths[prompt])} tokens; every prompt needs {needed}"
        )


def check_last_token(variant: Variant) -> None:
    """Raise InvalidInput if the tokenizer itself ends every prompt with a special token, which would hide the last one."""
    token = _special_at_the_end(variant)
    if token and not any(prompt.rstrip().endswith(token) for prompt in variant.prompts):
        raise InvalidInput(
            f"the tokenizer of {variant.backend.identity.name} ends every prompt with {token!r}, which would be its last "
            "token; pass add_special_tokens=False (with prepend_bos=True, if the model wants BOS)"
        )


def warn_of_last_token(variant: Variant) -> None:
    """Warn if prompts end with a special token, after which a model may write anything."""
    if token := _special_at_the_end(variant, every=False):
        caution(
            f"prompts end with the special token {token!r}, which is then the last prompt token, where edits are made; "
            "leave it out, unless the model expects it there"
        )


def _special_at_the_end(variant: Variant, every: bool = True) -> str | None:
    """The special token that ends every prompt, or any prompt; one that a chat template adds is intended and ignored."""
    if not getattr(variant, "add_special_tokens", False):
        return None
    tokenizer, last = variant.backend.tokenizer, set(variant.tokens.ids[:, -1].tolist())
    special = last & set(tokenizer.all_special_ids)
    return tokenizer.convert_ids_to_tokens(min(special)) if special and (len(last) == 1 or not every) else None


def check_positions(positions: Positions) -> None:
    """Raise InvalidInput unless this is "last", "all" or a stride of at least 1."""
    stride = isinstance(positions, int) and not isinstance(positions, bool) and positions >= 1
    if positions not in ("last", "all") and not stride:
        raise InvalidInput(
            f'calibration positions {positions!r} were given; use "last", "all", or a stride '
            "(4: every fourth token, counted back from the last)"
        )


def paired_tokens(source: Variant, target: Variant, positions: Positions, skip_first: bool = False) -> tuple[Chosen, Chosen]:
    """The paired tokens of both models for each text, equally many on both sides.

    With positions="last", the last tokens are paired. Otherwise tokens are paired by place, if both models read the same ids,
    or different texts with equally many tokens of one vocabulary. If two tokenizers split a text differently, tokens that end
    at the same character are paired.

    Raises:
        InvalidInput: the numbers of texts differ, or those of tokens in differing texts; or no tokens end at the same
            character.

    Example:
        >>> from unlock_lens import Variant, zoo
        >>> from unlock_lens.core.tokens import paired_tokens
        >>> texts = zoo.running_sum(n=2).direct
        >>> source, target = Variant(zoo.load("large-base"), texts), Variant(zoo.load("small-base"), texts)
        >>> paired_tokens(source, target, 4)[0][0]  # a stride of 4, back from the last of 9 tokens
        tensor([0, 4, 8])
    """
    if len(source) != len(target):
        raise InvalidInput(f"{len(source)} source and {len(target)} target texts were given; text i must be the same in both")
    if positions == "last":
        return one_token(source), one_token(target)
    differing = sum(a != b for a, b in zip(source.prompts, target.prompts, strict=True))
    same_vocabulary = cache(lambda: _same_vocabulary(source, target))
    pairs = [_strided(_pairs(source, target, i, skip_first, same_vocabulary), positions) for i in range(len(source))]
    if not any(len(of_text) for of_text in pairs):
        raise InvalidInput(
            f"no token of {source.backend.identity.name} can be paired with one of {target.backend.identity.name}: "
            "their tokenizers share no offset in these texts, or skip_first leaves out the only ones; give longer texts, "
            'or use positions="last"'
        )
    if differing:
        logger.warning(
            "%d of %d texts differ between source and target; their tokens are paired by position", differing, len(source)
        )
    return [of_text[:, 0] for of_text in pairs], [of_text[:, 1] for of_text in pairs]


def _pairs(
    source: Variant, target: Variant, i: int, skip_first: bool, same_vocabulary: Callable[[], bool]
) -> Int[Tensor, "pair 2"]:
    counts = [int(variant.tokens.lengths[i]) for variant in (source, target)]
    if _same_ids(source, target, i):
        pairs = [(token, token) for token in range(counts[0])]
    elif source.prompts[i] == target.prompts[i]:
        pairs = pairs_by_end(source.spans[i], target.spans[i])
    elif counts[0] == counts[1] and same_vocabulary():
        pairs = [(token, token) for token in range(counts[0])]
    else:
        raise InvalidInput(
            f"text {i} has {counts[0]} tokens in the source and {counts[1]} in the target, and is not the same text in both "
            f"({source.prompts[i][:40]!r} and {target.prompts[i][:40]!r}), so its tokens cannot be paired; "
            "give both models the same texts, in the same order"
        )
    kept = [pair for pair in pairs if not (skip_first and 0 in pair)]
    return torch.tensor(kept, dtype=torch.long).reshape(-1, 2)


def _same_vocabulary(source: Variant, target: Variant) -> bool:
    vocabularies = [variant.backend.tokenizer.get_vocab() for variant in (source, target)]
    return vocabularies[0] == vocabularies[1]


def _same_ids(source: Variant, target: Variant, i: int) -> bool:
    rows = [variant.tokens.ids[i, -int(variant.tokens.lengths[i]) :] for variant in (source, target)]
    return torch.equal(*rows)


def pairs_by_end(source: list[Span], target: list[Span]) -> list[tuple[int, int]]:
    """Tokens that end at the same character of one text (the last one, if several do). Special tokens are left out.

    Example:
        >>> from unlock_lens.core.tokens import pairs_by_end
        >>> pairs_by_end([(0, 3), (3, 8)], [(0, 0), (0, 1), (1, 3), (3, 8)])  # "the cat": the+ cat, BOS+t+he+ cat
        [(0, 2), (1, 3)]
    """
    if source == target:
        return [(token, token) for token in range(len(source))]
    ends = [{end: token for token, (_, end) in _read(spans)} for spans in (source, target)]
    return [(ends[0][end], ends[1][end]) for end in sorted(ends[0].keys() & ends[1].keys())]


def _read(spans: list[Span]) -> Iterator[tuple[int, Span]]:
    """Tokens that stand in the text; not one whose characters the next token has too, having read none of them itself.

    A space that a tokenizer puts in front of a text is such a token: its span is that of the first character.
    """
    for token, (start, end) in enumerate(spans):
        following = spans[token + 1] if token + 1 < len(spans) else (end, end)
        if end > start and not (following[0] <= start and following[1] > end):
            yield token, (start, end)


def _strided(pairs: Int[Tensor, "pair 2"], positions: Positions) -> Int[Tensor, "kept 2"]:
    if not isinstance(positions, int):
        return pairs
    return pairs.flip(0)[::positions].flip(0)
