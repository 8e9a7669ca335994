"""Activations that you already have: a TransformerLens ActivationCache, or a dictionary with its names."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection, Provenance
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.interchange.common import Vectors, check_real, direction_of, identity_of
from unlock_lens.method.extract import Aggregator, aggregate_name, aggregated, check_aggregate

NAME = re.compile(r"blocks\.([0-9]{1,6})\.hook_resid_post")
AGAIN = (
    "run the model again: "
    'model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_resid_post")) keeps what is needed'
)
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
    """The direction from locked to unlocked activations that you already have: D_i[l] = h_unlocked,i[l] - h_locked,i[l].

    It equals the result of `CapabilityDirection.extract` for the same prompts. Layer l is the output of block l; the direction
    has the layers of the caches.

    Args:
        locked: an ActivationCache of `run_with_cache`, or a dictionary {"blocks.3.hook_resid_post": [prompt, token, d_model]}.
        unlocked: the same for the unlocked prompts; row i corresponds to row i of `locked`.
        position: token of the prompt, counted without padding; -1 is the last.
        locked_mask: 1 where a token belongs to the prompt, 0 where it is padding, on either side; None: there is none.
        unlocked_mask: the same for the unlocked prompts.
        aggregate: "mean", "pca", or a function of the differences [n, d_model] of one layer to a vector [d_model].
        model: the model of dictionaries, or its ModelIdentity. An ActivationCache knows its own model, and a locked one must be
            of this model. Without it, the model of a dictionary is unknown, and its basis is assumed to be raw.

    Raises:
        InvalidInput: caches lack the residual stream after blocks or differ in layers or shapes, a mask does not fit, a prompt
            lacks that token, or the aggregate is unknown.
        IncompatibleModel: the models differ in width, depth or basis, or the locked cache is of a different model.

    Example:
        >>> from unlock_lens import Variant, zoo
        >>> from unlock_lens.interchange import from_caches
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=8)
        >>> caches = [model.run_with_cache(Variant(model, prompts).tokens.ids)[1] for prompts in (task.direct, task.think)]
        >>> from_caches(*caches).vectors.shape
        torch.Size([3, 64])
    """
    check_aggregate(aggregate)
    before, after = _resid_post(locked, "locked"), _resid_post(unlocked, "unlocked")
    at_locked = _at(before, position, locked_mask, "locked")
    at_unlocked = _at(after, position, unlocked_mask, "unlocked")
    if [*before] != [*after] or at_locked.shape != at_unlocked.shape:
        raise InvalidInput(
            f"the locked cache has layers {[*before]} and [layer, prompt, d_model] {list(at_locked.shape)}, the unlocked one "
            f"{[*after]} and {list(at_unlocked.shape)}; row i must correspond in both, in models of one shape. If "
            f"layers are missing, {AGAIN}"
        )
    identity, unlocked_model = _identities(locked, unlocked, model)
    vectors = {layer: aggregated(h1 - h0, aggregate) for layer, h0, h1 in zip(before, at_locked, at_unlocked, strict=True)}
    provenance = Provenance(
        aggregate=aggregate_name(aggregate),
        position=position,
        n_prompts=at_locked.shape[1],
        unlocked_model=unlocked_model,
        steps=("made of activation caches",),
    )
    basis = identity.basis if identity else "raw"
    return direction_of(vectors, "the difference of the caches", provenance, identity, basis)


def states(cache: Any, mask: Mask | None = None) -> Float[Tensor, "layer n d_model"]:
    """The residual stream at the output of each block, at all tokens except padding, for `SubspaceAligner.fit_activations`.

    Rows of two models correspond if the same texts were run through both with the same tokenizer and padding.

    Args:
        cache: an ActivationCache of `run_with_cache`, or a dictionary {"blocks.3.hook_resid_post": [prompt, token, d_model]}.
        mask: 1 where a token belongs to the prompt, 0 where it is padding; None: there is none.

    Raises:
        InvalidInput: a layer's residual stream is missing, or the mask does not fit.

    Example:
        >>> from unlock_lens import SubspaceAligner, Variant, zoo
        >>> from unlock_lens.interchange import states
        >>> tokens = Variant(zoo.load("small-base"), zoo.text(n=4)).tokens
        >>> acts = [states(zoo.load(name).run_with_cache(tokens.ids)[1], tokens.mask) for name in ("large-base", "small-base")]
        >>> SubspaceAligner(rank=4).fit_activations(*acts).layer_map
        {0: 0, 1: 1, 2: 3}
    """
    found = _resid_post(cache, "given")
    n_layers = getattr(getattr(getattr(cache, "model", None), "cfg", None), "n_layers", max(found) + 1)
    missing = sorted(set(range(n_layers)) - set(found))
    if missing:
        raise InvalidInput(f"the cache has no blocks.L.hook_resid_post for layers {missing}; {AGAIN}")
    real = _real(found, mask, "given")
    return torch.stack([state[real.to(state.device)].detach().float().cpu() for state in found.values()])


def _resid_post(cache: Any, which: str) -> dict[int, Float[Tensor, "prompt token d_model"]]:
    """By layer, ascending; a prompt without the batch dimension has it added."""
    if not hasattr(cache, "keys"):
        raise InvalidInput(f"a {type(cache).__name__} was given; give an ActivationCache, or a dictionary with its names")
    layers = sorted(int(name[1]) for name in map(NAME.fullmatch, map(str, cache.keys())) if name)
    if not layers:
        raise InvalidInput(f"the {which} cache has no blocks.L.hook_resid_post at any layer; {AGAIN}")
    found = {layer: cache[f"blocks.{layer}.hook_resid_post"] for layer in layers}
    for layer, state in found.items():
        if not isinstance(state, Tensor) or state.ndim not in (2, 3):
            raise InvalidInput(f"the {which} cache has no [prompt, token, d_model] at layer {layer}; {AGAIN}")
        check_real(state, f"layer {layer} of the {which} cache")
    found = {layer: state if state.ndim == 3 else state.unsqueeze(0) for layer, state in found.items()}
    shapes = sorted({tuple(state.shape) for state in found.values()})
    if len(shapes) > 1 or 0 in shapes[0]:
        raise InvalidInput(f"the {which} cache has [prompt, token, d_model] {shapes}; one shape without 0 is needed: {AGAIN}")
    return found


def _real(found: Vectors, mask: Mask | None, which: str) -> Bool[Tensor, "prompt token"]:
    """Where tokens are not padding."""
    shape = next(iter(found.values())).shape[:2]
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != shape:  # pyright: ignore[reportUnnecessaryIsInstance]
        given = f"{type(mask).__name__} of shape {getattr(mask, 'shape', None)}"
        raise InvalidInput(f"the {which} mask is a {given}; give a tensor [prompt, token] {[*shape]}, 0 for padding")
    return mask.bool().cpu()


def _at(found: Vectors, position: int, mask: Mask | None, which: str) -> Float[Tensor, "layer prompt d_model"]:
    """The states of one token of each prompt."""
    real = _real(found, mask, which)
    needed = -position if position < 0 else position + 1
    for i, count in enumerate(real.sum(dim=1).tolist()):
        if count < needed:
            raise InvalidInput(f"position {position} needs {needed} tokens, but {which} prompt {i} has {count}; choose another")
    columns = torch.stack([row.nonzero().flatten()[position] for row in real])
    rows = torch.arange(len(columns))
    return torch.stack([h[rows.to(h.device), columns.to(h.device)].detach().float().cpu() for h in found.values()])


def _identities(locked: Any, unlocked: Any, model: Any) -> tuple[ModelIdentity | None, ModelIdentity | None]:
    """Of both caches: their own, otherwise the one given."""
    given = identity_of(model)
    own, after = (identity_of(getattr(cache, "model", None)) for cache in (locked, unlocked))
    if own and given and not (own.is_same_model(given) and own.basis == given.basis):
        raise IncompatibleModel(f"the locked cache is of {own}, but model={given} was given; omit model=")
    before, after = given or own, after or given
    depths = {one.n_layers for one in (before, after) if one}
    if len(depths) > 1 or (before.basis if before else "raw") != (after.basis if after else "raw"):
        unknown = "of an unknown model and taken to be raw"
        raise IncompatibleModel(
            f"locked is {before or unknown}, unlocked is {after or unknown}; a contrast needs models of one shape, held in one "
            "basis (model= says which model dictionaries are of)"
        )
    return before, after
