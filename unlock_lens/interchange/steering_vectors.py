"""The steering-vectors library, by file: its `SteeringVector` adds {layer: vector} to every token at the output of each block.

It needs transformers below 5 and this library 5, so both cannot live in one environment; a file of plain tensors goes across.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.steering import SteeringHook
from unlock_lens.errors import ArtifactError, InvalidInput
from unlock_lens.interchange import torch_files
from unlock_lens.interchange.additive import additive
from unlock_lens.interchange.arriving import acting, check_real, direction_of, given_to, identity_of

BLOCK = "decoder_block"
CONTENT = '{"layer_activations": vector.layer_activations, "layer_type": vector.layer_type} with torch.save'


def to_steering_vectors(
    what: CapabilityDirection | SteeringHook,
    path: str | Path,
    *,
    norms: Float[Tensor, " layer"] | None = None,
    lossy: bool = False,
) -> None:
    """Write a file for the steering-vectors library: `SteeringVector(**torch.load(path))` there.

    A direction is written as it is, a hook as alpha times its vectors. Exact are a direction, and a hook with operation="add"
    and positions="all". Layer l is the output of block l. Model and provenance are not in the file.

    Args:
        what: a direction, or a hook.
        path: the `.pt` file; an interrupted write leaves the old one as it was.
        norms: for a norm-preserving hook: the residual's norm at each layer that it steers (as in `to_gguf`).
        lossy: write what can be written of a hook that is more than an addition to every token.

    Raises:
        InvalidInput: not exact and not `lossy` (it says why), an ablation, norms that do not fit.
        ArtifactError: the file cannot be there.

    Source: steering-vectors 0.12.2, steering_vectors/steering_vector.py.

    Example:
        >>> import torch, tempfile
        >>> from unlock_lens import CapabilityDirection
        >>> from unlock_lens.interchange import to_steering_vectors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_steering_vectors(CapabilityDirection(torch.ones(1, 4), (2,)), f"{folder}/v.pt")
        ...     torch.load(f"{folder}/v.pt")
        {'layer_activations': {2: tensor([1., 1., 1., 1.])}, 'layer_type': 'decoder_block'}
    """
    direction = additive(what, "steering-vectors", lossy, norms).direction
    vectors = {layer: vector.clone() for layer, vector in zip(direction.layers, direction.vectors, strict=True)}
    torch_files.write(path, {"layer_activations": vectors, "layer_type": BLOCK})


def from_steering_vectors(given: Any, model: Any = None) -> CapabilityDirection:
    """Read a steering vector of the steering-vectors library.

    Args:
        given: a file with {"layer_activations": ..., "layer_type": ...}, that dictionary, or an object with these attributes.
        model: an open model, or a ModelIdentity, which the direction is checked against and then belongs to.

    Raises:
        ArtifactError: no such file, damaged, or a whole pickled object, which is never unpickled.
        InvalidInput: something else, another layer type than decoder blocks, or vectors that are none.
        IncompatibleModel: another width, or layers that the model does not have.
        UnsupportedModel: a model that no backend serves.

    Source: steering-vectors 0.12.2, steering_vectors/steering_vector.py.

    Example:
        >>> import torch
        >>> from unlock_lens.interchange import from_steering_vectors
        >>> from_steering_vectors({"layer_activations": {2: torch.ones(4)}, "layer_type": "decoder_block"}).layers
        (2,)
    """
    where = str(given) if isinstance(given, str | Path) else f"the {type(given).__name__} that was given"
    held = torch_files.read(given, CONTENT) if isinstance(given, str | Path) else given
    names = ("layer_activations", "layer_type")
    vectors, kind = [held.get(name) if isinstance(held, Mapping) else getattr(held, name, None) for name in names]
    try:
        direction = direction_of(
            acting(_checked(vectors, kind, where)), where, steps=("read from a steering vector of steering-vectors",)
        )
    except InvalidInput as error:
        if isinstance(given, str | Path):
            raise ArtifactError(f"{given} cannot be used: {error}") from error
        raise
    return given_to(direction, identity_of(model), where)


def _checked(vectors: Any, kind: Any, where: str) -> dict[int, Tensor]:
    if not isinstance(vectors, Mapping):
        raise InvalidInput(f"{where} has no layer_activations; expected a file of {CONTENT}, its content, or a SteeringVector")
    if kind != BLOCK:
        raise InvalidInput(
            f"{where} has the layer type {kind!r}; a direction lives at the outputs of whole blocks, {BLOCK!r}, and another "
            "type cannot be moved there: train the steering vector anew with it"
        )
    for layer, vector in vectors.items():
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0 or not isinstance(vector, Tensor):
            raise InvalidInput(
                f"{where} has {layer!r}: {type(vector).__name__}; layers counted from 0 and their tensors are needed"
            )
        check_real(vector, f"the vector of layer {layer}")
    return dict(vectors)
