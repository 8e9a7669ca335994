"""Canonical correlations: into the k pairs of axes that correlate best, shrunk by their correlation, and out again.

With D = (S^2 + lambda)^1/2 on both sides and the SVD D_s^-1 S_s U_s^T U_t S_t D_t^-1 = P rho R^T:
W = V_s^T D_s^-1 P_k rho_k R_k^T D_t V_t. It is reduced-rank regression with the target whitened: axes are ordered by how well
they are predicted, however little the target varies along them.

Source: Hotelling, Biometrika 28 (1936); as a special case of reduced-rank regression, Izenman, Journal of Multivariate Analysis
5 (1975); between networks, Raghu et al., arXiv:1706.05806.
"""

from __future__ import annotations

import torch

from unlock_lens.method.methods.base import Factors, Method, Pair, diagonal, lifted


def fit(pair: Pair, rank: int, ridge: float) -> Factors:
    """Shapes and meaning: `Method.fit`."""
    s, t = pair.source.values, pair.target.values
    d_s = (s**2 + pair.penalty(ridge)).sqrt()
    d_t = (t**2 + ridge * t.square().mean()).sqrt()
    left, rho, right = torch.linalg.svd((s / d_s)[:, None] * pair.coupling * (t / d_t), full_matrices=False)
    return lifted(pair, (left / d_s[:, None]).T, diagonal(rho[:rank]), right * d_t, rank)


METHOD = Method("cca", fit, default_rank=16, default_ridge=1e-3)
