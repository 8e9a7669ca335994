"""Linear algebra that the method is built on: one spectrum, one running Gram matrix, subspaces and their angles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

RELATIVE_TOLERANCE = 1e-6
"""Singular values below this share of the largest are noise of float32 activations, and are cut."""
NOISE = 1e-7
"""States that vary by less than this share of their mean do not vary: float32 resolves no more."""
TINY = 1e-30
"""Keeps a quotient of sums of squares finite."""
_BLOCKS = 8


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The thin SVD H = U S V in float64; the factors of a smaller rank are its leading rows.

    Attributes:
        values: singular values S, descending, only those above the tolerance.
        vectors: right singular vectors V, as rows.
        scores: H V^T = U S.
    """

    values: Float[Tensor, " rank"]
    vectors: Float[Tensor, "rank d_model"]
    scores: Float[Tensor, "n rank"]


def spectrum(
    states: Float[Tensor, "n d_model"],
    rank: int | None = None,
    mean: Float[Tensor, " d_model"] | None = None,
    exact: bool = False,
) -> Spectrum:
    """The leading `rank` factors of H, or all that it spans, from the smaller of its two Gram matrices.

    H are the states, or their distances from `mean`. They are widened to float64 only while they are multiplied.

    A Gram matrix squares the condition number; what is below a millionth of the largest singular value is cut, as noise of
    activations that were computed in half or single precision. `exact` takes the SVD, for states that are better than that.
    """

    def h() -> Tensor:  # a server evaluates the annotations of nested functions, and may lack jaxtyping
        return widened(states, mean)

    if exact:
        u, values, vectors = torch.linalg.svd(h(), full_matrices=False)
        kept = int((values > max(states.shape) * torch.finfo(values.dtype).eps * values[0]).sum())
        values, vectors = values[:kept][:rank], vectors[:kept][:rank]
        return Spectrum(values, vectors, u[:, : len(values)] * values)
    if states.shape[0] >= states.shape[1]:
        values, vectors = spectrum_of_gram(_upper_gram(h().T), rank)
        return Spectrum(values, vectors, h() @ vectors.T)
    values, u = spectrum_of_gram(_upper_gram(h()), rank)
    return Spectrum(values, (u @ h()) / values[:, None], u.T * values)


def spectrum_of_gram(
    gram: Float[Tensor, "d d"], rank: int | None = None
) -> tuple[Float[Tensor, " rank"], Float[Tensor, "rank d"]]:
    """Singular values of H, descending, and the eigenvectors of H^T H as rows; only the upper triangle is read."""
    squared, vectors = torch.linalg.eigh(gram, UPLO="U")
    values = squared.flip(0)[:rank].clamp_min(0).sqrt()
    values = values[values > RELATIVE_TOLERANCE * values[0]]
    leading = vectors[:, len(gram) - len(values) :].flip(1)  # a copy: a view would keep all eigenvectors
    return values, leading.T


