"""Positions: where the tokens of each forward pass stand in their sequence, from what the model's forward is given.

One rule for every host and every way in: positions come from the mask, the cache or the position ids, and the prompt ends where
the ids given end. It needs torch alone, because it also runs in a server's process.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unlock_lens.errors import InvalidInput, UnsupportedModel
from unlock_lens.method.apply import Chunk

_INPUTS = ("input_ids", "inputs_embeds", "inputs", "input", "tokens")
CACHES = ("past_key_values", "cache_params", "past_kv_cache", "past_key_value", "state", "mems")
"""Under what names models take what they keep of earlier passes."""


@dataclass(frozen=True, eq=False)
class Given:
    """What a model's forward is given in one pass.

    Attributes:
        tokens: ids [row, token], or embeddings [row, token, d_model].
        seen: tokens that stand before these; None where a cache does not say how many it holds.
        last: where the padding is on the right, the column of each row's last token, counted from the sequence's first.
    """

    tokens: Tensor
    seen: int | None = 0
    last: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens of each row in this pass."""
        return self.tokens.shape[1]

    def of_rows(self, rows: slice) -> Given:
        """Some of the rows."""
        return replace(self, tokens=self.tokens[rows], last=None if self.last is None else self.last[rows])


def given_to(args: Sequence[Any], kwargs: Mapping[str, Any], pad: int | None = None) -> Given | None:
    """What the arguments of a model's forward say; None where they hold no tokens.

    `pad` is the id that a host pads with where it makes no mask of it.
    """
    named = [kwargs[name] for name in _INPUTS if isinstance(kwargs.get(name), Tensor)]
    tokens = next(iter(named), args[0] if args and isinstance(args[0], Tensor) else None)
    if tokens is None or tokens.ndim < 2:
        return None
    mask = kwargs.get("attention_mask")
    mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == tokens.shape[0] else None
    seen = _seen(kwargs, tokens.shape[1], mask)
    return Given(tokens, seen, _last_tokens(tokens, mask, pad) if not seen else None)


def _seen(kwargs: Mapping[str, Any], length: int, mask: Tensor | None) -> int | None:
    """The most that the mask, the cache and the positions tell: a cache may not count, and a mask may be left out."""
    told = [0] if mask is None else [max(mask.shape[1] - length, 0)]  # XLNet reads a token more than the mask has
    caches = [kwargs[name] for name in CACHES if kwargs.get(name) is not None]
    if not caches:
        return max(told)
    told += [held for cache in caches if (held := _held(cache)) is not None]
    positions = [kwargs[name] for name in ("cache_position", "position_ids") if isinstance(kwargs.get(name), Tensor)]
    told += [int(of_tokens[..., -1].max()) + 1 - length for of_tokens in positions if of_tokens.shape[-1] == length]
    counted = mask is not None or len(told) > 1
    return max(told) if counted else None


def _held(cache: Any) -> int | None:
    """How many tokens a cache holds; None where it keeps no count."""
    count = getattr(cache, "get_seq_length", None)
    if count is not None:
        try:
            return int(count())
        except (ValueError, TypeError, IndexError, AttributeError):  # of state-space layers alone
            return None
    if isinstance(cache, tuple | list) and cache and isinstance(cache[0], tuple | list) and isinstance(cache[0][0], Tensor):
        return cache[0][0].shape[-2]
    return None


def _last_tokens(tokens: Tensor, mask: Tensor | None, pad: int | None) -> Tensor | None:
    """Of each row, where any is padded on the right."""
    if mask is None:
        if pad is None or tokens.is_floating_point():
            return None
        mask = tokens != pad
        if not bool(mask[:, -1].any()):  # the longest row has no padding: these are tokens
            return None
    ends = mask[:, -1].bool()
    return None if bool(ends.all()) else last_of(mask)


def last_of(mask: Tensor) -> Tensor:
    """The column of each row's last token."""
    return mask.shape[1] - 1 - mask.int().flip(1).argmax(dim=1)


def prompt_given(args: Sequence[Any], kwargs: Mapping[str, Any], pad: int | None = None) -> Given | None:
    """The prompts that a generation is given, whole: where ids are only what is new, the mask is of all."""
    given = given_to(args, {name: value for name, value in kwargs.items() if name not in CACHES}, pad)
    if given is None or not given.seen:
        return given
    return of_mask(kwargs["attention_mask"])


def of_mask(mask: Tensor) -> Given:
    """Prompts that are known by their mask."""
    return Given(mask, last=None if bool(mask[:, -1].all()) else last_of(mask))


def chunk_of(given: Given, prompt: Given | None) -> Chunk:
    """The same as edits take it; prompts that nobody tells of end with this pass."""
    if prompt is None:
        return Chunk((given.seen or 0) + given.length, given.seen or 0, given.last)
    return Chunk(prompt.length, prompt.length if given.seen is None else given.seen, prompt.last)


