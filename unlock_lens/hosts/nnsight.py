"""nnsight: TransformersModel (and LanguageModel), through its own trace, generate and edit contexts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import nnsight
import torch
from jaxtyping import Float, Int
from nnsight.modeling.mixins.remotable import Remotable
from torch import Tensor

from unlock_lens.errors import UnsupportedModel
from unlock_lens.hosts.base import Backend, Batch, Edits, Generation, Keep, Server, check_made, end_tokens, scaled, state_of
from unlock_lens.hosts.decoding import edited, generation_options
from unlock_lens.hosts.guard import check_thread, running, steering, tell_of_dropout
from unlock_lens.hosts.ndif import NdifServer, generated, traced_log_probs, unembedded
from unlock_lens.hosts.positions import as_rows, of_mask, residual_of, takes, with_residual
from unlock_lens.hosts.remote import Remote
from unlock_lens.hosts.slopes import Leaves
from unlock_lens.hosts.tracing import (
    apply_edits,
    edit_every_step,
    identity_and_blocks,
    inputs_of,
    open_loops_end_quietly,
    tokens_first,
)
from unlock_lens.hosts.trust import STEPS, two_rows
from unlock_lens.method.apply import Chunk, at_least_float32

logger = logging.getLogger(__name__)
_told_about_weights: set[str] = set()

# Ships our functions by value: a server need not have this package.
nnsight.register("unlock_lens")


def open_transformers_model(name: str, dtype: str, device: str | None = None) -> Any:
    """An nnsight TransformersModel on a folder or hub id."""
    where = device or ("auto" if torch.cuda.is_available() else None)
    placed = {"device_map": where} if where else {}
    return nnsight.TransformersModel(name, task="text-generation", dispatch=True, dtype=getattr(torch, dtype), **placed)


def open_meta_model(name: str, dtype: str, device: str | None = None) -> Any:
    """An nnsight TransformersModel without weights, for a server that has them, in whatever dtype it holds them."""
    return nnsight.TransformersModel(name, task="text-generation")


class NNsightBackend(Backend):
    """An nnsight model of a decoder, whose blocks are in the module list with the path `blocks`, such as "model.layers"."""

    def __init__(self, model: Any) -> None:
        if getattr(model, "tokenizer", None) is None:
            raise UnsupportedModel(
                f"{type(model).__name__} has no tokenizer; wrap the model as TransformersModel(model, tokenizer=tokenizer)"
            )
        self.model = model
        self.tokenizer = model.tokenizer
        self.end_tokens = end_tokens(getattr(model._module, "generation_config", None), model.tokenizer)
        self.identity, self.blocks = identity_and_blocks(model)
        self.found = {}

    @staticmethod
    def made_from(model: Any) -> tuple[Any, ...]:
        ends = getattr(getattr(model._module, "generation_config", None), "eos_token_id", None)
        return model.tokenizer, ends, state_of(model._module.get_input_embeddings().weight)

    def on(self, server: Remote | Literal["local"]) -> Server:
        if not isinstance(self.model, Remotable):
            raise UnsupportedModel(
                f"{type(self.model).__name__} cannot run remotely (nnsight would silently run it here); "
                'open it as TransformersModel("org/name", task="text-generation")'
            )
        name = str(getattr(self.model, "repo_id", ""))
        if server != "local" and Path(name).exists():
            raise UnsupportedModel(
                f"{name} is a folder on this machine, which a server cannot read; open a hub model, "
                'TransformersModel("org/name", task="text-generation"), or use remote="local"'
            )
        if server != "local" and self.identity.fingerprint and name not in _told_about_weights:
            _told_about_weights.add(name)
            logger.warning("%s is open here with weights, but the server runs its own checkpoint of that name", name)
        return NdifServer(self.model, self.blocks, server)

    def _check_loaded(self) -> None:
        """A `remote=` that was forgotten would load what the machine may not hold."""
        if getattr(self.model, "dispatched", True):
            return
        logger.warning("%s is open without weights, which are loaded here now; for a server give remote=", self.identity.name)
        self.model.dispatch()

    @staticmethod
    def module_of(model: Any) -> Any:
        return model._module

    def _capture(
        self, batch: Batch, layers: Sequence[int], rows: Int[Tensor, " picked"], columns: Int[Tensor, " picked"], keep: Keep
    ) -> None:
        model, blocks, turned = self.model, self.blocks, tokens_first(self.model)
        stops: list[Exception] = []
        with torch.no_grad():
            with model.trace({**inputs_of(batch), "use_cache": False}) as tracer:
                for i, layer in enumerate(layers):
                    states = residual_of(model.get(blocks)[layer].output).detach()
                    keep(i, at_least_float32(as_rows(states, batch.ids.shape[0], batch.ids.shape[1], turned)[rows, columns]))
                try:
                    tracer.stop()
                except Exception as stop:
                    stops.append(stop)
                    raise
        _forget(stops)

    def _log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Float[Tensor, "row predicted vocabulary"]:
        return traced_log_probs(self.model, self.blocks, batch, edits, prompt_length, {})

    def _slopes(self, batch: Batch, layers: Sequence[int], edits: Edits, wanted: Tensor) -> tuple[Tensor, Tensor]:
        model, leaves, logits = self.model, Leaves(batch, tokens_first(self.model)), None
        blocks: Any = self.root.get_submodule(self.blocks)

        def on_module(layer: int) -> Callable[..., Any]:
            hook = leaves.hook(layer, edits.get(layer, ()))
            return lambda module, args, output: with_residual(output, hook(residual_of(output)))

        handles = [blocks[layer].register_forward_hook(on_module(layer)) for layer in sorted({*layers, *edits})]
        try:
            cached = {"use_cache": False} if takes(model._module, "use_cache") else {}
            with model.trace({**inputs_of(batch), **cached}):
                logits = nnsight.save(model.output.logits)
        finally:
            for handle in handles:
                handle.remove()
        assert logits is not None
        return leaves.slopes(logits, wanted, layers, self.identity.name)

    def unembed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        if not getattr(self.model, "dispatched", True):
            raise UnsupportedModel(
                f"{self.identity.name} is open without weights, but its unembedding is needed; give remote=, "
                "or open it with dispatch=True"
            )
        ids = two_rows(self.tokenizer)[0].unsqueeze(0)
        with running(self.root):
            found = unembedded(self.model, self.blocks, self.identity.n_layers - 1, ids, residual, {})
        return scaled(self.identity.name, self.model.config.get_text_config(), *found)

    def _generate(self, batch: Batch, edits: Edits, how: Generation) -> Int[Tensor, "row new_token"]:
        return generated(self.model, self.blocks, [batch], edits, how, {})["0"]

    def _decode(self, ids: Tensor, mask: Tensor | None, cached: bool) -> tuple[Tensor, Tensor]:
        options = generation_options(STEPS, cached)
        options |= {"output_logits": True, "return_dict_in_generate": True}
        options |= {"min_length": ids.shape[1] + STEPS}  # a row that ends at once would show nothing of the cache
        inputs = {name: of.to(self.model.device) for name, of in inputs_of(Batch.of(ids, mask)).items()}
        edits, self.model._edits = self.model._edits, []  # those of an edited model are not what is measured
        try:
            with self.model.generate(inputs, **options) as tracer:
                found = tracer.result.save()
        finally:
            self.model._edits = edits
        return found.sequences[:, ids.shape[1] :].cpu(), torch.stack(found.logits, dim=1).cpu()

    @property
    def _untouched(self) -> bool:
        return not self.model._edits and super()._untouched

    @contextmanager
    def _editing_each(self, edits: Mapping[int, Sequence[Any]], chunk: Chunk, rows: int) -> Generator[None, None, None]:
        blocks: Any = self.root.get_submodule(self.blocks)
        turned, made = tokens_first(self.model), set[int]()

        def on_module(layer: int) -> Callable[..., Any]:
            def after(module: Any, args: Any, output: Any) -> Any:
                made.add(layer)
                changed = edited(residual_of(output), edits[layer], chunk, rows, turned)
                return None if changed is None else with_residual(output, changed)

            return after

        handles = [blocks[layer].register_forward_hook(on_module(layer)) for layer in edits]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        check_made(edits, made)

    @contextmanager
    def attached(self, edits: Edits, mask: Tensor | None = None) -> Generator[None, None, None]:
        model, blocks, thread = self.model, self.blocks, threading.get_ident()
        prompt = None if mask is None else of_mask(mask)
        tell_of_dropout(model._module, "its noise is in what is steered")
        held = ours = [*model._edits]
        try:  # an interrupt may come at any moment
            with model.edit(inplace=True) as tracer:
                check_thread(thread)
                edit_every_step(model, blocks, edits, tracer, prompt)
            ours = model._edits[-1:]
            with steering(model._module), open_loops_end_quietly():
                yield
        finally:
            model._edits = held if ours is held else [edit for edit in model._edits if edit is not ours[0]]

    def apply(self, edits: Edits, tracer: Any, layer: int | None = None) -> None:
        tell_of_dropout(self.model._module, "its noise is in what is steered")
        apply_edits(self.model, self.blocks, edits, tracer, layer)

    def fwd_hooks(self, edits: Edits, mask: Tensor | None = None) -> list[Any]:
        raise UnsupportedModel(
            "fwd_hooks are TransformerLens' form; for an nnsight model use steer.apply(lm) in its trace, or steer.attached(lm)"
        )


def _forget(stops: list[Exception]) -> None:
    """A stopped pass is held by its frames, and those by the stop's tracebacks, until a garbage collection."""
    for stop in stops:
        stop.__traceback__ = stop.__context__ = None
        vars(stop).clear()  # nnsight keeps a traceback of its own there
    stops.clear()
