"""What maps are fitted from: states of the calibration tokens at hand, or sums over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.factors import LayerFactors
from unlock_lens.method.linalg import right_factors
from unlock_lens.method.methods import Axes, Pair
from unlock_lens.method.moments import Moments, RunningMoments
from unlock_lens.method.sinks import SinkRule, Sinks

NOISE = 1e-7
"""States that vary by less than this share of their mean do not vary: float32 tells no more."""


@dataclass(frozen=True, eq=False)
class HeldStates:
    """States at hand: the cheaper Gram matrix is chosen, so few tokens of a wide model cost little."""

    layer_map: Mapping[int, int]
    source: Mapping[int, Float[Tensor, "n d_source"]]
    target: Mapping[int, Float[Tensor, "n d_target"]]
    fold: Int[Tensor, " n"]
    centered: bool
    _axes: dict[tuple[str, int, int | None], tuple[Axes, Tensor]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.fold)

    @property
    def dtype(self) -> torch.dtype:
        """What maps of these states are worth keeping in."""
        exact = {h.dtype for side in (self.source, self.target) for h in side.values()} == {torch.float64}
        return torch.float64 if exact else torch.float32

    def pair(self, target_layer: int, rank: int | None = None) -> Pair:
        """Both layers' principal axes, the leading `rank` of them if told, and their coupling."""
        (s, scores_s), (t, scores_t) = self._sides(target_layer, rank)
        return Pair(s, t, (scores_s.T @ scores_t) / s.values[:, None] / t.values)

    def folds(self, target_layer: int) -> Sequence[Moments]:
        """Moments of each fold of texts."""
        (_, scores_s), (_, scores_t) = self._sides(target_layer, None)
        places = [self.fold == k for k in range(int(self.fold.max()) + 1)]
        return [Moments.of(scores_s[place], scores_t[place]) for place in places]

    def _sides(self, target_layer: int, rank: int | None) -> tuple[tuple[Axes, Tensor], tuple[Axes, Tensor]]:
        a = self.layer_map[target_layer]
        return self._side("source", a, self.source[a], rank), self._side(
            "target", target_layer, self.target[target_layer], rank
        )

    def _side(self, name: str, layer: int, states: Tensor, rank: int | None) -> tuple[Axes, Tensor]:
        """Axes, and the tokens' scores on them; several target layers may read one source layer, decomposed once."""
        key = (name, layer, rank)
        if key not in self._axes:
            self._axes[key] = principal(states, rank, self.centered, f"{name} layer {layer}")
        return self._axes[key]


def principal(
    states: Float[Tensor, "n d"], rank: int | None, centered: bool, name: str
) -> tuple[Axes, Float[Tensor, "n rank"]]:
    """The leading principal axes of one layer's states, and the states' scores on them; `name` is for errors.

    Raises:
        InvalidInput: states that are not finite, or do not vary.
    """
    h = states.detach().to("cpu", torch.float64)
    if not bool(h.sum().isfinite()):
        token = int((~h.isfinite()).any(dim=1).nonzero()[0])
        raise InvalidInput(f"the activations of {name} are not finite at token {token}; leave that prompt out")
    mean = h.mean(dim=0)
    h = h - mean if centered else h
    n, exact = len(h), states.dtype == torch.float64
    if not bool(h.norm() > (1e-14 if exact else NOISE) * n**0.5 * mean.norm()):
        raise InvalidInput(f"the activations of {name} do not vary over the calibration tokens; give more and other texts")
    factors = right_factors(h, min(h.shape) if rank is None else rank, exact)
    return Axes(mean, factors.values, factors.vectors), factors.scores


