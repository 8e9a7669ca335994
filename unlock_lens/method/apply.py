"""Apply (docs/method.md, section 3): the three edits of the residual stream h, which tokens they reach, and gates.

They also run inside a remote server's process, and need torch alone there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from unlock_lens.errors import InvalidInput

_NO_FLOAT64 = ("mps",)
Act = Callable[[Tensor], Tensor]


def at_least_float32(residual: Tensor) -> Tensor:
    """Half precision is too coarse for norms and sums; float64 stays as it is."""
    return residual.to(torch.promote_types(residual.dtype, torch.float32))


def unit(vectors: Tensor) -> Tensor:
    """v / ||v|| along the last dimension, for every norm that the dtype can hold: squares of very long ones would overflow."""
    wide = vectors if vectors.device.type in _NO_FLOAT64 else vectors.double()
    scaled = wide / wide.abs().amax(dim=-1, keepdim=True)
    return (scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)).to(vectors)


def _norms(residual: Tensor) -> Tensor:
    """||h|| along the last dimension; in float32 the squares of what is below 1e-22 or above 1e19 would be 0 or infinite."""
    wide = residual.dtype if residual.device.type in _NO_FLOAT64 else torch.float64
    return torch.linalg.vector_norm(residual, dim=-1, keepdim=True, dtype=wide)


def norm_preserving(vector: Tensor, alpha: float) -> Act:
    """h <- ||h|| unit(h / ||h|| + alpha v / ||v||), the paper's edit; alpha is a fraction of the residual's norm."""
    step = alpha * unit(vector)

    def act(residual: Tensor) -> Tensor:
        norm = _norms(residual)
        # h + ||h|| step has the direction that the formula asks for: unit takes the common factor ||h|| out.
        turned = torch.addcmul(residual, norm.to(residual), step)
        longer = _norms(turned)
        return turned * (norm / longer.where(longer > 0, 1)).to(residual)

    return act


def add(vector: Tensor, alpha: float) -> Act:
    """h <- h + alpha v; alpha is a multiple of the direction as it was extracted."""
    step = alpha * vector
    return lambda residual: residual + step


def ablate(vector: Tensor, alpha: float) -> Act:
    """h <- h - alpha <h, u> u, u = v / ||v||; at alpha 1 the whole component along v is removed."""
    u = unit(vector)
    step = -alpha * u
    return lambda residual: torch.addcmul(residual, (residual @ u).unsqueeze(-1), step)


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


GatePositions = Literal["last_prompt", "all"]
GATE_POSITIONS: tuple[GatePositions, ...] = get_args(GatePositions)


@dataclass(eq=False)
class Watch:
    """A gate at work: it reads the residual stream of one layer, and edits of that layer and later ones ask it whom to act on.

    With positions "last_prompt" a row is let through if <w, h> > threshold at its last prompt token, and the decision is kept
    for what follows the prompt. With "all" each token decides for itself.

    Attributes:
        vector: the reader w, [d_model].
        threshold: in units of <w, h>.
        positions: "last_prompt" or "all".
        on_steps: whether tokens beyond the prompt are to be read too.
    """

    vector: Tensor
    threshold: float
    positions: str
    on_steps: bool
    _through: Tensor | None = field(default=None, init=False, repr=False)
    """[row, 1], or [row, token] of this pass."""
    _whole: bool = field(default=False, init=False, repr=False)
    """Whether every row has decided."""

    def __call__(self, residual: Tensor, chunk: Chunk) -> Tensor:
        """The residual stream [batch, token, d_model] as it is, after a look at it."""
        if self.positions == "all":
            self._through, self._whole = self._read(residual), True
            return residual
        if not chunk.seen:
            self._through, self._whole = None, False
        tokens = last_prompt_tokens(residual, chunk)
        if tokens is not None:
            through = residual.new_zeros(len(residual), 1, dtype=torch.bool)
            if self._through is not None and len(self._through) == len(residual):
                through |= self._through.to(residual.device)
            through[tokens[0]] = self._read(residual[tokens]).reshape(-1, 1)
            self._through = through
            self._whole = chunk.last is None or int(chunk.last.max()) < chunk.seen + residual.shape[1]
        return residual

    @property
    def told(self) -> tuple[object, ...]:
        """All but the tensors, for the key of a request."""
        return "gate", self.threshold, self.positions

    @property
    def tensors(self) -> list[Tensor]:
        """The reader."""
        return [self.vector]

    @property
    def acts_on_steps(self) -> bool:
        """Whether it reads beyond the prompt."""
        return self.on_steps and self.positions == "all"

    def through(self, residual: Tensor, needs_all: bool) -> Tensor:
        """Which tokens of a later layer, or of this one, may be edited: [row, token or 1, 1].

        Raises:
            InvalidInput: the gate has not read these rows.
        """
        found = self._through
        fits = found is not None and len(found) == len(residual) and found.shape[1] in (1, residual.shape[1])
        if found is None or not fits or (needs_all and not self._whole):
            raise InvalidInput(
                "the gate decides at the last prompt token, but tokens would be edited before it has read that token in every "
                'row; run the prompts in one pass with the hook attached, or give the gate positions="all"'
            )
        return found.unsqueeze(-1).to(residual.device)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_through": None, "_whole": False}

    def _read(self, residual: Tensor) -> Tensor:
        exact = at_least_float32(residual)
        return (exact * self.vector.to(exact)).sum(dim=-1) > self.threshold  # no matrix product: autocast leaves it exact


def last_prompt_tokens(residual: Tensor, chunk: Chunk) -> tuple[slice | Tensor, slice | Tensor] | None:
    """Indices into [batch, token] of each row's last prompt token; None where the chunk holds none of them."""
    length, prompt_end = residual.shape[1], chunk.prompt_length - chunk.seen
    if prompt_end <= 0:
        return None
    if chunk.last is not None:
        columns = chunk.last.to(residual.device) - chunk.seen
        rows = ((columns >= 0) & (columns < length)).nonzero().squeeze(1)
        return (rows, columns[rows]) if len(rows) else None
    return (slice(None), slice(prompt_end - 1, prompt_end)) if prompt_end <= length else None


