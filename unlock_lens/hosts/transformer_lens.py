"""TransformerLens: TransformerBridge (4.x) and HookedTransformer (3.x), through the hook-point interface that they share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, repeat
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from unlock_lens.errors import InvalidInput, UnsupportedModel
from unlock_lens.hosts.base import Backend, Batch, Edits, Generation, Keep, Server, end_tokens, state_of
from unlock_lens.hosts.identity import Basis, ModelIdentity, fingerprint, model_name
from unlock_lens.hosts.remote import Remote
from unlock_lens.hosts.tokenizers import adds_bos, meant_by
from unlock_lens.method.apply import Chunk, Edit, at_least_float32

logger = logging.getLogger(__name__)
HookList = list[tuple[str, Callable[..., Any]]]

_ENTRY = "blocks.0.hook_resid_pre"
_PATTERN = "blocks.0.attn.hook_pattern"
_DECODING = Chunk(prompt_length=1, seen=1)
"""A pass after the prompt, which lies in the KV cache, however long it is."""


def open_bridge(name: str, dtype: str) -> Any:
    """A TransformerBridge on a folder or hub id."""
    from transformer_lens.model_bridge import TransformerBridge

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = TransformerBridge.boot_transformers(name, device=device, dtype=getattr(torch, dtype))
    model.cfg.default_prepend_bos = adds_bos(meant_by(model.tokenizer))  # its text path then reads what a Variant reads
    return model


class Progress:
    """Tells prefill from decoding, from inside native hooks, where the run is the user's own.

    The attention pattern is [query, key]: keys beyond the queries come from the KV cache. Without a cache, a pass that
    continues the last one by one token is the next step of the same generation.
    """

    def __init__(self, last: Int[Tensor, " batch"] | None = None) -> None:
        self.chunk = Chunk(prompt_length=0)
        self._last = last
        self._said = False
        self._entering: Tensor | None = None
        self._previous: Tensor | None = None

    def enter(self, residual: Tensor, hook: Any) -> None:
        self._entering = residual.detach()

    def look(self, pattern: Tensor, hook: Any) -> None:
        length, keys = pattern.shape[-2:]
        if keys > length:
            self.chunk, self._previous = _DECODING, None
            return
        if self._last is not None and len(self._last) != len(pattern):
            raise InvalidInput(
                f"the attention mask has {len(self._last)} rows, the batch {len(pattern)}; give one row a prompt"
            )
        before, now = self._previous, self._entering
        continues = before is not None and now is not None and now.device == before.device and torch.equal(now[:, :-1], before)
        if continues and not self._said:
            self._said = True
            logger.warning(
                "a pass without KV cache continues the one before by one token, and is steered as the next step of the same "
                "generation; for prompts of their own (a sweep over prefixes, say) attach the hook anew for each"
            )
        self.chunk = Chunk(self.chunk.prompt_length if continues else length, 0, self._last)
        self._previous = self._entering


def _editing(edits: Edits, chunk: Callable[[], Chunk]) -> HookList:
    def editing(of_layer: Sequence[Edit]) -> Callable[..., Tensor | None]:
        return lambda residual, hook: _edited(residual, of_layer, chunk())

    return [(_output_of(layer), editing(of_layer)) for layer, of_layer in sorted(edits.items())]


def _edited(residual: Tensor, of_layer: Sequence[Edit], chunk: Chunk) -> Tensor | None:
    """None where no token of the chunk is meant: the hook point then passes its own tensor on."""
    edited = residual
    for edit in of_layer:
        edited = edit(edited, chunk)
    return None if edited is residual else edited


def _output_of(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


@contextmanager
def generating(model: Any, edits: Edits, prompt_length: int, cached: bool) -> Generator[None, None, None]:
    """Edits one run of `model.generate`, whose first pass reads the prompts.

    With a KV cache, a hook that is meant for the prompt alone takes itself away when it has acted: decoding runs none of ours.
    """
    handles: dict[int, RemovableHandle] = {}

    def editing(layer: int, of_layer: Sequence[Edit]) -> Callable[..., Tensor | None]:
        prefill, step = Chunk(prompt_length), Chunk(prompt_length, seen=prompt_length)
        chunks = chain((prefill,), repeat(step)) if cached else repeat(prefill)
        once = cached and not any(edit.acts_on_steps for edit in of_layer)

        def hook_fn(residual: Tensor, hook: Any) -> Tensor | None:
            if once:
                handles[layer].remove()
            return _edited(residual, of_layer, next(chunks))

        return hook_fn

    with model.hooks(fwd_hooks=[(_output_of(layer), editing(layer, of_layer)) for layer, of_layer in edits.items()]):
        # The hook that a point was given last is ours; the user's own stay as they are.
        handles.update({layer: model.hook_dict[_output_of(layer)].fwd_hooks[-1].hook for layer in edits})
        yield


class TransformerLensBackend(Backend):
    """A TransformerBridge or a HookedTransformer."""

    def __init__(self, model: Any) -> None:
        missing = [name for name in (_ENTRY, _PATTERN) if name not in model.hook_dict]
        if missing:
            given = type(model).__name__
            raise UnsupportedModel(f"{given} has no hook point {missing[0]}; a decoder with attention in block 0 is needed")
        if model.tokenizer is None:
            raise UnsupportedModel(f"the {type(model).__name__} has no tokenizer; load it with tokenizer=")
        wrapped = getattr(model, "original_model", None)
        self.model = model
        self.tokenizer = meant_by(model.tokenizer)
        self.end_tokens = end_tokens(getattr(wrapped, "generation_config", None), self.tokenizer)
        self.identity = ModelIdentity(
            name=model_name(str(model.cfg.model_name)),
            n_layers=int(model.cfg.n_layers),
            d_model=int(model.cfg.d_model),
            basis=_basis(model),
            fingerprint=fingerprint(model.W_E),
            architecture=getattr(getattr(wrapped, "config", None), "model_type", None),
        )
        self._is_bridge = wrapped is not None

    @staticmethod
    def made_from(model: Any) -> tuple[Any, ...]:
        ends = getattr(getattr(model, "original_model", None), "generation_config", None)
        return model.tokenizer, getattr(ends, "eos_token_id", None), model.cfg.normalization_type, state_of(model.W_E)

    @property
    def chat_template(self) -> str | None:
        """Of the tokenizer that the host holds, where one was set there."""
        return getattr(self.model.tokenizer, "chat_template", None) or super().chat_template

    @property
    def bos_token(self) -> int | None:
        """Where the tokenizer has none, what the host takes for it."""
        return super().bos_token if super().bos_token is not None else self.model.tokenizer.bos_token_id

    def native_ids(self, text: str) -> list[int]:
        return self.model.to_tokens(text, move_to_device=False)[0].tolist()

    def on(self, server: Remote | Literal["local"]) -> Server:
        raise UnsupportedModel(
            "a TransformerLens model runs on this machine only; for remote=True open it as an nnsight TransformersModel"
        )

    @torch.no_grad()
    def capture(
        self, batch: Batch, layers: Sequence[int], rows: Int[Tensor, " picked"], columns: Int[Tensor, " picked"], keep: Keep
    ) -> None:
        def keeping(i: int) -> Callable[..., None]:
            return lambda residual, hook: keep(i, at_least_float32(residual[rows, columns]))

        hooks = [(_output_of(layer), keeping(i)) for i, layer in enumerate(layers)]
        self._run(batch, hooks, return_type=None, stop_at_layer=max(layers) + 1)

    @torch.no_grad()
    def log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Float[Tensor, "row predicted vocabulary"]:
        logits = self._run(batch, _editing(edits, lambda: Chunk(prompt_length)), return_type="logits")
        return logits[:, prompt_length - 1 :].float().log_softmax(-1).cpu()

    def _run(self, batch: Batch, hooks: HookList, **how: Any) -> Any:
        padded = {} if self._is_bridge else {"padding_side": "left", "prepend_bos": False}
        ids, mask = batch.ids.to(self._device), batch.mask.to(self._device)
        return self.model.run_with_hooks(ids, attention_mask=mask, fwd_hooks=hooks, **padded, **how)

    @torch.no_grad()
    def unembed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        return self.model.unembed(self.model.ln_final(residual.to(self.model.W_U))).float().cpu()

    @property
    def _device(self) -> torch.device:
        return self.model.W_E.device

    @torch.no_grad()
    def generate(self, batch: Batch, edits: Edits, how: Generation) -> Int[Tensor, "row new_token"]:
        if self._is_bridge:
            return self._generate(batch.ids, edits, how, attention_mask=batch.mask.to(self._device))
        return self._generate_by_length(batch, edits, how)

    def _generate_by_length(self, batch: Batch, edits: Edits, how: Generation) -> Int[Tensor, "row new_token"]:
        # HookedTransformer.generate takes no mask and guesses it from pad tokens: prompts of one length need none.
        lengths = batch.mask.sum(dim=1)
        new = torch.full((len(lengths), how.max_new_tokens), self.end_tokens[0] if self.end_tokens else 0)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().squeeze(1)
            made = self._generate(batch.ids[rows, -length:], edits, how)
            new[rows, : made.shape[1]] = made
        return new

    def _generate(
        self, ids: Int[Tensor, "row token"], edits: Edits, how: Generation, **more: Any
    ) -> Int[Tensor, "row new_token"]:
        sampling = {"do_sample": True, "temperature": how.temperature} if how.temperature else {"do_sample": False}
        with generating(self.model, edits, ids.shape[1], how.use_cache):
            whole = self.model.generate(
                ids.to(self._device),
                max_new_tokens=how.max_new_tokens,
                stop_at_eos=bool(self.end_tokens),
                eos_token_id=list(self.end_tokens) or None,
                use_past_kv_cache=how.use_cache,
                prepend_bos=False,
                return_type="tokens",
                verbose=False,
                **sampling,
                **more,
            )
        return whole[:, ids.shape[1] :].cpu()

    def attached(self, edits: Edits) -> AbstractContextManager[None]:
        return self.model.hooks(fwd_hooks=self.fwd_hooks(edits, None))

    def fwd_hooks(self, edits: Edits, last: Int[Tensor, " batch"] | None) -> HookList:
        progress = Progress(last)
        needed = any(edit.positions != "all" for of_layer in edits.values() for edit in of_layer)
        looking = [(_ENTRY, progress.enter), (_PATTERN, progress.look)] if needed else []
        return looking + _editing(edits, lambda: progress.chunk)

    def apply(self, edits: Edits, tracer: Any) -> None:
        raise UnsupportedModel(
            "apply is for nnsight's trace bodies; for a TransformerLens model take steer.fwd_hooks(model) "
            "or steer.attached(model)"
        )


def _basis(model: Any) -> Basis:
    # Processed LayerNorm weights write nothing along the d_model mean, the embedding first of all.
    if model.cfg.normalization_type not in ("LN", "LNPre"):
        return "raw"
    embedding = model.W_E.detach().float()
    no_mean = embedding.mean(-1).abs() <= 1e-5 * embedding.abs().mean(-1)  # a row of zeros, of a pad token, has no mean
    return "zero_mean" if bool(no_mean.all()) else "raw"
