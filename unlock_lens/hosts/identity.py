"""Which model a direction or an aligner belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from unlock_lens.errors import UnsupportedModel, caution

Basis = Literal["raw", "zero_mean"]
"""How a host holds the residual stream: as the model was trained, or with its mean over d_model taken out
(TransformerLens' processed weights of LayerNorm models)."""

_ROWS = 512
_ROWS_OF_EACH = 8
_ADAPTERS = ("lora_", "ia3_", "vera_", "hada_", "adapter", "modules_to_save", "prompt_encoder")
"""In the names of the weights of adapters."""


@dataclass(frozen=True)
class ModelIdentity:
    """The name of a model, its shape, and a fingerprint of its weights.

    Attributes:
        name: hub id, or the name of its folder.
        basis: "raw", or "zero_mean" where the host has taken the d_model mean out of the residual stream.
        fingerprint: hash of rows of the token embedding; None without weights (a remote model).
        revision: the hub's commit, where it is known.
        architecture: the config's model_type ("llama", "gpt2"), where it is known.
        weights: hash of rows of every weight and of the adapters (`weights_print`), as the host holds them; None where some
            are not on this machine.
    """

    name: str
    n_layers: int
    d_model: int
    basis: Basis = "raw"
    fingerprint: str | None = None
    revision: str | None = None
    architecture: str | None = None
    weights: str | None = None

    def __str__(self) -> str:
        exact = f"-{self.weights.rpartition('-')[2]}" if self.weights else ""
        weights = f", weights {self.fingerprint}{exact}" if self.fingerprint else ""
        return f"{self.name} ({self.n_layers} layers, d_model {self.d_model}, {self.basis}{weights})"

    def is_same_model(self, other: ModelIdentity) -> bool:
        """Whether both name one model: by weights where both hold the same ones in the same basis, otherwise by name.

        The dtype does not matter, nor which host holds them; adapters do.
        """
        if (self.n_layers, self.d_model) != (other.n_layers, other.d_model):
            return False
        if self.weights and other.weights and self.basis == other.basis:
            (names, signs, adapters, _), (other_names, other_signs, other_adapters, _) = (
                weights.split("-") for weights in (self.weights, other.weights)
            )
            if adapters != other_adapters or (names == other_names and signs != other_signs):
                return False
        if self.fingerprint and other.fingerprint and self.basis == other.basis:
            return self.fingerprint == other.fingerprint
        return _short(self.name) == _short(other.name)


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].casefold()


def model_name(name_or_path: str) -> str:
    """A hub id unchanged, or the last part of a local folder, so that artifacts do not contain paths."""
    local = Path(name_or_path)
    return local.resolve().name if local.exists() else name_or_path


def fingerprint(embedding: Shaped[Tensor, "vocabulary d_model"]) -> str | None:
    """Hash of the signs in evenly spaced rows of the token embedding: the loading dtype and a host's rescaling do not matter.

    Models that share their embedding (one of them fine-tuned with the embedding frozen) share their fingerprint. None, with a
    warning, where a quantizer has packed it into whole numbers that only its own code understands.
    """
    embedding = _unpacked(embedding)
    if not embedding.is_floating_point():
        caution(
            f"the token embedding is quantized ({embedding.dtype}) and so has no fingerprint: directions and keys are matched "
            "to this model only by its name; leave the embedding out of the quantization to compare weights"
        )
        return None
    return _hash(_signs(_some_rows(embedding, _ROWS)))


def weights_print(root: nn.Module, processed: bool = False) -> str | None:
    """Hashes of a few rows of every weight, joined by dashes; None where some have no values on this machine.

    Of the names of the weights; of their signs, which no loading dtype changes; of the adapters that are active; and of the
    rows as they are. `processed` says that a host has folded one weight into another, so that signs mean something else.
    """
    names, signs, adapters, exact = [b"processed" if processed else b""], list[bytes](), _active(root), list[bytes]()
    for name, weight in root.named_parameters():
        if weight.is_meta:
            return None
        rows = _some_rows(_unpacked(weight.detach()), _ROWS_OF_EACH).contiguous()
        exact += [str(weight.dtype).encode(), _bytes(rows)]
        if _is_packed(weight) or not weight.is_floating_point():  # quantized: rounding to 0 changes signs
            continue
        plain = _plain_name(name)
        if any(mark in plain for mark in _ADAPTERS):
            adapters += [plain.encode(), _signs(rows)]
        else:
            names.append(plain.encode())
            signs.append(_signs(rows))
    return "-".join((_hash(*names)[:8], _hash(*signs), _hash(*adapters)[:8], _hash(*exact, *adapters)))


def stored(embedding: nn.Module) -> Tensor:
    """The weight of a module that accelerate keeps on another device or on the disk.

    Raises:
        UnsupportedModel: it is nowhere on this machine.
    """
    for hook in _of_accelerate(embedding):
        if hook.weights_map is not None and "weight" in hook.weights_map:
            return hook.weights_map["weight"].detach()
    raise UnsupportedModel("the token embedding has no values on this machine; load the model's weights")


def executed_on(module: nn.Module) -> torch.device:
    """Where accelerate runs a module that it keeps elsewhere."""
    return next((torch.device(hook.execution_device) for hook in _of_accelerate(module)), torch.device("cpu"))


def _of_accelerate(module: nn.Module) -> Iterator[Any]:
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in (hook, *getattr(hook, "hooks", ())):
            if hasattr(one, "weights_map"):
                yield one


def _plain_name(name: str) -> str:
    """As the model's own class names it, without what hosts and adapters wrap around it."""
    for wrapper in ("_original_component.", "base_model.model.", "base_layer."):
        name = name.replace(wrapper, "")
    return name


def _active(root: nn.Module) -> list[bytes]:
    """Which adapters act."""
    return sorted(
        f"{_plain_name(name)} {part.active_adapters} {part.disable_adapters}".encode()
        for name, part in root.named_modules()
        if hasattr(part, "disable_adapters") and hasattr(part, "active_adapters") and isinstance(part.disable_adapters, bool)
    )


def _is_packed(weight: Tensor) -> bool:
    """Whether a quantizer keeps a weight in a tensor class of its own, as torchao and quanto do."""
    return type(weight).dequantize is not Tensor.dequantize


def _unpacked(weight: Tensor) -> Tensor:
    """The numbers that such a weight stands for; any other as it is."""
    return weight.dequantize() if _is_packed(weight) else weight


def _some_rows(weight: Tensor, rows: int) -> Tensor:
    """Evenly spaced ones; vectors whole."""
    if weight.ndim < 2 or len(weight) <= rows:
        return weight
    return weight[torch.linspace(0, len(weight) - 1, rows).long().to(weight.device)]


def _signs(rows: Tensor) -> bytes:
    return _bytes(rows.detach().float().signbit())


def _bytes(rows: Tensor) -> bytes:
    return rows.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _hash(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]
