"""Variant: a model together with its prompts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import Backend, backend_of
from unlock_lens.hosts.remote import Where, remote_of

logger = logging.getLogger(__name__)
_told_about_padding: set[str] = set()


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids and attention mask of prompts, padded on the left."""

    ids: Int[Tensor, "prompt token"]
    mask: Int[Tensor, "prompt token"]

    @cached_property
    def lengths(self) -> Int[Tensor, " prompt"]:
        return self.mask.sum(dim=1)

    def rows(self, indices: Int[Tensor, " row"]) -> Tokens:
        """Some of the prompts, without the padding that none of them needs."""
        start = self.ids.shape[1] - int(self.lengths[indices].max())
        return Tokens(self.ids[indices, start:], self.mask[indices, start:])

    def batches(self, size: int) -> tuple[Int[Tensor, " row"], ...]:
        """Indices of prompts of like length, the longest first: little is spent on padding, and memory peaks at once.

        Raises:
            InvalidInput: size is below 1.
        """
        check_batch_size(size)
        return self.lengths.argsort(descending=True, stable=True).split(size)


def check_batch_size(size: int) -> None:
    """Raise InvalidInput unless a batch holds something."""
    if size < 1:
        raise InvalidInput(f"batch_size {size} was given; at least 1 is needed")


@dataclass(frozen=True, eq=False)
class Variant:
    """A model in the state that its prompts put it in.

    Attributes:
        model: a TransformerBridge, HookedTransformer, or nnsight TransformersModel.
        prompts: what it reads, one text each.
        add_special_tokens: whether the tokenizer adds its own (say no where the text holds them, as chat templates do).
        remote: for nnsight models: run on NDIF (True), on the server of a host URL, as a `Remote` says, or on this machine
            as NDIF would ("local"). What comes back are conclusions, not states (docs/remote.md).

    Raises:
        InvalidInput: no prompts, one of them empty, or not a text.
        UnsupportedModel: a model that no backend serves, or that cannot run remotely as asked.

    Source: docs/method.md, section 1.

    Example:
        >>> from unlock_lens import Variant, zoo
        >>> variant = Variant(zoo.load("small-base"), zoo.running_sum(n=4).direct)
        >>> variant.tokens.ids.shape
        torch.Size([4, 9])
    """

    model: Any
    prompts: Sequence[str]
    add_special_tokens: bool = True
    remote: Where = False

    def __post_init__(self) -> None:
        check_prompts(self.prompts)
        object.__setattr__(self, "prompts", tuple(self.prompts))
        backend = self.backend  # at once, so that a model that cannot be served is refused here
        if where := remote_of(self.remote):
            backend.on(where)

    @cached_property
    def backend(self) -> Backend:
        return backend_of(self.model)

    @cached_property
    def tokens(self) -> Tokens:
        """The prompts' tokens, from one call of the model's own tokenizer."""
        return tokenize(self.backend.tokenizer, self.prompts, self.add_special_tokens)

    @cached_property
    def spans(self) -> list[list[tuple[int, int]]]:
        """For each token of each prompt, first and last character + 1 in the text; an empty span is a special token's.

        Raises:
            InvalidInput: the tokenizer does not know.
        """
        tokenizer = self.backend.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidInput(
                f"the tokenizer of {self.backend.identity.name} ({type(tokenizer).__name__}) cannot tell where its tokens "
                "stand in the text; open the model with its fast tokenizer"
            )
        asked = {"add_special_tokens": self.add_special_tokens, "return_offsets_mapping": True}
        return [[(start, end) for start, end in spans] for spans in tokenizer(list(self.prompts), **asked)["offset_mapping"]]

    @cached_property
    def prompts_hash(self) -> str:
        """Hash of the prompts, for the metadata of what is made from them."""
        return hashlib.sha256("\0".join(self.prompts).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.prompts)


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise InvalidInput unless these are texts, at least one, none of them empty."""
    if isinstance(prompts, str):
        raise InvalidInput(f"one text was given ({prompts[:40]!r}); give a list of prompts")
    if not len(prompts):
        raise InvalidInput("no prompts were given; at least one is needed")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]  users have no type checker
            raise InvalidInput(f"prompt {i} is {type(prompt).__name__}; give texts")
        if not prompt.strip():
            raise InvalidInput(f"prompt {i} is empty; leave it out or fill it")


def tokenize(tokenizer: Any, prompts: Sequence[str], add_special_tokens: bool = True) -> Tokens:
    """Ids and mask from one tokenizer call, padded here so that the caller's tokenizer stays as it is."""
    rows: list[list[int]] = tokenizer(list(prompts), add_special_tokens=add_special_tokens)["input_ids"]
    for i, row in enumerate(rows):
        if not row:
            raise InvalidInput(f"the tokenizer makes no token of prompt {i} ({prompts[i][:40]!r}); leave it out")
    width = max(len(row) for row in rows)
    uneven = any(len(row) < width for row in rows)
    ids = torch.full((len(rows), width), _pad_id(tokenizer) if uneven else 0)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return Tokens(ids, mask)


def _pad_id(tokenizer: Any) -> int:
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    if tokenizer.eos_token_id is None:
        raise InvalidInput("the tokenizer has neither a pad nor an EOS token; set tokenizer.pad_token")
    name = str(tokenizer.name_or_path)
    if name not in _told_about_padding:
        _told_about_padding.add(name)
        logger.warning("the tokenizer %s has no pad token; its EOS token %r is used", name, tokenizer.eos_token)
    return int(tokenizer.eos_token_id)
