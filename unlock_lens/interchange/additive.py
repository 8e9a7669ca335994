"""What other tools do with a direction: they add one vector to every token, at the output of a block.

Of a SteeringHook only operation="add" at positions="all" is that; whatever else it does is lost, and said. Vectors of the
basis "centered" are written as they are: models with such a basis take the mean over d_model out wherever they read the
residual stream, so adding them is the same edit in the raw model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.steering import SteeringHook
from unlock_lens.errors import InvalidInput

ELSEWHERE = {
    "last_prompt": "it acts on the last token of the prompt alone",
    "prompt": "it acts on the prompt alone",
    "generated": "it acts on generated tokens alone",
}


@dataclass(frozen=True, eq=False)
class Additive:
    """What is written.

    Attributes:
        direction: its vectors are added as they are.
        lost: what of the given direction or hook is not in it, one sentence each.
    """

    direction: CapabilityDirection
    lost: tuple[str, ...] = ()


def additive(
    what: CapabilityDirection | SteeringHook,
    into: str,
    lossy: bool,
    norms: Float[Tensor, " layer"] | None = None,
    first_layer: int = 0,
) -> Additive:
    """The vectors that another tool will add to every token.

    Args:
        what: a direction, whose vectors are taken as they are, or a hook: alpha times its vectors.
        into: the name of the format, for messages.
        lossy: write what can be written of a hook that is more than an addition to every token.
        norms: the residual's norm at each layer that a norm-preserving hook steers.
        first_layer: layers below it are not in the format.

    Raises:
        InvalidInput: neither direction nor hook, a hook that is more than that without `lossy`, one that ablates, norms that
            do not fit, nothing left to write.
    """
    if norms is not None and not isinstance(norms, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  as below
        raise InvalidInput(
            f"norms were given as a {type(norms).__name__}; give a tensor [layer], the residual's norm at each steered layer"
        )
    if isinstance(what, SteeringHook):
        written = _of_hook(what, into, norms)
    elif not isinstance(what, CapabilityDirection):  # pyright: ignore[reportUnnecessaryIsInstance]  users have no type checker
        raise InvalidInput(f"a {type(what).__name__} was given; give a CapabilityDirection or a SteeringHook")
    elif norms is not None:
        raise InvalidInput("norms were given with a direction; they belong to a SteeringHook that preserves norms")
    else:
        written = Additive(what)
    written = _from_layer(written, into, first_layer)
    if written.lost and not lossy:
        reasons = "; ".join(written.lost)
        raise InvalidInput(
            f"{into} adds a vector to every token, at the prompt and while decoding. What would be lost: {reasons}. "
            "Give what it can hold, or lossy=True (--lossy) to write it without"
        )
    return written


def _of_hook(hook: SteeringHook, into: str, norms: Float[Tensor, " layer"] | None) -> Additive:
    if hook.operation == "ablate":
        raise InvalidInput(
            f"{into} adds a vector to every token; what ablation takes out depends on the token, so it cannot be written, not "
            'even with lossy=True: write operation="add", or steer with this library'
        )
    steered = hook.direction.at_layers(hook.direction.layers if hook.layers is None else hook.layers)
    strengths = [hook.alpha[layer] if isinstance(hook.alpha, Mapping) else hook.alpha for layer in steered.layers]
    vectors, lost = steered.vectors, list[str]()
    if hook.operation == "norm_preserving":
        vectors = _first_order(steered, norms)
        lost.append(_renormalised(norms))
    elif norms is not None:
        raise InvalidInput(
            f'norms were given with operation="{hook.operation}"; only a norm-preserving hook has a use for them'
        )
    if hook.positions != "all":
        lost.append(f'positions="{hook.positions}": {ELSEWHERE[hook.positions]}, while positions="all" can be written')
    acting = [i for i, strength in enumerate(strengths) if strength != 0]
    if not acting:
        raise InvalidInput("alpha is 0 at every layer; nothing would be added, so there is nothing to write")
    scaled = torch.stack([strengths[i] * vectors[i] for i in acting])
    kept = tuple(steered.layers[i] for i in acting)
    step = f"times alpha {hook.alpha} ({hook.operation}, {hook.positions}), to be added to every token"
    told = steered.provenance.then(step)
    return Additive(replace(steered, vectors=scaled, layers=kept, provenance=told), tuple(lost))


def _first_order(steered: CapabilityDirection, norms: Float[Tensor, " layer"] | None) -> Float[Tensor, "layer d_model"]:
    """What alpha multiplies: ||h|| u, as ||h|| unit(h / ||h|| + alpha u) is h + alpha ||h|| u but for its norm; or u alone."""
    units = steered.unit().vectors
    if norms is None:
        return units
    if tuple(norms.shape) != (len(steered.layers),) or not bool((norms.isfinite() & (norms > 0)).all()):
        raise InvalidInput(
            f"norms {norms.tolist()} were given; a finite number above 0 is needed for each of layers {list(steered.layers)}"
        )
    return norms.detach().to(units).unsqueeze(1) * units


def _renormalised(norms: Float[Tensor, " layer"] | None) -> str:
    said = 'operation="norm_preserving": an addition cannot keep the norm of each token (operation="add" can be written)'
    if norms is not None:
        return f"{said}; alpha times the given norms times the unit vectors turns a token of that norm alike"
    return f"{said}; without norms= it is alpha times the unit vectors, whose strength must be set anew where they are used"


def _from_layer(written: Additive, into: str, first: int) -> Additive:
    layers = written.direction.layers
    kept = [layer for layer in layers if layer >= first]
    if not kept:
        raise InvalidInput(f"{into} has no layers below {first}, and this has {list(layers)} alone; take a direction of others")
    if len(kept) == len(layers):
        return written
    missing = ", ".join(str(layer) for layer in layers if layer < first)
    lost = (*written.lost, f"layer {missing}: there is no place for it below layer {first} (at_layers takes others)")
    return Additive(written.direction.at_layers(kept), lost)
