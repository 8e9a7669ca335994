"""Controls: directions that a real transfer must beat (docs/method.md, "Beyond the paper")."""

from __future__ import annotations

from dataclasses import replace

import torch

from unlock_lens import capture
from unlock_lens.direction import CapabilityDirection, Provenance
from unlock_lens.errors import IncompatibleModel
from unlock_lens.variant import Variant


def random_like(direction: CapabilityDirection, seed: int = 0) -> CapabilityDirection:
    """Isotropic random vectors of the same norms, at the same layers, for the same model.

    Example:
        >>> import torch
        >>> from unlock_lens import CapabilityDirection
        >>> from unlock_lens.controls import random_like
        >>> direction = CapabilityDirection(3 * torch.eye(1, 8), layers=(0,))
        >>> round(random_like(direction).vectors.norm().item(), 4)
        3.0
    """
    drawn = torch.randn(direction.vectors.shape, generator=torch.Generator().manual_seed(seed))
    return _with_vectors(direction, drawn, f"random control, seed {seed}")


def anti_mean(locked: Variant, like: CapabilityDirection, batch_size: int = 8) -> CapabilityDirection:
    """Minus the target's own mean locked state, "away from the locked state": it needs no source model at all.

    Args:
        locked: the target with the locked prompts.
        like: the direction to control for; layers and norms are taken from it.
        batch_size: prompts in one forward pass.

    Raises:
        IncompatibleModel: a target of another width or basis than the direction's.
    """
    target = locked.backend.identity
    if (target.d_model, target.basis) != (like.d_model, like.basis):
        raise IncompatibleModel(f"the direction has d_model {like.d_model}, basis {like.basis}; the target is {target}")
    return _with_vectors(like, -capture.mean_at_position(locked, like.layers, batch_size=batch_size), "anti-mean control")


def _with_vectors(like: CapabilityDirection, vectors: torch.Tensor, name: str) -> CapabilityDirection:
    scaled = vectors * (like.vectors.norm(dim=1) / vectors.norm(dim=1)).unsqueeze(1)
    return replace(like, vectors=scaled, provenance=Provenance(steps=(name,)))
