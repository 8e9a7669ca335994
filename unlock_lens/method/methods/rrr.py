"""Reduced-rank regression: the best rank-k map in the regression sense, argmin over rank(W) <= k of ||H_s W - H_t||^2.

With D = (S_s^2 + lambda)^1/2 and the SVD D^-1 S_s U_s^T U_t S_t = P Sigma R^T: W = V_s^T D^-1 P_k Sigma_k R_k^T V_t. Axes are
ordered by how much of the target they predict, where the paper's are ordered by how much each model varies along them.

Source: Izenman, Journal of Multivariate Analysis 5 (1975); with ridge, Mukherjee and Zhu, Statistical Analysis and Data Mining
4 (2011).
"""

from __future__ import annotations

import torch

from unlock_lens.method.methods.base import Factors, Method, Pair, diagonal, lifted


def fit(pair: Pair, rank: int, ridge: float) -> Factors:
    """Shapes and meaning: `Method.fit`."""
    values = pair.source.values
    scale = (values**2 + pair.penalty(ridge)).sqrt()
    left, sigma, right = torch.linalg.svd((values / scale)[:, None] * pair.coupling * pair.target.values, full_matrices=False)
    return lifted(pair, (left / scale[:, None]).T, diagonal(sigma[:rank]), right, rank)


METHOD = Method("rrr", fit, default_rank=16, default_ridge=1e-3)
