"""Capture: the residual stream of chosen layers at chosen tokens, streamed over batches of like length.

Layer l means the output of block l (TransformerLens `blocks.l.hook_resid_post`, nnsight `layers[l].output`). For the last
layer that is the state before the final norm, where edits go in; the paper's own code reads it after the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens.backends import Batch
from unlock_lens.errors import InvalidInput
from unlock_lens.progress import shown
from unlock_lens.variant import Tokens, Variant


@dataclass(frozen=True, eq=False)
class Captured:
    """What one batch brought.

    Attributes:
        prompts: which prompts are in it.
        states: their picked tokens, prompt after prompt.
    """

    prompts: Int[Tensor, " prompt"]
    states: Float[Tensor, "layer picked d_model"]


def at_position(
    variant: Variant, layers: Sequence[int] | None = None, position: int = -1, batch_size: int = 8, progress: bool = False
) -> Float[Tensor, "layer prompt d_model"]:
    """The residual stream at one token of each prompt, counted without padding (-1: the last).

    Raises:
        InvalidInput: layers out of range, a prompt without that token, a state that is not finite.
    """
    layers = check_layers(layers, variant.backend.identity.n_layers)
    states = torch.empty(len(layers), len(variant), variant.backend.identity.d_model)
    for captured in _stream_position(variant, layers, position, batch_size, progress):
        states[:, captured.prompts] = captured.states.to(states)
    return states


def mean_at_position(
    variant: Variant, layers: Sequence[int] | None = None, position: int = -1, batch_size: int = 8, progress: bool = False
) -> Float[Tensor, "layer d_model"]:
    """The mean of `at_position` over prompts, summed in float64 batch by batch: memory does not grow with their number.

    Raises:
        InvalidInput: as `at_position`.
    """
    layers = check_layers(layers, variant.backend.identity.n_layers)
    total = torch.zeros(len(layers), variant.backend.identity.d_model, dtype=torch.float64)
    for captured in _stream_position(variant, layers, position, batch_size, progress):
        total += captured.states.double().sum(dim=1)
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
    layers = check_layers(layers, variant.backend.identity.n_layers)
    counts = token_counts(variant, skip_first)
    starts = counts.cumsum(0) - counts
    states = torch.empty(len(layers), int(counts.sum()), variant.backend.identity.d_model)
    for captured in _stream_all(variant, layers, skip_first, batch_size, progress):
        places = [torch.arange(int(starts[p]), int(starts[p] + counts[p])) for p in captured.prompts]
        states[:, torch.cat(places)] = captured.states.to(states)
    return states


def token_counts(variant: Variant, skip_first: bool) -> Int[Tensor, " prompt"]:
    """How many tokens of each prompt `at_all_tokens` gives."""
    counts = variant.tokens.lengths - int(skip_first)
    if not int(counts.sum()):
        raise InvalidInput("every prompt is one token long and skip_first leaves it out; give longer texts")
    return counts


def _stream_position(
    variant: Variant, layers: Sequence[int], position: int, batch_size: int, progress: bool
) -> Iterator[Captured]:
    check_position(variant, position)

    def pick(tokens: Tokens) -> tuple[Tensor, Tensor]:
        width = tokens.ids.shape[1]
        columns = position + (torch.full_like(tokens.lengths, width) if position < 0 else width - tokens.lengths)
        return torch.arange(len(columns)), columns

    return _stream(variant, layers, pick, batch_size, progress)


def _stream_all(
    variant: Variant, layers: Sequence[int], skip_first: bool, batch_size: int, progress: bool
) -> Iterator[Captured]:
    def pick(tokens: Tokens) -> tuple[Tensor, Tensor]:
        wanted = tokens.mask.bool()
        if skip_first:
            wanted = wanted & (tokens.mask.cumsum(dim=1) > 1)
        rows, columns = wanted.nonzero(as_tuple=True)
        return rows, columns

    return _stream(variant, layers, pick, batch_size, progress)


def _stream(
    variant: Variant,
    layers: Sequence[int],
    pick: Callable[[Tokens], tuple[Tensor, Tensor]],
    batch_size: int,
    progress: bool,
) -> Iterator[Captured]:
    batches = variant.tokens.batches(batch_size)
    for prompts in shown(batches, f"reading {variant.backend.identity.name}", progress):
        tokens = variant.tokens.rows(prompts)
        yield _capture(variant, layers, prompts, tokens, *pick(tokens))


def _capture(
    variant: Variant, layers: Sequence[int], prompts: Tensor, tokens: Tokens, rows: Tensor, columns: Tensor
) -> Captured:
    states = variant.backend.capture(Batch(tokens.ids, tokens.mask), layers, rows, columns, variant.remote).cpu()
    if not bool(states.isfinite().all()):
        layer, picked = (~states.isfinite()).any(dim=-1).nonzero()[0].tolist()
        prompt = int(prompts[rows[picked]])
        raise InvalidInput(
            f"the residual stream of {variant.backend.identity.name} is not finite at layer {layers[layer]}, prompt {prompt} "
            f"({variant.prompts[prompt][:40]!r}); leave that prompt out or load the model in float32"
        )
    return Captured(prompts, states)


def check_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    """All layers for None; otherwise these, ascending.

    Raises:
        InvalidInput: none, repeated, or out of range.
    """
    if layers is None:
        return tuple(range(n_layers))
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


def check_same_tokens(source: Variant, target: Variant, skip_first: bool) -> None:
    """Raise InvalidInput unless every text has as many tokens in one as in the other, to be paired one by one."""
    counts = [token_counts(variant, skip_first) for variant in (source, target)]
    differing = (counts[0] != counts[1]).nonzero()
    if len(differing):
        i = int(differing[0])
        raise InvalidInput(
            f'positions="all" pairs token with token, but text {i} ({source.prompts[i][:40]!r}) has {int(counts[0][i])} tokens '
            f"in the source and {int(counts[1][i])} in the target; give both the same texts, "
            'or take positions="last" where the tokenizers differ'
        )
