"""Apply (docs/method.md, section 3): the three edits of the residual stream h, and which tokens they reach.

They also run inside a remote server's process, and need torch alone there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny
Act = Callable[[Tensor], Tensor]


def at_least_float32(residual: Tensor) -> Tensor:
    """Half precision is too coarse for norms and sums; float64 stays as it is."""
    return residual.to(torch.promote_types(residual.dtype, torch.float32))


def norm_preserving(vector: Tensor, alpha: float) -> Act:
    """h <- ||h|| unit(h / ||h|| + alpha v / ||v||), the paper's edit; alpha is a fraction of the residual's norm."""
    step = alpha * vector / vector.norm()

    def act(residual: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(residual, dim=-1, keepdim=True)
        # h + ||h|| step has the direction that the formula asks for: unit takes the common factor ||h|| out.
        turned = torch.addcmul(residual, norm, step)
        return turned * (norm / torch.linalg.vector_norm(turned, dim=-1, keepdim=True).clamp_min(_TINY))

    return act


def add(vector: Tensor, alpha: float) -> Act:
    """h <- h + alpha v; alpha is a multiple of the direction as it was extracted."""
    step = alpha * vector
    return lambda residual: residual + step


def ablate(vector: Tensor, alpha: float) -> Act:
    """h <- h - alpha <h, u> u, u = v / ||v||; at alpha 1 the whole component along v is removed."""
    unit = vector / vector.norm()
    step = -alpha * unit
    return lambda residual: torch.addcmul(residual, (residual @ unit).unsqueeze(-1), step)


Operation = Literal["norm_preserving", "add", "ablate"]
OPERATIONS: Mapping[str, Callable[[Tensor, float], Act]] = {
    "norm_preserving": norm_preserving,
    "add": add,
    "ablate": ablate,
}
"""Each takes the vector and alpha, and gives the edit of a residual stream: what does not depend on it is done once."""
Positions = Literal["last_prompt", "prompt", "generated", "all"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Where the tokens of one forward pass stand in their sequence (padding on the left counts as prompt).

    Attributes:
        prompt_length: number of tokens of the prompt.
        seen: tokens that stand before this pass; 0 in the prefill and whenever there is no cache.
        last: column of each row's last prompt token in the whole sequence; None where the prompts end at `prompt_length`.
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
    _ready: dict[tuple[torch.dtype, torch.device], Act] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, residual: Tensor, chunk: Chunk) -> Tensor:
        """The edited residual stream [batch, token, d_model]; the very same tensor where no token of the chunk is meant."""
        if self.positions == "all" or (self.positions == "generated" and chunk.seen >= chunk.prompt_length > 0):
            return self._edited(residual)
        tokens = self._tokens(residual, chunk)
        if tokens is None:
            return residual
        edited = residual.clone()
        edited[tokens] = self._edited(residual[tokens])
        return edited

    @property
    def acts_on_steps(self) -> bool:
        """Whether it reaches beyond the prompt."""
        return self.positions in ("generated", "all")

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_ready": {}}  # made again where it arrives

    def _edited(self, residual: Tensor) -> Tensor:
        exact = at_least_float32(residual)
        kind = (exact.dtype, exact.device)
        if kind not in self._ready:
            with torch.inference_mode(False):  # a later run may record gradients
                self._ready[kind] = OPERATIONS[self.operation](self.vector.to(exact), self.alpha)
        if not torch.amp.is_autocast_available(residual.device.type):
            return self._ready[kind](exact).to(residual)
        with torch.autocast(residual.device.type, enabled=False):  # a server may compute in half precision what it can
            return self._ready[kind](exact).to(residual)

    def _tokens(self, residual: Tensor, chunk: Chunk) -> tuple[slice | Tensor, slice | Tensor] | None:
        """Indices into [batch, token]."""
        length, everyone = residual.shape[1], slice(None)
        prompt_end = chunk.prompt_length - chunk.seen
        if self.positions == "generated":
            return (everyone, slice(max(prompt_end, 0), None)) if prompt_end < length else None
        if prompt_end <= 0:
            return None
        if self.positions == "prompt":
            return everyone, slice(0, prompt_end)
        if chunk.last is not None:
            columns = chunk.last.to(residual.device) - chunk.seen
            rows = ((columns >= 0) & (columns < length)).nonzero().squeeze(1)
            return (rows, columns[rows]) if len(rows) else None
        return (everyone, slice(prompt_end - 1, prompt_end)) if prompt_end <= length else None


def edits_of(
    vectors: Tensor,
    of_layers: Sequence[int],
    alpha: float | Mapping[int, float],
    operation: str,
    positions: str,
    layers: Sequence[int] | None,
) -> dict[int, Edit]:
    """The edit of each of `layers`, or of all; row i of the vectors belongs to of_layers[i]."""
    edits: dict[int, Edit] = {}
    for layer, vector in zip(of_layers, vectors, strict=True):
        if layers is None or layer in layers:
            # A row of its own: a view would be shipped to a server with the whole matrix.
            strength = alpha[layer] if isinstance(alpha, Mapping) else alpha
            edits[layer] = Edit(vector.clone(), strength, operation, positions)
    return edits
