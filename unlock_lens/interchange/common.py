"""Shared by all formats: the part of a hook that another tool can use, and checked directions from foreign vectors.

Other tools add one vector to every token at the output of a block, which is exactly operation="add" at positions="all".
Vectors of the basis "zero_mean" are written unchanged: models with such a basis remove the mean over d_model wherever they
read the residual stream, so adding these vectors to the raw model is the same edit.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection, Provenance
from unlock_lens.core.steering import SteeringHook
from unlock_lens.errors import ArtifactError, IncompatibleModel, InvalidInput, UnlockLensError, plain, shown
from unlock_lens.hosts import backend_of
from unlock_lens.hosts.identity import Basis, ModelIdentity

Vectors = Mapping[int, Tensor]
"""By layer, not yet known to have the shape [d_model]."""
BLOCK = re.compile(r"(?:\D*[^\d-])?([0-9]{1,6})(?:\.(?:hook_resid_post|hook_out|output))?")
"""Names of the outputs of blocks; a second number would belong to a part of the block."""


_MOST_LAYERS = 1_000_000


def additive(
    what: CapabilityDirection | SteeringHook,
    tool: str,
    lossy: bool,
    norms: Float[Tensor, " layer"] | None = None,
    first_layer: int = 0,
) -> tuple[CapabilityDirection, tuple[str, ...]]:
    """The vectors that `tool` will add to every token, from `first_layer` on, and what is lost by that, a sentence for each."""
    if not isinstance(what, CapabilityDirection | SteeringHook):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"a {type(what).__name__} was given; give a CapabilityDirection or a SteeringHook")
    if norms is not None and getattr(what, "operation", None) != "norm_preserving":
        raise InvalidInput('norms were given, but only a SteeringHook with operation="norm_preserving" uses them; omit them')
    direction, lost = _of_hook(what, tool, norms) if isinstance(what, SteeringHook) else (what, [])
    kept = [layer for layer in direction.layers if layer >= first_layer]
    if not kept:
        raise InvalidInput(f"{tool} has no place for layers {list(direction.layers)}; give layers from {first_layer} on")
    if below := [layer for layer in direction.layers if layer < first_layer]:
        lost.append(f"layers {below}: {tool} has no place for them (at_layers chooses others)")
    if lost and not lossy:
        raise InvalidInput(
            f"{tool} adds a vector to every token, in the prompt and while decoding. This would lose: {'; '.join(lost)}. "
            "Give a hook that fits the format, or lossy=True (--lossy) to write the file anyway"
        )
    return direction.at_layers(kept), tuple(lost)


def _of_hook(hook: SteeringHook, tool: str, norms: Float[Tensor, " layer"] | None) -> tuple[CapabilityDirection, list[str]]:
    if hook.operation == "ablate":
        raise InvalidInput(
            f"{tool} adds a vector to every token; what an ablation removes depends on the token, so it cannot be written, not "
            'even with lossy=True: write operation="add", or steer with this library'
        )
    steered = hook.direction.at_layers(hook.direction.layers if hook.layers is None else hook.layers)
    vectors, lost = steered.vectors, list[str]()
    if hook.operation == "norm_preserving":
        vectors = _first_order(steered, norms)
        lost.append(
            'operation="norm_preserving": an addition cannot keep the norm of each token; alpha times the unit vectors is '
            "written, times norms= where given"
        )
    if hook.positions != "all":
        lost.append(f'positions="{hook.positions}": the vector acts on every token instead')
    if hook.gate is not None:
        lost.append("gate: the vector acts on every prompt instead")
    strengths = [hook.alpha[layer] if isinstance(hook.alpha, Mapping) else hook.alpha for layer in steered.layers]
    acting = [i for i, strength in enumerate(strengths) if strength != 0]
    if not acting:
        raise InvalidInput("alpha is 0 at every layer, so there is nothing to write; give a layer another alpha")
    scaled = torch.stack([strengths[i] * vectors[i] for i in acting])
    step = f"times alpha {hook.alpha} ({hook.operation}, {hook.positions}), to be added to every token"
    layers = tuple(steered.layers[i] for i in acting)
    return replace(steered, vectors=scaled, layers=layers, provenance=steered.provenance.then(step)), lost


def _first_order(steered: CapabilityDirection, norms: Float[Tensor, " layer"] | None) -> Float[Tensor, "layer d_model"]:
    """What alpha multiplies: ||h|| u, as ||h|| unit(h / ||h|| + alpha u) is h + alpha ||h|| u but for its norm; or u alone."""
    units = steered.unit().vectors
    if norms is None:
        return units
    fits = isinstance(norms, Tensor) and tuple(norms.shape) == (len(units),)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not fits or not bool((norms.isfinite() & (norms > 0)).all()):
        raise InvalidInput(f"norms {norms} were given; give a tensor of one finite norm above 0 for each of {steered.layers}")
    return norms.detach().to(units).unsqueeze(1) * units


def identity_of(model: Any) -> ModelIdentity | None:
    """Which model this is; identities and None come back unchanged."""
    return model if model is None or isinstance(model, ModelIdentity) else backend_of(model).identity


@contextmanager
def reading(path: str | Path, instead: str) -> Generator[None, None, None]:
    """Turn whatever a missing, damaged or foreign file provokes into an ArtifactError that names it; `instead` is the cure."""
    if not Path(path).is_file():
        raise ArtifactError(f"there is no file {path}")
    try:
        yield
    except InvalidInput as error:
        raise ArtifactError(f"{path} cannot be used: {plain(str(error))}") from error
    except UnlockLensError:
        raise
    except Exception as error:  # the errors that foreign bytes provoke in parsers have no common class
        raise ArtifactError(f"{path} is damaged or of another kind ({type(error).__name__}); {instead}") from error


def check_real(tensor: Tensor, what: str) -> None:
    """Raise InvalidInput unless the tensor is dense, real and in memory, before anything is computed from it."""
    kinds = {
        "nested": tensor.is_nested,
        "sparse": tensor.layout != torch.strided,
        "quantized": tensor.is_quantized,
        "meta": tensor.is_meta,
        "complex": tensor.is_complex(),
    }
    if found := [kind for kind, holds in kinds.items() if holds]:
        raise InvalidInput(f"{what} is a {found[0]} tensor; give a dense tensor of real numbers that are in memory")


def by_layer(named: Mapping[Any, Any], pattern: re.Pattern[str] = BLOCK) -> dict[int, Tensor]:
    """Vectors by layer; a name is a layer's number, or a string that the pattern matches."""
    vectors: dict[int, Tensor] = {}
    for name, vector in named.items():
        found = pattern.fullmatch(name) if isinstance(name, str) else None
        if not found and (isinstance(name, bool) or not isinstance(name, int) or not 0 <= name < _MOST_LAYERS):
            raise InvalidInput(
                f"{shown(name)} is not the output of a block; give the layer's number from 0, or a name that ends with it, "
                "such as direction.3, layers.3 or blocks.3.hook_resid_post"
            )
        layer: int = int(found[1]) if found else name  # pyright: ignore[reportAssignmentType]
        if layer in vectors:
            raise InvalidInput(f"layer {layer} was given twice, the second time as {shown(name)}; give one vector per layer")
        if isinstance(vector, np.ndarray) and vector.dtype.kind in "biufc":
            vector = torch.from_numpy(vector.astype(np.complex128 if vector.dtype.kind == "c" else np.float64))
        if not isinstance(vector, Tensor):
            kind = getattr(vector, "dtype", type(vector).__name__)
            raise InvalidInput(f"{shown(name)} holds {kind}; give a tensor or an array of numbers [d_model]")
        check_real(vector, f"the vector of {shown(name)}")
        vectors[layer] = vector
    return vectors


