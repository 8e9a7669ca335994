"""What a direction writes, how far along it a run is, how capabilities relate, which layer matters (docs/lens.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.progress import shown
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant, variant_of
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.evidence._forecast import forecast
from unlock_lens.evidence._pairs import Pairs
from unlock_lens.evidence.distributions import completion_log_probs
from unlock_lens.hosts import backend_of, placed
from unlock_lens.hosts.remote import Where


def logits_written(direction: CapabilityDirection, model: Any, remote: Where = False) -> Float[Tensor, "layer vocabulary"]:
    """Logits that each layer's vector writes through the final norm and the unembedding: the logit lens of a direction.

    The norm's weight is folded in and its bias is left out. Vectors of a LayerNorm model are centered over d_model, and logits
    over the vocabulary, as by TransformerLens' fold_ln, center_writing_weights and center_unembed. The model's own modules
    compute this, so it is right for families whose norm adds one to its weight. A vector is scaled to the size that the final
    norm gives every state, so layers can be compared, and a multiple of the direction gives the same logits.

    Args:
        direction: of this model; row i of the result is for direction.layers[i].
        model: open in TransformerLens or nnsight.
        remote: as in `generate`; the server's own norm and unembedding are called, and logits of v and -v are returned.

    Raises:
        IncompatibleModel: the model's width or number of layers differs, or it is not the direction's model.
        UnsupportedModel: the model has no weights on this machine, and `remote` is not given.

    Source: the logit lens (nostalgebraist, 2020), applied to a direction instead of a state.
    """
    _check(direction)
    backend = backend_of(model)
    SteeringHook(direction, 1.0, operation="add").edits(backend.identity)  # says what does not fit
    vectors = direction.unit().vectors * direction.d_model**0.5
    # Half of what v and -v write: the biases of norm and unembedding, which are not the direction's, cancel.
    there, back = placed(backend, remote).unembed(torch.stack([vectors, -vectors]))
    logits = (there - back) / 2
    return logits - logits.mean(dim=-1, keepdim=True)


def tokens_written(direction: CapabilityDirection, model: Any, k: int = 5, remote: Where = False) -> pd.DataFrame:
    """The tokens that each layer's vector raises and lowers most, by `logits_written`.

    Other arguments and errors are those of `logits_written`.

    Returns:
        A row for each layer and rank, 1 to k; columns "raises", "by", "lowers" and "down by", in logits.

    Raises:
        InvalidInput: k is below 1 or above the vocabulary size.

    Example:
        >>> from unlock_lens import CapabilityDirection, Variant, lens, zoo
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=32)
        >>> direction = CapabilityDirection.extract(Variant(model, task.direct), Variant(model, task.think), progress=False)
        >>> lens.tokens_written(direction, model, k=1).loc[2, "lowers"].item()  # what opens a direct answer
        '='
    """
    logits, tokenizer = logits_written(direction, model, remote), backend_of(model).tokenizer
    logits = logits[:, : len(tokenizer)]  # a vocabulary that is padded to a round number has more rows than tokens
    if not isinstance(k, int) or not 1 <= k <= logits.shape[1]:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"k {k} was given; use 1 to {logits.shape[1]}, the size of the vocabulary")
    up, down = logits.topk(k), logits.topk(k, largest=False)
    columns = {
        "raises": [tokenizer.decode([token]) for token in up.indices.flatten().tolist()],
        "by": up.values.flatten().tolist(),
        "lowers": [tokenizer.decode([token]) for token in down.indices.flatten().tolist()],
        "down by": (-down.values).flatten().tolist(),
    }
    return pd.DataFrame(columns, index=pd.MultiIndex.from_product([direction.layers, range(1, k + 1)], names=["layer", "rank"]))


def projection(direction: CapabilityDirection, cache: Any, relative: bool = False) -> Float[Tensor, "layer *batch token"]:
    """How far along the direction a run is at each token: <h[l], v[l] / ||v[l]||>, to plot over positions.

    A raw direction is converted for the cache of a zero-mean model. Padding tokens have values, too.

    Args:
        direction: the direction whose layers are read.
        cache: an ActivationCache of TransformerLens, or a mapping of layers (or its names) to states [..., token, d_model].
        relative: divide by the norm of each state as well, which gives cosines (0 for a state of norm 0).

    Raises:
        InvalidInput: the cache lacks a layer, its layers are from different runs, or it is not a cache.
        IncompatibleModel: the width of the states differs.
    """
    _check(direction)
    held = getattr(cache, "model", None)
    basis = direction.basis if held is None else backend_of(held).identity.basis
    if direction.basis == "raw" and basis == "zero_mean":
        direction = direction.zero_mean()
    found: list[Tensor] = []
    for layer, vector in zip(direction.layers, direction.unit().vectors, strict=True):
        states = _states(cache, layer).detach().float().cpu()
        if states.shape[-1] != direction.d_model:
            raise IncompatibleModel(
                f"the cache has states of width {states.shape[-1]} at layer {layer}, but the direction has d_model "
                f"{direction.d_model}; its model is {direction.model or 'unknown'}"
            )
        along = states @ vector
        found.append(along / states.norm(dim=-1).clamp_min(torch.finfo(along.dtype).tiny) if relative else along)
    if len({along.shape for along in found}) > 1:
        shapes = [list(along.shape) for along in found]
        raise InvalidInput(f"the layers have states of different shapes, {shapes}; give one run")
    return torch.stack(found)


def _states(cache: Any, layer: int) -> Tensor:
    name = f"blocks.{layer}.hook_resid_post"
    if not hasattr(cache, "keys"):
        raise InvalidInput(f"a {type(cache).__name__} was given; give an ActivationCache, or a mapping {{layer: states}}")
    keys = [key for key in (name, layer) if key in set(cache.keys())]
    if not keys or not isinstance(cache[keys[0]], Tensor):
        raise InvalidInput(
            f"the cache has no tensor {name}; use run_with_cache with names_filter=None or with that name "
            "in it, or give a mapping {layer: states}"
        )
    return cache[keys[0]]


def forecast_by_layer(
    model: Any,
    prompts: Sequence[str] | Variant,
    completions: Sequence[str],
    steer: SteeringHook,
    batch_size: int = 8,
    add_special_tokens: bool = True,
) -> pd.Series:
    """A first-order estimate of `effect_by_layer`'s column "alone", for the first tokens of the completions.

    <g[l], edit(h[l]) - h[l]>, mean over prompts: h[l] is the last prompt token's state at the output of block l, and g[l] the
    gradient of the token's log-probability there. Both come from one forward and one backward pass at half the strength.
    Arguments are those of `effect_by_layer`, errors those of `completion_log_probs`.

    Returns:
        For each steered layer, nats per prompt.

    Raises:
        UnsupportedModel: the model runs on a server, or does not support a backward pass.

    Source: attribution patching (Nanda, 2023), at the midpoint of the path instead of its start; docs/strength.md.

    Example:
        >>> from unlock_lens import CapabilityDirection, SteeringHook, Variant, lens, zoo
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=32)
        >>> direction = CapabilityDirection.extract(Variant(model, task.direct), Variant(model, task.think), progress=False)
        >>> lens.forecast_by_layer(model, task.direct, ["S"] * 32, SteeringHook(direction, 0.5)).idxmax()
        2
    """
    variant = variant_of(model, prompts, add_special_tokens)
    first = torch.tensor([ids[0] for ids in Pairs.of(variant, completions).following])
    wanted = torch.nn.functional.one_hot(first, len(variant.backend.tokenizer)).float()
    return pd.Series(forecast(steer, variant, wanted, batch_size), name="forecast").rename_axis("layer")


def _check(direction: Any) -> None:
    if not isinstance(direction, CapabilityDirection):
        raise InvalidInput(
            f"a {type(direction).__name__} was given; give a CapabilityDirection (a hook has one: hook.direction)"
        )


def cosines(directions: Mapping[str, CapabilityDirection]) -> Float[Tensor, "layer direction direction"]:
    """How capabilities relate: cosines of several directions with each other, for each layer.

    Raises:
        InvalidInput: no directions are given.
        IncompatibleModel: layers, width, basis or model differ.
    """
    if not isinstance(directions, Mapping) or not directions:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput("no directions were given by name; give them as in {'think': direction, 'reverse': other}")
    given = [*directions.values()]
    return torch.stack([torch.stack([a.cosine(b) for b in given], dim=-1) for a in given], dim=-2)


def effect_by_layer(
    model: Any,
    prompts: Sequence[str],
    completions: Sequence[str],
    steer: SteeringHook,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    progress: bool = True,
    remote: Where = False,
) -> pd.DataFrame:
    """Which layer's edit has the effect: what steering adds to the log-probability of completions, attributed to layers.

    Every number is measured by steered runs and not by gradients, so it includes what later layers make of an edit. Effects
    of single layers need not add up to that of all, because one layer can replace another, or depend on it.
    `completions` are what the capability would write, one for each prompt, or its first token. Other arguments and errors are
    those of `completion_log_probs`.

    Returns:
        A row for each steered layer, in nats per completion, means over prompts: "alone", the effect of this layer's edit by
        itself; "left out", what the effect loses when this layer is left out; "up to", the effect of all layers up to this
        one, in the last row that of the whole hook.

    Raises:
        InvalidInput: steer is not a single hook.
    """
    if not isinstance(steer, SteeringHook):  # pyright: ignore[reportUnnecessaryIsInstance]  users have no type checker
        raise InvalidInput(f"steer is a {type(steer).__name__}; give one SteeringHook")
    layers = tuple(sorted(steer.direction.layers if steer.layers is None else steer.layers))
    without = {layer: tuple(other for other in layers if other != layer) for layer in layers}
    up_to = {layer: layers[: i + 1] for i, layer in enumerate(layers)}
    wanted = {(), layers, *((layer,) for layer in layers), *without.values(), *up_to.values()}
    sure: dict[tuple[int, ...], float] = {}
    for some in shown(sorted(wanted), "steering some layers", progress, "runs"):
        hook = steer.at_layers(some) if some else None
        found = completion_log_probs(model, prompts, completions, hook, batch_size, add_special_tokens, remote)
        sure[some] = found.double().mean().item()
    rows = {
        layer: (sure[layer,] - sure[()], sure[layers] - sure[without[layer]], sure[up_to[layer]] - sure[()]) for layer in layers
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["alone", "left out", "up to"]).rename_axis("layer")
