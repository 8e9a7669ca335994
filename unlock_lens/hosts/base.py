"""The interface of a host framework: all that unlock-lens needs of it."""

from __future__ import annotations

import logging
import re
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unlock_lens.errors import InvalidInput, UnsupportedModel, caution
from unlock_lens.hosts.decoding import Writer, begins_at_the_end, completed_arms
from unlock_lens.hosts.endings import StopCriterion
from unlock_lens.hosts.guard import running
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.hosts.remote import Remote
from unlock_lens.hosts.trust import (
    CACHED,
    batch_is_its_rows,
    batch_writes_its_rows,
    cache_is_the_sequence,
    factor_of,
    rope_looks_at_the_longest,
    sharing_is_generating,
    windows_below,
)
from unlock_lens.method.apply import Chunk, LayerEdit
from unlock_lens.method.reduce import Reduction

logger = logging.getLogger(__name__)
_OF_POSITIONS = re.compile(r"(wpe|pos_embed|positions?_embed|embed_positions)[^.]*$")
_INSTEAD = {
    "padding": "gives padded rows different numbers from single rows (a recurrence reads the padding, or the mask is used "
    "wrongly), so rows of equal length are batched instead, without a mask",
    "rows of equal length": "gives rows of equal length different numbers together than alone, so each runs alone instead",
    "cache": "writes something different with its KV cache, so the cache is not used",
    "sharing": "writes something different when it continues from the KV cache of a prompt, so each run reads its prompts anew",
}
_HOSTS = ("transformer_lens", "nnsight", "transformers", "accelerate")
Edits = Mapping[int, Sequence[LayerEdit]]
"""For each edited layer its edits, in the order in which they are made, and the gates that read it."""

Keep = Callable[[int, Tensor], None]
"""Takes the states of the i-th captured layer, [picked, d_model], in float32 at least, on the device where they are."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads: ids and mask, padded on the left.

    Where it is not `masked`, all ids are tokens, and the model is given no mask.
    """

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]
    masked: bool = True

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor | None) -> Batch:
        """With a mask, or without."""
        return cls(ids, torch.ones_like(ids) if mask is None else mask, mask is not None)


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass whose states are reduced: of each picked token its row and column, and where it is held (-1: nowhere).

    At sign -1 the states are subtracted from those of another pass.
    """

    batch: Batch
    rows: Int[Tensor, " picked"]
    columns: Int[Tensor, " picked"]
    places: Int[Tensor, " picked"]
    sign: int = 1


@dataclass(frozen=True)
class Generation:
    """How completions are made: greedily at temperature 0, otherwise sampled, on a server with `seed`.

    Where `top_p` is below 1, only the likeliest tokens that together hold that share are sampled.
    Rows may end once their text holds one of the strings `stop`; who reads them cuts the text there.
    """

    max_new_tokens: int
    use_cache: bool = True
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_p: float = 1.0

    @property
    def sampling(self) -> dict[str, Any]:
        """What transformers and TransformerLens are both told about it."""
        if not self.temperature:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, **({"top_p": self.top_p} if self.top_p < 1 else {})}


@runtime_checkable
class Pending(Protocol):
    """A request that was submitted."""

    @property
    def id(self) -> str | None:
        """The server's name of it; None where it ran on this machine."""
        ...

    def result(self, wait: bool = True) -> Any:
        """What the request saved; None while it is running, unless it is waited for.

        Raises:
            RemoteError: it failed, or takes longer than it may.
        """


