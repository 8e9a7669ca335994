"""Activations that you have already: a TransformerLens ActivationCache, or a dictionary with its names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection, Provenance
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.interchange.arriving import check_real, direction_of, given_to, identity_of
from unlock_lens.method.extract import Aggregator, aggregate_name, aggregated, check_aggregate

NAME = re.compile(r"blocks\.([0-9]{1,6})\.hook_resid_post")
AGAIN = 'model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_resid_post")) keeps what is needed'
Mask = Shaped[Tensor, "prompt token"]


def from_caches(
    locked: Any,
    unlocked: Any,
    position: int = -1,
    locked_mask: Shaped[Tensor, "prompt locked_token"] | None = None,
    unlocked_mask: Shaped[Tensor, "prompt unlocked_token"] | None = None,
    aggregate: Literal["mean", "pca"] | Aggregator = "mean",
    model: Any = None,
) -> CapabilityDirection:
    """The direction from locked to unlocked activations that you have already: D_i[l] = h_unlocked,i[l] - h_locked,i[l].

    It is what `CapabilityDirection.extract` makes of the same prompts. Layer l is the output of block l; the direction has the
    layers that the caches have.

    Args:
        locked: an ActivationCache of `run_with_cache`, or a dictionary {"blocks.3.hook_resid_post": [prompt, token, d_model]}.
        unlocked: of the unlocked prompts; row i belongs to row i of `locked`.
        position: token of the prompt, counted without padding; -1 is the last.
        locked_mask: 1 where a token is one of the prompt, 0 where it is padding, on either side; None: there is none.
        unlocked_mask: of the unlocked prompts.
        aggregate: "mean", "pca", or a function of the differences [n, d_model] of one layer to a vector [d_model].
        model: the model of dictionaries, or its ModelIdentity. An ActivationCache knows its own, which the locked one must
            share with it. A dictionary without it is of no known model and held to be raw.

    Raises:
        InvalidInput: caches without the residual stream after blocks, of other layers or shapes, a mask that does not fit, a
            prompt without that token, an unknown aggregate.
        IncompatibleModel: another width, layers that the model does not have, caches of models of different depth or basis,
            a locked ActivationCache of another model than the one given.
        UnsupportedModel: a model that no backend serves.

    Source: docs/method.md, section 1.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> from unlock_lens.interchange import from_caches
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=8)
        >>> caches = [model.run_with_cache(ul.Variant(model, prompts).tokens.ids)[1] for prompts in (task.direct, task.think)]
        >>> from_caches(*caches).vectors.shape
        torch.Size([3, 64])
    """
    check_aggregate(aggregate)
    before, after = _resid_post(locked, "locked"), _resid_post(unlocked, "unlocked")
    if before.keys() != after.keys():
        raise InvalidInput(
            f"the locked cache has layers {sorted(before)} and the unlocked one {sorted(after)}; both need the same: {AGAIN}"
        )
    at_locked = _at(before, position, locked_mask, "locked")
    at_unlocked = _at(after, position, unlocked_mask, "unlocked")
    for layer in before:
        if at_locked[layer].shape != at_unlocked[layer].shape:
            raise InvalidInput(
                f"at layer {layer} the locked cache has [prompt, d_model] {list(at_locked[layer].shape)}, the unlocked one "
                f"{list(at_unlocked[layer].shape)}; row i of one belongs to row i of the other, in models of one width"
            )
    identity, other = _identities(locked, unlocked, model)
    vectors = {layer: aggregated(at_unlocked[layer] - at_locked[layer], aggregate) for layer in before}
    direction = direction_of(vectors, "the difference of the caches", identity.basis if identity else "raw")
    provenance = Provenance(
        aggregate=aggregate_name(aggregate),
        position=position,
        n_prompts=len(next(iter(at_locked.values()))),
        unlocked_model=other,
        steps=("made of activation caches",),
    )
    return given_to(replace(direction, provenance=provenance), identity, "the difference of the caches")


def states(cache: Any, mask: Mask | None = None) -> Float[Tensor, "layer n d_model"]:
    """The residual stream at the output of each block, at all tokens but padding, for `SubspaceAligner.fit_activations`.

    Row n of two models belongs together where the same texts were run through both with one tokenizer, padded alike.

    Args:
        cache: an ActivationCache of `run_with_cache`, or a dictionary {"blocks.3.hook_resid_post": [prompt, token, d_model]}.
        mask: 1 where a token is one of the prompt, 0 where it is padding; None: there is none.

    Raises:
        InvalidInput: a layer's residual stream is missing, a mask that does not fit.

    Source: docs/interchange.md.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> from unlock_lens.interchange import states
        >>> tokens = ul.Variant(zoo.load("small-base"), zoo.text(n=4)).tokens
        >>> acts = [states(zoo.load(name).run_with_cache(tokens.ids)[1], tokens.mask) for name in ("large-base", "small-base")]
        >>> aligner = ul.SubspaceAligner(rank=4).fit_activations(*acts)
        >>> aligner.layer_map
        {0: 0, 1: 1, 2: 3}
    """
    found = _resid_post(cache, "given")
    known = getattr(getattr(getattr(cache, "model", None), "cfg", None), "n_layers", max(found) + 1)
    missing = sorted(set(range(known)) - set(found))
    if missing:
        raise InvalidInput(f"the cache has no blocks.L.hook_resid_post for layers {missing}; run the model again: {AGAIN}")
    real = _real(found, mask, "given")
    return torch.stack([found[layer][real.to(found[layer].device)].detach().float().cpu() for layer in sorted(found)])


def _resid_post(cache: Any, which: str) -> dict[int, Float[Tensor, "prompt token d_model"]]:
    """By layer; a prompt whose batch dimension was taken off has it back."""
    names = getattr(cache, "keys", None)
    if names is None:
        raise InvalidInput(f"a {type(cache).__name__} was given; give an ActivationCache, or a dictionary with its names")
    layers = sorted(int(found[1]) for found in map(NAME.fullmatch, map(str, names())) if found)
    if not layers:
        raise InvalidInput(f"the {which} cache has no blocks.L.hook_resid_post at any layer; run the model again: {AGAIN}")
    found = {layer: cache[f"blocks.{layer}.hook_resid_post"] for layer in layers}
    for layer, state in found.items():
        if not isinstance(state, Tensor) or state.ndim not in (2, 3):
            raise InvalidInput(
                f"the {which} cache has no [prompt, token, d_model] at layer {layer}; run the model again: {AGAIN}"
            )
        check_real(state, f"layer {layer} of the {which} cache")
    return {layer: state if state.ndim == 3 else state.unsqueeze(0) for layer, state in found.items()}


def _real(found: Mapping[int, Tensor], mask: Mask | None, which: str) -> Shaped[Tensor, "prompt token"]:
    """Where tokens are not padding."""
    shapes = {tuple(state.shape[:2]) for state in found.values()}
    if len(shapes) > 1:
        raise InvalidInput(
            f"the {which} cache has [prompt, token] {sorted(shapes)}, another at each layer; run all layers at once"
        )
    shape = shapes.pop()
    if 0 in shape:
        raise InvalidInput(f"the {which} cache has [prompt, token] {list(shape)}; at least one prompt of one token is needed")
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    if not isinstance(mask, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  users have no type checker
        raise InvalidInput(
            f"the {which} mask is a {type(mask).__name__}; give a tensor [prompt, token], 0 where there is padding"
        )
    if tuple(mask.shape) != shape:
        raise InvalidInput(
            f"the {which} mask has shape {list(mask.shape)}, its cache [prompt, token] {list(shape)}; they must agree"
        )
    return mask.bool().cpu()


def _at(
    found: Mapping[int, Tensor], position: int, mask: Mask | None, which: str
) -> dict[int, Float[Tensor, "prompt d_model"]]:
    """The states of one token of each prompt."""
    real = _real(found, mask, which)
    counts = real.sum(dim=1)
    needed = -position if position < 0 else position + 1
    if bool((counts < needed).any()):
        short = int((counts < needed).nonzero()[0])
        raise InvalidInput(
            f"position {position} was asked for, but {which} prompt {short} has {counts[short]} tokens; each needs {needed}"
        )
    columns = torch.stack([row.nonzero().flatten()[position] for row in real])
    rows = torch.arange(len(columns))
    return {layer: state[rows.to(state.device), columns.to(state.device)].detach().float() for layer, state in found.items()}


def _identities(locked: Any, unlocked: Any, model: Any) -> tuple[ModelIdentity | None, ModelIdentity | None]:
    """Of both caches: their own, otherwise the one given."""
    given = identity_of(model)
    own, after = (identity_of(getattr(cache, "model", None)) for cache in (locked, unlocked))
    if own and given and not (own.is_same_model(given) and own.basis == given.basis):
        raise IncompatibleModel(f"the locked cache is of {own}, and model={given} was given; leave model= out")
    before, after = given or own, after or given
    depths = {one.n_layers for one in (before, after) if one}
    if len(depths) > 1 or (before.basis if before else "raw") != (after.basis if after else "raw"):
        raise IncompatibleModel(
            f"locked is {before or 'of no known model and held to be raw'}, unlocked is "
            f"{after or 'of no known model and held to be raw'}; a contrast needs models of one shape, held in one basis "
            "(model= says which model dictionaries are of)"
        )
    return before, after