@dataclass(frozen=True, eq=False)
class StreamedMoments:
    """Sums alone: memory does not grow with the number of tokens."""

    running: RunningMoments
    centered: bool
    _axes: dict[tuple[str, int], Axes] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return int(self.running.n.sum())

    @property
    def dtype(self) -> torch.dtype:
        """What maps of these sums are worth keeping in: the states were float32."""
        return torch.float32

    def pair(self, target_layer: int, rank: int | None = None) -> Pair:
        """Both layers' principal axes and their coupling; sums give all axes at once, whatever the rank."""
        whole: Moments = reduce(add, self.folds(target_layer))
        source, target = ("source", self.running.layer_map[target_layer]), ("target", target_layer)
        if source not in self._axes:
            self._axes[source] = _varying(whole.source_axes(self.centered), self.n, *source)
        self._axes[target] = _varying(whole.target_axes(self.centered), self.n, *target)
        return whole.pair(self.centered, self._axes[source], self._axes[target])

    def folds(self, target_layer: int) -> Sequence[Moments]:
        """Moments of each fold of texts."""
        return self.running.folds(target_layer)


def _varying(axes: Axes, n: int, side: str, layer: int) -> Axes:
    if not len(axes.values) or float(axes.values[0]) <= NOISE * n**0.5 * float(axes.mean.norm()):
        raise InvalidInput(
            f"the activations of {side} layer {layer} do not vary over the calibration tokens; give more and other texts"
        )
    return axes


@dataclass(frozen=True, eq=False)
class FactoredStates:
    """What comes back from servers: principal axes of all tokens, and scores of a sample of them, the same on both sides."""

    layer_map: Mapping[int, int]
    source: Mapping[int, LayerFactors]
    target: Mapping[int, LayerFactors]
    fold: Int[Tensor, " sampled"]

    @property
    def n(self) -> int:
        return next(iter(self.source.values())).n

    @property
    def dtype(self) -> torch.dtype:
        """What maps of these factors are worth keeping in: they came in float32."""
        return torch.float32

    def pair(self, target_layer: int, rank: int | None = None) -> Pair:
        """Both sides' axes, and their coupling by least squares over the sample: U_s^+ U_t, or U_s^T U_t of all tokens."""
        source, target = (side.leading(rank) for side in self._sides(target_layer))
        for side, name, layer in ((source, "source", self.layer_map[target_layer]), (target, "target", target_layer)):
            _varying(side.axes, side.n, name, layer)
        coupling = torch.linalg.lstsq(source.left, target.left, driver="gelsd").solution
        return Pair(source.axes, target.axes, coupling)

    def folds(self, target_layer: int) -> Sequence[Moments]:
        """Moments of the sample's scores, of each fold of texts."""
        source, target = (side.scores for side in self._sides(target_layer))
        places = [self.fold == k for k in range(int(self.fold.max()) + 1)]
        return [Moments.of(source[place], target[place]) for place in places]

    def _sides(self, target_layer: int) -> tuple[LayerFactors, LayerFactors]:
        return self.source[self.layer_map[target_layer]], self.target[target_layer]


Calibration = HeldStates | StreamedMoments | FactoredStates


def held_states(
    layer_map: Mapping[int, int],
    layers: tuple[Sequence[int], Sequence[int]],
    states: tuple[Float[Tensor, "layer_s n d_source"], Float[Tensor, "layer_t n d_target"]],
    fold: Int[Tensor, " n"],
    centered: bool,
    sinks: Sinks,
) -> HeldStates:
    """States of some layers of both models, sinks dealt with."""
    source, target, fold = SinkRule.of(sinks, states).applied(states, fold)
    by_layer = [dict(zip(where, side, strict=True)) for where, side in zip(layers, (source, target), strict=True)]
    return HeldStates(layer_map, by_layer[0], by_layer[1], fold, centered)


def pair_of(
    source: Float[Tensor, "n d_source"], target: Float[Tensor, "n d_target"], centered: bool, rank: int | None = None
) -> Pair:
    """One layer pair of states at hand; see `Calibration.pair`."""
    fold = torch.zeros(len(source), dtype=torch.long)
    return HeldStates({0: 0}, {0: source}, {0: target}, fold, centered).pair(0, rank)
