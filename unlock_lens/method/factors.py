"""Factors of states, as they come back from where the states are: read, merged, turned into states again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens.method.linalg import right_factors
from unlock_lens.method.methods import Axes


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """The leading principal axes of one layer's states, H = U S V, in float64.

    Attributes:
        axes: mean, S and V, noise left out.
        left: U of the held tokens.
        energy: ||H||^2 of all axes.
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
        """Of the energy that the leading axes hold."""
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
    """What `reductions.Factors` shipped, layer by layer; n tokens were read."""
    mean, energy, values, vectors, left = (result[name].double() for name in ("mean", "energy", "values", "vectors", "left"))
    found: list[LayerFactors] = []
    for i in range(len(mean)):
        rank = int((values[i] > 0).sum())
        axes = Axes(mean[i], values[i, :rank], vectors[i, :rank])
        found.append(LayerFactors(axes, left[i, :, :rank], float(energy[i]), n))
    return found


def merged(parts: Sequence[LayerFactors], axes: int, centered: bool) -> LayerFactors:
    """The factors of all parts' tokens together, the held ones in the parts' order; exact where no part had to cut axes."""
    if len(parts) == 1:
        return parts[0]
    n = sum(part.n for part in parts)
    mean = torch.stack([part.axes.mean * part.n for part in parts]).sum(dim=0) / n
    shifts = [part.axes.mean - mean if centered else torch.zeros_like(mean) for part in parts]
    rows = [part.axes.values[:, None] * part.axes.vectors for part in parts]
    rows += [shift[None] * part.n**0.5 for part, shift in zip(parts, shifts, strict=True)]
    found = right_factors(torch.cat(rows), axes)
    held = torch.cat([part.scores @ part.axes.vectors + shift for part, shift in zip(parts, shifts, strict=True)])
    energy = sum(part.energy + part.n * float(shift.square().sum()) for part, shift in zip(parts, shifts, strict=True))
    return LayerFactors(Axes(mean, found.values, found.vectors), held @ found.vectors.T / found.values, energy, n)
