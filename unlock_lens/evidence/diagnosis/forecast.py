"""A forecast before a long run: will this direction, through this map, unlock the target? (docs/diagnosis.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens.core import read
from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.contrast import Contrast
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.tokens import paired_tokens
from unlock_lens.core.variant import Variant
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.evidence.diagnosis.layers import LayerDiagnosis, layer_diagnosis
from unlock_lens.evidence.diagnosis.probe import Probe
from unlock_lens.evidence.diagnosis.reasons import ENOUGH_ABILITY, reasons_of, verdict_of
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.calibrate import SinkRule


@dataclass(frozen=True)
class Diagnosis:
    """The forecast.

    Attributes:
        score: from 0 (will not work) to 1; the ability factor times the probe's share, or times `geometry` without a probe.
        verdict: the score as a sentence.
        reasons: what stands in the way, in numbers, and what to do about it; then what was not looked at.
        layers: what was found at each target layer.
        geometry: mean over layers of coverage times agreement.
        rank: of the map.
        ability: as it was given.
        probe: as it was given.

    Source: docs/diagnosis.md.

    Example:
        >>> from unlock_lens.evidence.diagnosis import Diagnosis, LayerDiagnosis
        >>> told = Diagnosis(0.9, "Likely.", (), (LayerDiagnosis(0, 0, 0.9),), 0.9, rank=4)
        >>> Diagnosis.from_json(told.to_json()) == told
        True
    """

    score: float
    verdict: str
    reasons: tuple[str, ...]
    layers: tuple[LayerDiagnosis, ...]
    geometry: float
    rank: int
    ability: float | None = None
    probe: Probe | None = None

    def __str__(self) -> str:
        return "\n- ".join((self.verdict, *self.reasons))

    def to_json(self) -> dict[str, Any]:
        """As plain types, for `json.dump`."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Diagnosis:
        """What `to_json` gave, read back."""
        layers = tuple(LayerDiagnosis(**layer) for layer in told["layers"])
        probe = Probe.from_json(told["probe"]) if told.get("probe") else None
        read: dict[str, Any] = {**told, "reasons": tuple(told["reasons"]), "layers": layers, "probe": probe}
        return cls(**read)


def diagnose(
    direction: CapabilityDirection,
    aligner: SubspaceAligner,
    source: Variant | None = None,
    target: Variant | None = None,
    contrast: Contrast | None = None,
    own: CapabilityDirection | None = None,
    ability: float | None = None,
    *,
    source_acts: Float[Tensor, "layer_s n d_source"] | None = None,
    target_acts: Float[Tensor, "layer_t n d_target"] | None = None,
    probe: Probe | None = None,
    folds: int = 4,
    bootstraps: int = 20,
    max_tokens: int = 10_000,
    batch_size: int = 8,
) -> Diagnosis:
    """Forecast whether the transfer will work, from what is at hand before any generation.

    Args:
        direction: in the source's residual stream.
        aligner: fitted.
        source: the source with calibration texts; fresh ones like those of the fit are better.
        target: the target with the same texts.
        contrast: the source's differences, for stability.
        own: the target's own direction, where it can be had; it is reported and does not enter the score.
        ability: share of problems that the target can solve: prompted, or in pass@k with a check of the whole answer.
        source_acts: states of the calibration tokens at all layers, instead of `source`.
        target_acts: the same of the target.
        probe: `Probe.run(aligner.transport(direction), ...)`.
        folds: of the cross-validation.
        bootstraps: number of bootstrap directions.
        max_tokens: of more calibration tokens, as many are taken, evenly spaced.
        batch_size: texts in one forward pass.

    Raises:
        InvalidInput: an aligner that is not fitted, no layer in common, only one of source and target, unequal counts, too few
            texts for cross-validation, a number out of range.
        IncompatibleModel: a direction, variant or contrast of another model than the aligner's.

    Source: docs/diagnosis.md.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> from unlock_lens.evidence.diagnosis import diagnose
        >>> source, target = zoo.load("large-base"), zoo.load("small-base")
        >>> task, text = zoo.running_sum(n=50), zoo.text(n=200)
        >>> direction = ul.CapabilityDirection.extract(ul.Variant(source, task.direct), ul.Variant(source, task.think))
        >>> texts = ul.Variant(source, text), ul.Variant(target, text)
        >>> aligner = ul.SubspaceAligner(rank=48, centered=True, positions="all").fit(*texts)
        >>> diagnose(direction, aligner, *texts, ability=1.0).score > 0.7
        True
    """
    if ability is not None and not 0 <= ability <= 1:
        raise InvalidInput(f"ability {ability} was given; it is a share of problems, from 0 to 1")
    if bootstraps < 1 or max_tokens < 1:
        raise InvalidInput(f"bootstraps {bootstraps} and max_tokens {max_tokens} were given; each must be at least 1")
    direction = _in_source_space(direction, aligner)
    states = _states(aligner, (source, target), (source_acts, target_acts), max_tokens, batch_size)
    if contrast is not None:
        _check_width("contrast", contrast.differences.shape[-1], aligner.maps.source_factors.shape[-1])
        _check_model("contrast", contrast.model, aligner.source_model)
    if own is not None:
        _check_width("own direction", own.d_model, aligner.maps.target_factors.shape[-1])
        _check_model("own direction", own.model, aligner.target_model)
    layers = tuple(
        layer_diagnosis(direction, aligner, b, states, contrast, own, folds, bootstraps)
        for b, a in aligner.layer_map.items()
        if a in direction.layers
    )
    geometry = sum(layer.geometry for layer in layers) / len(layers)
    seen = geometry if probe is None or probe.share is None else probe.share
    score = seen * (1.0 if ability is None else min(1.0, ability / ENOUGH_ABILITY))
    reasons = reasons_of(layers, aligner.maps.rank, ability, probe)
    return Diagnosis(score, verdict_of(score, probe), reasons, layers, geometry, aligner.maps.rank, ability, probe)


