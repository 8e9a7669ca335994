"""Variant: a model together with its prompts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from unlock_lens.core.inputs import SLOT, fill
from unlock_lens.errors import InvalidInput, caution
from unlock_lens.hosts import Backend, backend_of
from unlock_lens.hosts.identity import model_name
from unlock_lens.hosts.remote import Where, remote_of

logger = logging.getLogger(__name__)
_told_about_padding: set[str] = set()
_told_other_ids: set[str] = set()
_KEPT = 400
"""Characters of a prompt that are stored in files."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids and attention mask of prompts, padded on the left."""

    ids: Int[Tensor, "prompt token"]
    mask: Int[Tensor, "prompt token"]

    @cached_property
    def lengths(self) -> Int[Tensor, " prompt"]:
        return self.mask.sum(dim=1)

    def rows(self, indices: Int[Tensor, " row"]) -> Tokens:
        """Some of the prompts, without columns that are padding for all of them."""
        start = self.ids.shape[1] - int(self.lengths[indices].max())
        return Tokens(self.ids[indices, start:], self.mask[indices, start:])

    def batches(self, size: int) -> tuple[Int[Tensor, " row"], ...]:
        """Indices of prompts of similar length, longest first: little padding, and memory peaks in the first batch.

        Raises:
            InvalidInput: size is below 1.
        """
        check_batch_size(size)
        return self._longest_first.split(size)

    def filled(self, size: int, new: int) -> tuple[Int[Tensor, " row"], ...]:
        """The same, for prompts to which `new` tokens are added: shorter ones make batches of more rows, not of more tokens.

        Raises:
            InvalidInput: size is below 1.
        """
        check_batch_size(size)
        order, room = self._longest_first, size * self.most_tokens(new)
        batches: list[Int[Tensor, " row"]] = []
        while len(order):
            rows = room // (int(self.lengths[order[0]]) + new)
            batches.append(order[:rows])
            order = order[rows:]
        return tuple(batches)

    def most_tokens(self, new: int) -> int:
        """Of the longest prompt, with what is added to it."""
        return int(self.lengths.max()) + new

    @property
    def _longest_first(self) -> Int[Tensor, " row"]:
        return self.lengths.argsort(descending=True, stable=True)


def check_batch_size(size: int) -> None:
    """Raise InvalidInput unless the batch size is at least 1."""
    if size < 1:
        raise InvalidInput(f"batch_size {size} was given; at least 1 is needed")


