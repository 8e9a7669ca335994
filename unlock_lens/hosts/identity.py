"""Which model a direction or an aligner belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Basis = Literal["raw", "zero_mean"]
"""How a host holds the residual stream: as the model was trained, or with its mean over d_model taken out
(TransformerLens' processed weights of LayerNorm models)."""

_ROWS = 512


@dataclass(frozen=True)
class ModelIdentity:
    """The name of a model, its shape, and a fingerprint of its weights.

    Attributes:
        name: hub id, or the name of its folder.
        basis: "raw", or "zero_mean" where the host has taken the d_model mean out of the residual stream.
        fingerprint: hash of rows of the token embedding; None without weights (a remote model).
        revision: the hub's commit, where it is known.
        architecture: the config's model_type ("llama", "gpt2"), where it is known.
    """

    name: str
    n_layers: int
    d_model: int
    basis: Basis = "raw"
    fingerprint: str | None = None
    revision: str | None = None
    architecture: str | None = None

    def __str__(self) -> str:
        weights = f", weights {self.fingerprint}" if self.fingerprint else ""
        return f"{self.name} ({self.n_layers} layers, d_model {self.d_model}, {self.basis}{weights})"

    def is_same_model(self, other: ModelIdentity) -> bool:
        """Whether both name one model: by fingerprint where both have one in the same basis, otherwise by name."""
        if (self.n_layers, self.d_model) != (other.n_layers, other.d_model):
            return False
        if self.fingerprint and other.fingerprint and self.basis == other.basis:
            return self.fingerprint == other.fingerprint
        return _short(self.name) == _short(other.name)


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].casefold()


def model_name(name_or_path: str) -> str:
    """A hub id as it is; of a local folder its name alone, so that artifacts do not carry paths."""
    local = Path(name_or_path)
    return local.resolve().name if local.exists() else name_or_path


def fingerprint(embedding: Float[Tensor, "vocabulary d_model"]) -> str:
    """Hash of the signs in evenly spaced rows of the token embedding: the loading dtype and a host's rescaling do not matter.

    Models that share their embedding (one of them fine-tuned with the embedding frozen) share their fingerprint.
    """
    rows = torch.linspace(0, embedding.shape[0] - 1, min(_ROWS, embedding.shape[0])).long()
    signs = embedding.detach()[rows.to(embedding.device)].signbit().cpu()
    return hashlib.sha256(signs.numpy().tobytes()).hexdigest()[:16]
