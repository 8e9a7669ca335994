"""Capture: the residual stream of chosen layers at chosen tokens, streamed over batches of like length.

Layer l means the output of block l (TransformerLens `blocks.l.hook_resid_post`, nnsight `layers[l].output`). For the last
layer that is the state before the final norm, where edits go in; the paper's own code reads it after the norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens.core.progress import shown
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import Batch, Keep, Pass
from unlock_lens.hosts.remote import remote_of

Chosen = Sequence[Int[Tensor, "_"]]
"""Of each prompt the tokens that are read, counted from 0 without padding."""


def at_tokens(
    variant: Variant, chosen: Chosen, layers: Sequence[int] | None = None, batch_size: int = 8, progress: bool = False
) -> Float[Tensor, "layer token d_model"]:
    """The residual stream at chosen tokens of each prompt, in the prompts' order.

    Each state is written to its place while the pass runs: nothing but the result outlives a batch.

    Raises:
        InvalidInput: layers out of range, a state that is not finite.
    """
    layers = check_layers(layers, variant.backend.identity.n_layers)
    counts = torch.tensor([len(tokens) for tokens in chosen])
    starts = counts.cumsum(0) - counts
    states = torch.empty(len(layers), int(counts.sum()), variant.backend.identity.d_model, dtype=torch.float32)
    for prompts in _batches(variant, batch_size, progress):
        places = torch.cat([torch.arange(int(starts[p]), int(starts[p] + counts[p])) for p in prompts])
        read(variant, layers, prompts, chosen, _into(states, places))
    return states


def at_position(
    variant: Variant, layers: Sequence[int] | None = None, position: int = -1, batch_size: int = 8, progress: bool = False
) -> Float[Tensor, "layer prompt d_model"]:
    """The residual stream at one token of each prompt, counted without padding (-1: the last).

    Raises:
        InvalidInput: layers out of range, a prompt without that token, a state that is not finite.
    """
    return at_tokens(variant, one_token(variant, position), layers, batch_size, progress)


def mean_at_position(
    variant: Variant, layers: Sequence[int] | None = None, position: int = -1, batch_size: int = 8, progress: bool = False
) -> Float[Tensor, "layer d_model"]:
    """The mean of `at_position` over prompts, summed in float64 layer by layer: memory does not grow with their number.

    Raises:
        InvalidInput: as `at_position`.
    """
    layers = check_layers(layers, variant.backend.identity.n_layers)
    chosen = one_token(variant, position)
    total = torch.zeros(len(layers), variant.backend.identity.d_model, dtype=torch.float64)

    def add(layer: int, states: Tensor) -> None:
        total[layer] += states.double().sum(dim=0)

    for prompts in _batches(variant, batch_size, progress):
        read(variant, layers, prompts, chosen, add)
    return total / len(variant)


def at_all_tokens(
    variant: Variant,
    layers: Sequence[int] | None = None,
    skip_first: bool = False,
    batch_size: int = 8,
    progress: bool = False,
) -> Float[Tensor, "layer token d_model"]:
    """The residual stream at every token of every prompt, in the prompts' order; `skip_first` leaves out each first token.

    Raises:
        InvalidInput: layers out of range, no token left, a state that is not finite.
    """
    return at_tokens(variant, all_tokens(variant, skip_first), layers, batch_size, progress)


def one_token(variant: Variant, position: int) -> Chosen:
    """The token of each prompt at a position; negative ones count from the end.

    Raises:
        InvalidInput: a prompt without that token.
    """
    check_position(variant, position)
    tokens = torch.full_like(variant.tokens.lengths, position) + (variant.tokens.lengths if position < 0 else 0)
    return tokens.split(1)


def all_tokens(variant: Variant, skip_first: bool) -> Chosen:
    """Every token of each prompt, or every one but the first.

    Raises:
        InvalidInput: no token is left.
    """
    lengths: list[int] = variant.tokens.lengths.tolist()
    if skip_first and max(lengths) == 1:
        raise InvalidInput("every prompt is one token long and skip_first leaves it out; give longer texts")
    return [torch.arange(int(skip_first), length) for length in lengths]


def read(variant: Variant, layers: Sequence[int], prompts: Int[Tensor, " prompt"], chosen: Chosen, keep: Keep) -> None:
    """One forward pass over some of the prompts; `keep` is given the states of the chosen tokens, prompt after prompt.

    Raises:
        InvalidInput: a state that is not finite.
    """
    batch, rows, columns = picked(variant, prompts, chosen)
    spoiled: list[tuple[int, int]] = []

    def checked(layer: int, states: Tensor) -> None:
        if not bool(states.isfinite().all()):  # told afterwards: hosts wrap what is raised in the midst of a pass
            spoiled.append((layers[layer], int(prompts[rows[(~states.isfinite()).any(dim=-1).nonzero()[0]]])))
        keep(layer, states)

    where = remote_of(variant.remote)
    if where is None:
        variant.backend.capture(batch, layers, rows, columns, checked)
    else:
        for i, states in enumerate(variant.backend.on(where).states(Pass(batch, rows, columns, columns), layers)):
            checked(i, states)
    for layer, prompt in spoiled[:1]:
        raise InvalidInput(
            f"the residual stream of {variant.backend.identity.name} is not finite at layer {layer}, prompt {prompt} "
            f"({variant.prompts[prompt][:40]!r}); leave that prompt out or load the model in float32"
        )


def picked(
    variant: Variant, prompts: Int[Tensor, " prompt"], chosen: Chosen
) -> tuple[Batch, Int[Tensor, " picked"], Int[Tensor, " picked"]]:
    """One forward pass over some of the prompts, and where in it their chosen tokens are, prompt after prompt."""
    tokens = variant.tokens.rows(prompts)
    of_prompts = [chosen[p] for p in prompts.tolist()]
    rows = torch.arange(len(of_prompts)).repeat_interleave(torch.tensor([len(of_prompt) for of_prompt in of_prompts]))
    columns = torch.cat(of_prompts) + (tokens.ids.shape[1] - tokens.lengths)[rows]
    return Batch(tokens.ids, tokens.mask), rows, columns


def _batches(variant: Variant, batch_size: int, progress: bool) -> Iterable[Int[Tensor, " prompt"]]:
    return shown(variant.tokens.batches(batch_size), f"reading {variant.backend.identity.name}", progress)


def _into(states: Float[Tensor, "layer token d_model"], places: Int[Tensor, " picked"]) -> Keep:
    def keep(layer: int, read: Tensor) -> None:
        states[layer, places] = read.to(states)

    return keep


def check_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    """All layers for None; otherwise these, ascending.

    Raises:
        InvalidInput: none, repeated, or out of range.
    """
    if layers is None:
        return tuple(range(n_layers))
    if isinstance(layers, int):
        raise InvalidInput(f"layers={layers} was given; give a list, layers=[{layers}]")
    chosen = tuple(sorted(int(layer) for layer in layers))
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 0 or chosen[-1] >= n_layers:
        raise InvalidInput(f"layers {list(layers)} were given; choose different ones from 0 to {n_layers - 1}")
    return chosen


def check_position(variant: Variant, position: int) -> None:
    """Raise InvalidInput unless every prompt has a token at that position."""
    needed = -position if position < 0 else position + 1
    short = (variant.tokens.lengths < needed).nonzero()
    if len(short):
        prompt = int(short[0])
        raise InvalidInput(
            f"position {position} was asked for, but prompt {prompt} ({variant.prompts[prompt][:40]!r}) has "
            f"{int(variant.tokens.lengths[prompt])} tokens; every prompt needs {needed}"
        )
