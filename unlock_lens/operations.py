"""Apply (docs/method.md, section 3): the edits of the residual stream themselves.

They import torch alone, because they also run inside a remote server's process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


def at_least_float32(residual: Tensor) -> Tensor:
    """Half precision is too coarse for norms and sums; float64 stays as it is."""
    return residual.to(torch.promote_types(residual.dtype, torch.float32))


def norm_preserving(residual: Tensor, vector: Tensor, alpha: float) -> Tensor:
    """The paper's edit: h <- ||h|| unit(h / ||h|| + alpha v / ||v||); alpha is a fraction of the residual's norm."""
    norm = residual.norm(dim=-1, keepdim=True)
    turned = residual / norm.clamp_min(_TINY) + alpha * vector / vector.norm()
    return norm * turned / turned.norm(dim=-1, keepdim=True).clamp_min(_TINY)


def add(residual: Tensor, vector: Tensor, alpha: float) -> Tensor:
    """H <- h + alpha v; alpha is a multiple of the direction as it was extracted."""
    return residual + alpha * vector


def ablate(residual: Tensor, vector: Tensor, alpha: float) -> Tensor:
    """H <- h - alpha <h, u> u with u = v / ||v||; alpha 1 takes the whole component along v out."""
    unit = vector / vector.norm()
    return residual - alpha * (residual @ unit).unsqueeze(-1) * unit


OPERATIONS: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "norm_preserving": norm_preserving,
    "add": add,
    "ablate": ablate,
}
POSITIONS = ("last_prompt", "prompt", "generated", "all")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Where the tokens of one forward pass stand in their sequence (padding on the left counts as prompt).

    Attributes:
        prompt_length: number of tokens of the prompt.
        seen: tokens that lie in the KV cache already; 0 in the prefill and whenever there is no cache.
        last: index of each row's last prompt token; None where the prompts end at `prompt_length`.
    """

    prompt_length: int
    seen: int = 0
    last: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Edit:
    """One layer's edit: what is done to which tokens."""

    vector: Tensor
    alpha: float
    operation: str
    positions: str

    def __call__(self, residual: Tensor, chunk: Chunk) -> Tensor:
        """The edited residual stream [batch, token, d_model]; the very same tensor where no token of the chunk is meant."""
        tokens = self._tokens(residual, chunk)
        if tokens is None:
            return residual
        edited = residual.clone()
        edited[tokens] = self._edited(residual[tokens])
        return edited

    def _edited(self, residual: Tensor) -> Tensor:
        exact = at_least_float32(residual)
        return OPERATIONS[self.operation](exact, self.vector.to(exact), self.alpha).to(residual)

    def _tokens(self, residual: Tensor, chunk: Chunk) -> tuple[slice | Tensor, slice | Tensor] | None:
        """Indices into [batch, token]."""
        length, everyone = residual.shape[1], slice(None)
        prompt_end = chunk.prompt_length - chunk.seen
        if self.positions == "all":
            return everyone, everyone
        if self.positions == "generated":
            return (everyone, slice(max(prompt_end, 0), None)) if prompt_end < length else None
        if prompt_end <= 0:
            return None
        if self.positions == "prompt":
            return everyone, slice(0, prompt_end)
        if chunk.last is not None:
            return torch.arange(residual.shape[0], device=residual.device), chunk.last.to(residual.device)
        return everyone, slice(prompt_end - 1, prompt_end)
