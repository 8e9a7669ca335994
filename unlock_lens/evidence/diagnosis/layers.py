"""One target layer of a forecast: what is measured there (docs/diagnosis.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.contrast import Contrast
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.evidence.diagnosis.map_quality import carried_over, cross_validate
from unlock_lens.method.extract import AGGREGATORS, aggregated
from unlock_lens.method.linalg import coverage, principal_cosines, spectral_entropy, spectrum


@dataclass(frozen=True)
class LayerDiagnosis:
    """One target layer; None where what it needs was not given.

    Attributes:
        target_layer: output of that block, to which the direction goes.
        source_layer: output of that block, from which it comes.
        coverage: share of the direction's squared norm inside the source span at the rank used.
        agreement: held-out correlation of the source's reading of the direction with the target's of the transported one.
        full_agreement: the same with no limit of rank: what the calibration texts allow.
        error: held-out relative error of the map.
        r2: held-out share of the target's variance that the map predicts.
        own_cosine: cosine of the transported direction with the target's own.
        stability: mean cosine of bootstrap directions with the full one.
        principal_cosine: mean cosine of the principal angles between the source's span, carried over, and the target's.
        source_entropy: spectral entropy (nats) of the source's states.
        source_rank: their effective rank, its exponential.
        target_entropy: spectral entropy (nats) of the target's states.
        target_rank: their effective rank.

    Source: docs/diagnosis.md.

    Example:
        >>> from unlock_lens.evidence.diagnosis import LayerDiagnosis
        >>> LayerDiagnosis(target_layer=0, source_layer=0, coverage=0.5, agreement=0.8).geometry
        0.4
    """

    target_layer: int
    source_layer: int
    coverage: float
    agreement: float | None = None
    full_agreement: float | None = None
    error: float | None = None
    r2: float | None = None
    own_cosine: float | None = None
    stability: float | None = None
    principal_cosine: float | None = None
    source_entropy: float | None = None
    source_rank: float | None = None
    target_entropy: float | None = None
    target_rank: float | None = None

    @property
    def geometry(self) -> float:
        """Coverage times agreement; coverage alone where no states were given."""
        return self.coverage * (1.0 if self.agreement is None else max(self.agreement, 0.0))


def layer_diagnosis(
    direction: CapabilityDirection,
    aligner: SubspaceAligner,
    target_layer: int,
    states: tuple[Tensor, Tensor] | None = None,
    contrast: Contrast | None = None,
    own: CapabilityDirection | None = None,
    folds: int = 4,
    bootstraps: int = 20,
) -> LayerDiagnosis:
    """Measure one layer; `states` are those of source and target at the calibration tokens, [layer, n, d_model] each.

    Raises:
        InvalidInput: too few tokens for the cross-validation.
    """
    b, a = target_layer, aligner.layer_map[target_layer]
    vector = direction.vectors[direction.layers.index(a)]
    source_factors = aligner.maps.source_factors[list(aligner.layer_map).index(b)]
    return LayerDiagnosis(
        target_layer=b,
        source_layer=a,
        coverage=coverage(vector, source_factors),
        own_cosine=_own_cosine(aligner.transport(direction).at_layers([b]).vectors[0], own, b)
        if own and b in own.layers
        else None,
        stability=_stability(direction, contrast, a, bootstraps) if contrast and a in contrast.layers else None,
        **(_of_states(vector, aligner, b, states[0][a], states[1][b], folds) if states else {}),
    )


def _own_cosine(moved: Tensor, own: CapabilityDirection, layer: int) -> float:
    return float(torch.cosine_similarity(moved.double(), own.vectors[own.layers.index(layer)].double(), dim=0))


def _of_states(
    vector: Tensor, aligner: SubspaceAligner, target_layer: int, source: Tensor, target: Tensor, folds: int
) -> dict[str, float]:
    maps, centered = aligner.maps, aligner.centered
    i = list(maps.layer_map).index(target_layer)
    carried = carried_over(source, target, maps.source_factors[i], centered)
    spectra = [spectrum(h, mean=h.double().mean(dim=0) if centered else None).values for h in (source, target)]
    entropies = torch.tensor([spectral_entropy(values) for values in spectra], dtype=torch.float64)
    ranks = entropies.exp()
    return {
        **asdict(cross_validate(source, target, vector, maps.rank, centered, folds, aligner.method, aligner.ridge_in_use)),
        "principal_cosine": float(principal_cosines(carried, maps.target_factors[i]).mean()),
        "source_entropy": float(entropies[0]),
        "source_rank": float(ranks[0]),
        "target_entropy": float(entropies[1]),
        "target_rank": float(ranks[1]),
    }


def _stability(direction: CapabilityDirection, contrast: Contrast, layer: int, bootstraps: int) -> float:
    made = direction.provenance.aggregate or "mean"
    aggregate = made if made in AGGREGATORS else "mean"
    row = contrast.layers.index(layer)
    whole = aggregated(contrast.differences[row], aggregate).double()
    drawn = [aggregated(contrast.resampled(seed).differences[row], aggregate).double() for seed in range(bootstraps)]
    return float(torch.cosine_similarity(torch.stack(drawn), whole.unsqueeze(0), dim=1).mean())
