"""nnsight: TransformersModel (and LanguageModel), through its own trace, generate and edit contexts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import nnsight
import torch
from jaxtyping import Float, Int
from nnsight.modeling.mixins.remotable import Remotable
from torch import Tensor

from unlock_lens.errors import InvalidInput, UnsupportedModel
from unlock_lens.hosts.base import Backend, Batch, Edits, Generation, Keep, Server, edits_in_order, end_tokens
from unlock_lens.hosts.identity import ModelIdentity, fingerprint, model_name
from unlock_lens.hosts.remote import Remote
from unlock_lens.method.apply import Chunk, at_least_float32

logger = logging.getLogger(__name__)
_told_about_weights: set[str] = set()

# Ships our functions by value: a server need not have this package.
nnsight.register("unlock_lens")


def open_transformers_model(name: str, dtype: str) -> Any:
    """An nnsight TransformersModel on a folder or hub id."""
    on_gpu = {"device_map": "auto"} if torch.cuda.is_available() else {}
    return nnsight.TransformersModel(name, task="text-generation", dispatch=True, dtype=getattr(torch, dtype), **on_gpu)


def open_meta_model(name: str, dtype: str) -> Any:
    """An nnsight TransformersModel without weights, for a server that has them, in whatever dtype it holds them."""
    return nnsight.TransformersModel(name, task="text-generation")


def residual_of(output: Any) -> Tensor:
    """The residual stream in a block's output, which a few families return in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def edit_blocks(model: Any, blocks: str, edits: Edits, chunk: Chunk | None = None) -> None:
    """Make the edits in one forward pass; to be called inside a trace. `chunk` None: the pass is a prefill."""
    layers = model.get(blocks)
    for layer, of_layer in edits_in_order(edits):
        block = layers[layer]
        output = block.output
        residual = edited = residual_of(output)
        for edit in of_layer:
            edited = edit(edited, chunk or Chunk(prompt_length=residual.shape[1]))
        if edited is not residual:
            block.output = edited if isinstance(output, Tensor) else (edited, *output[1:])


def edit_every_step(model: Any, blocks: str, edits: Edits, tracer: Any) -> None:
    """Make the edits in the prefill and in every step after it, with and without a KV cache."""
    if not edits:
        return
    first = min(edits)
    prompt_length = 0
    for step in tracer.iter[:]:
        length = residual_of(model.get(blocks)[first].output).shape[1]
        if step == 0:
            prompt_length = length
        # Without a cache the whole sequence comes again, one token longer.
        seen = prompt_length + step - length
        edit_blocks(model, blocks, edits, Chunk(prompt_length, seen))


def apply_edits(model: Any, blocks: str, edits: Edits, tracer: Any) -> None:
    """Make the edits inside a trace body: in every step where a tracer is given, otherwise in the prefill alone."""
    if tracer is not None:
        edit_every_step(model, blocks, edits, tracer)
    elif acts_on_steps(edits):
        raise InvalidInput('positions "generated" and "all" act on every step; pass the tracer: steer.apply(lm, tracer)')
    else:
        edit_blocks(model, blocks, edits)


def acts_on_steps(edits: Edits) -> bool:
    """Whether any edit reaches beyond the prefill."""
    return any(edit.acts_on_steps for of_layer in edits.values() for edit in of_layer)