@dataclass(frozen=True, eq=False)
class Edit:
    """One layer's edit: what is done to which tokens, and (gated) in which rows."""

    vector: Tensor
    alpha: float
    operation: str
    positions: str
    gate: Watch | None = None
    _ready: dict[tuple[torch.dtype, torch.device], Act] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, residual: Tensor, chunk: Chunk) -> Tensor:
        """The edited residual stream [batch, token, d_model]; the very same tensor where no token of the chunk is meant."""
        edited = self._everywhere(residual, chunk)
        if self.gate is None or edited is residual:
            return edited
        return torch.where(self.gate.through(residual, self.positions in ("prompt", "all")), edited, residual)

    def _everywhere(self, residual: Tensor, chunk: Chunk) -> Tensor:
        """As if there were no gate."""
        if self.positions == "all" or (self.positions == "generated" and chunk.seen >= chunk.prompt_length > 0):
            return self._edited(residual)
        tokens = self._tokens(residual, chunk)
        if tokens is None:
            return residual
        edited = residual.clone()
        edited[tokens] = self._edited(residual[tokens])
        return edited

    @property
    def told(self) -> tuple[object, ...]:
        """All but the tensors, for the key of a request."""
        told = self.alpha, self.operation, self.positions
        return told if self.gate is None else (*told, *self.gate.told)

    @property
    def tensors(self) -> list[Tensor]:
        """The direction's vector, and the reader of the gate."""
        return [self.vector] if self.gate is None else [self.vector, *self.gate.tensors]

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
        if self.positions == "prompt":
            return (everyone, slice(0, prompt_end)) if prompt_end > 0 else None
        return last_prompt_tokens(residual, chunk)


@dataclass(frozen=True, eq=False)
class Gating:
    """What a gate is made of, in plain parts.

    Attributes:
        layer: whose output is read.
        reader: w, [d_model].
        threshold: in units of <w, h>.
        positions: "last_prompt" or "all".
    """

    layer: int
    reader: Tensor
    threshold: float
    positions: str


LayerEdit = Edit | Watch


def reader_of(vectors: Tensor, basis: str) -> Tensor:
    """w of a gate's only vector, [1, d_model]; one without its mean over d_model reads raw and zero-mean states alike."""
    reader = vectors[0].clone()
    return reader - reader.mean() if basis == "zero_mean" else reader


def edits_of(
    vectors: Tensor,
    of_layers: Sequence[int],
    alpha: float | Mapping[int, float],
    operation: str,
    positions: str,
    layers: Sequence[int] | None,
    gate: Gating | None = None,
) -> dict[int, list[LayerEdit]]:
    """The edit of each of `layers`, or of all, behind their gate; row i of the vectors belongs to of_layers[i]."""
    edits: dict[int, list[LayerEdit]] = {}
    watch = None
    if gate is not None:
        watch = Watch(gate.reader, gate.threshold, gate.positions, positions in ("generated", "all"))
        edits[gate.layer] = [watch]  # which comes before the edit of its layer
    for layer, vector in zip(of_layers, vectors, strict=True):
        if layers is None or layer in layers:
            # A row of its own: a view would be shipped to a server with the whole matrix.
            strength = alpha[layer] if isinstance(alpha, Mapping) else alpha
            edits.setdefault(layer, []).append(Edit(vector.clone(), strength, operation, positions, watch))
    return edits
