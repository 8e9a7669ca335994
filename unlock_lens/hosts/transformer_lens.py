"""TransformerLens: TransformerBridge (4.x) and HookedTransformer (3.x), through the hook-point interface that they share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from inspect import signature
from itertools import chain, repeat
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from unlock_lens.errors import UnsupportedModel
from unlock_lens.hosts.base import Backend, Batch, Edits, Generation, Keep, Server, check_made, end_tokens, scaled, state_of
from unlock_lens.hosts.decoding import edited
from unlock_lens.hosts.endings import stopping
from unlock_lens.hosts.guard import running, steering, tell_of_dropout
from unlock_lens.hosts.identity import Basis, ModelIdentity, executed_on, fingerprint, model_name, stored, weights_print
from unlock_lens.hosts.listening import Listener, heard_pattern
from unlock_lens.hosts.positions import Progress, as_rows, given_to, residual_of, takes, with_residual
from unlock_lens.hosts.remote import Remote
from unlock_lens.hosts.slopes import Leaves
from unlock_lens.hosts.tokenizers import adds_bos, meant_by
from unlock_lens.hosts.trust import STEPS, two_rows
from unlock_lens.method.apply import Chunk, LayerEdit, at_least_float32

logger = logging.getLogger(__name__)
HookList = list[tuple[str, Callable[..., Any]]]

Hook = Callable[..., Tensor | None]
"""Takes the states at a hook point (and the point); gives others, or None to leave them."""

_ENTRY = "blocks.0.hook_resid_pre"
_PATTERN = "blocks.0.attn.hook_pattern"


_HOOKED = {
    "cache": True,
    "sharing": False,
    **{f"padding, {how} cache": False for how in ("with", "without")},
    **{f"rows of equal length, {how} cache": True for how in ("with", "without")},
}
"""HookedTransformer.generate takes no mask and guesses it from pad tokens: prompts of one length need none. Nor does it take a
KV cache."""


class _Enough(Exception):
    """All layers that are read were read: the rest of the pass is not needed."""


def open_bridge(name: str, dtype: str, device: str | None = None) -> Any:
    """A TransformerBridge on a folder or hub id."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name)
    if not find_spec("torchvision") and any(hasattr(config, of) for of in ("vision_config", "audio_config")):
        raise UnsupportedModel(
            f"{name} is multimodal, and TransformerLens would install torchvision with pip when opening it; install "
            "torchvision yourself, or open the model in nnsight"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = TransformerBridge.boot_transformers(name, device=device, dtype=getattr(torch, dtype))
    model.cfg.default_prepend_bos = adds_bos(meant_by(model.tokenizer))  # its text path then reads what a Variant reads
    return model


def _output_of(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


@contextmanager
def _hooked(model: Any, hooks: Mapping[int, Hook], fires: bool) -> Generator[dict[int, RemovableHandle], None, None]:
    """Hooks on the outputs of blocks, with what removes each; on the modules themselves where hook points do not fire."""
    if fires:
        with model.hooks(fwd_hooks=[(_output_of(layer), hook) for layer, hook in hooks.items()]):
            # The hook that a point was given last is ours; the user's own stay as they are.
            yield {layer: model.hook_dict[_output_of(layer)].fwd_hooks[-1].hook for layer in hooks}
        return

    def on_module(hook: Hook) -> Callable[..., Any]:
        def after(module: Any, args: Any, output: Any) -> Any:
            changed = hook(residual_of(output))
            return None if changed is None else with_residual(output, changed)

        return after

    handles = {layer: model.blocks[layer].register_forward_hook(on_module(hook)) for layer, hook in hooks.items()}
    try:
        yield handles
    finally:
        for handle in handles.values():
            handle.remove()


class _Generating:
    """The edits of one run of `model.generate`, whose first pass reads the prompts.

    With a KV cache, a hook that is meant for the prompt alone takes itself away when it has acted, and nothing listens after
    the second pass: decoding runs none of ours. Where the second pass shows that there is no cache, the hooks come back.
    """

    def __init__(self, model: Any, edits: Edits, batch: Int[Tensor, "row token"], cached: bool, fires: bool) -> None:
        self._model, self._edits, self._fires = model, edits, fires
        self._rows, self._length = batch.shape
        self._cached = cached
        self._chunk = Chunk(self._length)
        self._passes = 0
        self._made: set[int] = set()
        self._handles: dict[int, RemovableHandle] = {}
        self._context = ExitStack()

    def __enter__(self) -> None:
        root = getattr(self._model, "original_model", None)
        if root is not None and self._cached and self._edits:
            self._listening = root.register_forward_pre_hook(self._look, with_kwargs=True)
            self._context.callback(self._listening.remove)
        self._attach(once=self._cached)

    def __exit__(self, kind: type[BaseException] | None, *of_error: Any) -> None:
        self._context.__exit__(kind, *of_error)
        if kind is None:
            check_made(self._edits, self._made)

    def _attach(self, once: bool) -> None:
        hooks = {layer: self._editing(layer, of_layer, once) for layer, of_layer in self._edits.items()}
        self._handles = self._context.enter_context(_hooked(self._model, hooks, self._fires))

    def _editing(self, layer: int, of_layer: Sequence[LayerEdit], once: bool) -> Hook:
        leaves = once and not any(edit.acts_on_steps for edit in of_layer)
        counts = self._cached and not hasattr(self._model, "original_model")  # nothing else tells the steps of these apart
        steps = chain((self._chunk,), repeat(Chunk(self._length, self._length)))

        def hook_fn(states: Tensor, hook: Any = None) -> Tensor | None:
            if leaves:
                self._handles[layer].remove()
            self._made.add(layer)
            return edited(states, of_layer, next(steps) if counts else self._chunk, self._rows)

        return hook_fn

    def _look(self, module: Any, args: Any, kwargs: Any) -> None:
        self._passes += 1
        if self._passes == 1:
            return
        self._listening.remove()
        given = given_to(args, kwargs)
        if given is not None and given.seen == 0 and given.length > self._length:
            self._context.close()
            self._attach(once=False)
        else:
            self._chunk = Chunk(self._length, self._length)


class TransformerLensBackend(Backend):
    """A TransformerBridge or a HookedTransformer."""

    def __init__(self, model: Any) -> None:
        wrapped = getattr(model, "original_model", None)
        needed = (_output_of(0),) if wrapped is not None else (_ENTRY, _PATTERN)
        missing = [name for name in needed if name not in model.hook_dict]
        if missing:
            raise UnsupportedModel(f"{type(model).__name__} has no hook point {missing[0]}; a decoder is needed")
        if getattr(getattr(wrapped, "config", None), "is_encoder_decoder", False):
            raise UnsupportedModel(f"{type(wrapped).__name__} is an encoder-decoder; a decoder is needed")
        if model.tokenizer is None:
            raise UnsupportedModel(f"the {type(model).__name__} has no tokenizer; load it with tokenizer=")
        self.model = model
        self.tokenizer = meant_by(model.tokenizer)
        self.end_tokens = end_tokens(getattr(wrapped, "generation_config", None), self.tokenizer)
        self.identity = ModelIdentity(
            name=model_name(str(model.cfg.model_name)),
            n_layers=int(model.cfg.n_layers),
            d_model=int(model.cfg.d_model),
            basis=_basis(model),
            fingerprint=fingerprint(embedding_of(model)),
            architecture=getattr(getattr(wrapped, "config", None), "model_type", None),
            weights=weights_print(wrapped or model, processed=bool(getattr(model, "_weights_processed", wrapped is None))),
        )
        self._is_bridge = wrapped is not None
        self.found = {} if self._is_bridge else dict(_HOOKED)

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
    def _capture(
        self, batch: Batch, layers: Sequence[int], rows: Int[Tensor, " picked"], columns: Int[Tensor, " picked"], keep: Keep
    ) -> None:
        left = set(range(len(layers)))

        def keeping(i: int) -> Hook:
            def hook_fn(states: Tensor, hook: Any = None) -> None:
                keep(i, at_least_float32(as_rows(states, batch.ids.shape[0], batch.ids.shape[1])[rows, columns]))
                left.discard(i)
                if not left:
                    raise _Enough

            return hook_fn

        try:
            with _hooked(self.model, {layer: keeping(i) for i, layer in enumerate(layers)}, self._fires):
                self._run(batch, return_type=None)
        except _Enough:
            return
        raise UnsupportedModel(
            f"blocks {[layers[i] for i in sorted(left)]} of {self.identity.name} did not run in a pass, so they have no states"
        )

    @torch.no_grad()
    def _log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Float[Tensor, "row predicted vocabulary"]:
        predicted = batch.ids.shape[1] - prompt_length + 1
        keeps = self._is_bridge and takes(self.model.original_model, "logits_to_keep")
        with self._editing_each(edits, Chunk(prompt_length), len(batch.ids)):
            logits = self._run(batch, return_type="logits", **({"logits_to_keep": predicted} if keeps else {}))
        return logits[:, -predicted:].float().log_softmax(-1).cpu()

    def _slopes(self, batch: Batch, layers: Sequence[int], edits: Edits, wanted: Tensor) -> tuple[Tensor, Tensor]:
        leaves = Leaves(batch)
        hooks = {layer: leaves.hook(layer, edits.get(layer, ())) for layer in sorted({*layers, *edits})}
        with _hooked(self.model, hooks, self._fires):
            logits = self._run(batch, return_type="logits")
        return leaves.slopes(logits, wanted, layers, self.identity.name)

    @property
    def _untouched(self) -> bool:
        return super()._untouched and not any(point.fwd_hooks for point in self.model.hook_dict.values())

    @contextmanager
    def _editing_each(self, edits: Mapping[int, Sequence[Any]], chunk: Chunk, rows: int) -> Generator[None, None, None]:
        made: set[int] = set()

        def editing(layer: int, of_layer: Sequence[Any]) -> Hook:
            def hook_fn(states: Tensor, hook: Any = None) -> Tensor | None:
                made.add(layer)
                return edited(states, of_layer, chunk, rows)

            return hook_fn

        with _hooked(self.model, {layer: editing(layer, of) for layer, of in edits.items()}, self._fires):
            yield
        check_made(edits, made)

    def _run(self, batch: Batch, **how: Any) -> Any:
        if self._is_bridge:
            how |= {"use_cache": False} if takes(self.root, "use_cache") else {}
        else:
            how |= {"padding_side": "left", "prepend_bos": False}
        mask = batch.mask.to(self._device) if batch.masked else None
        return self.model(batch.ids.to(self._device), attention_mask=mask, **how)

    @property
    def _fires(self) -> bool:
        """Whether blocks reach their hook points: a few families give lists, which TransformerBridge passes by."""
        if not self._is_bridge:
            return True
        if "fires" not in self.found:
            fired: list[bool] = []
            ids = torch.zeros(1, 2, dtype=torch.long, device=self._device)
            with torch.no_grad():
                self.model.run_with_hooks(
                    ids, return_type=None, stop_at_layer=1, fwd_hooks=[(_output_of(0), lambda states, hook: fired.append(True))]
                )
            self.found["fires"] = bool(fired)
        return self.found["fires"]

    @torch.no_grad()
    def unembed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        norm, head = (getattr(self.model, name, None) for name in ("ln_final", "unembed"))
        if norm is None or head is None:
            raise UnsupportedModel(f"{self.identity.name} has no final norm or no unembedding, which the logit lens needs")
        batch, states = Batch.of(two_rows(self.tokenizer)[0].unsqueeze(0), None), list[Tensor]()
        with running(self.root):
            with _hooked(self.model, {self.identity.n_layers - 1: lambda h, hook=None: states.append(h)}, self._fires):
                own = self._run(batch, return_type="logits")
            last = as_rows(states[0], batch.ids.shape[0], batch.ids.shape[1])
            written, ours = (head(norm(some)) for some in (residual.to(last), last))
        config = self.root.config.get_text_config() if self._is_bridge else self.model.cfg
        return scaled(self.identity.name, config, written.cpu(), ours.cpu(), own.cpu())

    @staticmethod
    def module_of(model: Any) -> Any:
        return getattr(model, "original_model", model)

    @property
    def _device(self) -> torch.device:
        weight = self.model.W_E
        return executed_on(self.root.get_input_embeddings()) if weight.is_meta else weight.device

    @torch.no_grad()
    def _generate(self, batch: Batch, edits: Edits, how: Generation) -> Int[Tensor, "row new_token"]:
        with _Generating(self.model, edits, batch.ids, how.use_cache, self._fires):
            try:
                whole = self._written(
                    batch.ids,
                    batch.mask if batch.masked else None,
                    max_new_tokens=how.max_new_tokens,
                    stop_at_eos=bool(self.end_tokens),
                    eos_token_id=list(self.end_tokens) or None,
                    use_past_kv_cache=how.use_cache,
                    **how.sampling,
                    **self._stopping(how, batch.ids.shape[1]),
                )
            except (NotImplementedError, ImportError) as error:
                raise UnsupportedModel(f"{self.identity.name} can be read here, but cannot generate: {error}") from error
        return whole[:, batch.ids.shape[1] :].cpu()

    def _stopping(self, how: Generation, prompt_length: int) -> dict[str, Any]:
        """Nothing for HookedTransformer, and for recurrent models without a cache, which take no criteria."""
        stateless = getattr(self.model.cfg, "is_stateful", False) and not how.use_cache
        if stateless or "stopping_criteria" not in signature(self.model.generate).parameters:
            return {}
        return stopping(self.tokenizer, self.end_tokens, how.stop, prompt_length)

    def _written(self, ids: Tensor, mask: Tensor | None, **how: Any) -> Any:
        masked = {} if mask is None else {"attention_mask": mask.to(self._device)}
        told = self.model.cfg.device
        if str(told) == "meta":  # where accelerate keeps weights elsewhere, and no tensors can be made
            self.model.cfg.device = self._device
        try:
            return self.model.generate(
                ids.to(self._device), prepend_bos=False, return_type="tokens", verbose=False, **masked, **how
            )
        finally:
            self.model.cfg.device = told

    @torch.no_grad()
    def _decode(self, ids: Tensor, mask: Tensor | None, cached: bool) -> tuple[Tensor, Tensor]:
        how = {"max_new_tokens": STEPS, "do_sample": False, "stop_at_eos": False, "output_logits": True}
        if cached or not getattr(self.model.cfg, "is_stateful", False):
            found = self._written(ids, mask, use_past_kv_cache=cached, **how)
        else:  # TransformerLens leaves these to transformers
            masked = {} if mask is None else {"attention_mask": mask}
            how |= {"return_dict_in_generate": True, "return_type": "tokens", "use_past_kv_cache": False}
            found = self.model.hf_generate(ids.to(self._device), **masked, **how)
        return found.sequences[:, ids.shape[1] :].cpu(), torch.stack(tuple(found.logits), dim=1).cpu()

    @contextmanager
    def attached(self, edits: Edits, mask: Tensor | None = None) -> Generator[None, None, None]:
        progress, fires = Progress(mask), self._fires
        tell_of_dropout(self.root, "its noise is in what is steered")
        with steering(self.root):
            listener, hooks = self._steering(edits, progress)
            try:
                with self.model.hooks(fwd_hooks=self._listening(listener)), _hooked(self.model, hooks, fires):
                    yield
            finally:
                listener.stop()

    def fwd_hooks(self, edits: Edits, mask: Tensor | None = None) -> HookList:
        if not self._fires:
            raise UnsupportedModel(
                f"the blocks of {self.identity.name} do not reach blocks.l.hook_resid_post; use steer.attached(model) or "
                "ul.generate"
            )
        listener, hooks = self._steering(edits, Progress(mask))
        return self._listening(listener) + [(_output_of(layer), hook) for layer, hook in hooks.items()]

    def _steering(self, edits: Edits, progress: Progress) -> tuple[Listener, dict[int, Hook]]:
        """Hooks that keep the progress alive, and who tells it."""
        root = self.root if self._is_bridge else None
        listener = Listener(progress, edits, root, self.tokenizer.pad_token_id)

        def editing(layer: int, of_layer: Sequence[LayerEdit]) -> Hook:
            def hook_fn(states: Tensor, hook: Any = None) -> Tensor | None:
                listener.made(layer)
                return edited(states, of_layer, progress.chunk, progress.rows)

            return hook_fn

        return listener, {layer: editing(layer, of_layer) for layer, of_layer in sorted(edits.items())}

    def _listening(self, listener: Listener) -> HookList:
        """The hooks that tell of passes where no Hugging Face model does."""
        return [] if self._is_bridge else list(zip((_ENTRY, _PATTERN), heard_pattern(listener), strict=True))

    def apply(self, edits: Edits, tracer: Any, layer: int | None = None) -> None:
        raise UnsupportedModel(
            "apply is for nnsight's trace bodies; for a TransformerLens model use steer.fwd_hooks(model) "
            "or steer.attached(model)"
        )


def embedding_of(model: Any) -> Tensor:
    """The embedding, of which W_E is empty where accelerate keeps it elsewhere."""
    weight = model.W_E
    return weight.detach() if not weight.is_meta else stored(model.original_model.get_input_embeddings())


def _basis(model: Any) -> Basis:
    # Processed LayerNorm weights write nothing along the d_model mean, the embedding first of all.
    if model.cfg.normalization_type not in ("LN", "LNPre"):
        return "raw"
    embedding = embedding_of(model).float()
    no_mean = embedding.mean(-1).abs() <= 1e-5 * embedding.abs().mean(-1)  # a row of zeros, of a pad token, has no mean
    return "zero_mean" if bool(no_mean.all()) else "raw"
