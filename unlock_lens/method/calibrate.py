"""Calibrate: what maps are fitted from. States of the calibration tokens in memory, sums over them, or factors from servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.align import Axes, Pair
from unlock_lens.method.linalg import NOISE, Gram, Spectrum, spectrum, spectrum_of_gram
from unlock_lens.method.reduce import LayerFactors

Layers = Mapping[int, Float[Tensor, "_ _"]]
"""The states [token, d_model] of one model at the calibration tokens, by layer."""
Sinks = Literal["auto", "keep", "drop", "rescale"]
SINKS = ("auto", "keep", "drop", "rescale")
SINK = 10.0
"""A token is an attention sink where its norm is above this many times the median norm of its layer."""


@dataclass(frozen=True, eq=False)
class SinkRule:
    """What becomes of attention sinks, tokens (often the first) whose huge norm would rule every map that is fitted on them.

    Attributes:
        how: "keep" them; "drop" a token that is a sink at any layer of either model; "auto": drop those alone that stand first
            in their text; or "rescale": scale them to the median norm.
        typical: median norm of each layer, of source and target.

    Source: Sun et al., "Massive Activations in Large Language Models", arXiv:2402.17762.
    """

    how: Sinks = "keep"
    typical: tuple[Mapping[int, float], Mapping[int, float]] = ({}, {})

    @classmethod
    def of(cls, how: Sinks, source: Layers, target: Layers) -> SinkRule:
        """With the median norms of these states."""
        if how == "keep":
            return cls()
        medians = [
            {layer: float(_norms(states.detach()).median()) for layer, states in side.items()} for side in (source, target)
        ]
        return cls(how, (medians[0], medians[1]))

    def kept(self, source: Layers, target: Layers, first: Bool[Tensor, " n"] | None = None) -> Bool[Tensor, " n"]:
        """The tokens that are fitted on; `first` says which of them stand first in their text."""
        kept = torch.ones(len(next(iter(source.values()))), dtype=torch.bool)
        if self.how == "drop" or (self.how == "auto" and first is not None and bool(first.any())):
            for side, layers in enumerate((source, target)):
                for layer, states in layers.items():
                    kept &= ~self._far(side, layer, states).cpu()
        return kept | ~first if self.how == "auto" and first is not None else kept

    def tamed(self, side: int, layer: int, states: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """The states of one layer of source (0) or target (1), sinks scaled down where that is asked for."""
        if self.how != "rescale":
            return states
        scale = self.typical[side][layer] / _norms(states).clamp_min(torch.finfo(torch.float32).tiny)
        return torch.where(self._far(side, layer, states)[:, None], (states * scale[:, None]).to(states), states)

    def _far(self, side: int, layer: int, states: Float[Tensor, "n d_model"]) -> Bool[Tensor, " n"]:
        norms = _norms(states)
        return (norms > SINK * self.typical[side][layer]) & norms.isfinite()  # what is not finite is an error, and not a sink


def _norms(states: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
    return torch.linalg.vector_norm(states, dim=-1, dtype=torch.promote_types(states.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Scores:
    """Tokens of one layer pair in the principal axes of both sides, H_s V_s^T and H_t V_t^T, and the fold of each token.

    `ends` are the last tokens of their texts; None where that is not known.
    """

    source: Float[Tensor, "n s"]
    target: Float[Tensor, "n t"]
    fold: Int[Tensor, " n"]
    ends: Bool[Tensor, " n"] | None = None


@runtime_checkable
class Calibration(Protocol):
    """What a fit needs of the calibration tokens.

    Attributes:
        n: number of tokens.
        widest: a bound of the rank of any layer's map.
        dtype: precision in which the maps are worth keeping.
    """

    @property
    def n(self) -> int: ...

    @property
    def widest(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def pair(self, target_layer: int, rank: int | None = None) -> Pair:
        """Both layers' principal axes, the leading `rank` of them or all, and their coupling C = U_s^T U_t.

        Raises:
            InvalidInput: states that are not finite, or do not vary.
        """
        ...

    def scores(self, target_layer: int) -> Scores:
        """The tokens that cross-validation fits and looks at."""
        ...


@dataclass(frozen=True, eq=False)
class Held:
    """States in memory; a layer is decomposed when it is asked for, in float64 and where it is.

    Attributes:
        layer_map: target layer -> source layer.
        source: states of the source's layers.
        target: states of the target's layers, of the same tokens.
        fold: the fold of each token.
        centered: whether H are distances from the mean.
        rule: for attention sinks.
        first: which tokens stand first in their text; None where that is not known.
        ends: which stand last.
    """

    layer_map: Mapping[int, int]
    source: Layers
    target: Layers
    fold: Int[Tensor, " n"]
    centered: bool
    rule: SinkRule = field(default_factory=SinkRule)
    first: Bool[Tensor, " n"] | None = None
    ends: Bool[Tensor, " n"] | None = None
    _last: dict[tuple[int, int | None], tuple[Axes, Tensor]] = field(default_factory=dict)
    _kept: Bool[Tensor, " n"] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kept", self.rule.kept(self.source, self.target, self.first))

    @property
    def n(self) -> int:
        return int(self._kept.sum())

    @property
    def widest(self) -> int:
        return min(self.n, max(next(iter(side.values())).shape[1] for side in (self.source, self.target)))

    @property
    def dtype(self) -> torch.dtype:
        exact = {h.dtype for side in (self.source, self.target) for h in side.values()} == {torch.float64}
        return torch.float64 if exact else torch.float32

    def pair(self, target_layer: int, rank: int | None = None) -> Pair:
        (source, scores_s), (target, scores_t) = self.sides(target_layer, rank)
        return Pair(source, target, (scores_s.T @ scores_t) / source.values[:, None] / target.values)

    def scores(self, target_layer: int) -> Scores:
        (_, source), (_, target) = self.sides(target_layer)
        return Scores(source, target, self.fold[self._kept], None if self.ends is None else self.ends[self._kept])

    def sides(self, target_layer: int, rank: int | None = None) -> tuple[tuple[Axes, Tensor], tuple[Axes, Tensor]]:
        """Principal axes of both layers, and the tokens' scores H V^T on them.

        Neighbouring target layers may share a source layer, which is decomposed once.
        """
        a, b = self.layer_map[target_layer], target_layer
        if (a, rank) not in self._last:
            self._last.clear()
            self._last[a, rank] = self._decomposed(0, a, self.source[a], rank)
        return self._last[a, rank], self._decomposed(1, b, self.target[b], rank)

    def _decomposed(self, side: int, layer: int, states: Tensor, rank: int | None) -> tuple[Axes, Tensor]:
        name = f"{('source', 'target')[side]} layer {layer}"
        h = self.rule.tamed(side, layer, states.detach())
        if not bool(self._kept.all()):
            h = h[self._kept.to(h.device)]
        mean, found = principal(h, rank, self.centered, name)
        return Axes(mean.cpu(), found.values.cpu(), found.vectors.cpu()), found.scores.cpu()


def principal(
    states: Float[Tensor, "n d_model"], rank: int | None, centered: bool, name: str, given: Tensor | None = None
) -> tuple[Float[Tensor, " d_model"], Spectrum]:
    """The mean of one layer's states and their spectrum; errors take the layer's `name`, and count tokens in what was `given`.

    Raises:
        InvalidInput: no states, or states that are not finite or do not vary.
    """
    _check_any(len(states))
    states = states.cpu() if states.device.type == "mps" else states  # which has no float64
    exact, mean = states.dtype == torch.float64, states.double().mean(dim=0)
    _check_finite(mean, states if given is None else given, name)
    found = spectrum(states, rank, mean if centered else None, exact)
    _check_varying(found.values, mean, len(states), name, 1e-14 if exact else NOISE)
    return mean, found


def _check_any(n: int) -> None:
    if not n:
        raise InvalidInput("no calibration tokens are left; keep the sinks, or give more and longer texts")


def _check_finite(mean: Float[Tensor, " d_model"], states: Float[Tensor, "n d_model"], name: str) -> None:
    if not bool(mean.isfinite().all()):
        token = int((~states.isfinite()).any(dim=1).nonzero()[0])
        raise InvalidInput(f"the activations of {name} are not finite at token {token}; leave that prompt out")


def _check_varying(
    values: Float[Tensor, " rank"], mean: Float[Tensor, " d_model"], n: int, name: str, noise: float = NOISE
) -> None:
    if not len(values) or float(values[0]) <= noise * n**0.5 * float(mean.norm()):
        raise InvalidInput(f"the activations of {name} do not vary over the calibration tokens; give more and different texts")


@dataclass(frozen=True, eq=False)
class Moments:
    """Gram and cross-Gram matrices of one layer pair: all that a map between them can be made of."""

    source: Gram
    target: Gram
    cross: Gram

    @classmethod
    def of(cls, source: Float[Tensor, "n s"], target: Float[Tensor, "n t"]) -> Moments:
        return cls(Gram.of(source, source), Gram.of(target, target), Gram.of(source, target))

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.source - other.source, self.target - other.target, self.cross - other.cross)

    def points(self, centered: bool) -> tuple[Tensor, Tensor]:
        """Where a map sees the states from: their means, or zero."""
        means = self.source.mean_x, self.target.mean_x
        return means if centered else (torch.zeros_like(means[0]), torch.zeros_like(means[1]))

    def about(self, p: Float[Tensor, " s"], q: Float[Tensor, " t"]) -> tuple[Tensor, Tensor, Tensor]:
        """H_s^T H_s, H_t^T H_t and H_s^T H_t, seen from p and q."""
        return self.source.about(p), self.target.about(q), self.cross.about(p, q)

    def axes(self, side: Literal["source", "target"], centered: bool, rank: int | None = None) -> Axes:
        """The leading principal axes of one side, or all."""
        gram: Gram = getattr(self, side)
        return Axes(gram.mean_x, *spectrum_of_gram(gram.about(self.points(centered)[side == "target"]), rank))

    def pair(self, centered: bool, rank: int | None = None, source: Axes | None = None) -> Pair:
        """Principal axes of both sides, and C = U_s^T U_t = S_s^-1 V_s (H_s^T H_t) V_t^T S_t^-1."""
        source, target = source or self.axes("source", centered, rank), self.axes("target", centered, rank)
        cross = self.cross.about(*self.points(centered))
        return Pair(source, target, source.vectors @ cross @ target.vectors.T / source.values[:, None] / target.values)


@dataclass(eq=False)
class Summed:
    """Sums over the tokens, in float64 on the device where the states are: memory does not grow with the number of tokens.

    Attributes:
        layer_map: target layer -> source layer.
        centered: whether maps are fitted on distances from the mean.
        sample: tokens that are held besides, for cross-validation; None where nothing is chosen.
    """

    layer_map: Mapping[int, int]
    centered: bool
    sample: Held | None = None
    _source: dict[int, Gram] = field(default_factory=dict)
    _target: dict[int, Gram] = field(default_factory=dict)
    _cross: dict[int, Gram] = field(default_factory=dict)
    _last: dict[tuple[int, int | None], Axes] = field(default_factory=dict)

    def add(self, source: Layers, target: Layers) -> None:
        """More tokens; the first ones' means become the origins of the sums."""
        for grams, layers in ((self._source, source), (self._target, target)):
            for layer, states in layers.items():
                if layer not in grams:
                    grams[layer] = Gram.around(states.double().mean(dim=0))
                grams[layer].add(states)
        for b, a in self.layer_map.items():
            if b not in self._cross:
                self._cross[b] = Gram.around(self._source[a].origin_x, self._target[b].origin_x.to(source[a].device))
            self._cross[b].add(source[a], target[b].to(source[a].device))  # models may lie on several devices

    @property
    def n(self) -> int:
        return next(iter(self._source.values())).n if self._source else 0

    @property
    def widest(self) -> int:
        widths = (len(gram.origin_x) for side in (self._source, self._target) for gram in side.values())
        return min(self.n, max(widths, default=0))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def pair(self, target_layer: int, rank: int | None = None) -> Pair:
        _check_any(self.n)
        a, b = self.layer_map[target_layer], target_layer
        cross = self._cross[b]
        moments = Moments(self._source[a], self._target[b].to(cross.products.device), cross)
        if (a, rank) not in self._last:  # neighbouring target layers may share a source layer
            self._last.clear()
            self._last[a, rank] = moments.axes("source", self.centered, rank)
        found = moments.pair(self.centered, rank, self._last[a, rank])
        for axes, name in ((found.source, f"source layer {a}"), (found.target, f"target layer {b}")):
            _check_varying(axes.values, axes.mean, self.n, name)
        return found

    def scores(self, target_layer: int) -> Scores:
        assert self.sample is not None
        return self.sample.scores(target_layer)


