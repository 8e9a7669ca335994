"""Plain dictionaries of vectors, by layer or by a name with the layer in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts.identity import Basis
from unlock_lens.interchange.arriving import check_real, direction_of, given_to, identity_of

BLOCK = re.compile(r"\D*([0-9]{1,6})(?:\.(?:hook_resid_post|hook_out|output))?")


def from_tensors(tensors: Mapping[Any, Any], model: Any = None, basis: Basis = "raw") -> CapabilityDirection:
    """A direction of vectors that you have already, one [d_model] a layer; layer l is the output of block l.

    Args:
        tensors: {layer: vector}; a layer is a number, or a name with exactly one number in it and nothing behind that but
            .hook_resid_post, .hook_out or .output: "blocks.3.hook_resid_post", "direction.3", "layers.3". Vectors are tensors
            or NumPy arrays.
        model: an open model, or a ModelIdentity, which the direction is checked against and then belongs to.
        basis: "centered" where the vectors come from a host that takes the d_model mean out of the residual stream.

    Raises:
        InvalidInput: no dictionary, names that are no output of a block, a layer twice, shapes that do not fit, vectors that
            are zero, not finite, not real or not in memory.
        IncompatibleModel: another width, or layers that the model does not have.
        UnsupportedModel: a model that no backend serves.

    Source: docs/interchange.md.

    Example:
        >>> import torch
        >>> from unlock_lens.interchange import from_tensors
        >>> from_tensors({"blocks.0.hook_resid_post": torch.ones(4), "blocks.2.hook_resid_post": torch.ones(4)}).layers
        (0, 2)
    """
    if not isinstance(tensors, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  users have no type checker
        raise InvalidInput(f"a {type(tensors).__name__} was given; give a dictionary {{layer: vector [d_model]}}")
    vectors: dict[int, Tensor] = {}
    for name, vector in tensors.items():
        layer = _layer(name)
        if layer in vectors:
            raise InvalidInput(f"layer {layer} was given twice, the second time as {name!r}; give one vector for each")
        vectors[layer] = _tensor(name, vector)
    direction = direction_of(vectors, "the dictionary that was given", basis, ("made of given tensors",))
    return given_to(direction, identity_of(model), "the dictionary that was given")


def _layer(name: Any) -> int:
    if isinstance(name, int) and not isinstance(name, bool) and name >= 0:
        return name
    found = BLOCK.fullmatch(name) if isinstance(name, str) else None
    if not found:
        raise InvalidInput(
            f"{name!r:.80} is not the output of a block; give the layer's number from 0, or a name that ends with the one "
            "number in it, such as direction.3 or layers.3 (.hook_resid_post, .hook_out or .output may follow)"
        )
    return int(found[1])


def _tensor(name: Any, vector: Any) -> Tensor:
    if isinstance(vector, np.ndarray):
        if vector.dtype.kind not in "biufc":
            raise InvalidInput(f"an array of {vector.dtype} was given for {name!r}; give numbers [d_model]")
        vector = torch.from_numpy(np.array(vector, dtype=np.complex128 if vector.dtype.kind == "c" else np.float64))
    if not isinstance(vector, Tensor):
        raise InvalidInput(f"a {type(vector).__name__} was given for {name!r}; give a tensor [d_model]")
    check_real(vector, f"the vector of {name!r}")
    return vector
