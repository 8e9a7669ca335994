"""Controls: directions that a real transfer must beat (docs/evidence.md).

Each has the same norms as the direction that it is compared with, so that none is weaker because it is shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.differences import mean_state
from unlock_lens.core.direction import CapabilityDirection, Provenance
from unlock_lens.core.read import How
from unlock_lens.core.variant import Variant
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method import linalg


def random_like(direction: CapabilityDirection, seed: int = 0) -> CapabilityDirection:
    """Isotropic random vectors of the same norms, at the same layers, for the same model."""
    drawn = torch.randn(direction.vectors.shape, generator=torch.Generator().manual_seed(seed))
    return _with_vectors(direction, drawn, f"random control, seed {seed}")


def anti_mean(locked: Variant, like: CapabilityDirection, batch_size: int = 8) -> CapabilityDirection:
    """Minus the target's own mean locked state, "away from the locked state", which requires no source model at all.

    Args:
        locked: the target with the locked prompts.
        like: the direction to control for; layers and norms are taken from it.
        batch_size: prompts in one forward pass.

    Raises:
        IncompatibleModel: the target's width or basis differs from the direction's.
    """
    return away_from(mean_locked(locked, like, batch_size), like)


def away_from(mean: Float[Tensor, "layer d_model"], like: CapabilityDirection) -> CapabilityDirection:
    """`anti_mean`, from a mean locked state that you already have (`mean_locked`)."""
    return _with_vectors(like, -mean, "anti-mean control")


def without_mean(locked: Variant, direction: CapabilityDirection, batch_size: int = 8) -> CapabilityDirection:
    """The direction without its component along the target's mean locked state, at its original norm.

    A transfer that works only by that component has no effect without it. Errors are those of `anti_mean` and
    `projected_out`.
    """
    return projected_out(mean_locked(locked, direction, batch_size), direction)


def projected_out(mean: Float[Tensor, "layer d_model"], direction: CapabilityDirection) -> CapabilityDirection:
    """`without_mean`, from a mean locked state that you already have (`mean_locked`).

    Raises:
        InvalidInput: nothing is left of the direction at some layer.
    """
    left, gone = linalg.projected_out(direction.vectors, mean)
    if gone:
        raise InvalidInput(
            f"the vector of layer {direction.layers[gone[0]]} is a multiple of the mean state, so nothing is left of it"
        )
    return _with_vectors(direction, left, "without its part along the mean locked state")


def shuffled(states: Float[Tensor, "layer n d_model"], seed: int = 0) -> Float[Tensor, "layer n d_model"]:
    """The calibration states of one model in random order, so that a map fitted on them pairs unrelated tokens.

    A direction transported by such a map lies where the target's states vary, but depends on nothing in the source. (Swapping
    locked and unlocked at random within pairs would not be a control: differences vary along the direction that they share,
    so at the same norm that direction returns, with either sign.)

    Example:
        >>> from unlock_lens import SubspaceAligner, controls
        >>> source, target = torch.randn(1, 50, 8), torch.randn(1, 50, 8)
        >>> aligner = SubspaceAligner(rank=4).fit_activations(source, controls.shuffled(target))
    """
    order = torch.randperm(states.shape[1], generator=torch.Generator().manual_seed(seed))
    return states[:, order]


def noise_of_states(
    direction: CapabilityDirection, states: Float[Tensor, "layer n d_model"], seed: int = 0
) -> CapabilityDirection:
    """Noise with the covariance of a model's states, the same draw at every layer, so that it lies where states vary.

    `states` has all layers of the direction's model.
    """
    weights = torch.randn(states.shape[1], generator=torch.Generator().manual_seed(seed)).to(states)
    of_layers = states[list(direction.layers)]
    drawn = torch.einsum("lnd,n->ld", of_layers - of_layers.mean(dim=1, keepdim=True), weights)
    return _with_vectors(direction, drawn.float().cpu(), f"noise with the covariance of states, seed {seed}")


def halves(direction: CapabilityDirection, locked: Float[Tensor, "layer n d_model"], seed: int = 0) -> CapabilityDirection:
    """The mean locked state of one random half of the prompts minus that of the other: a contrast without a capability.

    Raises:
        InvalidInput: there are fewer than two prompts.
    """
    n = locked.shape[1]
    if n < 2:
        raise InvalidInput(f"{n} locked states were given; two halves need at least 2")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    of_layers = locked[list(direction.layers)]
    drawn = of_layers[:, order[: n // 2]].mean(dim=1) - of_layers[:, order[n // 2 :]].mean(dim=1)
    return _with_vectors(direction, drawn.float().cpu(), f"halves of the locked prompts, seed {seed}")


def unaligned(direction: CapabilityDirection, layer_map: Mapping[int, int], target: ModelIdentity) -> CapabilityDirection:
    """The source's vectors, copied unchanged into a target of the same width, to test whether alignment matters at all.

    `layer_map` gives the source layer of each target layer.

    Raises:
        IncompatibleModel: the widths differ.
        InvalidInput: the direction and the map have no layer in common.
    """
    if direction.d_model != target.d_model:
        raise IncompatibleModel(
            f"the direction has d_model {direction.d_model}, but the target is {target}; copying needs equal widths"
        )
    rows = {b: direction.layers.index(a) for b, a in layer_map.items() if a in direction.layers}
    if not rows:
        raise InvalidInput(
            f"the direction has layers {list(direction.layers)}, the map reads {sorted(set(layer_map.values()))}; "
            "give a map that reads some of its layers"
        )
    copied = replace(direction.provenance.then("copied without alignment"), source_model=direction.model)
    return CapabilityDirection(direction.vectors[[*rows.values()]], tuple(rows), target.basis, target, copied)


def at_norms_of(direction: CapabilityDirection, like: CapabilityDirection) -> CapabilityDirection:
    """The direction with each layer's vector scaled to the norm of `like` at that layer.

    Raises:
        IncompatibleModel: layers differ.
    """
    if direction.layers != like.layers:
        raise IncompatibleModel(f"the directions have layers {list(direction.layers)} and {list(like.layers)}; they must agree")
    scale = like.vectors.norm(dim=1) / direction.vectors.norm(dim=1)
    return replace(direction, vectors=direction.vectors * scale.unsqueeze(1))


def mean_locked(locked: Variant, like: CapabilityDirection, batch_size: int = 8) -> Float[Tensor, "layer d_model"]:
    """The target's mean state at the last token of the locked prompts, at the layers of `like`.

    Raises:
        IncompatibleModel: the target's width or basis differs from the direction's.
    """
    target = locked.backend.identity
    if (target.d_model, target.basis) != (like.d_model, like.basis):
        raise IncompatibleModel(f"the direction has d_model {like.d_model}, basis {like.basis}; the target is {target}")
    return mean_state(locked, like.layers, -1, How(batch_size))


def _with_vectors(like: CapabilityDirection, vectors: torch.Tensor, name: str) -> CapabilityDirection:
    return at_norms_of(replace(like, vectors=vectors, provenance=Provenance(steps=(name,))), like)