class NNsightBackend(Backend):
    """An nnsight model of a decoder.

    Attributes:
        blocks: path of the module list that holds the blocks, such as "model.layers".
    """

    def __init__(self, model: Any) -> None:
        if getattr(model, "tokenizer", None) is None:
            raise UnsupportedModel(
                f"{type(model).__name__} has no tokenizer; wrap the model as TransformersModel(model, tokenizer=tokenizer)"
            )
        self.model = model
        self.tokenizer = model.tokenizer
        self.end_tokens = end_tokens(getattr(model._module, "generation_config", None), model.tokenizer)
        self.identity, self.blocks = identity_and_blocks(model)

    def on(self, server: Remote | Literal["local"]) -> Server:
        if not isinstance(self.model, Remotable):
            raise UnsupportedModel(
                f"{type(self.model).__name__} cannot run remotely (nnsight would silently run it here); "
                'open it as TransformersModel("org/name", task="text-generation")'
            )
        name = str(getattr(self.model, "repo_id", ""))
        if server != "local" and Path(name).exists():
            raise UnsupportedModel(
                f"{name} is a folder on this machine, which a server cannot know; open a hub model, "
                'TransformersModel("org/name", task="text-generation"), or take remote="local"'
            )
        if server != "local" and self.identity.fingerprint and name not in _told_about_weights:
            _told_about_weights.add(name)
            logger.warning("%s is open here with weights; the server runs its own checkpoint of that name, not these", name)
        from unlock_lens.hosts.ndif import NdifServer  # it builds on this module

        return NdifServer(self.model, self.blocks, server)

    def _tell_loading(self) -> None:
        """A `remote=` that was forgotten would load what the machine may not hold."""
        if self.model._module.get_input_embeddings().weight.is_meta:
            told = "%s is open without weights, which are loaded here now; for a server give remote="
            logger.warning(told, self.identity.name)

    def capture(
        self,
        batch: Batch,
        layers: Sequence[int],
        rows: Int[Tensor, " picked"],
        columns: Int[Tensor, " picked"],
        keep: Keep,
    ) -> None:
        self._tell_loading()
        model, blocks = self.model, self.blocks
        stops: list[Exception] = []
        with torch.no_grad():
            with model.trace({**inputs_of(batch), "use_cache": False}) as tracer:
                for i, layer in enumerate(layers):
                    keep(i, at_least_float32(residual_of(model.get(blocks)[layer].output).detach()[rows, columns]).cpu())
                try:
                    tracer.stop()
                except Exception as stop:
                    stops.append(stop)
                    raise
        _forget(stops)

    def log_probs(self, batch: Batch, edits: Edits, prompt_length: int) -> Float[Tensor, "row predicted vocabulary"]:
        with torch.no_grad():
            return traced_log_probs(self.model, self.blocks, batch, edits, prompt_length, {})

    @torch.no_grad()
    def unembed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        norm, head = (self.model._module.get_submodule(path) for path in unembedding_paths(self.model, self.blocks))
        if head.weight.is_meta:
            raise UnsupportedModel(
                f"{self.identity.name} is open without weights, and its unembedding is needed; give remote=, "
                "or open it with dispatch=True"
            )
        return head(norm(residual.to(head.weight))).float().cpu()

    def generate(self, batch: Batch, edits: Edits, how: Generation) -> Int[Tensor, "row new_token"]:
        self._tell_loading()
        model, blocks, inputs = self.model, self.blocks, inputs_of(batch)
        every_step = acts_on_steps(edits) or not how.use_cache
        with open_loops_end_quietly():
            with model.generate(**generation_options(how)) as tracer:
                with tracer.invoke(inputs):
                    apply_edits(model, blocks, edits, tracer if every_step else None)
                with tracer.invoke():
                    whole = tracer.result.save()
        return whole[:, batch.ids.shape[1] :].cpu()

    @contextmanager
    def attached(self, edits: Edits) -> Generator[None, None, None]:
        model, blocks = self.model, self.blocks
        with model.edit(inplace=True) as tracer:
            apply_edits(model, blocks, edits, tracer if acts_on_steps(edits) else None)
        ours = model._edits[-1]
        try:
            with open_loops_end_quietly():
                yield
        finally:
            model._edits = [edit for edit in model._edits if edit is not ours]

    def apply(self, edits: Edits, tracer: Any) -> None:
        apply_edits(self.model, self.blocks, edits, tracer)

    def fwd_hooks(self, edits: Edits, last: Any) -> list[Any]:
        raise UnsupportedModel(
            "fwd_hooks are TransformerLens' form; for an nnsight model take steer.apply(lm) in its trace, or steer.attached(lm)"
        )


def _forget(stops: list[Exception]) -> None:
    """A stopped pass is held by its frames, those by the stop's tracebacks, and it by them, until a garbage collection."""
    for stop in stops:
        stop.__traceback__ = stop.__context__ = None
        vars(stop).clear()  # nnsight keeps a traceback of its own there
    stops.clear()


def traced_log_probs(model: Any, blocks: str, batch: Batch, edits: Edits, prompt_length: int, where: dict[str, Any]) -> Any:
    """One traced and edited forward pass; `where` says on which machine."""
    inputs, chunk = inputs_of(batch), Chunk(prompt_length)
    found = None
    with model.trace(inputs, **where):
        edit_blocks(model, blocks, edits, chunk)
        logits = model.output.logits[:, prompt_length - 1 :]
        found = nnsight.save(logits.float().log_softmax(-1).cpu())
    return found


@contextmanager
def open_loops_end_quietly() -> Generator[None, None, None]:
    """A loop over all steps ends by asking for one step too many, of which nnsight warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was never reached", category=UserWarning)
        yield


def generation_options(how: Generation) -> dict[str, Any]:
    """All of it said, so that a model's own generation config (penalties, top-k) changes nothing."""
    plain = {
        "max_new_tokens": how.max_new_tokens,
        "use_cache": how.use_cache,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
    }
    if not how.temperature:
        return {**plain, "do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {**plain, "do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """As models take them."""
    return {"input_ids": batch.ids, "attention_mask": batch.mask}


def identity_and_blocks(model: Any) -> tuple[ModelIdentity, str]:
    """Which model this is, and the path of the module list that holds its blocks."""
    config = model.config.get_text_config()
    embedding = model._module.get_input_embeddings().weight
    identity = ModelIdentity(
        name=model_name(str(getattr(model, "repo_id", None) or model.config._name_or_path)),
        n_layers=int(config.num_hidden_layers),
        d_model=int(config.hidden_size),
        fingerprint=None if embedding.is_meta else fingerprint(embedding),
        revision=getattr(model, "revision", None),
        architecture=config.model_type,
    )
    return identity, _blocks_path(model._module, identity.n_layers)


def unembedding_paths(model: Any, blocks: str) -> tuple[str, str]:
    """Paths of the final norm, the last one beside the list of blocks, and of the unembedding."""
    module, decoder = model._module, blocks.rpartition(".")[0]
    beside = module.get_submodule(decoder).named_children()
    norms = [name for name, part in beside if "norm" in type(part).__name__.lower()]
    heads = [name for name, part in module.named_modules() if part is module.get_output_embeddings()]
    if not norms or not heads:
        raise UnsupportedModel(f"{type(module).__name__} has no norm beside its {blocks}, or no unembedding that can be read")
    return f"{decoder}.{norms[-1]}" if decoder else norms[-1], heads[0]


def _blocks_path(module: torch.nn.Module, n_layers: int) -> str:
    lists = [name for name, part in module.named_modules() if isinstance(part, torch.nn.ModuleList) and len(part) == n_layers]
    if not lists:
        raise UnsupportedModel(f"{type(module).__name__} has no list of {n_layers} blocks; a decoder is needed")
    return min(lists, key=lambda name: name.count("."))
