"""Contrast: the differences D_i[l] of two variants, kept so that many directions can be made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core import differences
from unlock_lens.core.direction import CapabilityDirection, Provenance, check_pair, provenance_of
from unlock_lens.core.read import How, check_layers
from unlock_lens.core.tokens import check_position
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.extract import Aggregator, aggregate_name, aggregated


@dataclass(frozen=True, eq=False)
class Contrast:
    """D_i[l] = h_unlocked,i[l] - h_locked,i[l] for every prompt i, so that a sweep over n, aggregates and layers captures once.

    Attributes:
        differences: float32 on the CPU; row i of a layer belongs to prompt i.
        layers: ascending.
        model: the locked variant's model.
        provenance: how the differences were made.

    Source: docs/method.md, section 1.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> from unlock_lens.core.contrast import Contrast
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=32)
        >>> contrast = Contrast.capture(ul.Variant(model, task.direct), ul.Variant(model, task.think))
        >>> contrast.first(8).direction().vectors.shape
        torch.Size([3, 64])
    """

    differences: Float[Tensor, "layer n d_model"]
    layers: tuple[int, ...]
    model: ModelIdentity
    provenance: Provenance

    @classmethod
    def capture(
        cls,
        locked: Variant,
        unlocked: Variant,
        layers: Sequence[int] | None = None,
        position: int = -1,
        batch_size: int = 8,
        progress: bool = True,
        resume: str | Path | None = None,
        wait: bool = True,
    ) -> Contrast:
        """Read both variants; arguments and errors are those of `CapabilityDirection.extract`."""
        check_pair(locked, unlocked)
        where = check_layers(layers, locked.backend.identity.n_layers)
        for variant in (locked, unlocked):
            check_position(variant, position)
        how = How(batch_size, resume, wait, progress)
        found = differences.differences(unlocked, locked, where, position, None, how)
        return cls.of_read(found, locked, unlocked, where, position)

    @classmethod
    def of_read(
        cls,
        differences: Float[Tensor, "layer n d_model"],
        locked: Variant,
        unlocked: Variant,
        layers: Sequence[int] | None = None,
        position: int = -1,
    ) -> Contrast:
        """The contrast of differences that were read before, by `capture` with the same arguments."""
        where, told = check_layers(layers, locked.backend.identity.n_layers), provenance_of(locked, unlocked, None, position)
        return cls(differences, where, locked.backend.identity, told)

    def __len__(self) -> int:
        return self.differences.shape[1]

    def direction(self, aggregate: Literal["mean", "pca"] | Aggregator = "mean") -> CapabilityDirection:
        """One vector for each layer, as from `CapabilityDirection.extract`.

        Raises:
            InvalidInput: the aggregate is unknown, or "pca" is asked of differences that do not vary.
        """
        vectors = torch.stack([aggregated(differences, aggregate) for differences in self.differences])
        told = replace(self.provenance, aggregate=aggregate_name(aggregate))
        return CapabilityDirection(vectors, self.layers, self.model.basis, self.model, told)

    def first(self, n: int) -> Contrast:
        """The contrast of the first n prompts.

        Raises:
            InvalidInput: n is less than 1, or more than there are prompts.
        """
        if not 1 <= n <= len(self):
            raise InvalidInput(f"{n} prompts were requested; this contrast has {len(self)}")
        return self._of(self.differences[:, :n], f"first {n} prompts", n)

    def resampled(self, seed: int) -> Contrast:
        """A contrast of the same number of prompts, drawn with replacement (the bootstrap)."""
        drawn = torch.randint(len(self), (len(self),), generator=torch.Generator().manual_seed(seed))
        return self._of(self.differences[:, drawn], f"bootstrap sample, seed {seed}", len(self))

    def _of(self, differences: Tensor, step: str, n: int) -> Contrast:
        return replace(self, differences=differences, provenance=replace(self.provenance.then(step), n_prompts=n))
