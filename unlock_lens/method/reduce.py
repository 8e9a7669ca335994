"""Reductions: what is kept of the states of many forward passes, made where the passes run (docs/remote.md).

They import torch alone, because they also run inside a remote server's process, which then ships conclusions, not activations.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from unlock_lens.method.apply import at_least_float32

RELATIVE_TOLERANCE = 1e-6
"""Singular values below this share of the largest are noise of float32 activations, and are cut."""


@runtime_checkable
class Reduction(Protocol):
    """Takes the states [picked, d_model] of the i-th layer, pass after pass; gives tensors with layers in front."""

    def add(self, i: int, states: Tensor, places: Tensor, sign: int) -> None:
        """More states; `places` and `sign` are those of `backends.Pass`."""

    def result(self) -> dict[str, Tensor]:
        """What is shipped."""
        ...


class Mean:
    """The mean state of each layer, of n tokens; states of sign -1 are taken from it, which makes a mean difference."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.totals: dict[int, Tensor] = {}

    def add(self, i: int, states: Tensor, places: Tensor, sign: int) -> None:
        """Sum in float64."""
        part = sign * states.double().sum(dim=0)
        self.totals[i] = self.totals[i] + part if i in self.totals else part

    def result(self) -> dict[str, Tensor]:
        """The mean [layer, d_model], float32."""
        return {"mean": torch.stack([(self.totals[i] / self.n).float().cpu() for i in sorted(self.totals)])}


class Factors:
    """The leading principal axes of each layer's states H = U S V, and U of the tokens that are held.

    Args:
        axes: how many come back; no more than tokens, or d_model.
        rows: tokens that are held, each at a place from 0; of tokens at place -1 the Gram matrix alone knows.
        n: all tokens. Where they are all held, no Gram matrix is summed.
        centered: whether H are the distances from the mean.
        half: whether V and U come back in float16.
    """

    def __init__(self, axes: int, rows: int, n: int, centered: bool, half: bool) -> None:
        self.axes, self.rows, self.n, self.centered, self.half = axes, rows, n, centered, half
        self.held: dict[int, Tensor] = {}
        self.origins: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}
        self.grams: dict[int, Tensor] = {}

    def add(self, i: int, states: Tensor, places: Tensor, sign: int) -> None:
        """Hold the tokens that have a place; sum over all where some have none."""
        states, places = at_least_float32(states), places.to(states.device)
        if i not in self.held:
            self.held[i] = states.new_zeros(self.rows, states.shape[1])
        self.held[i].index_add_(0, places[places >= 0], sign * states[places >= 0])
        if self.n > self.rows:
            self._sum(i, states.double())

    def _sum(self, i: int, h: Tensor) -> None:
        """What is summed is the distance from the first states' mean, so that nothing cancels."""
        if i not in self.origins:
            self.origins[i] = h.mean(dim=0)
            self.sums[i] = torch.zeros_like(self.origins[i])
            self.grams[i] = h.new_zeros(h.shape[1], h.shape[1])
        h = h - self.origins[i]
        self.sums[i] += h.sum(dim=0)
        self.grams[i].addmm_(h.T, h)

    def result(self) -> dict[str, Tensor]:
        """Mean [layer, d_model], energy ||H||^2 [layer], S [layer, axes], V [layer, axes, d_model], U [layer, rows, axes].

        S is zero where it would be noise.
        """
        found = [self._of_layer(i) for i in sorted(self.held)]
        parts = {name: torch.stack([layer[name].cpu() for layer in found]) for name in found[0]}
        small = torch.float16 if self.half else torch.float32
        return {name: part.to(small if name in ("vectors", "left") else torch.float32) for name, part in parts.items()}

    def _of_layer(self, i: int) -> dict[str, Tensor]:
        h = self.held[i].double()
        if i not in self.grams:
            mean = h.mean(dim=0)
            return {"mean": mean, **_factors(h - mean if self.centered else h, self.axes)}
        mean = self.origins[i] + self.sums[i] / self.n
        point = mean if self.centered else torch.zeros_like(mean)
        shift, total = self.origins[i] - point, self.sums[i]
        gram = self.grams[i] + torch.outer(shift, total) + torch.outer(total + self.n * shift, shift)
        return {"mean": mean, **_by_gram(gram, h - point, self.axes)}


def _factors(h: Tensor, axes: int) -> dict[str, Tensor]:
    """The thin SVD of states at hand, by the cheaper of the two Gram matrices."""
    if h.shape[0] >= h.shape[1]:
        return _by_gram(h.T @ h, h, axes)
    gram = h @ h.T
    values, left = _spectrum(gram, axes)
    return {"energy": gram.trace(), "values": values, "vectors": _divided(left.T @ h, values[:, None]), "left": left}


def _by_gram(gram: Tensor, held: Tensor, axes: int) -> dict[str, Tensor]:
    values, basis = _spectrum(gram, axes)
    return {"energy": gram.trace(), "values": values, "vectors": basis.T, "left": _divided(held @ basis, values)}


def _spectrum(gram: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """The leading singular values of H and eigenvectors of its Gram matrix, as columns."""
    if not bool(gram.isfinite().all()):  # whoever asked sees it in the energy; a decomposition would fail without saying why
        return gram.new_zeros(axes), gram.new_zeros(len(gram), axes)
    squared, basis = torch.linalg.eigh(gram)
    values, basis = squared.flip(0)[:axes].clamp_min(0).sqrt(), basis.flip(1)[:, :axes]
    kept = values > RELATIVE_TOLERANCE * values[0]
    return values * kept, basis * kept


def _divided(rows: Tensor, values: Tensor) -> Tensor:
    """Zero where the singular value is."""
    return torch.where(values > 0, rows / values, 0)