@dataclass(frozen=True, eq=False)
class Factored:
    """What comes back from servers: principal axes of all tokens, and scores of a sample of them, the same on both sides."""

    layer_map: Mapping[int, int]
    source: Mapping[int, LayerFactors]
    target: Mapping[int, LayerFactors]
    fold: Int[Tensor, " sampled"]
    ends: Bool[Tensor, " sampled"] | None = None

    @property
    def n(self) -> int:
        return next(iter(self.source.values())).n

    @property
    def widest(self) -> int:
        return max(len(layer.axes.values) for side in (self.source, self.target) for layer in side.values())

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def pair(self, target_layer: int, rank: int | None = None) -> Pair:
        """The coupling is least squares over the sample, U_s^+ U_t, which is U_s^T U_t where all tokens are in it."""
        a, b = self.layer_map[target_layer], target_layer
        source, target = self.source[a].leading(rank), self.target[b].leading(rank)
        for side, name in ((source, f"source layer {a}"), (target, f"target layer {b}")):
            _check_varying(side.axes.values, side.axes.mean, side.n, name)
        coupling = torch.linalg.lstsq(source.left, target.left, driver="gelsd").solution
        return Pair(source.axes, target.axes, coupling)

    def scores(self, target_layer: int) -> Scores:
        source, target = self.source[self.layer_map[target_layer]], self.target[target_layer]
        return Scores(source.scores, target.scores, self.fold, self.ends)


def held_bytes(n: int, layer_map: Mapping[int, int], d_source: int, d_target: int) -> int:
    """Of the states of n tokens in float32."""
    return 4 * n * (len(set(layer_map.values())) * d_source + len(layer_map) * d_target)


def summed_bytes(layer_map: Mapping[int, int], d_source: int, d_target: int) -> int:
    """Of the Gram and cross-Gram matrices in float64, however many tokens there are."""
    return 8 * (len(set(layer_map.values())) * d_source**2 + len(layer_map) * (d_target**2 + d_source * d_target))


def by_layer(layers: Sequence[int], states: Float[Tensor, "layer n d_model"]) -> Layers:
    """Views of stacked states."""
    return dict(zip(layers, states, strict=True))