class Runs(ABC):
    """What a model does on either machine."""

    @abstractmethod
    def log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Float[Tensor, "row predicted vocabulary"]:
        """Next-token log-probabilities (nats) at each token from the last prompt token on, in one edited forward pass.

        `prompt_length` counts the prompts' tokens with their padding; what follows them is read, not written.
        """

    @abstractmethod
    def unembed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits that the model's own final norm and unembedding make of residual states, before any soft cap.

        What a family multiplies them with is measured on the model's own logits, with a handful of tokens.

        Raises:
            UnsupportedModel: weights that are not on this machine, no final norm, or logits that something else goes into.
        """


class Server(Runs):
    """A model that runs on a server, or ("local") on this machine as a server would run it."""

    remote: Remote | Literal["local"]

    @property
    @abstractmethod
    def told(self) -> dict[str, Any]:
        """What of the server decides the result of a request, for its key: URL, the model's key there, adapters."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Ids of the model's tokens are below this."""

    @abstractmethod
    def reduce(self, passes: Sequence[Pass], layers: Sequence[int], reduction: Reduction) -> Pending:
        """Submit the reduction of the states of ascending `layers`, all passes in one request."""

    @abstractmethod
    def generate(self, batches: Sequence[Batch], edits: Edits, how: Generation) -> Pending:
        """Submit `Backend.generate` for several batches, all in one request."""

    @abstractmethod
    def reattach(self, job_id: str, sent: float) -> Pending:
        """A request that was submitted at that time (seconds since the epoch), perhaps by another process."""


class Backend(Runs):
    """A model in its host framework. Layer l always means the output of block l (`blocks.l.hook_resid_post`)."""

    model: Any
    identity: ModelIdentity
    tokenizer: Any
    end_tokens: Sequence[int]
    """Ids of the tokens that end a completion."""
    found: dict[str, Any]
    """What was measured of the model, once for each adapter that is made."""

    @abstractmethod
    def __init__(self, model: Any) -> None:
        """Look at the model.

        Raises:
            UnsupportedModel: it cannot be served.
        """

    @staticmethod
    @abstractmethod
    def made_from(model: Any) -> tuple[Any, ...]:
        """What of the model may change after its adapter was made, so that another is needed; quick to look at."""

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's chat template."""
        return getattr(self.tokenizer, "chat_template", None)

    @property
    def bos_token(self) -> int | None:
        """The id of BOS."""
        return self.tokenizer.bos_token_id

    def native_ids(self, text: str) -> list[int]:
        """What the host itself makes of a text that it is given."""
        return list(self.tokenizer(text)["input_ids"])

    @abstractmethod
    def on(self, server: Remote | Literal["local"]) -> Server:
        """The same model on a server, or on this machine as a server would run it.

        Raises:
            UnsupportedModel: this model cannot run there.
        """

    @staticmethod
    @abstractmethod
    def module_of(model: Any) -> Any:
        """The module that runs: the Hugging Face model inside the host's, where there is one."""

    @property
    def root(self) -> Any:
        """`module_of` this model."""
        return self.module_of(self.model)

    def capture(
        self, batch: Batch, layers: Sequence[int], rows: Int[Tensor, " picked"], columns: Int[Tensor, " picked"], keep: Keep
    ) -> None:
        """Give `keep` the states of ascending `layers` at the tokens (rows[i], columns[i]).

        Raises:
            UnsupportedModel: a layer that does not run, or whose states have another shape.
        """
        self._check_loaded()
        self._check_length(batch)
        with running(self.root):
            if self._reads(batch):
                self._capture(batch, layers, rows, columns, keep)
                return
            held: dict[int, Tensor] = {}
            for of_rows, part in self._parts(batch, self._reads(batch, even=True)):
                picked = torch.isin(rows, of_rows).nonzero().squeeze(1)
                here = torch.searchsorted(of_rows, rows[picked])
                there = columns[picked] - (batch.ids.shape[1] - part.ids.shape[1])

                def place(i: int, states: Tensor, picked: Tensor = picked) -> None:
                    whole = held.setdefault(i, states.new_full((len(rows), states.shape[-1]), float("nan")))
                    whole[picked.to(states.device)] = states

                if len(picked):
                    self._capture(part, layers, here, there, place)
            for i, states in held.items():
                keep(i, states)

    def log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Float[Tensor, "row predicted vocabulary"]:
        self._check_loaded()
        self._check_head()
        self._check_length(batch)
        with running(self.root):
            if self._reads(batch):
                return self._numbers(self._log_probs(batch, edits, prompt_length))
            found: list[Tensor] = [torch.empty(0)] * len(batch.ids)
            for rows, part in self._parts(batch, self._reads(batch, even=True)):
                cut = batch.ids.shape[1] - part.ids.shape[1]
                for row, predicted in zip(rows.tolist(), self._log_probs(part, edits, prompt_length - cut), strict=True):
                    found[row] = predicted
            return self._numbers(torch.stack(found))

    def slopes(
        self, batch: Batch, layers: Sequence[int], edits: Edits, wanted: Float[Tensor, "row vocabulary"]
    ) -> tuple[Float[Tensor, "layer row d_model"], Float[Tensor, "layer row d_model"]]:
        """States of the last tokens before the edits, and gradients of sum_v wanted[v] log p(v) in nats, after them.

        Raises:
            UnsupportedModel: no backward pass leads through the model.
        """
        self._check_loaded()
        self._check_head()
        self._check_length(batch)
        everyone = torch.arange(len(batch.ids))
        with running(self.root):
            whole = self._reads(batch)
            parts = [(everyone, batch)] if whole else [*self._parts(batch, self._reads(batch, even=True))]
            try:
                with torch.inference_mode(False), torch.enable_grad():
                    found = [self._slopes(part, layers, edits, wanted[rows]) for rows, part in parts]
            except (RuntimeError, NotImplementedError) as error:
                if isinstance(error, torch.OutOfMemoryError | UnsupportedModel):
                    raise
                raise UnsupportedModel(
                    f"{self.identity.name} ({type(self.root).__name__}) does not support a backward pass: {error}. Choose "
                    "layers without gradients, with effect_by_layer, and give them as a list"
                ) from error
        order = torch.cat([rows for rows, _ in parts]).argsort()
        states, slopes = (torch.cat(of_parts, dim=1)[:, order] for of_parts in zip(*found, strict=True))
        return states, slopes

    def _numbers(self, log_probs: Tensor) -> Tensor:
        """Predictions that are numbers: padding or steering that overflows in half precision gives NaN."""
        if bool(log_probs.isnan().any()):
            raise UnsupportedModel(
                f"{self.identity.name} predicts NaN: use float32 or a weaker edit, or batch_size=1 if the host's mask "
                "overflows in half precision (TransformerLens under autocast)"
            )
        return log_probs

    def generate(self, batch: Batch, edits: Edits, how: Generation) -> Int[Tensor, "row new_token"]:
        """Ids of the completions; what follows a row's end-of-sequence token means nothing."""
        return self.generate_arms(batch, [edits], how)[0]

    def generate_arms(
        self, batch: Batch, arms: Sequence[Edits], how: Generation, at_once: int = 1
    ) -> list[Int[Tensor, "row new_token"]]:
        """`generate` under each of several edits, `at_once` of them in one batch.

        Where each edit begins at the last prompt token, the tokens before it are read once for all arms, and rows that have
        ended leave the batch. Otherwise, and where that would give something else, each arm is a run of the host's own.
        """
        self._check_loaded()
        self._check_head()
        self._check_length(batch)
        room = how.max_new_tokens if self._positions is None else self._positions - batch.ids.shape[1] + 1
        within = replace(how, max_new_tokens=min(room, how.max_new_tokens))
        with running(self.root):
            if self._shares(batch, arms, within):
                found = self._shared(batch, arms, within, at_once)
            else:
                found = [self._generated(batch, edits, within) for edits in arms]
        ends = torch.tensor(self.end_tokens, dtype=torch.long)
        cut = any(new.shape[1] == room and not bool(torch.isin(new, ends).any(dim=1).all()) for new in found)
        if room < how.max_new_tokens and cut:
            caution(
                f"completions were cut after {room} new tokens: {self.identity.name} has {self._positions} learned positions"
            )
        return found

    def _shares(self, batch: Batch, arms: Sequence[Edits], how: Generation) -> bool:
        """Whether arms may share what is read of the prompts: sampled tokens, for one, would be drawn in another order."""
        length = batch.ids.shape[1]
        return (
            len(arms) * len(batch.ids) > 1
            and length > 1
            and how.use_cache
            and not how.temperature
            and batch.masked
            and not self._rope_looks_beyond(length + how.max_new_tokens)
            and all(map(begins_at_the_end, arms))
            and self._untouched
            and self._cache_holds(length + how.max_new_tokens)
            and self._writes(batch, cached=True)
            and self._holds("sharing", lambda: sharing_is_generating(self._share, self._decode, self.tokenizer, self._dtype))
        )

    def _shared(self, batch: Batch, arms: Sequence[Edits], how: Generation, at_once: int) -> list[Tensor]:
        stop = StopCriterion(self.tokenizer, self.end_tokens, how.stop, batch.ids.shape[1]) if how.stop else None
        writer = self._writer(stop)
        return completed_arms(writer, batch.ids, batch.mask, arms, how.max_new_tokens, at_once, self._editing_each)

    def _share(self, ids: Tensor, mask: Tensor, following: int) -> tuple[Tensor, Tensor]:
        """Logits of the first token of each row, and of the second of the last row, once the others have left."""
        writer = self._writer()
        twice = torch.arange(len(ids), device=self.root.device).repeat(2)
        rows, first = writer.step(writer.read(ids, mask).picked(twice), 1, output_logits=True)
        rows.ids[:, -1] = following
        _, second = writer.step(rows.picked(twice[-1:]), 1, output_logits=True)
        return first.logits[0].cpu(), second.logits[0][0].cpu()

    def _writer(self, criterion: Any = None) -> Writer:
        pad = next((token for token in (self.tokenizer.pad_token_id, *self.end_tokens) if token is not None), 0)
        return Writer(self.root, tuple(self.end_tokens), pad, criterion)

    @property
    def _untouched(self) -> bool:
        """Whether no hook of the user's own is on the model, which might tell passes apart by what they read."""
        kept = (hook for part in self.root.modules() for hooks in _hooks_of(part) for hook in hooks.values())
        return all(str(getattr(hook, "__module__", "")).partition(".")[0] in _HOSTS for hook in kept)

    @abstractmethod
    def _editing_each(self, edits: Mapping[int, Sequence[Any]], chunk: Chunk, rows: int) -> AbstractContextManager[None]:
        """Edits every pass inside the block, which reads that chunk of so many rows.

        Raises:
            UnsupportedModel: a layer that did not run.
        """

    def _generated(self, batch: Batch, edits: Edits, how: Generation) -> Int[Tensor, "row new_token"]:
        if how.use_cache and not self._cache_holds(batch.ids.shape[1] + how.max_new_tokens):
            how = replace(how, use_cache=False)
        if self._writes(batch, how.use_cache):
            return self._generate(batch, edits, how)
        new = torch.full((len(batch.ids), how.max_new_tokens), self.end_tokens[0] if self.end_tokens else 0)
        for rows, part in self._parts(batch, self._writes(batch, how.use_cache, even=True)):
            made = self._generate(part, edits, how)
            new[rows, : made.shape[1]] = made
        return new

    def _check_loaded(self) -> None:
        """Say so where the weights have yet to be loaded."""

    def _check_head(self) -> None:
        """Raise UnsupportedModel where the model predicts no tokens."""
        if not getattr(self.root, "can_generate", lambda: True)():
            raise UnsupportedModel(
                f"{type(self.root).__name__} predicts no next token, having no language-model head; open the model as a "
                'causal language model, with task="text-generation"'
            )

    def _check_length(self, batch: Batch) -> None:
        """Raise InvalidInput where prompts are longer than the positions that a model has learned."""
        if self._positions is not None and batch.ids.shape[1] > self._positions:
            raise InvalidInput(
                f"a prompt of {batch.ids.shape[1]} tokens was given; {self.identity.name} has {self._positions} learned "
                "positions, so shorten the prompt"
            )

    @property
    def _positions(self) -> int | None:
        """How many positions there are, where each has an embedding that was learned."""
        if "positions" not in self.found:
            self.found["positions"] = _learned_positions(self.root)
        return self.found["positions"]

    @abstractmethod
    def _capture(
        self, batch: Batch, layers: Sequence[int], rows: Int[Tensor, " picked"], columns: Int[Tensor, " picked"], keep: Keep
    ) -> None:
        """`capture` of rows that are batched as they are, while the pass runs."""

    @abstractmethod
    def _log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Float[Tensor, "row predicted vocabulary"]:
        """`log_probs` of rows that are batched as they are."""

    @abstractmethod
    def _slopes(self, batch: Batch, layers: Sequence[int], edits: Edits, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """`slopes` of rows that are batched as they are, while gradients are recorded."""

    @abstractmethod
    def _generate(self, batch: Batch, edits: Edits, how: Generation) -> Int[Tensor, "row new_token"]:
        """`generate` of rows that are batched as they are."""

    @abstractmethod
    def _decode(self, ids: Tensor, mask: Tensor | None, cached: bool) -> tuple[Tensor, Tensor]:
        """The host's own greedy generation of `trust.STEPS` tokens, [row, token], and their logits."""

    def _read(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """States of the last layer, [row, token, d_model]."""
        found: list[Tensor] = []
        rows, columns = torch.ones_like(ids).nonzero().unbind(1)
        batch = Batch.of(ids, mask)
        self._capture(batch, [self.identity.n_layers - 1], rows, columns, lambda i, states: found.append(states))
        return found[0].unflatten(0, ids.shape).cpu()

    def _parts(self, batch: Batch, even: bool) -> Iterator[tuple[Int[Tensor, " row"], Batch]]:
        """Rows of one length, or each row alone, without padding and mask."""
        lengths = batch.mask.sum(dim=1)
        for length in lengths.unique().tolist():
            of_length = (lengths == length).nonzero().squeeze(1)
            for rows in [of_length] if even else of_length.split(1):
                yield rows, Batch.of(batch.ids[rows, batch.ids.shape[1] - length :], None)

    def _reads(self, batch: Batch, even: bool = False) -> bool:
        """Whether rows may be read together: with padding and mask, or of equal length."""
        return (even or self._rope_allows(batch)) and self._holds(
            "rows of equal length" if even else "padding",
            lambda: batch_is_its_rows(self._read, self.tokenizer, self._dtype, even),
        )

    def _writes(self, batch: Batch, cached: bool, even: bool = False) -> bool:
        """Whether they may be completed together."""
        return self._reads(batch, even) and self._holds(
            f"{'rows of equal length' if even else 'padding'}, {'with' if cached else 'without'} cache",
            lambda: batch_writes_its_rows(self._decode, self.tokenizer, self._dtype, cached, even),
        )

    def _rope_allows(self, batch: Batch) -> bool:
        return bool(batch.mask.all()) or not self._rope_looks_beyond(batch.ids.shape[1])

    def _rope_looks_beyond(self, length: int) -> bool:
        """Whether rotary positions change, and a cache with them, in sequences of that length."""
        config = getattr(self.root, "config", None)
        return config is not None and rope_looks_at_the_longest(config.get_text_config(), length)

    def _cache_holds(self, length: int) -> bool:
        """Whether a KV cache gives what the whole sequence gives, for sequences of that length."""
        measured: dict[str, tuple[int, ...]] = {"cache": CACHED}
        config = getattr(self.root, "config", None)
        if config is not None:
            windows = windows_below(config.get_text_config(), length)
            measured |= {f"cache, beyond {window} tokens": (window,) for window in windows}
        return all(
            self._holds(name, partial(cache_is_the_sequence, self._decode, self.tokenizer, self._dtype, lengths))
            for name, lengths in measured.items()
        )

    def _holds(self, name: str, measure: Callable[[], bool]) -> bool:
        """What was measured; once for each model, and what does not hold is said."""
        if name not in self.found:
            self.found[name] = measure()
            if not self.found[name]:
                logger.warning("%s %s", self.identity.name, _INSTEAD[name.partition(",")[0]])
        return self.found[name]

    @property
    def _dtype(self) -> torch.dtype:
        return next((part.dtype for part in self.root.parameters() if part.is_floating_point()), torch.float32)

    @abstractmethod
    def attached(self, edits: Edits, mask: Tensor | None = None) -> AbstractContextManager[None]:
        """Edits every run of the model inside the block; `mask` is that of the whole prompts, where passes do not tell."""

    @abstractmethod
    def fwd_hooks(self, edits: Edits, mask: Tensor | None = None) -> list[tuple[str, Callable[..., Any]]]:
        """TransformerLens' native form; `mask` as in `attached`."""

    @abstractmethod
    def apply(self, edits: Edits, tracer: Any, layer: int | None = None) -> None:
        """Nnsight's native form, inside a trace body; with a layer, that one in the current pass."""


def _hooks_of(part: nn.Module) -> tuple[Mapping[int, Any], Mapping[int, Any]]:
    return part._forward_hooks, part._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]  torch lists them nowhere else


def check_made(edits: Mapping[int, Any], made: Collection[int]) -> None:
    """Raise UnsupportedModel where the block of an edited layer did not run."""
    if missed := sorted(set(edits) - set(made)):
        raise UnsupportedModel(f"the hook points of layers {missed} never fired, so nothing was steered there")


def _learned_positions(root: nn.Module) -> int | None:
    learned = [
        part.num_embeddings
        for name, part in root.named_modules()
        if isinstance(part, nn.Embedding) and _OF_POSITIONS.search(name.removesuffix("._original_component"))
    ]
    told = getattr(getattr(root, "config", None), "max_position_embeddings", None)
    return min([*learned, told] if isinstance(told, int) else learned) if learned else None


def scaled(name: str, config: Any, written: Tensor, ours: Tensor, own: Tensor) -> Tensor:
    """Logits in the size that the model gives them: `ours` are what norm and unembedding make where the model gives `own`.

    Raises:
        UnsupportedModel: no factor leads from one to the other.
    """
    cap = getattr(config, "final_logit_softcapping", None)
    factor = factor_of(ours, own, cap, ours.dtype)
    if factor is None:
        raise UnsupportedModel(
            f"the logits of {name} are not those of its final norm and unembedding alone, so the logit lens would show "
            "something different from what the model writes"
        )
    return factor * written.float()


def end_tokens(generation_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """What ends a completion: the model's generation config says it before the tokenizer does."""
    ends = getattr(generation_config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return (ends,) if isinstance(ends, int) else tuple(ends or ())


def state_of(weight: Tensor | None) -> tuple[Any, ...]:
    """Differs once a weight is loaded, replaced or changed in place."""
    if weight is None or weight.is_meta:
        return ()
    return id(weight), weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version


class Watched:
    """Tells quickly whether all weights of a model, and its adapters, are still those that they were.

    Args:
        root: the module that holds them; it is not kept alive.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = weakref.ref(root)
        self._weights = [(weakref.ref(weight), _state(weight)) for weight in root.parameters()]
        self._switches = [(weakref.ref(part), _switch(part)) for part in root.modules() if "_disable_adapters" in vars(part)]
        lists = [part for part in root.modules() if isinstance(part, nn.ModuleList) and len(part)]
        self._blocks = [weakref.ref(part) for blocks in lists for part in blocks[-1].modules()]
        self._inside = _inside(self._blocks)

    def same(self, root: nn.Module) -> bool:
        """Whether nothing was changed in place, replaced, added, or switched off."""
        if self._root() is not root:
            return False
        for held, (place, version) in self._weights:  # nothing is called but what must be: this is done in every call of ours
            if (weight := held()) is None or weight.data_ptr() != place or (version is not None and weight._version != version):
                return False
        switched = all((part := held()) is not None and _switch(part) == state for held, state in self._switches)
        return switched and self._inside == _inside(self._blocks)


def _state(weight: Tensor) -> tuple[int, int | None]:
    return weight.data_ptr(), None if weight.is_inference() else weight._version


def _switch(part: Any) -> tuple[bool, str]:
    return bool(part._disable_adapters), str(getattr(part, "active_adapters", ""))


def _inside(blocks: Sequence[weakref.ref[nn.Module]]) -> list[list[int]]:
    """Which modules are inside these, the last block of each list among them: adapters take the places of others."""
    return [[id(inner) for inner in vars(part)["_modules"].values()] if (part := held()) is not None else [] for held in blocks]
