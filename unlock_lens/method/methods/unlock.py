"""The paper's map: W = V_s^T M V_t, M = pinv(H_s V_s^T) (H_t V_t^T) = S_s^-1 U_s^T U_t S_t, both subspaces cut at rank k.

Least squares between the leading principal components of both models: each side's choice of axes ignores the other.

Source: arXiv:2604.06377; docs/method.md, section 2.
"""

from __future__ import annotations

from unlock_lens.method.methods.base import Factors, Method, Pair


def fit(pair: Pair, rank: int, ridge: float) -> Factors:
    """Shapes and meaning: `Method.fit`."""
    source, target = pair.source, pair.target
    core = pair.coupling[:rank, :rank] * target.values[:rank] / source.values[:rank, None]
    return Factors(source.vectors[:rank], core, target.vectors[:rank])


METHOD = Method("unlock", fit, default_rank=16, default_ridge=None, leading_axes=True)
