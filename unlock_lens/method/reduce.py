"""Reductions: what is kept of the states of many forward passes, made where the passes run (docs/remote.md).

They also run inside a remote server's process, which then returns conclusions and not activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens.method.align import Axes
from unlock_lens.method.apply import at_least_float32
from unlock_lens.method.linalg import Gram, spectrum, spectrum_of_gram


@runtime_checkable
class Reduction(Protocol):
    """Takes the states [picked, d_model] of the i-th layer, pass after pass; gives tensors with layers in front.

    `places` says at which row each token is held (-1: nowhere); states of sign -1 are subtracted from those of another pass.
    """

    def add(self, i: int, states: Tensor, places: Tensor, sign: int) -> None:
        """More states."""

    def result(self) -> dict[str, Tensor]:
        """What is returned."""
        ...


class States:
    """The states themselves, [layer, row, d_model], in float32 on the CPU; NaN where no pass wrote."""

    def __init__(self, layers: int, rows: int, d_model: int) -> None:
        self.shape = (layers, rows, d_model)
        self.states: Tensor | None = None
        self.written: Tensor | None = None

    def add(self, i: int, states: Tensor, places: Tensor, sign: int) -> None:
        states, places = states.float().cpu(), places.cpu()
        if self.states is None or self.written is None:
            self.states, self.written = torch.full(self.shape, torch.nan), torch.zeros(self.shape[:2], dtype=torch.bool)
        again = self.written[i, places]
        self.states[i, places] = sign * states + torch.where(again[:, None], self.states[i, places], 0)
        self.written[i, places] = True

    def result(self) -> dict[str, Tensor]:
        return {"states": torch.full(self.shape, torch.nan) if self.states is None else self.states}


class Mean:
    """The mean state of each layer, over n tokens, in float64; states of sign -1 make it a mean difference."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.totals: dict[int, Tensor] = {}

    def add(self, i: int, states: Tensor, places: Tensor, sign: int) -> None:
        part = sign * states.double().sum(dim=0)
        self.totals[i] = self.totals[i] + part if i in self.totals else part

    def result(self) -> dict[str, Tensor]:
        """The mean [layer, d_model]."""
        return {"mean": torch.stack([self.totals[i].cpu() / self.n for i in sorted(self.totals)])}


