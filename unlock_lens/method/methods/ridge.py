"""Affine stitching: W = argmin ||H_s W - H_t||^2 + lambda ||W||^2 = V_s^T (S_s^2 + lambda)^-1 S_s U_s^T U_t S_t V_t.

With centred states the affine part is the difference of the means, which a direction does not feel. Rank k keeps the source's
leading k principal components (principal component regression); the target keeps all of its own.

Source: model stitching (Lenc and Vedaldi, arXiv:1411.5908; Bansal et al., arXiv:2106.07682); Hoerl and Kennard,
Technometrics 12 (1970).
"""

from __future__ import annotations

from unlock_lens.method.methods.base import Factors, Method, Pair, diagonal


def fit(pair: Pair, rank: int, ridge: float) -> Factors:
    """Shapes and meaning: `Method.fit`."""
    values = pair.source.values[:rank]
    predicted = (pair.coupling[:rank] * pair.target.values) @ pair.target.vectors
    return Factors(pair.source.vectors[:rank], diagonal(values / (values**2 + pair.penalty(ridge))), predicted)


METHOD = Method("ridge", fit, default_rank=None, default_ridge=1e-3, source_axes=True)
