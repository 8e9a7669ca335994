"""Sums over calibration tokens that are enough for every map: they grow with the widths, never with the number of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.linalg import spectrum
from unlock_lens.method.methods import Axes, Pair


@dataclass(frozen=True, eq=False)
class Moments:
    """Of one layer pair, in float64: what is summed is the distance from an origin near the mean, so that nothing cancels.

    Attributes:
        n: tokens.
        sum_s: of the source's states.
        sum_t: of the target's states.
        gram_s: H_s^T H_s.
        gram_t: H_t^T H_t.
        cross: H_s^T H_t.
        origin_s: what was taken from every state of the source.
        origin_t: what was taken from every state of the target.
    """

    n: int
    sum_s: Float[Tensor, " d_source"]
    sum_t: Float[Tensor, " d_target"]
    gram_s: Float[Tensor, "d_source d_source"]
    gram_t: Float[Tensor, "d_target d_target"]
    cross: Float[Tensor, "d_source d_target"]
    origin_s: Float[Tensor, " d_source"]
    origin_t: Float[Tensor, " d_target"]

    @classmethod
    def of(cls, source: Float[Tensor, "n d_source"], target: Float[Tensor, "n d_target"]) -> Moments:
        """Of states at hand; row i of both is one token."""
        s, t = source.double(), target.double()
        origins = s.new_zeros(s.shape[1]), t.new_zeros(t.shape[1])
        return cls(len(s), s.sum(dim=0), t.sum(dim=0), s.T @ s, t.T @ t, s.T @ t, *origins)

    def __add__(self, other: Moments) -> Moments:
        return self._combined(other, 1)

    def __sub__(self, other: Moments) -> Moments:
        return self._combined(other, -1)

    def _combined(self, other: Moments, sign: int) -> Moments:
        names = ("n", "sum_s", "sum_t", "gram_s", "gram_t", "cross")
        return replace(self, **{name: getattr(self, name) + sign * getattr(other, name) for name in names})

    @property
    def means(self) -> tuple[Float[Tensor, " d_source"], Float[Tensor, " d_target"]]:
        """Of both models' states, seen from the origins."""
        return self.sum_s / self.n, self.sum_t / self.n

    def about(self, m_s: Float[Tensor, " d_source"], m_t: Float[Tensor, " d_target"]) -> tuple[Tensor, Tensor, Tensor]:
        """Gram matrices of source and target and their cross-Gram matrix, of the states' distances from these points."""

        def shifted(gram: Tensor, sums: tuple[Tensor, Tensor], points: tuple[Tensor, Tensor]) -> Tensor:
            (a, b), (m, k) = sums, points
            return gram - torch.outer(m, b) - torch.outer(a, k) + self.n * torch.outer(m, k)

        return (
            shifted(self.gram_s, (self.sum_s, self.sum_s), (m_s, m_s)),
            shifted(self.gram_t, (self.sum_t, self.sum_t), (m_t, m_t)),
            shifted(self.cross, (self.sum_s, self.sum_t), (m_s, m_t)),
        )

    def points(self, centered: bool) -> tuple[Tensor, Tensor]:
        """From where a map of these states sees them: their means, or zero."""
        return self.means if centered else (-self.origin_s, -self.origin_t)

    def source_axes(self, centered: bool) -> Axes:
        """Principal axes of the source's states."""
        gram = self.about(*self.points(centered))[0]
        return Axes(self.means[0] + self.origin_s, *_axes(gram))

    def target_axes(self, centered: bool) -> Axes:
        """Principal axes of the target's states."""
        gram = self.about(*self.points(centered))[1]
        return Axes(self.means[1] + self.origin_t, *_axes(gram))

    def pair(self, centered: bool, source: Axes | None = None, target: Axes | None = None) -> Pair:
        """Both sides' axes, made unless they are at hand, and U_s^T U_t = S_s^-1 V_s H_s^T H_t V_t^T S_t^-1."""
        source, target = source or self.source_axes(centered), target or self.target_axes(centered)
        cross = self.about(*self.points(centered))[2]
        return Pair(source, target, source.vectors @ cross @ target.vectors.T / source.values[:, None] / target.values)


def _axes(gram: Float[Tensor, "d d"]) -> tuple[Tensor, Tensor]:
    values, basis = spectrum(gram)
    return values, basis.T


class RunningMoments:
    """Moments of all layer pairs, fold by fold, while tokens come in batches; each layer is summed once, whoever reads it."""

    def __init__(self, layer_map: Mapping[int, int], d_source: int, d_target: int, folds: int = 1) -> None:
        self.layer_map = dict(layer_map)
        self.read_s, self.read_t = sorted(set(layer_map.values())), sorted(layer_map)
        self.n = torch.zeros(folds, dtype=torch.long)
        self._sums = [_zeros(folds, len(self.read_s), d_source), _zeros(folds, len(self.read_t), d_target)]
        self._grams = [_zeros(folds, *sums.shape[1:], sums.shape[-1]) for sums in self._sums]
        self._cross = _zeros(folds, len(self.layer_map), d_source, d_target)
        self._origins: list[Tensor] | None = None

    def add(
        self,
        source: Float[Tensor, "layer_s n d_source"],
        target: Float[Tensor, "layer_t n d_target"],
        fold: Int[Tensor, " n"],
    ) -> None:
        """Tokens of `read_s` and `read_t`, ascending; the first batch's means become the origins."""
        if self._origins is None:
            self._origins = [side.double().mean(dim=1) for side in (source, target)]
        for k in fold.unique().tolist():
            of_fold = fold == k
            self.n[k] += int(of_fold.sum())
            h = [side[:, of_fold].double() - o[:, None] for side, o in zip((source, target), self._origins, strict=True)]
            for sums, grams, states in zip(self._sums, self._grams, h, strict=True):
                sums[k] += states.sum(dim=1)
                grams[k].baddbmm_(states.mT, states)
            for i, (b, a) in enumerate(self.layer_map.items()):
                self._cross[k, i].addmm_(h[0][self.read_s.index(a)].T, h[1][self.read_t.index(b)])

    def folds(self, target_layer: int) -> Sequence[Moments]:
        """Moments of one layer pair, of each fold."""
        if self._origins is None:
            raise InvalidInput("no tokens were added to these moments")
        a = self.read_s.index(self.layer_map[target_layer])
        b, i = self.read_t.index(target_layer), list(self.layer_map).index(target_layer)
        (sum_s, sum_t), (gram_s, gram_t) = self._sums, self._grams
        origins = self._origins[0][a], self._origins[1][b]
        return [
            Moments(int(self.n[k]), sum_s[k, a], sum_t[k, b], gram_s[k, a], gram_t[k, b], self._cross[k, i], *origins)
            for k in range(len(self.n))
        ]


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)