def _upper_gram(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """The upper triangle of rows rows^T (the rest is not computed, which nearly halves the work)."""
    gram = rows.new_zeros(len(rows), len(rows))
    size = max(1, len(rows) // _BLOCKS)
    for start in range(0, len(rows), size):
        gram[start : start + size, start:] = rows[start : start + size] @ rows[start:].T
    return gram


def widened(states: Float[Tensor, "n d_model"], mean: Float[Tensor, " d_model"] | None = None) -> Float[Tensor, "n d_model"]:
    """The states, or their distances from a point, in float64: one new tensor, and no other beside it."""
    h = states.to(torch.float64, copy=True)
    return h if mean is None else h.sub_(mean)


@dataclass(eq=False)
class Gram:
    """sum_i x_i y_i^T of pairs of rows that come in batches, in float64, on the device where they are.

    With y = x it is a Gram matrix, otherwise a cross-Gram matrix. What is summed are distances from an origin near the mean, so
    that nothing cancels.

    Attributes:
        n: number of pairs.
        products: sum_i (x_i - origin_x) (y_i - origin_y)^T.
        sum_x, sum_y: sums of the same distances.
        origin_x, origin_y: the origin.
    """

    n: int
    products: Float[Tensor, "d_x d_y"]
    sum_x: Float[Tensor, " d_x"]
    sum_y: Float[Tensor, " d_y"]
    origin_x: Float[Tensor, " d_x"]
    origin_y: Float[Tensor, " d_y"]

    @classmethod
    def around(cls, origin_x: Float[Tensor, " d_x"], origin_y: Float[Tensor, " d_y"] | None = None) -> Gram:
        """Of no rows yet."""
        origin_x = origin_x.double()
        origin_y = origin_x if origin_y is None else origin_y.double()
        products = origin_x.new_zeros(len(origin_x), len(origin_y))
        return cls(0, products, torch.zeros_like(origin_x), torch.zeros_like(origin_y), origin_x, origin_y)

    @classmethod
    def of(cls, x: Float[Tensor, "n d_x"], y: Float[Tensor, "n d_y"]) -> Gram:
        """Of rows that are all there, around zero."""
        found = cls.around(x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1]))
        found.add(x, y)
        return found

    def add(self, x: Float[Tensor, "n d_x"], y: Float[Tensor, "n d_y"] | None = None) -> None:
        """More pairs of rows; without y, of x with itself."""
        x_apart = x.double() - self.origin_x
        y_apart = x_apart if y is None else y.double() - self.origin_y
        self.n += len(x)
        self.sum_x += x_apart.sum(dim=0)
        self.sum_y += y_apart.sum(dim=0)
        self.products.addmm_(x_apart.T, y_apart)

    def __sub__(self, other: Gram) -> Gram:
        """Without some of the pairs; both have one origin."""
        return replace(
            self,
            n=self.n - other.n,
            products=self.products - other.products,
            sum_x=self.sum_x - other.sum_x,
            sum_y=self.sum_y - other.sum_y,
        )

    @property
    def mean_x(self) -> Float[Tensor, " d_x"]:
        return self.origin_x + self.sum_x / self.n

    def to(self, device: torch.device) -> Gram:
        """The same sums on another device."""
        moved = {name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **moved)

    def about(self, p: Float[Tensor, " d_x"], q: Float[Tensor, " d_y"] | None = None) -> Float[Tensor, "d_x d_y"]:
        """sum_i (x_i - p) (y_i - q)^T; without q, about p on both sides."""
        shift_x, shift_y = self.origin_x - p, self.origin_y - (p if q is None else q)
        seen = torch.addr(self.products, self.sum_x + self.n * shift_x, shift_y)
        return seen.addr_(shift_x, self.sum_y)


def coverage(vector: Float[Tensor, " d_model"], factors: Float[Tensor, "rank d_model"]) -> float:
    """Share of a vector's squared norm inside the span of the rows; rows of zeros do not count."""
    basis, v = _basis(torch.nn.functional.normalize(factors, dim=1)), vector.double()
    return min(1.0, float((basis @ v).square().sum() / v.square().sum()))


def principal_cosines(a: Float[Tensor, "rank_a d_model"], b: Float[Tensor, "rank_b d_model"]) -> Float[Tensor, " angle"]:
    """Cosines of the principal angles between the spans of the rows of a and of b, descending; rows of zeros do not count."""
    return torch.linalg.svdvals(_basis(a) @ _basis(b).T).clamp(0, 1)


def _basis(rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "rank d_model"]:
    return spectrum(rows).vectors


def spectral_entropy(values: Float[Tensor, " rank"]) -> float:
    """Entropy (nats) of the shares of variance of singular values; its exponential is the effective rank.

    Example:
        >>> import torch
        >>> from unlock_lens.method.linalg import spectral_entropy
        >>> round(spectral_entropy(torch.ones(4)), 4)  # four equal axes: log 4
        1.3863
    """
    shares = values.double().square() / values.double().square().sum().clamp_min(TINY)
    return float(torch.special.entr(shares).sum())


def projected_out(
    vectors: Float[Tensor, "layer d_model"], axes: Float[Tensor, "layer d_model"]
) -> tuple[Float[Tensor, "layer d_model"], list[int]]:
    """V - <v, u> u with u = w / ||w||, for each row; and the rows of which nothing is left."""
    v, u = vectors.double(), torch.nn.functional.normalize(axes.double(), dim=1)
    left = v - einsum(v, u, u, "layer d, layer d, layer e -> layer e")
    gone = left.norm(dim=1) <= 1e-6 * v.norm(dim=1)
    return left.to(vectors), gone.nonzero().flatten().tolist()
