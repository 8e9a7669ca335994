"""Align (docs/method.md, section 2): the layer map a(b), five linear maps W[b], and the factors that hold them.

Every map is made of the thin SVDs of the states at the calibration tokens, H_s = U_s S_s V_s and H_t = U_t S_t V_t (V as rows),
and of the cross-Gram matrix C = U_s^T U_t. In einsum, s and t are principal axes of source and target, d is d_model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from unlock_lens.errors import InvalidInput

MethodName = Literal["unlock", "ridge", "procrustes", "rrr", "cca"]


def layer_map_of(wanted: Mapping[int, int] | None, source_layers: int, target_layers: int) -> dict[int, int]:
    """Target layer -> source layer, as wanted or (None) in proportion to depth.

    Raises:
        InvalidInput: no layer is mapped, or one that a model does not have.
    """
    if wanted is None:
        return {b: proportional_layer(b, source_layers, target_layers) for b in range(target_layers)}
    if not wanted:
        raise InvalidInput("the layer map is empty; map at least one target layer")
    for b, a in wanted.items():
        if not (0 <= b < target_layers and 0 <= a < source_layers):
            raise InvalidInput(
                f"the layer map sends target layer {b} to source layer {a}; "
                f"the target has layers 0 to {target_layers - 1}, the source 0 to {source_layers - 1}"
            )
    return dict(sorted(wanted.items()))


def proportional_layer(target_layer: int, source_layers: int, target_layers: int) -> int:
    """a(b) = floor((L_s - 1) b / (L_t - 1)); the last source layer for a target of one layer."""
    if target_layers == 1:
        return source_layers - 1
    return (source_layers - 1) * target_layer // (target_layers - 1)


@dataclass(frozen=True, eq=False)
class Axes:
    """The states of one model at one layer in their principal axes, H = U S V, in float64.

    Attributes:
        mean: mean state, by which H is centered if it is.
        values: S, descending.
        vectors: V, orthonormal rows.
    """

    mean: Float[Tensor, " d_model"]
    values: Float[Tensor, " rank"]
    vectors: Float[Tensor, "rank d_model"]


@dataclass(frozen=True, eq=False)
class Pair:
    """A source and a target layer: all that a linear map between them can be made of.

    Attributes:
        source: H_s = U_s S_s V_s.
        target: H_t = U_t S_t V_t.
        coupling: C = U_s^T U_t.
    """

    source: Axes
    target: Axes
    coupling: Float[Tensor, "s t"]


@dataclass(frozen=True, eq=False)
class Factors:
    """W = left^T core right; the leading k rows and the leading block of the core are the map that a fit at rank k gives."""

    left: Float[Tensor, "k_s d_source"]
    core: Float[Tensor, "k_s k_t"]
    right: Float[Tensor, "k_t d_target"]


def unlock(pair: Pair, rank: int, ridge: float) -> Factors:
    """The paper's map: M = pinv(H_s V_s^T) (H_t V_t^T) = S_s^-1 U_s^T U_t S_t, W = V_s^T M V_t, both subspaces cut at rank k.

    Each side chooses its axes by its own variance alone. Source: arXiv:2604.06377.
    """
    source, target = pair.source, pair.target
    m = einsum(1 / source.values[:rank], pair.coupling[:rank, :rank], target.values[:rank], "s, s t, t -> s t")
    return Factors(source.vectors[:rank], m, target.vectors[:rank])


def ridge_regression(pair: Pair, rank: int, ridge: float) -> Factors:
    """Affine stitching: W = argmin ||H_s W - H_t||^2 + lambda ||W||^2 = V_s^T (S_s^2 + lambda)^-1 S_s U_s^T U_t S_t V_t.

    Rank k keeps the k leading axes of the source (principal component regression) and all of the target.
    Source: Hoerl and Kennard, Technometrics 12 (1970); as model stitching, arXiv:1411.5908 and arXiv:2106.07682.
    """
    s = pair.source.values[:rank]
    predicted = einsum(pair.coupling[:rank], pair.target.values, pair.target.vectors, "s t, t, t d -> s d")
    return Factors(pair.source.vectors[:rank], torch.diag(s / (s**2 + _penalty(pair.source, ridge))), predicted)


def procrustes(pair: Pair, rank: int, ridge: float) -> Factors:
    """Orthogonal Procrustes with scale: W = c P R^T, from the SVD H_s^T H_t = P Sigma R^T, c = tr(Sigma) / ||H_s||^2.

    The rotation that takes the source's states nearest to the target's, then one scale for all axes; between unlike widths it
    is a partial isometry, and c the scale that a rotation would have. Rank k keeps the k leading pairs of axes at that scale.
    Source: Schoenemann, Psychometrika 31 (1966).
    """
    cross = einsum(pair.source.values, pair.coupling, pair.target.values, "s, s t, t -> s t")
    p, sigma, r = torch.linalg.svd(cross, full_matrices=False)
    scale = sigma.sum() / reduce(pair.source.values**2, "s ->", "sum")
    return _lifted(pair, p.T, scale.expand_as(sigma), r, rank)


def reduced_rank_regression(pair: Pair, rank: int, ridge: float) -> Factors:
    """The best rank-k map in the regression sense: argmin over rank(W) <= k of ||H_s W - H_t||^2 + lambda ||W||^2.

    With D = (S_s^2 + lambda)^1/2 and the SVD D^-1 S_s U_s^T U_t S_t = P Sigma R^T: W = V_s^T D^-1 P_k Sigma_k R_k^T V_t.
    Axes are ordered by how much of the target they predict. Source: Izenman, Journal of Multivariate Analysis 5 (1975); with
    ridge, Mukherjee and Zhu, Statistical Analysis and Data Mining 4 (2011).
    """
    s, d = pair.source.values, _damped(pair.source, ridge)
    p, sigma, r = torch.linalg.svd(einsum(s / d, pair.coupling, pair.target.values, "s, s t, t -> s t"), full_matrices=False)
    return _lifted(pair, (p / d[:, None]).T, sigma, r, rank)


def canonical_correlations(pair: Pair, rank: int, ridge: float) -> Factors:
    """Into the k pairs of axes that correlate best, shrunk by their correlation, and out again.

    With D = (S^2 + lambda)^1/2 on both sides and the SVD D_s^-1 S_s U_s^T U_t S_t D_t^-1 = P rho R^T:
    W = V_s^T D_s^-1 P_k rho_k R_k^T D_t V_t. Axes are ordered by how well they are predicted, however little the target varies
    along them. Source: Hotelling, Biometrika 28 (1936); between networks, arXiv:1706.05806.
    """
    s, t = pair.source.values, pair.target.values
    d_s, d_t = _damped(pair.source, ridge), _damped(pair.target, ridge)
    p, rho, r = torch.linalg.svd(einsum(s / d_s, pair.coupling, t / d_t, "s, s t, t -> s t"), full_matrices=False)
    return _lifted(pair, (p / d_s[:, None]).T, rho, r * d_t, rank)


def _penalty(axes: Axes, ridge: float) -> Float[Tensor, ""]:
    """Lambda; a ridge strength is given in mean squared singular values of the axes that are spanned."""
    return ridge * reduce(axes.values**2, "s ->", "mean")


def _damped(axes: Axes, ridge: float) -> Float[Tensor, " rank"]:
    return (axes.values**2 + _penalty(axes, ridge)).sqrt()


def _lifted(pair: Pair, left: Tensor, core: Tensor, right: Tensor, rank: int) -> Factors:
    """Factors in the residual streams, of factors in principal axes whose core is diagonal."""
    return Factors(left[:rank] @ pair.source.vectors, torch.diag(core[:rank]), right[:rank] @ pair.target.vectors)


@dataclass(frozen=True)
class Method:
    """One way to make a map.

    Attributes:
        fit: gives the factors of one layer pair, for a rank and a ridge strength.
        default_rank: where no rank is asked for; None for all that the calibration tokens span.
        default_ridge: where no ridge strength is asked for; None where the method has no ridge.
        leading_axes: whether axes beyond the rank change nothing, so that they need not be computed.
        source_axes: whether the rank counts axes of the source alone.
    """

    fit: Callable[[Pair, int, float], Factors]
    default_rank: int | None
    default_ridge: float | None
    leading_axes: bool = False
    source_axes: bool = False

    def widest(self, source: int, target: int) -> int:
        """The largest rank that means anything, of what the tokens span in source and target."""
        return source if self.source_axes else min(source, target)

    def axes(self, rank: int | None) -> int | None:
        """How many principal axes a fit at this rank needs; None for all."""
        return rank if self.leading_axes else None


RANK = 256
"""The rank of a map where none is asked for, or what the calibration tokens span where that is less."""
METHODS: Mapping[str, Method] = {
    "unlock": Method(unlock, default_rank=RANK, default_ridge=None, leading_axes=True),
    "ridge": Method(ridge_regression, default_rank=None, default_ridge=1e-3, source_axes=True),
    "procrustes": Method(procrustes, default_rank=None, default_ridge=None),
    "rrr": Method(reduced_rank_regression, default_rank=RANK, default_ridge=1e-3),
    "cca": Method(canonical_correlations, default_rank=RANK, default_ridge=1e-3),
}


def check_method(method: str, rank: int | str | None, ridge: float | str | None) -> None:
    """Raise InvalidInput unless the method exists and takes this rank and ridge."""
    if method not in METHODS:
        raise InvalidInput(f"there is no method {method!r}; use one of {', '.join(METHODS)}")
    whole = isinstance(rank, Integral) and rank is not True
    if whole and int(rank or 0) < 1:
        raise InvalidInput(f"rank {rank} was given; at least 1 is needed")
    if rank not in (None, "auto", "cv") and not whole:
        raise InvalidInput(f'rank {rank!r} was given; give an integer, "auto", "cv", or None')
    if ridge is not None and METHODS[method].default_ridge is None:
        raise InvalidInput(f"ridge {ridge!r} was given, but the method {method!r} has none; use ridge, rrr or cca")
    if isinstance(ridge, str) and ridge != "cv":
        raise InvalidInput(f'ridge {ridge!r} was given; give a number, "cv", or None')
    if isinstance(ridge, int | float) and not 0 <= ridge < math.inf:
        raise InvalidInput(f"ridge {ridge} was given; it must be at least 0")


@dataclass(frozen=True, eq=False)
class FactoredMaps:
    """W[b] = left^T core right for each mapped target layer b, in the order of `layer_map`; zero beyond a layer's rank.

    For the paper's method they are V_s, M and V_t. Leading rows and leading blocks of the cores are the maps of smaller ranks.

    Attributes:
        layer_map: target layer -> source layer.
        source_factors: left.
        core: what joins them.
        target_factors: right.
        source_mean: mean of the source's states at the calibration tokens.
        target_mean: mean of the target's; for the paper's calibration, minus this is the anti-mean control.
    """

    layer_map: Mapping[int, int]
    source_factors: Float[Tensor, "layer k d_source"]
    core: Float[Tensor, "layer k k"]
    target_factors: Float[Tensor, "layer k d_target"]
    source_mean: Float[Tensor, "layer d_source"]
    target_mean: Float[Tensor, "layer d_target"]

    @classmethod
    def collected(
        cls, layer_map: Mapping[int, int], rank: int, fitted: Iterable[tuple[Factors, Tensor, Tensor]], dtype: torch.dtype
    ) -> FactoredMaps:
        """Factors and mean states of one layer after the other, each written to its place: no second copy of all is made.

        `rank` is a bound of all layers' ranks.
        """
        parts: list[Tensor] = []
        most = 0
        for i, (found, mean_s, mean_t) in enumerate(fitted):
            layer = (found.left, found.core, found.right, mean_s, mean_t)
            if not parts:
                shapes = ((rank, len(mean_s)), (rank, rank), (rank, len(mean_t)), mean_s.shape, mean_t.shape)
                parts = [torch.zeros(len(layer_map), *shape, dtype=dtype) for shape in shapes]
            for part, value in zip(parts, layer, strict=True):
                part[i][tuple(slice(size) for size in value.shape)] = value
            most = max(most, *found.core.shape)
        return cls(layer_map, *parts).at_rank(most)

    @property
    def rank(self) -> int:
        return self.core.shape[-1]

    @property
    def spanned(self) -> list[int]:
        """The rank of each layer's map: as many factors as the calibration tokens allow."""
        sides = [(factors != 0).any(dim=-1).sum(dim=-1) for factors in (self.source_factors, self.target_factors)]
        return torch.minimum(*sides).tolist()

    def dense(self, target_layer: int) -> Float[Tensor, "d_source d_target"]:
        """W[b] in full."""
        left, core, right = self._of(target_layer)
        return left.T @ core @ right

    def carry(self, target_layer: int, vector: Float[Tensor, " d_source"]) -> Float[Tensor, " d_target"]:
        """The transported vector, v_t[b] = v_s[a(b)] W[b], in float64 and without making W."""
        left, core, right = (part.double() for part in self._of(target_layer))
        return vector.double() @ left.T @ core @ right

    def carry_reader(
        self, target_layer: int, reader: Float[Tensor, " d_source"], relative_tolerance: float
    ) -> Float[Tensor, " d_target"]:
        """The transported reader, w_t = W[b]^+ w_s, in float64 and without making W.

        A reader is a covector, so it goes by the pseudo-inverse: <w_t, h W> = <w_s, h W W^+>, which is <w_s, h> for every h
        that the map carries without loss. Singular values of W below the tolerance, relative to the largest, count as zero:
        what they carry is noise, and their inverse would make most of it.
        """
        left, core, right = (part.double() for part in self._of(target_layer))
        (q_s, r_s), (q_t, r_t) = torch.linalg.qr(left.T), torch.linalg.qr(right.T)
        return q_t @ (torch.linalg.pinv(r_s @ core @ r_t.T, rtol=relative_tolerance) @ (q_s.T @ reader.double()))

    def singular_values(self, target_layer: int) -> Float[Tensor, " k"]:
        """Of W[b], in float64 and without making W."""
        left, core, right = (part.double() for part in self._of(target_layer))
        return torch.linalg.svdvals(torch.linalg.qr(left.T).R @ core @ torch.linalg.qr(right.T).R.T)

    def at_rank(self, rank: int) -> FactoredMaps:
        """The maps of a smaller rank."""
        return replace(
            self,
            source_factors=self.source_factors[:, :rank],
            core=self.core[:, :rank, :rank],
            target_factors=self.target_factors[:, :rank],
        )

    def tensors(self) -> dict[str, Tensor]:
        """By the names under which artifacts keep them."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def _of(self, target_layer: int) -> tuple[Tensor, Tensor, Tensor]:
        i = list(self.layer_map).index(target_layer)
        return self.source_factors[i], self.core[i], self.target_factors[i]
