"""llama.cpp's control vectors: GGUF files that hold one float32 vector `direction.L` for each layer L.

L counts from 0, and its vector is added to every token at the output of block L; llama.cpp refuses files with L = 0. It reads
the tensors alone (`common_control_vector_load_one` in common/common.cpp) and adds them at the end of each block (`build_cvec`).
The keys are those that repeng and llama.cpp's cvector-generator write: the number of tensors in `controlvector.layer_count`,
the model's architecture in `controlvector.model_hint`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection, Provenance
from unlock_lens.core.files import content_hash, replacing
from unlock_lens.core.parsing import in_todays_words
from unlock_lens.core.steering import SteeringHook
from unlock_lens.errors import ArtifactError, InvalidInput, plain, shown
from unlock_lens.interchange.bounds import check_gguf
from unlock_lens.interchange.common import acting, additive, by_layer, direction_of, given_to, identity_of, reading

logger = logging.getLogger(__name__)
KIND = "controlvector"
COUNT, HINT = f"{KIND}.layer_count", f"{KIND}.model_hint"
DESCRIPTION = "unlock_lens.description"
"""Key for what the format lacks: model, basis, provenance, what was lost."""
HASH = "description_hash"
_TOLD = {"layers", "basis", "model", "provenance", "lost", "content_hash", HASH}
NAME = re.compile(r"direction\.([0-9]{1,6})")


def to_gguf(
    what: CapabilityDirection | SteeringHook,
    path: str | Path,
    *,
    architecture: str | None = None,
    norms: Float[Tensor, " layer"] | None = None,
    lossy: bool = False,
) -> None:
    """Write a llama.cpp control vector, which `llama-cli --control-vector` and repeng read.

    A direction is written unchanged, and a hook as alpha times its vectors. This is exact for a direction, and for a hook with
    operation="add" and positions="all", both without layer 0. Layer l is the output of block l.

    Args:
        what: a direction, or a hook.
        path: the file; an interrupted write leaves the old one unchanged.
        architecture: the model_type in the model's config.json, such as "llama"; by default that of the direction's model.
        norms: for a norm-preserving hook: the residual's norm at each steered layer. The first-order form of the edit is then
            written: alpha times norm times the unit vector. Without norms, alpha times the unit vector is written; set the
            strength in llama.cpp with --control-vector-scaled FILE:STRENGTH.
        lossy: write what the format can hold of a hook or direction that it cannot hold exactly.

    Raises:
        InvalidInput: the file would not be exact and `lossy` is False (with the reason), the hook is an ablation, norms do not
            fit, the architecture is unknown, or the gguf package is missing.
        ArtifactError: the file cannot be written at this path.

    Source: docs/interchange.md; llama.cpp, common/common.cpp and src/llama-adapter.cpp.
    """
    gguf = _gguf()
    direction, lost = additive(what, "a llama.cpp control vector", lossy, norms, first_layer=1)
    hint = architecture or (direction.model.architecture if direction.model else None)
    if not isinstance(hint, str):
        raise InvalidInput(
            f"a control vector names the architecture of its model, and this one is {hint!r}; "
            'give architecture=, the model_type in its config.json, such as "llama"'
        )
    description = {**direction.description, "lost": lost, "content_hash": content_hash({"vectors": direction.vectors})}
    description = json.loads(json.dumps(description))
    description[HASH] = _hash_of(description, hint)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, KIND)
        try:
            writer.add_string(HINT, hint)
            writer.add_uint32(COUNT, len(direction.layers))
            writer.add_string(DESCRIPTION, json.dumps(description))
            for layer, vector in zip(direction.layers, direction.vectors, strict=True):
                writer.add_tensor(f"direction.{layer}", vector.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def from_gguf(path: str | Path, model: Any = None) -> CapabilityDirection:
    """Read a llama.cpp control vector, written by this library, repeng or llama.cpp's cvector-generator.

    A file written by this library restores the direction with its layers, model, basis and provenance. The model of other
    files is unknown unless it is given; a warning says if its architecture has a different name in the file.
    Layer l is the output of block l, where the vector is added; llama.cpp's cvector-generator stores there what it read at
    the output of the block before.

    Args:
        path: the file.
        model: an open model, or a ModelIdentity, which the direction is checked against and then belongs to.

    Raises:
        ArtifactError: the file is missing, damaged, not a control vector, or has other tensors.
        IncompatibleModel: the width differs, the model lacks some of the layers, or the file was made for a different model.
        UnsupportedModel: no backend supports the model.
        InvalidInput: the gguf package is missing.
    """
    gguf, identity = _gguf(), identity_of(model)
    with reading(path, "write or download the GGUF file again"):
        check_gguf(Path(path))
        reader = gguf.GGUFReader(path)
        kept = {key: field.contents() for key, field in reader.fields.items()}
        _check(kept, len(reader.tensors), path)
        if DESCRIPTION not in kept and difflib.get_close_matches(DESCRIPTION, kept, cutoff=0.8):
            raise ArtifactError(f"{path} is damaged: the key of its description is misspelt; write it again")
        told = kept.get(HINT)
        hint = plain(told, 80) if isinstance(told, str) else "an unknown architecture"
        vectors = by_layer({tensor.name: _vector(tensor) for tensor in reader.tensors}, NAME)
        provenance = Provenance(steps=(f"read from a control vector for {hint}",))
        direction = direction_of(acting(vectors), str(path), provenance)
        if DESCRIPTION in kept:
            description, held = json.loads(kept[DESCRIPTION]), content_hash({"vectors": direction.vectors})
            _check_description(description, told, path)
            description = in_todays_words(description)
            if (description["layers"], description["content_hash"]) != (list(direction.layers), held):
                raise ArtifactError(f"{path} is damaged: its layers or numbers are not those that were written; write it again")
            direction = CapabilityDirection.described(direction.vectors, description)
    if identity is not None and identity.architecture and _plain(hint) != _plain(identity.architecture):
        warnings.warn(
            f"{path} is a control vector for the architecture {hint!r}, but {identity} is {identity.architecture!r}. Programs "
            "have different names for some architectures; unless these are the same, give the model that it was made for",
            stacklevel=2,
        )
    return given_to(direction, identity, str(path))


def _hash_of(description: dict[str, Any], hint: Any) -> str:
    """Hash of what the numbers are said to be; a hash of the numbers is part of it."""
    told = {name: value for name, value in description.items() if name != HASH}
    return hashlib.sha256(json.dumps([told, hint], sort_keys=True).encode()).hexdigest()[:16]


def _check_description(description: Any, hint: Any, path: str | Path) -> None:
    """Files of before 0.3 have no hash of it."""
    known = isinstance(description, dict) and set(description) <= _TOLD
    if not known or (HASH in description and description[HASH] != _hash_of(description, hint)):
        raise ArtifactError(f"{path} is damaged: its description is not the one that was written; write it again")


def _gguf() -> ModuleType:
    try:
        import gguf  # an optional dependency
    except ImportError:
        raise InvalidInput("control vectors need the gguf package; pip install 'unlock-lens[gguf]'") from None
    return gguf


def _plain(architecture: str) -> str:
    """Hugging Face says qwen2_moe, llama.cpp qwen2moe."""
    return re.sub(r"[^a-z0-9]", "", architecture.casefold().removesuffix("_text"))


def _check(kept: dict[str, Any], count: int, path: str | Path) -> None:
    if kept.get("general.architecture") != KIND:
        raise ArtifactError(
            f"{path} is a GGUF of architecture {shown(kept.get('general.architecture'))}, perhaps a model; {KIND!r} is needed"
        )
    if not count:
        raise ArtifactError(f"{path} has no directions; write it again, with a vector for each steered layer")
    if kept.get(COUNT) != count:  # some writers give the model's layers, and llama.cpp reads the tensors alone
        logger.info("%s holds %d directions, and its %s is %s", path, count, COUNT, shown(kept.get(COUNT)))


def _vector(tensor: Any) -> Float[np.ndarray, ...]:
    if tensor.data.dtype not in (np.float32, np.float16):
        raise InvalidInput(f"{shown(tensor.name)} is stored as {tensor.tensor_type.name}; write it unquantized, as F32 or F16")
    return np.array(tensor.data)  # a copy, as the file is mapped