def _in_source_space(direction: CapabilityDirection, aligner: SubspaceAligner) -> CapabilityDirection:
    maps, model = aligner.maps, aligner.source_model
    _check_width("direction", direction.d_model, maps.source_factors.shape[-1])
    _check_model("direction", direction.model, model)
    if not set(aligner.layer_map.values()) & set(direction.layers):
        raise InvalidInput(
            f"the direction has layers {list(direction.layers)}, the map reads layers "
            f"{sorted(set(aligner.layer_map.values()))}: none in common"
        )
    return direction.centered() if model is not None and model.basis == "centered" else direction


def _check_width(name: str, width: int, expected: int) -> None:
    if width != expected:
        raise InvalidInput(f"the {name} has d_model {width}, the aligner expects {expected}; give the one of its own model")


def _check_model(name: str, model: ModelIdentity | None, expected: ModelIdentity | None) -> None:
    if model is not None and expected is not None and not model.is_same_model(expected):
        raise IncompatibleModel(
            f"the {name} belongs to {model}, the aligner was fitted on {expected}; give the one of that model"
        )


_Variants = tuple[Variant | None, Variant | None]
_Given = tuple[Tensor | None, Tensor | None]


def _states(
    aligner: SubspaceAligner, variants: _Variants, given: _Given, max_tokens: int, batch_size: int
) -> tuple[Tensor, Tensor] | None:
    if given == (None, None) and variants == (None, None):
        return None
    if (given[0] is None) != (given[1] is None) or (variants[0] is None) != (variants[1] is None):
        raise InvalidInput("only one of source and target was given; the same texts through both are needed, or neither")
    if given[0] is not None and variants[0] is not None:
        raise InvalidInput("variants and activations were given; give source and target, or source_acts and target_acts")
    source, target = given
    if variants[0] is not None and variants[1] is not None:
        _check_model("source variant", variants[0].backend.identity, aligner.source_model)
        _check_model("target variant", variants[1].backend.identity, aligner.target_model)
        source, target = _captured(aligner, (variants[0], variants[1]), max_tokens, batch_size)
    if source is None or target is None:
        return None
    _check_states(source, target, aligner)
    kept = _spread(source.shape[1], max_tokens)
    states = source[:, kept], target[:, kept]
    rule = SinkRule.of(aligner.sinks, *(dict(enumerate(side)) for side in states))
    stays = rule.kept(*(dict(enumerate(side)) for side in states))
    tamed = [torch.stack([rule.tamed(i, b, h)[stays] for b, h in enumerate(side)]) for i, side in enumerate(states)]
    return tamed[0], tamed[1]


def _captured(
    aligner: SubspaceAligner, variants: tuple[Variant, Variant], max_tokens: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """States of both models at no more than `max_tokens` of the tokens that the aligner pairs."""
    tokens = paired_tokens(*variants, aligner.positions, aligner.skip_first)
    counts = [len(of_text) for of_text in tokens[0]]
    wanted = torch.zeros(sum(counts), dtype=torch.bool)
    wanted[_spread(len(wanted), max_tokens)] = True
    picks = wanted.split(counts)
    source, target = (
        read.states(
            read.Tokens(variant, [of_text[pick] for of_text, pick in zip(chosen, picks, strict=True)]), how=read.How(batch_size)
        )
        for variant, chosen in zip(variants, tokens, strict=True)
    )
    return source, target


def _spread(n: int, at_most: int) -> Int[Tensor, " kept"]:
    return torch.linspace(0, n - 1, min(at_most, n)).round().long()


def _check_states(source: Tensor, target: Tensor, aligner: SubspaceAligner) -> None:
    maps = aligner.maps
    _check_width("source's activations", source.shape[-1], maps.source_factors.shape[-1])
    _check_width("target's activations", target.shape[-1], maps.target_factors.shape[-1])
    if source.shape[1] != target.shape[1]:
        raise InvalidInput(
            f"{source.shape[1]} source and {target.shape[1]} target tokens were given; they must be the same tokens"
        )
    needed = max(aligner.layer_map.values()) + 1, max(aligner.layer_map) + 1
    if source.shape[0] < needed[0] or target.shape[0] < needed[1]:
        raise InvalidInput(
            f"activations of {source.shape[0]} source and {target.shape[0]} target layers were given, the map reaches "
            f"{needed[0]} and {needed[1]}; give all layers"
        )
