"""What runs inside traces of nnsight models, on this machine or shipped to a server as source with what it names.

It imports torch alone; a function that is wrapped by a decorator, or holds a `with` of nnsight, cannot be shipped.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unlock_lens.errors import InvalidInput, UnsupportedModel
from unlock_lens.hosts.base import Batch, Edits
from unlock_lens.hosts.identity import ModelIdentity, fingerprint, model_name, stored, weights_print
from unlock_lens.hosts.positions import (
    CACHES,
    Given,
    as_rows,
    chunk_of,
    from_rows,
    given_to,
    prompt_given,
    residual_of,
    with_residual,
)
from unlock_lens.method.apply import Chunk, Watch


@dataclass(frozen=True, eq=False)
class Place:
    """Where the current pass of a run stands.

    Attributes:
        given: what the model's forward is given, the rows of this invoke alone.
        chunk: the same as edits take it.
        rows: which rows are this invoke's, where nnsight serves it those of all (beams); None where it serves its own.
    """

    given: Given
    chunk: Chunk
    rows: slice | None


def edit_blocks(model: Any, blocks: str, edits: Edits, chunk: Chunk, place: Place | None = None) -> None:
    """Make the edits in one forward pass; to be called inside a trace. With its place, shapes are checked."""
    layers, turned = model.get(blocks), tokens_first(model)
    rows = place.rows if place else None
    for layer, of_layer in sorted(edits.items()):  # as the forward pass meets them
        block = layers[layer]
        output = block.output
        states = residual_of(output)
        n_rows, n_tokens = rows_and_tokens(states, turned) if place is None else place.given.tokens.shape[:2]
        if rows is not None:
            n_rows = states.shape[-2 if turned else -3]
        residual = as_rows(states, n_rows, n_tokens, turned)
        part = edited = residual if rows is None else residual[rows]
        for edit in of_layer:
            edited = edit(edited, chunk)
        if edited is part:
            continue
        if rows is not None:
            part, edited = edited, residual.clone()
            edited[rows] = part
        block.output = with_residual(output, from_rows(edited, states, turned))


def edit_every_step(model: Any, blocks: str, edits: Edits, tracer: Any, prompt: Given | None = None) -> None:
    """Make the edits in the prompt's passes and in every step after them, with and without a KV cache.

    Where the run stands is looked up until it is settled: once what is new comes alone, or the whole sequence comes again.
    """
    if not edits:
        return
    chunk, settled = Chunk(0), False
    for step in tracer.iter[:]:
        place = None
        if not settled:
            place = place_of(model, blocks, edits, prompt)
            again = step > 0 and not place.chunk.seen
            chunk = replace(place.chunk, prompt_length=chunk.prompt_length, last=chunk.last) if step else place.chunk
            settled = again or chunk.seen >= chunk.prompt_length
        if chunk.seen >= chunk.prompt_length and not acts_on_steps(edits):
            break  # the prompt is in the cache, edited
        edit_blocks(model, blocks, edits, chunk, place)


def edit_prompt(model: Any, blocks: str, edits: Edits) -> None:
    """Make the edits in the pass that reads the prompts, or in several where it comes in parts."""
    if not edits:
        return
    run, place = current_run(model), place_of(model, blocks, edits)
    if generates(model, run) and not keeps_cache(model, run):
        raise InvalidInput(
            "this generation has no KV cache, so the prompt is read again in every step; pass the tracer: "
            "steer.apply(lm, tracer)"
        )
    while True:
        edit_blocks(model, blocks, edits, place.chunk, place)
        if place.chunk.seen + place.given.length >= place.chunk.prompt_length:
            return
        run.iteration = None  # the next pass, whichever it is
        place = place_of(model, blocks, edits)


def apply_edits(model: Any, blocks: str, edits: Edits, tracer: Any, layer: int | None = None) -> None:
    """Make the edits inside a trace body: of every step where a tracer is given, otherwise of the prompt alone.

    With a layer, its edits are made in the current pass, and what is read before and after is the caller's.
    """
    if layer is not None:
        if any(isinstance(edit, Watch) for of_layer in edits.values() for edit in of_layer):
            raise InvalidInput(
                "a gated hook is applied to all its layers at once, because its gate is read before they are edited; omit "
                "layer=, or use a hook without a gate"
            )
        if layer not in edits:
            raise InvalidInput(f"layer {layer} is not steered by this hook, which steers {sorted(edits)}")
        of_layer = {layer: edits[layer]}
        place = place_of(model, blocks, of_layer)
        edit_blocks(model, blocks, of_layer, place.chunk, place)
    elif tracer is not None:
        edit_every_step(model, blocks, edits, tracer)
    elif acts_on_steps(edits):
        raise InvalidInput(
            'positions "generated" and "all" act on every step; pass the tracer, steer.apply(lm, tracer), or edit layer by '
            "layer in a loop of your own, steer.apply(lm, layer=l)"
        )
    else:
        edit_prompt(model, blocks, edits)


def place_of(model: Any, blocks: str, edits: Edits, prompt: Given | None = None) -> Place:
    """Where the current pass stands; the whole batch's prompts are looked up where they are not told."""
    run = current_run(model)
    given = given_now(model, blocks, min(edits), run)
    rows = own_rows(run, given)
    own = given if rows is None else given.of_rows(rows)
    if prompt is None and generates(model, run):
        prompt = ids_given(run)
    if prompt is not None and prompt.last is not None:
        first, size = run.batch_group if run.interleaver.batcher.batching and run.batch_group else (0, len(prompt.tokens))
        last = prompt.last[first : first + size]
        prompt = replace(prompt, last=last.repeat_interleave(len(own.tokens) // size))
    return Place(given, chunk_of(own, prompt), rows)


def current_run(model: Any) -> Any:
    """What nnsight knows of the block that is running: its rows, its inputs, how often each module was reached."""
    return type(model.interleaver.mediators[0]).current("steer.apply")


def given_now(model: Any, blocks: str, first: int, run: Any) -> Given:
    """What the forward is given in the current pass, which is looked at once, before any block runs."""
    seen_here = vars(run.interleaver.batcher).setdefault("unlock_lens_given", {})
    told = reached_each_pass(model, blocks)
    key, entered = str(run.batch_group), run.occurrence(f"{told.path}.input")
    if entered <= run.wanted(f"{model.get(blocks)[first].path}.output"):
        args, kwargs = told.inputs
        given = given_to(args, kwargs)
        entered += 1
        if given is not None and given.seen is None and entered == 1:  # an empty cache that keeps no count
            given = replace(given, seen=0)
    elif key in seen_here and seen_here[key][0] == entered:
        given = seen_here[key][1]
    elif entered == 1:  # a block was read before the edit
        given = ids_given(run, run.batch_group)
    else:
        raise InvalidInput("steer.apply was called after something was read in this step; call it first in each step")
    if given is None:
        raise UnsupportedModel(f"the forward of {type(model._module).__name__} receives no ids; a text decoder is needed")
    seen_here[key] = entered, given
    return given


def reached_each_pass(model: Any, blocks: str) -> Any:
    """Whose forward is given ids, mask and cache in each pass: the model, or the decoder in PEFT's."""
    return model.get(blocks.rpartition(".")[0]) if hasattr(model._module, "get_base_model") else model


def ids_given(run: Any, group: Any = None) -> Given:
    """The prompts that a whole run is given, all invokes together; with a group, its rows."""
    given = prompt_given(*run.interleaver.batcher.assemble(None))
    if given is None:
        raise UnsupportedModel("the run receives no ids; a text decoder is needed")
    return given.of_rows(slice(group[0], sum(group))) if group and run.interleaver.batcher.batching else given


def generates(model: Any, run: Any) -> bool:
    """Whether the run is a generation: its prompt went to the streamer, or it has beams, which take none."""
    streamer = getattr(getattr(model, "generator", None), "streamer", None)
    if streamer is not None and run.occurrence(f"{streamer.path}.input"):
        return True
    asked = options_of(run)
    config = asked.get("generation_config") or getattr(model._module, "generation_config", None)
    return "streamer" in asked or (asked.get("num_beams") or getattr(config, "num_beams", None) or 1) > 1


def options_of(run: Any) -> dict[str, Any]:
    """The keywords that a run was called with."""
    batcher = run.interleaver.batcher
    options: dict[str, Any] = {}
    for of_invoke in (*(kwargs for _, kwargs in batcher.invokes), batcher.extra_kwargs):
        options.update(of_invoke)
    return options


def keeps_cache(model: Any, run: Any) -> bool:
    """Whether each step of a generation reads only what is new; a forward that takes no cache reads everything again."""
    asked = options_of(run)
    config = asked.get("generation_config") or getattr(model._module, "generation_config", None)
    if not asked.get("use_cache", getattr(config, "use_cache", None) is not False):
        return False
    names = inspect.signature(type(model._module).forward).parameters
    return any(name in names for name in CACHES) or set(names) <= {"self", "args", "kwargs"}


def own_rows(run: Any, given: Given) -> slice | None:
    """Which rows are an invoke's, where each prompt became several rows, as beams do; None where it was served its own."""
    batcher, rows = run.interleaver.batcher, len(given.tokens)
    if run.batch_group is None or not batcher.batching or rows == run.batch_group[1]:
        return None
    start, size = run.batch_group
    times, left = divmod(rows, batcher.total)
    if left:
        raise UnsupportedModel(
            f"{batcher.total} prompts in several invokes became {rows} rows, which cannot be told apart; give one invoke all"
        )
    return slice(start * times, (start + size) * times)


def tokens_first(model: Any) -> bool:
    """Whether blocks give [token, row, d_model]."""
    return model.config.model_type in ("xlnet",)


def rows_and_tokens(states: Tensor, turned: bool) -> tuple[int, int]:
    """Of a block's states, whose shape was checked in the first pass."""
    first, second = states.shape[-3:-1]
    return (second, first) if turned else (first, second)


def acts_on_steps(edits: Edits) -> bool:
    """Whether any edit reaches beyond the prefill."""
    return any(edit.acts_on_steps for of_layer in edits.values() for edit in of_layer)


@contextmanager
def open_loops_end_quietly() -> Generator[None, None, None]:
    """A loop over all steps ends by asking for one step too many, of which nnsight warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was never reached", category=UserWarning)
        yield


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """As models take them."""
    return {"input_ids": batch.ids} | ({"attention_mask": batch.mask} if batch.masked else {})


def identity_and_blocks(model: Any) -> tuple[ModelIdentity, str]:
    """Which model this is, and the path of the module list that holds its blocks.

    Raises:
        UnsupportedModel: it has no such list.
    """
    config, module = model.config.get_text_config(), model._module
    n_layers, embedding = int(config.num_hidden_layers), module.get_input_embeddings().weight
    if embedding.is_meta and getattr(model, "dispatched", False):  # accelerate keeps it elsewhere
        embedding = stored(module.get_input_embeddings())
    identity = ModelIdentity(
        name=model_name(str(getattr(model, "repo_id", None) or model.config._name_or_path)),
        n_layers=n_layers,
        d_model=int(config.hidden_size),
        fingerprint=None if embedding.is_meta else fingerprint(embedding),
        revision=getattr(model, "revision", None),
        architecture=config.model_type,
        weights=weights_print(module),
    )
    return identity, path_of_blocks(module, n_layers)


def path_of_blocks(module: Any, n_layers: int) -> str:
    """The path of the list of a text decoder's blocks.

    Raises:
        UnsupportedModel: an encoder-decoder, no list of that length, or several that might be it.
    """
    kind = type(module).__name__
    if getattr(module.config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{kind} is an encoder-decoder; a decoder is needed")
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else None
    inside = lists_of_blocks(decoder or module, n_layers) or lists_of_blocks(module, n_layers)  # a head may be called decoder
    names = [name for name, part in module.named_modules() if any(part is found for found in inside)]
    if not names:
        raise UnsupportedModel(f"{kind} has no list of {n_layers} blocks; a decoder is needed")
    depth = min(name.count(".") for name in names)
    outermost = [name for name in names if name.count(".") == depth]
    if len(outermost) > 1:
        raise UnsupportedModel(
            f"{kind} has several lists of {n_layers} blocks, {', '.join(outermost)}; it is unclear which is meant"
        )
    return outermost[0]


def lists_of_blocks(module: Any, n_layers: int) -> list[Any]:
    """The module lists of that length; one of projections holds no blocks."""
    lists = [part for part in module.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == n_layers]
    return [blocks for blocks in lists if any(True for _ in blocks[0].children())]


def _is_as_wide(norm: Any, width: int) -> bool:
    """Whether a norm is one of the residual stream."""
    weight = getattr(norm, "weight", None)
    return weight is None or weight.shape[-1] == width


def unembedding_paths(model: Any, blocks: str) -> tuple[str, str]:
    """Paths of the final norm, the last one beside the list of blocks, and of the unembedding.

    Raises:
        UnsupportedModel: it has no such norm or no unembedding.
    """
    module, decoder = model._module, blocks.rpartition(".")[0]
    beside, width = module.get_submodule(decoder).named_children(), int(module.config.get_text_config().hidden_size)
    norms = [name for name, part in beside if "norm" in type(part).__name__.lower() and _is_as_wide(part, width)]
    heads = [name for name, part in module.named_modules() if part is module.get_output_embeddings()]
    if not norms or not heads:
        raise UnsupportedModel(f"{type(module).__name__} has no final norm next to its {blocks}, or no readable unembedding")
    return f"{decoder}.{norms[-1]}" if decoder else norms[-1], heads[0]
