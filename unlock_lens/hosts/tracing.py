"""What runs inside traces of nnsight models, on this machine or shipped to a server as source with what it names.

It imports torch alone; a function that is wrapped by a decorator, or holds a `with` of nnsight, cannot be shipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unlock_lens.errors import InvalidInput, UnsupportedModel
from unlock_lens.hosts.base import Batch, Edits, Generation
from unlock_lens.hosts.identity import ModelIdentity, fingerprint, model_name
from unlock_lens.method.apply import Chunk


def residual_of(output: Any) -> Tensor:
    """The residual stream in a block's output, which a few families return in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def edit_blocks(model: Any, blocks: str, edits: Edits, chunk: Chunk | None = None) -> None:
    """Make the edits in one forward pass; to be called inside a trace. `chunk` None: the pass is a prefill."""
    layers = model.get(blocks)
    for layer, of_layer in sorted(edits.items()):  # as the forward pass meets them
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
        if seen and not acts_on_steps(edits):
            break  # the prompt is in the cache, edited
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


@contextmanager
def open_loops_end_quietly() -> Generator[None, None, None]:
    """A loop over all steps ends by asking for one step too many, of which nnsight warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was never reached", category=UserWarning)
        yield


def generation_options(how: Generation) -> dict[str, Any]:
    """All of them named, so that a model's own generation config (penalties, top-k) changes nothing."""
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
    """Which model this is, and the path of the module list that holds its blocks.

    Raises:
        UnsupportedModel: it has no such list.
    """
    config, module = model.config.get_text_config(), model._module
    n_layers, embedding = int(config.num_hidden_layers), module.get_input_embeddings().weight
    identity = ModelIdentity(
        name=model_name(str(getattr(model, "repo_id", None) or model.config._name_or_path)),
        n_layers=n_layers,
        d_model=int(config.hidden_size),
        fingerprint=None if embedding.is_meta else fingerprint(embedding),
        revision=getattr(model, "revision", None),
        architecture=config.model_type,
    )
    lists = [name for name, part in module.named_modules() if isinstance(part, torch.nn.ModuleList) and len(part) == n_layers]
    if not lists:
        raise UnsupportedModel(f"{type(module).__name__} has no list of {n_layers} blocks; a decoder is needed")
    return identity, min(lists, key=lambda name: name.count("."))


def unembedding_paths(model: Any, blocks: str) -> tuple[str, str]:
    """Paths of the final norm, the last one beside the list of blocks, and of the unembedding.

    Raises:
        UnsupportedModel: it has no such norm or no unembedding.
    """
    module, decoder = model._module, blocks.rpartition(".")[0]
    beside = module.get_submodule(decoder).named_children()
    norms = [name for name, part in beside if "norm" in type(part).__name__.lower()]
    heads = [name for name, part in module.named_modules() if part is module.get_output_embeddings()]
    if not norms or not heads:
        raise UnsupportedModel(f"{type(module).__name__} has no norm beside its {blocks}, or no unembedding that can be read")
    return f"{decoder}.{norms[-1]}" if decoder else norms[-1], heads[0]
