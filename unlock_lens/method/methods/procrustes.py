"""Orthogonal Procrustes with scale: W = c P R^T, from the SVD H_s^T H_t = P Sigma R^T, c = tr(Sigma) / ||H_s||^2.

The rotation (between unlike widths: partial isometry) that brings the source's states nearest to the target's, then one scale
for all axes: it cannot shrink what it does not understand. Rank k keeps the leading k pairs of axes, at the same scale.

Source: Schoenemann, Psychometrika 31 (1966); with scale, Schoenemann and Carroll, Psychometrika 35 (1970).
"""

from __future__ import annotations

import torch

from unlock_lens.method.methods.base import Factors, Method, Pair, diagonal, lifted


def fit(pair: Pair, rank: int, ridge: float) -> Factors:
    """Shapes and meaning: `Method.fit`."""
    cross = pair.source.values[:, None] * pair.coupling * pair.target.values
    left, sigma, right = torch.linalg.svd(cross, full_matrices=False)
    scale = sigma.sum() / pair.source.values.square().sum()
    return lifted(pair, left.T, diagonal(scale.expand(min(rank, len(sigma)))), right, rank)


METHOD = Method("procrustes", fit, default_rank=None, default_ridge=None)
