"""Dictionaries of vectors: in memory, and in the `.pt` files of lm-evaluation-harness and steering-vectors.

Both tools add the vectors to every token at the outputs of blocks. Their files hold plain tensors here and are read as such, so
nothing in a file is ever run. steering-vectors needs transformers below 5, so it cannot share an environment with this library.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection, Provenance
from unlock_lens.core.files import replacing
from unlock_lens.core.steering import SteeringHook
from unlock_lens.errors import InvalidInput, shown
from unlock_lens.hosts.identity import Basis
from unlock_lens.interchange.bounds import check_pickle
from unlock_lens.interchange.common import acting, additive, by_layer, direction_of, identity_of, reading

LAYER_TYPE = "decoder_block"
INSTEAD = "pickled objects are refused, because reading them can run any code. Where it was made, save "
CONTENT = '{"layer_activations": vector.layer_activations, "layer_type": vector.layer_type}'
MODULE = re.compile(r"(?:[^\W\d]+\.)*(?:layers?|h|blocks?)\.([0-9]{1,6})")
"""A block in a Hugging Face model; numbers before the module list would belong to another block."""
SETTINGS = {"steering_coefficient": 1.0, "action": "add", "bias": None, "head_index": None}
ENTRY = f"{{'layers.3': {{'steering_vector': tensor, {str(SETTINGS)[1:]}}}"


def from_tensors(tensors: Mapping[Any, Any], model: Any = None, basis: Basis = "raw") -> CapabilityDirection:
    """A direction from vectors that you already have, one [d_model] for each layer; layer l is the output of block l.

    Args:
        tensors: {layer: vector}; a layer is a number, or a name with exactly one number, followed only by
            .hook_resid_post, .hook_out or .output: "blocks.3.hook_resid_post", "direction.3", "layers.3". Vectors are tensors
            or NumPy arrays.
        model: an open model, or a ModelIdentity, which the direction is checked against and then belongs to.
        basis: "zero_mean" if the vectors come from a host that removes the mean over d_model from the residual stream.

    Raises:
        InvalidInput: this is not a dictionary, names are not outputs of blocks, a layer is repeated, shapes do not fit, or
            vectors are zero, not finite, not real or not in memory.
        IncompatibleModel: the width differs, or the model lacks some of the layers.
        UnsupportedModel: no backend supports the model.

    Example:
        >>> import torch
        >>> from unlock_lens.interchange import from_tensors
        >>> from_tensors({"blocks.0.hook_resid_post": torch.ones(4), "blocks.2.hook_resid_post": torch.ones(4)}).layers
        (0, 2)
    """
    if not isinstance(tensors, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  users have no type checker
        raise InvalidInput(f"a {type(tensors).__name__} was given; give a dictionary {{layer: vector [d_model]}}")
    provenance = Provenance(steps=("made of given tensors",))
    return direction_of(by_layer(tensors), "the given dictionary", provenance, identity_of(model), basis)


def to_steering_vectors(
    what: CapabilityDirection | SteeringHook,
    path: str | Path,
    *,
    norms: Float[Tensor, " layer"] | None = None,
    lossy: bool = False,
) -> None:
    """Write a file for the steering-vectors library: `SteeringVector(**torch.load(path))` there.

    Layer l is the output of block l, layer 0 included. Model and provenance are not in the file. Arguments and errors are those
    of `to_gguf`.

    Source: steering-vectors 0.12.2, steering_vectors/steering_vector.py.
    """
    direction, _ = additive(what, "steering-vectors", lossy, norms)
    vectors = {layer: vector.clone() for layer, vector in zip(direction.layers, direction.vectors, strict=True)}
    with replacing(path) as temporary:
        torch.save({"layer_activations": vectors, "layer_type": LAYER_TYPE}, temporary)


def from_steering_vectors(given: Any, model: Any = None) -> CapabilityDirection:
    """Read a steering vector of the steering-vectors library.

    Args:
        given: a file with {"layer_activations": ..., "layer_type": ...}, that dictionary, or an object with these attributes.
        model: as in `from_tensors`.

    Raises:
        ArtifactError: the file is missing, damaged, or a whole pickled object, which is never unpickled.
        InvalidInput: it is something else, the layer type is not that of decoder blocks, or values are not vectors.
        IncompatibleModel: the width differs, or the model lacks some of the layers.
    """
    identity, is_file = identity_of(model), isinstance(given, str | Path)
    where = str(given) if is_file else f"the given {type(given).__name__}"
    with reading(given, INSTEAD + CONTENT) if is_file else nullcontext():
        held = _loaded(given) if is_file else given
        names = ("layer_activations", "layer_type")
        vectors, kind = [held.get(name) if isinstance(held, Mapping) else getattr(held, name, None) for name in names]
        if not isinstance(vectors, Mapping):
            raise InvalidInput(f"{where} has no layer_activations; give a SteeringVector, or a file of {CONTENT}")
        if not isinstance(kind, str) or kind != LAYER_TYPE:
            raise InvalidInput(
                f"{where} has the layer type {shown(kind)}; a direction acts at the outputs of whole blocks, so train the "
                f"steering vector again with {LAYER_TYPE!r}"
            )
        provenance = Provenance(steps=("read from a steering vector of steering-vectors",))
        return direction_of(acting(by_layer(vectors)), where, provenance, identity)


def to_lm_eval(
    what: CapabilityDirection | SteeringHook,
    path: str | Path,
    *,
    blocks: str | None = None,
    norms: Float[Tensor, " layer"] | None = None,
    lossy: bool = False,
) -> None:
    """Write a file for `lm_eval --model steered --model_args pretrained=NAME,steer_path=FILE.pt`.

    The coefficients are 1. Layer l is the output of block l, layer 0 included. Model and provenance are not in the file.
    `blocks` is the module list of the blocks below `model.base_model`, "layers" in Llama and "h" in GPT-2; by default where
    transformers has it in models of the direction's architecture. Other arguments and errors are those of `to_gguf`.

    Raises:
        InvalidInput: the blocks are unknown, or the suffix is different.

    Source: lm-evaluation-harness 0.4.13, lm_eval/models/hf_steered.py.
    """
    if Path(path).suffix not in (".pt", ".pth"):
        raise InvalidInput(f"{path} was given; lm-evaluation-harness reads steering files that end with .pt or .pth")
    direction, _ = additive(what, "lm-evaluation-harness", lossy, norms)
    architecture = direction.model.architecture if direction.model else None
    found = blocks or _blocks_of(architecture)
    if not isinstance(found, str):
        raise InvalidInput(
            f"blocks={blocks!r} was given, and the name of the blocks in a model of architecture {architecture!r} is unknown; "
            'give blocks=, the name of the module list below model.base_model: "layers" in Llama, "h" in GPT-2'
        )
    content = {
        f"{found}.{layer}": {"steering_vector": vector.clone(), **SETTINGS}
        for layer, vector in zip(direction.layers, direction.vectors, strict=True)
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def from_lm_eval(path: str | Path, model: Any = None) -> CapabilityDirection:
    """Read a steering file of lm-evaluation-harness: each vector times its coefficient, at the output of its block.

    `model` is that of `from_tensors`.

    Raises:
        ArtifactError: the file is missing, damaged or pickled, or entries do more than add at the output of a block.
        IncompatibleModel: the width differs, or the model lacks some of the layers.
    """
    identity = identity_of(model)
    with reading(path, INSTEAD + ENTRY):
        content = _loaded(path)
        coefficients = [_coefficient(point, entry) for point, entry in content.items()]
        given = by_layer({str(point): entry["steering_vector"] for point, entry in content.items()}, MODULE)
        vectors = {layer: given[layer].float() * factor for layer, factor in zip(given, coefficients, strict=True)}
        provenance = Provenance(steps=("read from a steering file of lm-evaluation-harness",))
        return direction_of(acting(vectors), str(path), provenance, identity)


def _loaded(path: str | Path) -> Any:
    """The content of a file whose vectors hold no more numbers than it has bytes."""
    raw = Path(path).read_bytes()  # from a file, a claimed length is allocated before it is read
    check_pickle(raw)
    content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    entries = list(content.values()) if isinstance(content, Mapping) else []
    found = [held for entry in entries for held in (entry, *(entry.values() if isinstance(entry, Mapping) else ()))]
    if any(isinstance(held, Tensor) and not held.is_nested and held.numel() > len(raw) for held in found):
        raise InvalidInput("it holds a tensor of more numbers than the file has bytes; save clones of the vectors")
    return content


def _blocks_of(architecture: str | None) -> str | None:
    """The one module list with an entry for each layer, below `base_model` of such a model without weights; None: unknown."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture or ""))
    except (ImportError, ValueError):
        return None
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    modules = model.base_model.named_modules()
    lists = [name for name, part in modules if isinstance(part, torch.nn.ModuleList) and len(part) == n_layers]
    return lists[0] if len(lists) == 1 else None


def _coefficient(point: Any, entry: Any) -> float:
    """By what the harness multiplies an entry's vector; an entry that does more than add is refused."""
    if not isinstance(entry, Mapping) or "steering_vector" not in entry:
        raise InvalidInput(f"{shown(point)} has no steering_vector; entries such as {ENTRY} are needed")
    action, head, bias = entry.get("action"), entry.get("head_index"), entry.get("bias")
    if not isinstance(action, str) or action != "add" or head is not None or bias is not None:
        does = f"action {shown(action)}, head_index {shown(head)} and {'no' if bias is None else 'a'} bias"
        raise InvalidInput(
            f'{shown(point)} has {does}; a direction is added to the whole residual stream, so only "add" with neither is read'
        )
    factor, largest = entry.get("steering_coefficient", 1.0), torch.finfo(torch.float32).max
    if not isinstance(factor, int | float) or not -largest <= factor <= largest:
        raise InvalidInput(
            f"{shown(point)} has steering_coefficient {shown(factor)}; a finite number is needed, within float32's range"
        )
    return factor