class LeadingAxes:
    """The leading principal axes of each layer's states H = U S V, and U of the tokens that are held.

    Args:
        axes: how many are returned; no more than tokens, or d_model.
        rows: tokens that are held, each at a place from 0; tokens at place -1 enter the Gram matrix alone.
        n: all tokens. Where they are all held, no Gram matrix is summed.
        centered: whether H are the distances from the mean.
        half: whether V and U are returned in float16.
    """

    def __init__(self, axes: int, rows: int, n: int, centered: bool, half: bool) -> None:
        self.axes, self.rows, self.n, self.centered, self.half = axes, rows, n, centered, half
        self.held: dict[int, Tensor] = {}
        self.grams: dict[int, Gram] = {}

    def add(self, i: int, states: Tensor, places: Tensor, sign: int) -> None:
        """Hold the tokens that have a place; sum over all where some have none."""
        states, places = at_least_float32(states), places.to(states.device)
        if i not in self.held:
            self.held[i] = states.new_zeros(self.rows, states.shape[1])
        self.held[i].index_add_(0, places[places >= 0], sign * states[places >= 0])
        if self.n > self.rows:
            if sign < 0:
                raise ValueError("differences are summed only where all tokens are held")
            if i not in self.grams:
                self.grams[i] = Gram.around(states.double().mean(dim=0))
            self.grams[i].add(states)

    def result(self) -> dict[str, Tensor]:
        """Mean [layer, d_model], energy ||H||^2 [layer], S [layer, axes], V [layer, axes, d_model], U [layer, rows, axes].

        S, V and U are zero beyond what the states span.
        """
        found = [self._of_layer(i) for i in sorted(self.held)]
        parts = {name: torch.stack([layer[name].cpu() for layer in found]) for name in found[0]}
        small = torch.float16 if self.half else torch.float32
        return {name: part.to(small if name in ("vectors", "left") else torch.float32) for name, part in parts.items()}

    def _of_layer(self, i: int) -> dict[str, Tensor]:
        h, gram = self.held[i].double(), self.grams.get(i)
        mean = h.mean(dim=0) if gram is None else gram.mean_x
        point = mean if self.centered else torch.zeros_like(mean)
        h = h - point
        products = None if gram is None else gram.about(point)
        energy = h.square().sum() if products is None else products.trace()
        values, vectors, scores = h.new_zeros(0), h.new_zeros(0, h.shape[1]), h.new_zeros(len(h), 0)
        if bool(energy.isfinite()):  # otherwise the caller sees it in the energy; a decomposition would fail without saying why
            if products is None:
                found = spectrum(h, self.axes)
                values, vectors, scores = found.values, found.vectors, found.scores
            else:
                values, vectors = spectrum_of_gram(products, self.axes)
                scores = h @ vectors.T
        more = self.axes - len(values)
        return {
            "mean": mean,
            "energy": energy,
            "values": torch.nn.functional.pad(values, (0, more)),
            "vectors": torch.nn.functional.pad(vectors, (0, 0, 0, more)),
            "left": torch.nn.functional.pad(scores / values, (0, more)),
        }


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """The leading principal axes of one layer's states, H = U S V, in float64, as they come back.

    Attributes:
        axes: mean, S and V.
        left: U of the held tokens.
        energy: ||H||^2 over all axes.
        n: tokens, held or not.
    """

    axes: Axes
    left: Float[Tensor, "held rank"]
    energy: float
    n: int

    @property
    def scores(self) -> Float[Tensor, "held rank"]:
        return self.left * self.axes.values

    @property
    def share(self) -> float:
        """Share of the energy that the leading axes hold."""
        return min(float(self.axes.values.square().sum()) / max(self.energy, torch.finfo(torch.float64).tiny), 1.0)

    def leading(self, rank: int | None) -> LayerFactors:
        """No more axes than the rank; None leaves all."""
        axes = Axes(self.axes.mean, self.axes.values[:rank], self.axes.vectors[:rank])
        return replace(self, axes=axes, left=self.left[:, :rank])

    def reordered(self, order: Int[Tensor, " held"]) -> LayerFactors:
        """The held tokens in another order."""
        return replace(self, left=self.left[order])

    def states(self, centered: bool) -> Float[Tensor, "held d_model"]:
        """The held states, without what lies beyond the leading axes."""
        h = self.scores @ self.axes.vectors
        return h + self.axes.mean if centered else h


def of_result(result: Mapping[str, Tensor], n: int) -> list[LayerFactors]:
    """What `LeadingAxes` returned, layer by layer; n tokens were read."""
    mean, energy, values, vectors, left = (result[name].double() for name in ("mean", "energy", "values", "vectors", "left"))
    ranks = (values > 0).sum(dim=1).tolist()
    return [
        LayerFactors(Axes(mean[i], values[i, :k], vectors[i, :k]), left[i, :, :k], float(energy[i]), n)
        for i, k in enumerate(ranks)
    ]


def merged(parts: Sequence[LayerFactors], axes: int, centered: bool) -> LayerFactors:
    """The factors of all parts' tokens together, held ones in the parts' order; exact where no part had to cut axes."""
    if len(parts) == 1:
        return parts[0]
    n = sum(part.n for part in parts)
    mean = torch.stack([part.axes.mean * part.n for part in parts]).sum(dim=0) / n
    shifts = [part.axes.mean - mean if centered else torch.zeros_like(mean) for part in parts]
    rows = [part.axes.values[:, None] * part.axes.vectors for part in parts]
    rows += [shift[None] * part.n**0.5 for part, shift in zip(parts, shifts, strict=True)]
    found = spectrum(torch.cat(rows), axes)
    held = torch.cat([part.scores @ part.axes.vectors + shift for part, shift in zip(parts, shifts, strict=True)])
    energy = sum(part.energy + part.n * float(shift.square().sum()) for part, shift in zip(parts, shifts, strict=True))
    return LayerFactors(Axes(mean, found.values, found.vectors), held @ found.vectors.T / found.values, energy, n)