class Variant:
    """A model in the state that its prompts put it in.

    Args:
        model: a TransformerBridge, HookedTransformer, or nnsight TransformersModel.
        prompts: the texts that it reads; any iterable.
        add_special_tokens: whether the tokenizer adds special tokens (False if the text already contains them).
        remote: for nnsight models: run on NDIF (True), on the server at a URL, as a `Remote` says, or on this machine in
            the way that NDIF would ("local"). Results are returned, and not states (docs/remote.md).
        tokens: token ids that you already have, instead of prompts: [prompt, token], padded on either side with
            `attention_mask`.
        attention_mask: 1 for tokens, 0 for padding; without it every id is a token.
        chat: whether to treat each prompt as a user's turn and apply the tokenizer's chat template, up to the assistant's turn.
        system: the system prompt before it.
        demonstrations: (question, answer) pairs that precede each prompt, as earlier turns or as text.
        prepend_bos: whether each prompt begins with the BOS token; None leaves that to the tokenizer.
        template: text around each prompt, which replaces {question} in it.
        record_prompts: whether files made from this variant store its first two prompts, so that they explain themselves.

    Attributes:
        prompts: the texts that the model reads, with templates filled in.

    Raises:
        InvalidInput: there are no prompts, one of them is empty or not a text, options exclude each other, or the tokenizer
            lacks a chat template or BOS token that is needed.
        UnsupportedModel: no backend supports the model, or it cannot run remotely as requested.

    Source: docs/method.md, section 1.

    Example:
        >>> from unlock_lens import Variant, zoo
        >>> variant = Variant(zoo.load("small-base"), zoo.running_sum(n=4).direct)
        >>> variant.tokens.ids.shape
        torch.Size([4, 9])
    """

    def __init__(
        self,
        model: Any,
        prompts: Iterable[str] | None = None,
        add_special_tokens: bool = True,
        remote: Where = False,
        *,
        tokens: Int[Tensor, "prompt token"] | None = None,
        attention_mask: Shaped[Tensor, "prompt token"] | None = None,
        chat: bool = False,
        system: str | None = None,
        demonstrations: Iterable[tuple[str, str]] = (),
        prepend_bos: bool | None = None,
        template: str = SLOT,
        record_prompts: bool = True,
    ) -> None:
        self.model, self.remote = model, remote
        self.template, self.record_prompts = template, record_prompts
        self.chat, self.system = chat, system
        backend = self.backend  # at once, so that a model that cannot be served is refused here
        if where := remote_of(remote):
            backend.on(where)
        self.add_special_tokens = add_special_tokens and not chat and tokens is None  # a chat template holds its own
        self.prepend_bos = prepend_bos
        shown = list(demonstrations)
        self.n_demonstrations = len(shown)
        self._from_ids = tokens is not None
        if tokens is None:
            if attention_mask is not None:
                raise InvalidInput("attention_mask= can only be given with tokens=; texts are padded automatically")
            if system is not None and not chat:
                raise InvalidInput("system= needs chat=True, which applies the chat template")
            given = fill(template, check_prompts(prompts))
            texts = [_chat(backend, system, shown, prompt) for prompt in given] if chat else _after(shown, given)
            self.prompts = tuple(texts)
        else:
            if prompts is not None or chat or system is not None or shown or prepend_bos is not None or template != SLOT:
                raise InvalidInput("tokens= was given together with options for texts; give either texts or token ids")
            self.tokens = from_ids(tokens, attention_mask, backend.tokenizer)
            rows = [ids[mask.bool()].tolist() for ids, mask in zip(self.tokens.ids, self.tokens.mask, strict=True)]
            self.prompts = tuple(backend.tokenizer.decode(row) for row in rows)

    @cached_property
    def backend(self) -> Backend:
        return backend_of(self.model)

    @cached_property
    def tokens(self) -> Tokens:
        """The prompts' tokens, from one call of the model's own tokenizer."""
        found = tokenize(
            self.backend.tokenizer, self.prompts, self.add_special_tokens, self.prepend_bos, self.backend.bos_token
        )
        if self.add_special_tokens and self.prepend_bos is None:
            self._tell_other_ids(found)
        return found

    def _tell_other_ids(self, found: Tokens) -> None:
        """Warn, once for each model, if its host reads the first prompt as different ids."""
        name, ours = self.backend.identity.name, found.ids[0][found.mask[0].bool()].tolist()
        if name in _told_other_ids or (native := self.backend.native_ids(self.prompts[0])) == ours[: len(native)]:
            return
        _told_other_ids.add(name)
        caution(
            f"the host of {name} reads the text {self.prompts[0][:40]!r} as ids {native[:6]}..., but its tokenizer (and this "
            f"Variant) as {ours[:6]}.... Directions and hooks are made for the ids that a Variant reads: set prepend_bos=True "
            "or False here, and the same wherever the host is given text"
        )

    @cached_property
    def spans(self) -> list[list[tuple[int, int]]]:
        """For each token of each prompt, the span of characters in the text; special tokens have an empty span.

        Raises:
            InvalidInput: the tokenizer cannot tell, or token ids were given instead of texts.
        """
        tokenizer = self.backend.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidInput(
                f"the tokenizer of {self.backend.identity.name} ({type(tokenizer).__name__}) cannot locate its tokens "
                "in the text; open the model with its fast tokenizer"
            )
        options = {"add_special_tokens": self.add_special_tokens, "return_offsets_mapping": True}
        encoded = tokenizer(list(self.prompts), **options)
        spans = [
            [(0, 0)] * (n - len(ids)) + [(start, end) for start, end in of_prompt][max(len(ids) - n, 0) :]
            for ids, of_prompt, n in zip(
                encoded["input_ids"], encoded["offset_mapping"], self.tokens.lengths.tolist(), strict=True
            )
        ]
        return spans

    @cached_property
    def prompts_hash(self) -> str:
        """Hash of the prompts, for metadata."""
        return hashlib.sha256("\0".join(self.prompts).encode()).hexdigest()[:16]

    @property
    def description(self) -> dict[str, Any]:
        """A JSON description of what the model read, for metadata."""
        tokenizer = self.backend.tokenizer
        rendered = str(self.backend.chat_template) if self.chat else None
        return {
            "n": len(self),
            "hash": self.prompts_hash,
            "first": [prompt[:_KEPT] for prompt in self.prompts[:2]] if self.record_prompts else [],
            "given": "tokens" if self._from_ids else "texts",
            "template": self.template,
            "frame": list(self._frame or ()) or None if self.record_prompts else None,
            "chat_template_hash": hashlib.sha256(rendered.encode()).hexdigest()[:16] if rendered else None,
            "system": self.system if self.record_prompts else None,
            "demonstrations": self.n_demonstrations,
            "tokenizer": f"{type(tokenizer).__name__} {model_name(str(tokenizer.name_or_path))}",
            "add_special_tokens": self.add_special_tokens,
            "prepend_bos": self.prepend_bos,
        }

    @property
    def _frame(self) -> tuple[str, str] | None:
        """What all prompts begin and end with, whatever made them, and no more than is needed to know them again."""
        if len(set(self.prompts)) < 2:
            return None
        begin, end = (commonprefix([prompt[::way] for prompt in self.prompts])[::way] for way in (1, -1))  # noqa: RUF071  texts, not paths
        return begin[-_KEPT:], end[:_KEPT]

    def __len__(self) -> int:
        return len(self.prompts)


