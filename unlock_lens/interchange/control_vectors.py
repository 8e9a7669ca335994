"""llama.cpp's control vectors: GGUF files that hold one float32 vector `direction.L` for each layer L.

L counts from 0, and its vector is added to every token at the output of block L; a file with L = 0 is refused by llama.cpp,
which has no place for it. That is how it loads them (`common_control_vector_load_one` in common/common.cpp, which reads the
tensors alone) and applies them (`llama_adapter_cvec` in src/llama-adapter.cpp; `build_cvec` behind the last addition of each
block). The keys are those that repeng (`ControlVector.export_gguf`) and llama.cpp's cvector-generator write: the count of
tensors in `controlvector.layer_count`, the model's architecture in `controlvector.model_hint`.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.files import content_hash, replacing
from unlock_lens.core.steering import SteeringHook
from unlock_lens.errors import ArtifactError, IncompatibleModel, InvalidInput
from unlock_lens.interchange.additive import additive
from unlock_lens.interchange.arriving import acting, direction_of, given_to, identity_of

KIND = "controlvector"
DESCRIPTION = "unlock_lens.description"
"""Key of what the format has no place for: model, basis, provenance, what was lost."""
NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")
AS_LLAMA_CPP_SAYS = {
    **dict.fromkeys(("mistral", "mixtral", "internlm3"), "llama"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite"), "deepseek2"),
    **dict.fromkeys(("granitemoehybrid", "bamba"), "granitehybrid"),
    **dict.fromkeys(("qwen2_5_vl", "qwen2_5_omni"), "qwen2vl"),
    "cohere": "command-r",
    "falcon_mamba": "mamba",
    "glm": "chatglm",
    "glm4v": "glm4",
    "glm4v_moe": "glm4moe",
    "glm_moe_dsa": "glm-dsa",
    "gpt_bigcode": "starcoder",
    "granitemoeshared": "granitemoe",
    "hunyuan_v1_dense": "hunyuan-dense",
    "hunyuan_v1_moe": "hunyuan-moe",
    "mimo_v2_flash": "mimo2",
    "ministral3": "mistral3",
    "olmo3": "olmo2",
    "phi": "phi2",
}
"""Architectures (model_type) whose name in llama.cpp is another one, more than by punctuation (convert_hf_to_gguf.py)."""


def to_gguf(
    what: CapabilityDirection | SteeringHook,
    path: str | Path,
    *,
    architecture: str | None = None,
    norms: Float[Tensor, " layer"] | None = None,
    lossy: bool = False,
) -> None:
    """Write a llama.cpp control vector, which `llama-cli --control-vector` and repeng read.

    A direction is written as it is, a hook as alpha times its vectors. Exact are a direction, and a hook with operation="add"
    and positions="all", both without layer 0. Layer l is the output of block l.

    Args:
        what: a direction, or a hook.
        path: the file; an interrupted write leaves the old one as it was.
        architecture: the model's Hugging Face model_type, such as "llama"; by default that of the direction's model.
        norms: for a norm-preserving hook: the residual's norm at each layer that it steers. Its first-order form is written,
            alpha times norm times the unit vector. Without them alpha times the unit vector: set the strength in llama.cpp,
            with --control-vector-scaled FILE:STRENGTH.
        lossy: write what can be written of a hook or direction that the format cannot hold.

    Raises:
        InvalidInput: not exact and not `lossy` (it says why), an ablation, norms that do not fit, no architecture known, the
            gguf package is missing.
        ArtifactError: the file cannot be there.

    Source: docs/interchange.md; llama.cpp, common/common.cpp and src/llama-adapter.cpp.

    Example:
        >>> import torch, tempfile
        >>> from unlock_lens import CapabilityDirection, SteeringHook
        >>> from unlock_lens.interchange import from_gguf, to_gguf
        >>> hook = SteeringHook(CapabilityDirection(torch.eye(1, 4), (2,)), alpha=3.0, operation="add", positions="all")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_gguf(hook, f"{folder}/v.gguf", architecture="llama")
        ...     from_gguf(f"{folder}/v.gguf").vectors
        tensor([[3., 0., 0., 0.]])
    """
    gguf = _gguf()
    if architecture is not None and not isinstance(architecture, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f'architecture={architecture!r} was given; give the model_type in its config.json, such as "llama"')
    written = additive(what, "a llama.cpp control vector", lossy, norms, first_layer=1)
    direction = written.direction
    hint = architecture or (direction.model.architecture if direction.model else None)
    if not hint:
        raise InvalidInput(
            "a control vector names the architecture of its model, and this direction's is not known; "
            'give architecture=, the model_type in its config.json, such as "llama"'
        )
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, KIND)
        try:
            writer.add_string(f"{KIND}.model_hint", hint)
            writer.add_uint32(f"{KIND}.layer_count", len(direction.layers))
            numbers = content_hash({"vectors": direction.vectors})
            told = {**direction.description, "lost": written.lost, "content_hash": numbers}
            writer.add_string(DESCRIPTION, json.dumps(told))
            for layer, vector in zip(direction.layers, direction.vectors, strict=True):
                writer.add_tensor(f"direction.{layer}", vector.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def from_gguf(path: str | Path, model: Any = None) -> CapabilityDirection:
    """Read a llama.cpp control vector: one of this library, of repeng, of llama.cpp's cvector-generator.

    One of this library comes back as it was written, with its layers, model, basis and provenance. Others are of no known
    model, unless one is given. Layer l is the output of block l, where the vector is added; llama.cpp's cvector-generator
    writes there what it read at the output of the block before.

    Args:
        path: the file.
        model: an open model, or a ModelIdentity, which the direction is checked against and then belongs to.

    Raises:
        ArtifactError: no such file, not a GGUF, one of another kind, damaged, or with tensors that are no directions.
        IncompatibleModel: another architecture, width, or other layers than the model has; or it was made for another one.
        UnsupportedModel: a model that no backend serves.
        InvalidInput: the gguf package is missing.

    Source: docs/interchange.md; llama.cpp, common/common.cpp and src/llama-adapter.cpp.

    Example:
        >>> import tempfile
        >>> from unlock_lens import CapabilityDirection, zoo
        >>> from unlock_lens.interchange import from_gguf, to_gguf
        >>> import torch
        >>> direction = CapabilityDirection(torch.ones(2, 64), layers=(1, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_gguf(direction, f"{folder}/v.gguf", architecture="llama")
        ...     from_gguf(f"{folder}/v.gguf", zoo.load("small-base")).model.name
        'small-base'
    """
    path, gguf = Path(path), _gguf()
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")
    with _reading(path):
        reader = gguf.GGUFReader(path)
        kept = {key: field.contents() for key, field in reader.fields.items()}
        hint = _checked_hint(kept, len(reader.tensors), path)
        vectors = {_layer(tensor.name, path): _vector(tensor, gguf.GGMLQuantizationType, path) for tensor in reader.tensors}
        direction = direction_of(acting(vectors), str(path), steps=(f"read from a control vector for {hint}",))
        if DESCRIPTION in kept:
            direction = _described(direction, json.loads(kept[DESCRIPTION]), path)
    identity = identity_of(model)
    if identity is not None and identity.architecture is not None and _plain(hint) != _plain(identity.architecture):
        raise IncompatibleModel(
            f"{path} is a control vector for the architecture {hint!r}, and {identity} is {identity.architecture!r}; "
            "name the model that it was made for, or read it without model= if the two names mean one architecture"
        )
    return given_to(direction, identity, str(path))


def _gguf() -> ModuleType:
    try:
        import gguf  # an optional dependency
    except ImportError:
        raise InvalidInput("control vectors need the gguf package; pip install 'unlock-lens[gguf]'") from None
    return gguf


@contextmanager
def _reading(path: Path) -> Generator[None, None, None]:
    """Turn what a damaged or foreign file provokes into an ArtifactError that names the file."""
    try:
        yield
    except ArtifactError:
        raise
    except InvalidInput as error:
        raise ArtifactError(f"{path} cannot be used: {error}") from error
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        struct.error,
    ) as error:
        raise ArtifactError(
            f"{path} is not a readable GGUF file ({error}); it is damaged or of another kind: write or download it again"
        ) from error


def _checked_hint(kept: dict[str, Any], count: int, path: Path) -> str:
    """The architecture that the control vector is for."""
    kind = kept.get("general.architecture")
    if kind != KIND:
        raise ArtifactError(f"{path} is a GGUF of architecture {kind!r}; a control vector has {KIND!r} (a model is none)")
    for key, wanted in ((f"{KIND}.model_hint", str), (f"{KIND}.layer_count", int)):
        if not isinstance(kept.get(key), wanted):
            raise ArtifactError(
                f"{path} has {kept.get(key)!r} under {key}; a control vector says there which architecture it is for "
                "(model_hint) and how many layers it holds (layer_count): write it again with them"
            )
    if not count:
        raise ArtifactError(f"{path} holds no directions; write it again with a vector for each layer that is steered")
    if kept[f"{KIND}.layer_count"] != count:
        raise ArtifactError(
            f"{path} says that it holds {kept[f'{KIND}.layer_count']} layers (layer_count), and it holds {count}; "
            "some are missing or too many, so write it again (layers may be left out if they are not counted)"
        )
    return kept[f"{KIND}.model_hint"]


def _layer(name: str, path: Path) -> int:
    found = NAME.fullmatch(name)
    if not found:
        raise ArtifactError(f"{path} holds a tensor {name!r}; a control vector holds direction.1, direction.2 and so on alone")
    return int(found[1])


def _vector(tensor: Any, types: Any, path: Path) -> Float[Tensor, " d_model"]:
    where = f"{path} holds {tensor.name}"
    if tensor.tensor_type not in (types.F32, types.F16):
        raise ArtifactError(
            f"{where} as {tensor.tensor_type.name}; a control vector is F32 (F16 is read too): write it unquantized"
        )
    if len(tensor.shape) != 1:
        raise ArtifactError(f"{where} of shape {tensor.shape.tolist()}; a control vector has one dimension, the model's width")
    return torch.from_numpy(np.array(tensor.data, dtype=np.float32))  # a copy: the file is mapped


def _plain(architecture: str) -> str:
    """As it is compared: Hugging Face says qwen2_moe, llama.cpp qwen2moe."""
    name = architecture.casefold().removesuffix("_text")
    return re.sub(r"[^a-z0-9]", "", AS_LLAMA_CPP_SAYS.get(name, name))


def _described(direction: CapabilityDirection, told: dict[str, Any], path: Path) -> CapabilityDirection:
    if list(direction.layers) != told["layers"]:
        raise ArtifactError(
            f"{path} holds layers {list(direction.layers)}, and its description tells {told['layers']}; write it again"
        )
    described = CapabilityDirection.described(direction.vectors, told)
    history = described.provenance
    for part in (described.model, history, history.unlocked_model, history.source_model):
        for name, kind in get_type_hints(type(part)).items() if part else ():
            value = getattr(part, name)
            if not _is_one(value, kind):
                wanted = kind.__name__ if isinstance(kind, type) else kind
                raise ArtifactError(f"{path} has {value!r} under {name} in its description; {wanted} is needed: write it again")
    if content_hash({"vectors": direction.vectors}) != told["content_hash"]:
        raise ArtifactError(f"the numbers in {path} are not those that were written; the file is damaged, write it again")
    return described


def _is_one(value: Any, kind: Any) -> bool:
    """Whether JSON gave what an attribute of a ModelIdentity or a Provenance is."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return all(isinstance(one, str) for one in value)
    return isinstance(value, kind)