class Progress:
    """Where the passes of a run stand that is the user's own: told when a pass begins, asked while it runs.

    Where nobody says how long the prompt is, the pass that begins a sequence is the prompt, and what continues it is generated.

    Args:
        mask: of the whole prompts, [row, token].
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        self.chunk = Chunk(prompt_length=0)
        self.rows = 0
        """Of the current pass."""
        self.doubt: str | None = None
        """What could not be known of the current pass."""
        self._of_mask = None if mask is None else of_mask(mask)
        self._prompt = self._of_mask
        self._generating = False
        self._end = 0
        self._previous: Tensor | None = None

    def begin(self, prompt: Given | None) -> None:
        """A generation of these prompts begins, or (None) is over; a mask that was given says more."""
        self._generating, self._prompt = prompt is not None, self._of_mask or prompt
        self._end, self._previous = 0 if prompt else self._end, None

    def enter(self, given: Given) -> None:
        """A pass begins.

        Raises:
            InvalidInput: the mask of the prompts has another number of rows.
        """
        self.doubt, self.rows = None, len(given.tokens)
        seen = self._end if given.seen is None else given.seen
        if self._prompt is not None:
            self.chunk = Chunk(self._prompt.length, seen, _for_rows(self._prompt, self.rows, self._generating))
        elif self._is_fresh(given, seen):
            self.chunk = Chunk(seen + given.length, seen, given.last)
        else:
            self.chunk = Chunk(self.chunk.prompt_length, seen, self.chunk.last)
        self._end, self._previous = seen + given.length, None if seen else given.tokens.detach()

    def _is_fresh(self, given: Given, seen: int) -> bool:
        """Whether the pass begins a sequence, or continues one whose beginning was read before this run."""
        if not seen:
            before = self._previous
            if before is None or given.tokens.device != before.device or not torch.equal(given.tokens[:, :-1], before):
                return True
            self.doubt = (
                "a pass without KV cache extends the previous one by one token, and is steered as the next step of the same "
                "generation; for separate prompts (such as a sweep over prefixes), attach the hook again for each"
            )
            return False
        if not 0 < self.chunk.prompt_length <= seen <= self._end:
            return True
        if given.length > 1:
            self.doubt = (
                f"a pass of {given.length} tokens continues a prompt that is in the KV cache, and is steered as generated "
                "text; if it belongs to the prompt, give the whole prompt's attention_mask= when you attach the hook"
            )
        return False


def _for_rows(prompt: Given, rows: int, generating: bool) -> Tensor | None:
    """Each row's last token; in a generation, beams make several rows of a prompt."""
    times, left = divmod(rows, len(prompt.tokens))
    if left or (times > 1 and not generating):
        raise InvalidInput(f"the attention mask has {len(prompt.tokens)} rows, the batch has {rows}; give one row per prompt")
    return prompt.last if prompt.last is None or times == 1 else prompt.last.repeat_interleave(times)


def takes(module: Any, name: str) -> bool:
    """Whether a model's forward names a keyword."""
    return name in _keywords(type(module))


@cache
def _keywords(kind: type) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)  # pyright: ignore[reportAttributeAccessIssue]


def residual_of(output: Any) -> Tensor:
    """The tensor that holds the residual stream in a block's output, which a few families return in a tuple or list."""
    return output if isinstance(output, Tensor) else output[0]


def with_residual(output: Any, residual: Tensor) -> Any:
    """The same output with another residual stream."""
    return residual if isinstance(output, Tensor) else type(output)([residual, *output[1:]])


def as_rows(states: Tensor, rows: int, tokens: int, tokens_first: bool = False) -> Tensor:
    """A view of a block's states as [row, token, d_model].

    Gemma-3n's blocks hold several streams, [stream, row, token, d_model], of which the first is the residual stream; XLNet's
    hold [token, row, d_model].

    Raises:
        UnsupportedModel: any other shape.
    """
    shape = tuple(states.shape)
    if states.ndim == 3 and tokens_first and shape[:2] == (tokens, rows):
        return states.transpose(0, 1)
    if states.ndim == 3 and not tokens_first and shape[:2] == (rows, tokens):
        return states
    if states.ndim == 4 and shape[1:3] == (rows, tokens):
        return states[0]
    raise UnsupportedModel(
        f"a block gives states of shape {list(shape)} for {rows} rows of {tokens} tokens; [{rows}, {tokens}, d_model] is "
        "needed (a model that packs or pools its tokens cannot be read or steered token by token)"
    )


def from_rows(edited: Tensor, states: Tensor, tokens_first: bool = False) -> Tensor:
    """States in the block's own shape, of which `as_rows` gave the view that was edited."""
    if states.ndim == 4:
        return torch.cat([edited.unsqueeze(0), states[1:]])
    return edited.transpose(0, 1) if tokens_first else edited
