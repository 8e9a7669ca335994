"""What was read becomes a direction, checked against the model that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection, Provenance
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.hosts import backend_of
from unlock_lens.hosts.identity import Basis, ModelIdentity

Vectors = Mapping[int, Tensor]
"""By layer; not yet known to be [d_model]."""


def identity_of(model: Any) -> ModelIdentity | None:
    """Of an open model; an identity, or None, as it is.

    Raises:
        UnsupportedModel: neither an identity nor a model that a backend serves.
    """
    return model if model is None or isinstance(model, ModelIdentity) else backend_of(model).identity


def check_real(tensor: Tensor, what: str) -> None:
    """Raise unless its numbers are real and at hand, before anything else is done with it.

    Raises:
        InvalidInput: a sparse, nested, quantized, meta or complex tensor.
    """
    kinds = {
        "nested": tensor.is_nested,
        "sparse": tensor.layout != torch.strided,
        "quantized": tensor.is_quantized,
        "meta": tensor.is_meta,
        "complex": tensor.is_complex(),
    }
    found = next((kind for kind, holds in kinds.items() if holds), None)
    if found:
        raise InvalidInput(f"{what} is a {found} tensor; give a dense tensor of real numbers that are in memory")


def direction_of(vectors: Vectors, where: str, basis: Basis = "raw", steps: tuple[str, ...] = ()) -> CapabilityDirection:
    """A direction of no known model, of vectors by layer.

    Raises:
        InvalidInput: no vectors, vectors of several lengths, or what CapabilityDirection refuses.
    """
    if not vectors:
        raise InvalidInput(f"{where} holds no vectors; one is needed for each layer that is steered")
    layers = sorted(vectors)
    shapes = {layer: tuple(vectors[layer].shape) for layer in layers}
    if any(len(shape) != 1 for shape in shapes.values()):
        raise InvalidInput(f"{where} holds tensors of shapes {shapes}; one vector [d_model] is needed for each layer")
    if len(set(shapes.values())) > 1:
        widths = ", ".join(f"{layer}: {shape[0]}" for layer, shape in shapes.items())
        raise InvalidInput(f"{where} holds vectors of several lengths ({widths}); all layers of a model have one width")
    stacked = torch.stack([vectors[layer].detach().to("cpu", torch.float32) for layer in layers])
    return CapabilityDirection(stacked, layers=tuple(layers), basis=basis, provenance=Provenance(steps=steps))


def acting(vectors: Vectors) -> Vectors:
    """Without those that are zero: they add nothing, so some writers have them at layers that are not steered."""
    left = {layer: vector for layer, vector in vectors.items() if bool(vector.any())}
    return left or vectors


def given_to(direction: CapabilityDirection, identity: ModelIdentity | None, where: str) -> CapabilityDirection:
    """The direction as one of that model, in its basis where it can be; as it is for None.

    Raises:
        IncompatibleModel: another width, layers that the model does not have, or the direction is another model's.
    """
    if identity is None:
        return direction
    if direction.d_model != identity.d_model:
        raise IncompatibleModel(
            f"{where} holds vectors of length {direction.d_model}, and {identity} has another width; "
            "transport the direction with a SubspaceAligner, or give the model that it was made for"
        )
    beyond = [layer for layer in direction.layers if layer >= identity.n_layers]
    if beyond:
        raise IncompatibleModel(
            f"{where} has layers {beyond}, and {identity} 0 to {identity.n_layers - 1}; give the model that it was made for"
        )
    if direction.model is not None and not direction.model.is_same_model(identity):
        raise IncompatibleModel(
            f"{where} was made for {direction.model}, and {identity} was given; transport it with a SubspaceAligner"
        )
    held = direction.centered() if identity.basis == "centered" else direction
    # An addition of centered vectors to a raw model is the same edit, so they may be its own.
    owner = identity if identity.basis == held.basis else replace(identity, basis=held.basis, fingerprint=None)
    return replace(held, model=owner)