def acting(vectors: Vectors) -> Vectors:
    """Without those that are zero: they add nothing, and some writers have them at layers that are not steered."""
    return {layer: vector for layer, vector in vectors.items() if bool(vector.any())} or vectors


def direction_of(
    vectors: Vectors, where: str, provenance: Provenance, identity: ModelIdentity | None = None, basis: Basis = "raw"
) -> CapabilityDirection:
    """The direction of vectors by layer, as one of the given model; InvalidInput for vectors that make no direction."""
    layers = sorted(vectors)
    shapes = {layer: list(vectors[layer].shape) for layer in layers}
    if not layers or any(len(shape) != 1 or shape != shapes[layers[0]] for shape in shapes.values()):
        raise InvalidInput(
            f"{where} holds vectors of shapes {str(shapes)[:200]}; one vector [d_model] is needed for each steered layer"
        )
    stacked = torch.stack([vectors[layer].detach().to("cpu", torch.float32) for layer in layers])
    return given_to(CapabilityDirection(stacked, tuple(layers), basis, None, provenance), identity, where)


def given_to(direction: CapabilityDirection, identity: ModelIdentity | None, where: str) -> CapabilityDirection:
    """The direction as one of that model, in its basis where possible; unchanged for None."""
    if identity is None:
        return direction
    if direction.d_model != identity.d_model or max(direction.layers) >= identity.n_layers:
        raise IncompatibleModel(
            f"{where} has vectors of length {direction.d_model} for layers {list(direction.layers)}, but {identity} was given; "
            "give the model that it was made for, or transport the direction with a SubspaceAligner"
        )
    if direction.model is not None and not direction.model.is_same_model(identity):
        raise IncompatibleModel(
            f"{where} was made for {direction.model}, but {identity} was given; transport it with a SubspaceAligner"
        )
    held = direction.zero_mean() if identity.basis == "zero_mean" else direction
    # Adding zero-mean vectors to a raw model is the same edit, so they may belong to it.
    owner = identity if identity.basis == held.basis else replace(identity, basis=held.basis, fingerprint=None)
    return replace(held, model=owner)
