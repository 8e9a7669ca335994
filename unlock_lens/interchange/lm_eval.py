"""lm-evaluation-harness' steered models: a `.pt` file, {module below `model.base_model`: its steering vector}.

The vector times its coefficient is added to every token at the module's output, "layers.3" being the output of block 3
(lm_eval/models/hf_steered.py, version 0.4.13).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.steering import SteeringHook
from unlock_lens.errors import ArtifactError, InvalidInput
from unlock_lens.interchange import torch_files
from unlock_lens.interchange.additive import additive
from unlock_lens.interchange.arriving import acting, check_real, direction_of, given_to, identity_of

BLOCKS: Mapping[str, str] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "gemma", "gemma2", "phi", "phi3"), "layers"),
    **dict.fromkeys(("olmo", "olmo2", "gpt_neox", "stablelm", "starcoder2", "cohere", "granite", "smollm3"), "layers"),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "gpt_bigcode", "bloom", "falcon", "codegen"), "h"),
    "opt": "decoder.layers",
}
"""Where Hugging Face models hold their blocks, below `base_model`, by architecture."""
BLOCK = re.compile(r"(?:[^\W\d]+\.)*(?:layers|h|blocks)\.([0-9]{1,6})")
"""An output of a block; what stands before the module list has no numbers, as those of parts of a block do."""
LARGEST = torch.finfo(torch.float32).max
ENTRY = (
    '{"layers.3": {"steering_vector": tensor, "steering_coefficient": 1.0, "action": "add", "bias": None, "head_index": None}}'
)


def to_lm_eval(
    what: CapabilityDirection | SteeringHook,
    path: str | Path,
    *,
    blocks: str | None = None,
    norms: Float[Tensor, " layer"] | None = None,
    lossy: bool = False,
) -> None:
    """Write a file for `lm_eval --model steered --model_args pretrained=NAME,steer_path=FILE.pt`.

    A direction is written as it is, a hook as alpha times its vectors; the coefficients are 1. Exact are a direction, and a
    hook with operation="add" and positions="all". Layer l is the output of block l. Model and provenance are not in the file.

    Args:
        what: a direction, or a hook.
        path: the file, which lm_eval wants to end with .pt or .pth; an interrupted write leaves the old one as it was.
        blocks: the module list of the blocks below `model.base_model`, "layers" in Llama and "h" in GPT-2; by default that of
            the architecture of the direction's model.
        norms: for a norm-preserving hook: the residual's norm at each layer that it steers (as in `to_gguf`).
        lossy: write what can be written of a hook that is more than an addition to every token.

    Raises:
        InvalidInput: not exact and not `lossy` (it says why), an ablation, norms that do not fit, blocks that are not known,
            another suffix.
        ArtifactError: the file cannot be there.

    Source: lm-evaluation-harness, lm_eval/models/hf_steered.py.

    Example:
        >>> import torch, tempfile
        >>> from unlock_lens import CapabilityDirection
        >>> from unlock_lens.interchange import to_lm_eval
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_lm_eval(CapabilityDirection(torch.ones(1, 4), (2,)), f"{folder}/v.pt", blocks="layers")
        ...     list(torch.load(f"{folder}/v.pt"))
        ['layers.2']
    """
    if Path(path).suffix not in (".pt", ".pth"):
        raise InvalidInput(
            f"{path} was given; lm-evaluation-harness reads steering vectors from files that end with .pt or .pth"
        )
    if blocks is not None and not isinstance(blocks, str):  # pyright: ignore[reportUnnecessaryIsInstance]  as in additive
        raise InvalidInput(f'blocks={blocks!r} was given; give the name of the module list, such as "layers"')
    direction = additive(what, "lm-evaluation-harness", lossy, norms).direction
    architecture = direction.model.architecture if direction.model else None
    found = blocks or BLOCKS.get(architecture or "")
    if not found:
        raise InvalidInput(
            f"where a model of architecture {architecture!r} holds its blocks is not known; give blocks=, the name of the "
            'module list below model.base_model: "layers" in Llama, "h" in GPT-2'
        )
    content: dict[str, dict[str, Any]] = {
        f"{found}.{layer}": {
            "steering_vector": vector.clone(),
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for layer, vector in zip(direction.layers, direction.vectors, strict=True)
    }
    torch_files.write(path, content)


def from_lm_eval(path: str | Path, model: Any = None) -> CapabilityDirection:
    """Read a steering file of lm-evaluation-harness: each vector times its coefficient, at the output of its block.

    Args:
        path: the `.pt` file.
        model: an open model, or a ModelIdentity, which the direction is checked against and then belongs to.

    Raises:
        ArtifactError: no such file, damaged, pickled objects, or entries that are no addition at the output of a block.
        IncompatibleModel: another width, or layers that the model does not have.
        UnsupportedModel: a model that no backend serves.

    Source: lm-evaluation-harness, lm_eval/models/hf_steered.py.

    Example:
        >>> import torch, tempfile
        >>> from unlock_lens.interchange import from_lm_eval
        >>> entry = {"steering_vector": torch.ones(4), "steering_coefficient": 2.0, "action": "add", "bias": None}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"layers.2": entry}, f"{folder}/v.pt")
        ...     from_lm_eval(f"{folder}/v.pt").vectors
        tensor([[2., 2., 2., 2.]])
    """
    content, vectors = torch_files.read(path, ENTRY), dict[int, Tensor]()
    try:
        for point, entry in content.items():
            layer = _layer(point, path)
            if layer in vectors:
                raise ArtifactError(f"{path} has layer {layer} twice, the second time as {point!r}; keep one entry for each")
            vectors[layer] = _added(point, entry, path)
        direction = direction_of(acting(vectors), str(path), steps=("read from a steering file of lm-evaluation-harness",))
    except InvalidInput as error:
        raise ArtifactError(f"{path} cannot be used: {error}") from error
    return given_to(direction, identity_of(model), str(path))


def _layer(point: Any, path: str | Path) -> int:
    found = BLOCK.fullmatch(point) if isinstance(point, str) else None
    if not found:
        raise ArtifactError(
            f"{path} steers {point!r:.80}; a direction lives at the outputs of blocks, such as layers.3 or h.3, so this one "
            "has no place in it"
        )
    return int(found[1])


def _added(point: str, entry: Any, path: str | Path) -> Tensor:
    where = f"{path}, {point}:"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("steering_vector"), Tensor):
        raise ArtifactError(f"{where} there is no steering_vector; expected entries such as {ENTRY}")
    if entry.get("action") != "add":
        raise ArtifactError(
            f"{where} the action is {entry.get('action')!r}; a direction is what is added, and clamping sets a component "
            'of the state instead. Only "add" is read'
        )
    if entry.get("head_index") is not None:
        raise ArtifactError(
            f"{where} head_index is {entry['head_index']}; a direction acts on the whole residual stream, no head"
        )
    if entry.get("bias") is not None:
        raise ArtifactError(f'{where} there is a bias, which belongs to the action "clamp"; leave it out')
    coefficient = entry.get("steering_coefficient", 1.0)
    if not isinstance(coefficient, int | float) or not -LARGEST <= coefficient <= LARGEST:
        told = "a huge integer" if isinstance(coefficient, int) else repr(coefficient)  # Python writes no more than 4300 digits
        raise ArtifactError(f"{where} steering_coefficient is {told}; a finite number is needed, as float32 holds it")
    check_real(entry["steering_vector"], f"the steering_vector of {point}")
    return entry["steering_vector"].float() * coefficient