def variant_of(
    model: Any, prompts: Iterable[str] | Variant | None, add_special_tokens: bool = True, remote: Where = False
) -> Variant:
    """The `Variant` for functions that take a model and prompts; either may already be one.

    Raises:
        InvalidInput: the variant belongs to another model, or as for `Variant`.
    """
    if isinstance(model, Variant) and prompts is None:
        return model
    if isinstance(prompts, Variant):
        if prompts.model is not model:
            raise InvalidInput("the Variant given as prompts has a different model; give its own model, or its texts")
        return prompts
    return Variant(model, prompts, add_special_tokens, remote)


def check_prompts(prompts: Iterable[str] | None) -> tuple[str, ...]:
    """The prompts, after checking that there is at least one and none is empty.

    Raises:
        InvalidInput: otherwise.
    """
    if isinstance(prompts, str):
        raise InvalidInput(f"one text was given ({prompts[:40]!r}); give a list of prompts")
    given = tuple(prompts or ())
    if not given:
        raise InvalidInput("no prompts were given; at least one is needed")
    for i, prompt in enumerate(given):
        if not isinstance(prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]  users have no type checker
            raise InvalidInput(f"prompt {i} is {type(prompt).__name__}; give texts")
        if not prompt.strip():
            raise InvalidInput(f"prompt {i} is empty; leave it out or fill it")
    return given


def _chat(backend: Backend, system: str | None, demonstrations: Sequence[tuple[str, str]], prompt: str) -> str:
    """The chat template, up to where the assistant answers."""
    turns = [{"role": "system", "content": system}] if system is not None else []
    for question, answer in demonstrations:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if not backend.chat_template:
        raise InvalidInput(
            f"the tokenizer of {backend.identity.name} has no chat template; set tokenizer.chat_template, or omit chat="
        )
    turns.append({"role": "user", "content": prompt})
    template = backend.chat_template
    return backend.tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)


def _after(demonstrations: Sequence[tuple[str, str]], prompts: Sequence[str]) -> list[str]:
    """Questions and answers in plain text, a blank line after each, before every prompt."""
    before = "".join(f"{question} {answer}\n\n" for question, answer in demonstrations)
    return [before + prompt for prompt in prompts]


def tokenize(
    tokenizer: Any,
    prompts: Sequence[str],
    add_special_tokens: bool = True,
    prepend_bos: bool | None = None,
    bos: int | None = None,
) -> Tokens:
    """Ids and mask from one tokenizer call, padded here so that the caller's tokenizer is unchanged."""
    rows: list[list[int]] = tokenizer(list(prompts), add_special_tokens=add_special_tokens)["input_ids"]
    if prepend_bos is not None:
        rows = [_with_bos(tokenizer.bos_token_id if bos is None else bos, row, prepend_bos) for row in rows]
    for i, row in enumerate(rows):
        if not row:
            raise InvalidInput(f"the tokenizer produces no tokens for prompt {i} ({prompts[i][:40]!r}); leave it out")
    return padded(tokenizer, rows)


def _with_bos(bos: int | None, row: list[int], prepend_bos: bool) -> list[int]:
    """The ids with one BOS token in front, or without."""
    rest = row[1:] if row[:1] == [bos] else row
    if not prepend_bos:
        return rest
    if bos is None:
        raise InvalidInput("prepend_bos=True was given, but the tokenizer has no BOS token; set tokenizer.bos_token")
    return [bos, *rest]


def from_ids(ids: Tensor, mask: Tensor | None, tokenizer: Any) -> Tokens:
    """Token ids given by the user, padded on the left, whichever side their padding was on.

    Raises:
        InvalidInput: shapes do not match, ids are not integers, or a row has no tokens.
    """
    if ids.ndim != 2 or ids.is_floating_point() or (mask is not None and mask.shape != ids.shape):
        told = "" if mask is None else f" and an attention_mask of shape {list(mask.shape)}"
        raise InvalidInput(f"tokens of shape {list(ids.shape)}, {ids.dtype}{told} were given; ids [prompt, token] are needed")
    if mask is None and tokenizer.pad_token_id is not None and bool((ids[:, -1] == tokenizer.pad_token_id).any()):
        caution("tokens= has rows ending in the pad token, but no attention_mask= marks padding; every id is read")
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    rows = [row[keep].tolist() for row, keep in zip(ids.cpu(), kept.cpu(), strict=True)]
    if not all(rows):
        raise InvalidInput(f"row {[bool(row) for row in rows].index(False)} of tokens= has no tokens; leave it out")
    return padded(tokenizer, rows)


def padded(tokenizer: Any, rows: Sequence[Sequence[int]]) -> Tokens:
    """Rows of ids, padded on the left."""
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
