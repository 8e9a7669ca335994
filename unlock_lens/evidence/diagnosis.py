"""A forecast before a long run: will this direction, through this map, unlock the target? (docs/diagnosis.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from pydantic import TypeAdapter, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor

from unlock_lens.core import read
from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.contrast import Contrast
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.tokens import paired_tokens
from unlock_lens.core.variant import Variant
from unlock_lens.errors import IncompatibleModel, InvalidInput, plain
from unlock_lens.evidence import controls
from unlock_lens.evidence._map_quality import carried_over, cross_validate
from unlock_lens.evidence.probe import Probe
from unlock_lens.evidence.schema import in_words
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.calibrate import SinkRule
from unlock_lens.method.extract import AGGREGATORS, aggregated
from unlock_lens.method.linalg import coverage, principal_cosines, spectral_entropy, spectrum

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Diagnosis", "LayerDiagnosis", "diagnose"]

LIKELY, UNLIKELY = 0.5, 0.25
BROKEN = 1.05
"""Effective rank below which a map is a single axis, usually that of an attention sink."""
ENOUGH_ABILITY = 0.5
"""Share of problems that the target can solve above which ability is not an obstacle."""
NULLS = 9
"""Number of directions without a capability that a probe is compared with."""
_AGREED, _RANK_COSTS, _BEGAN = 0.6, 0.2, 0.5
_LOW: Mapping[str, tuple[float, str]] = {  # what is too low in a layer, and what to do about it
    "coverage": (
        0.8,
        "{missing:.0%} of the direction's squared norm at {where} lies outside what the calibration texts span at rank {rank}: "
        "raise the rank, or put locked and unlocked prompts among the texts.",
    ),
    "full_agreement": (
        _AGREED,
        "On held-out calibration tokens, whatever the rank, source and target agree with correlation {mean:.2f} at {where} on "
        "where the direction is active: put locked and unlocked prompts among the texts, or more texts; look at the layer map.",
    ),
    "stability": (
        0.9,
        "Directions of resampled prompts have cosine {mean:.2f} with this one at {where}: extract it from more prompt pairs.",
    ),
    "own_cosine": (
        0.5,
        "The transported direction has cosine {mean:.2f} with the target's own at {where}: steer only the other layers, or "
        "look at the layer map and the rank.",
    ),
}
_COLUMNS = {
    "coverage": "cover", "agreement": "agree", "full_agreement": "any", "r2": "R2", "error": "error", "own_cosine": "own",
    "stability": "stable", "principal_cosine": "angles", "source_rank": "dim s", "target_rank": "dim t",
}  # fmt: skip
_LEGEND = (
    "layer: source>target; cover: share of the direction inside the calibration span; agree: held-out correlation of source "
    "and target on it, at this rank and at any; R2, error: of the map, held out; own: cosine with the target's own; stable: "
    "cosine of bootstrap directions; angles: mean cosine between the spans; dim: effective ranks of source and target."
)


@dataclass(frozen=True)
class LayerDiagnosis:
    """The diagnosis of one target layer; None where the necessary input was not given.

    Attributes:
        target_layer, source_layer: the block whose output the direction goes to, and the block that it comes from.
        coverage: share of the direction's squared norm inside the source span at the rank used.
        agreement: held-out correlation of the source's reading of the direction with the target's of the transported one.
        full_agreement: the same without a limit on the rank, which is what the calibration texts allow.
        error, r2: held-out error of the map, ||H_t - H_s W|| / ||H_t||, and the share of the target's variance that it
            predicts.
        own_cosine: cosine of the transported direction with the target's own.
        stability: mean cosine of bootstrap directions with the full one.
        principal_cosine: mean cosine of the principal angles between the source's span, carried over, and the target's.
        map_rank: effective rank of the map itself.
        source_entropy, target_entropy: spectral entropy (nats) of the states; their effective rank is its exponential.
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
    map_rank: float | None = None

    @property
    def geometry(self) -> float:
        """Coverage times agreement; only coverage if no states were given."""
        return self.coverage * (1.0 if self.agreement is None else max(self.agreement, 0.0))


class Layers(tuple[LayerDiagnosis, ...]):
    """The layers of a forecast, which print as a table of what was measured."""

    def measured(self) -> list[str]:
        """The names of the numbers in the table."""
        return [name for name in _COLUMNS if any(getattr(layer, name) is not None for layer in self)]

    def frame(self) -> pd.DataFrame:
        """One row per target layer, every number in a column; what was not measured is missing."""
        import pandas as pd

        return pd.DataFrame([asdict(layer) for layer in self]).set_index("target_layer")

    def __repr__(self) -> str:
        names = self.measured()
        lines = [f"{'layer':>7}" + "".join(f"{_COLUMNS[name]:>8}" for name in names)]
        for layer in self:
            numbers = (getattr(layer, name) for name in names)
            cells = ("" if number is None else f"{number:.2f}" for number in numbers)
            lines.append(f"{f'{layer.source_layer}>{layer.target_layer}':>7}" + "".join(f"{cell:>8}" for cell in cells))
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The forecast; it prints as its verdict and reasons, and `layers` as a table.

    Attributes:
        score: from 0 (will not work) to 1: the ability factor times the probe's score or, without a probe, times `geometry`,
            which measures the map and not whether the transfer works.
        verdict: the score as a sentence.
        reasons: what stands in the way, in numbers, and what to do about it; then what was not looked at.
        layers: what was measured in each; `frame()` makes a data frame of it.
        geometry: mean over layers of coverage times agreement.
    """

    score: float
    verdict: str
    reasons: tuple[str, ...]
    layers: tuple[LayerDiagnosis, ...]
    geometry: float
    rank: int
    ability: float | None = None
    probe: Probe | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", Layers(self.layers))

    def __str__(self) -> str:
        return "\n- ".join((self.verdict, *self.reasons))

    __repr__ = __str__

    def frame(self) -> pd.DataFrame:
        """One row per target layer (`LayerDiagnosis`)."""
        return Layers(self.layers).frame()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, given: Any) -> Diagnosis:
        """Read what `to_json` returned.

        Raises:
            InvalidInput: it is not what `to_json` returned; the field is named.
        """
        try:
            return TypeAdapter(cls).validate_json(json.dumps(given, allow_nan=False), strict=True)
        except ValidationError as error:
            raise InvalidInput(f"this is not a diagnosis: {in_words(error.errors(include_url=False)[0])}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidInput(f"this is not a diagnosis: {plain(str(error), 200)}") from None


def diagnose(
    direction: CapabilityDirection,
    aligner: SubspaceAligner,
    source: Variant | None = None,
    target: Variant | None = None,
    contrast: Contrast | None = None,
    own: CapabilityDirection | None = None,
    ability: float | None = None,
    *,
    locked: Variant | None = None,
    unlocked: Variant | None = None,
    source_acts: Float[Tensor, "layer_s n d_source"] | None = None,
    target_acts: Float[Tensor, "layer_t n d_target"] | None = None,
    probe: Probe | None = None,
    folds: int = 4,
    bootstraps: int = 20,
    max_tokens: int = 10_000,
    batch_size: int = 8,
) -> Diagnosis:
    """Forecast whether the transfer will work, before anything is generated.

    Args:
        direction: a direction in the source's residual stream.
        aligner: a fitted aligner.
        source: the source with calibration texts; preferably new ones that are similar to those of the fit.
        target: the target with the same texts.
        contrast: the source's differences, for stability.
        own: the target's own direction, if known; it is reported and does not enter the score.
        ability: share of problems that the target can solve when prompted, or in pass@k with a check of the whole answer.
        locked: the target with locked prompts; 16 to 32 are enough. With `unlocked`, the transfer itself is probed (`Probe`),
            and compared with directions without a capability through the same map. Otherwise only the map is judged.
        unlocked: the source with the unlocked prompts of the same questions.
        source_acts: states of the calibration tokens at all layers, instead of `source`.
        target_acts: the same for the target.
        probe: an existing probe, instead of `locked` and `unlocked`.
        folds: number of cross-validation folds.
        bootstraps: number of bootstrap directions.
        max_tokens: at most this many calibration tokens are used, evenly spaced.
        batch_size: texts in one forward pass.

    Raises:
        InvalidInput: the aligner is not fitted, there is no layer in common, only one of source and target or of locked and
            unlocked is given, counts differ, there are too few texts for cross-validation, or a number is out of range.
        IncompatibleModel: a direction, variant or contrast belongs to a different model from the aligner's.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> source, target = zoo.load("large-base"), zoo.load("small-base")
        >>> task, text = zoo.running_sum(n=50), zoo.text(n=200)
        >>> direction = ul.CapabilityDirection.extract(ul.Variant(source, task.direct), ul.Variant(source, task.think))
        >>> texts = ul.Variant(source, text), ul.Variant(target, text)
        >>> aligner = ul.SubspaceAligner(rank=48).fit(*texts)
        >>> begins = {"locked": ul.Variant(target, task.direct[:16]), "unlocked": ul.Variant(source, task.think[:16])}
        >>> ul.diagnose(direction, aligner, *texts, ability=1.0, **begins).verdict.split(" (")[0]
        'The transfer is likely to work'
    """
    if ability is not None and not 0 <= ability <= 1:
        raise InvalidInput(f"ability {ability} was given; give a share of problems, from 0 to 1")
    if bootstraps < 1 or max_tokens < 1:
        raise InvalidInput(f"bootstraps {bootstraps} and max_tokens {max_tokens} were given; each must be at least 1")
    _check_belongs("direction", direction.d_model, direction.model, aligner, "source")
    mapped = sorted(set(aligner.layer_map.values()))
    if not set(mapped) & set(direction.layers):
        raise InvalidInput(f"the direction has layers {list(direction.layers)}, the map reads {mapped}: none in common")
    if aligner.source_model is not None and aligner.source_model.basis == "zero_mean":
        direction = direction.zero_mean()
    texts = [variant for variant in (source, target) if variant is not None]
    acts = [states for states in (source_acts, target_acts) if states is not None]
    states = _states(aligner, texts, acts, max_tokens, batch_size)
    if contrast is not None:
        _check_belongs("contrast", contrast.differences.shape[-1], contrast.model, aligner, "source")
    if own is not None:
        _check_belongs("own direction", own.d_model, own.model, aligner, "target")
    if (locked is None) != (unlocked is None):
        raise InvalidInput(
            "only one of locked and unlocked was given; a probe needs the target's locked and the source's unlocked"
        )
    if probe is None and locked is not None and unlocked is not None:
        probe = _probed(direction, aligner, locked, unlocked, states, batch_size)
    layers = tuple(
        _layer_diagnosis(direction, aligner, b, states, contrast, own, folds, bootstraps)
        for b, a in aligner.layer_map.items()
        if a in direction.layers
    )
    rank, geometry = aligner.maps.rank, fmean(layer.geometry for layer in layers)
    seen = geometry if probe is None or probe.score is None else probe.score
    if any(_is_broken(layer) for layer in layers):
        seen = min(seen, UNLIKELY / 2)
    score = seen * (1.0 if ability is None else min(1.0, ability / ENOUGH_ABILITY))
    reasons = (*_obstacles(layers, rank, ability, probe), *_not_looked_at(layers, ability, probe))
    return Diagnosis(score, _verdict(score, probe), reasons, layers, geometry, rank, ability, probe)


def _probed(
    direction: CapabilityDirection,
    aligner: SubspaceAligner,
    locked: Variant,
    unlocked: Variant,
    states: tuple[Tensor, Tensor] | None,
    batch_size: int,
) -> Probe:
    """The probe with null directions: noise and, if states are known, noise with their covariance."""
    kinds = [partial(controls.random_like, direction)]
    if states is not None:
        kinds.append(partial(controls.noise_of_states, direction, states[0]))
    nulls = [aligner.transport(kinds[seed % len(kinds)](seed)) for seed in range(NULLS)]
    source_locked = Variant(unlocked.model, locked.prompts, unlocked.add_special_tokens, unlocked.remote)
    return Probe.run(
        aligner.transport(direction), locked, unlocked, batch_size=batch_size, nulls=nulls, example=(direction, source_locked)
    )


def show(diagnosis: Diagnosis, console: Console) -> None:
    """The forecast as text: verdict, reasons, and a table of layers without columns that were not measured."""
    console.print(Text(diagnosis.verdict, style="bold"))
    for reason in diagnosis.reasons:
        console.print(Text(f"- {reason}"))
    measured = Layers(diagnosis.layers).measured()
    columns = [Column(title, no_wrap=True) for title in ("layer", *(_COLUMNS[name] for name in measured))]
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for layer in diagnosis.layers:
        values = (getattr(layer, name) for name in measured)
        shown = ("" if value is None else f"{value:.2f}" for value in values)
        table.add_row(f"{layer.source_layer}>{layer.target_layer}", *shown)
    console.print(table)
    console.print(Text(_LEGEND, style="dim"))


def _layer_diagnosis(
    direction: CapabilityDirection,
    aligner: SubspaceAligner,
    target_layer: int,
    states: tuple[Tensor, Tensor] | None,
    contrast: Contrast | None,
    own: CapabilityDirection | None,
    folds: int,
    bootstraps: int,
) -> LayerDiagnosis:
    b, a, i = target_layer, aligner.layer_map[target_layer], list(aligner.layer_map).index(target_layer)
    vector, maps, centered = direction.vectors[direction.layers.index(a)], aligner.maps, aligner.centered
    found: dict[str, float] = {"coverage": coverage(vector, maps.source_factors[i])}
    found["map_rank"] = exp(spectral_entropy(maps.singular_values(b)))
    if states:
        h_s, h_t = states[0][a], states[1][b]
        found |= asdict(cross_validate(h_s, h_t, vector, maps.rank, centered, folds, aligner.method, aligner.ridge_))
        carried = carried_over(h_s, h_t, maps.source_factors[i], centered)
        found["principal_cosine"] = float(principal_cosines(carried, maps.target_factors[i]).mean())
        for side, h in (("source", h_s), ("target", h_t)):
            entropy = spectral_entropy(spectrum(h, mean=h.double().mean(dim=0) if centered else None).values)
            found |= {f"{side}_entropy": entropy, f"{side}_rank": exp(entropy)}
    if own and b in own.layers:
        moved, wanted = aligner.transport(direction).at_layers([b]).vectors[0], own.vectors[own.layers.index(b)]
        found["own_cosine"] = float(torch.cosine_similarity(moved.double(), wanted.double(), dim=0))
    if contrast and a in contrast.layers:
        found["stability"] = _stability(direction, contrast, a, bootstraps)
    return LayerDiagnosis(b, a, **found)


def _stability(direction: CapabilityDirection, contrast: Contrast, layer: int, bootstraps: int) -> float:
    made = direction.provenance.aggregate or "mean"
    aggregate = made if made in AGGREGATORS else "mean"
    row = contrast.layers.index(layer)
    whole = aggregated(contrast.differences[row], aggregate).double()
    drawn = [aggregated(contrast.resampled(seed).differences[row], aggregate).double() for seed in range(bootstraps)]
    return float(torch.cosine_similarity(torch.stack(drawn), whole.unsqueeze(0), dim=1).mean())


def _check_belongs(name: str, width: int, model: ModelIdentity | None, aligner: SubspaceAligner, side: str) -> None:
    """Check that it has the model and width of that side of the aligner."""
    expected, d_model = getattr(aligner, f"{side}_model"), getattr(aligner.maps, f"{side}_factors").shape[-1]
    if model is not None and expected is not None and not model.is_same_model(expected):
        raise IncompatibleModel(f"the {name} belongs to {model}, the aligner was fitted on {expected}; give that one")
    if width != d_model:
        raise InvalidInput(f"the {name} has d_model {width}, but the aligner expects {d_model}; give that model's own")


def _states(
    aligner: SubspaceAligner, texts: Sequence[Variant], acts: Sequence[Tensor], max_tokens: int, batch_size: int
) -> tuple[Tensor, Tensor] | None:
    """States of source and target at the calibration tokens, [layer, n, d_model] each, without attention sinks."""
    if len(texts) == 1 or len(acts) == 1:
        raise InvalidInput("only one of source and target was given; the same texts through both are needed, or neither")
    if texts and acts:
        raise InvalidInput("both variants and activations were given; give source and target, or source_acts and target_acts")
    found = _captured(aligner, texts[0], texts[1], max_tokens, batch_size) if texts else acts
    if not found:
        return None
    _check_states(found[0], found[1], aligner)
    kept = _spread(found[0].shape[1], max_tokens)
    by_layer = [dict(enumerate(side[:, kept])) for side in found]
    rule = SinkRule.of(aligner.sinks, *by_layer)
    stays = rule.kept(by_layer[0], by_layer[1])
    source, target = (torch.stack([rule.tamed(i, b, h)[stays] for b, h in side.items()]) for i, side in enumerate(by_layer))
    return source, target


def _captured(aligner: SubspaceAligner, source: Variant, target: Variant, max_tokens: int, batch_size: int) -> Sequence[Tensor]:
    """States of both models at no more than `max_tokens` of the tokens that the aligner pairs."""
    sides = {"source": source, "target": target}
    for side, variant in sides.items():
        _check_belongs(f"{side} variant", variant.backend.identity.d_model, variant.backend.identity, aligner, side)
    tokens = paired_tokens(source, target, aligner.positions, aligner.skip_first)
    counts = [len(of_text) for of_text in tokens[0]]
    wanted = torch.zeros(sum(counts), dtype=torch.bool)
    wanted[_spread(len(wanted), max_tokens)] = True
    picks = wanted.split(counts)
    return [
        read.states(read.Picked(variant, [of[pick] for of, pick in zip(chosen, picks, strict=True)]), how=read.How(batch_size))
        for variant, chosen in zip(sides.values(), tokens, strict=True)
    ]


def _spread(n: int, at_most: int) -> Int[Tensor, " kept"]:
    return torch.linspace(0, n - 1, min(at_most, n)).round().long()


def _check_states(source: Tensor, target: Tensor, aligner: SubspaceAligner) -> None:
    if source.shape[1] != target.shape[1]:
        raise InvalidInput(f"{source.shape[1]} source and {target.shape[1]} target tokens were given; give the same tokens")
    for side, mapped, states in (("source", aligner.layer_map.values(), source), ("target", aligner.layer_map.keys(), target)):
        _check_belongs(f"{side}'s activations", states.shape[-1], None, aligner, side)
        if states.shape[0] <= max(mapped):
            raise InvalidInput(
                f"activations of {states.shape[0]} {side} layers were given, the map reaches {max(mapped) + 1}; give all layers"
            )


def _verdict(score: float, probe: Probe | None) -> str:
    if probe is None or probe.score is None:
        quality = "good" if score >= LIKELY else "fair" if score >= UNLIKELY else "poor"
        return f"The map is {quality} (score {score:.2f}, by geometry alone); only a probe says whether the transfer works."
    forecast = "likely to work" if score >= LIKELY else "uncertain" if score >= UNLIKELY else "unlikely to work"
    return f"The transfer is {forecast} (score {score:.2f}, by what a probe saw)."


def _obstacles(layers: Sequence[LayerDiagnosis], rank: int, ability: float | None, probe: Probe | None) -> list[str]:
    """Obstacles, most serious first."""
    found: list[str] = []
    if ability is not None and ability < ENOUGH_ABILITY:
        found.append(
            f"The target solves {ability:.0%} of the problems even when it is asked to, or tries several times: steering "
            "unlocks what is there and adds nothing; choose a target that saw the capability in training, or easier problems."
        )
    if broken := [layer for layer in layers if _is_broken(layer)]:
        found.append(
            f"The map has effective rank 1 at {_named(broken)} and is broken there, usually because a few tokens of huge norm "
            'outweigh all others. Drop them with sinks="drop" or skip_first=True.'
        )
    if probe is not None and probe.share and probe.minus is not None and probe.minus >= probe.share:
        found.append(
            f"Minus the direction does as well ({probe.minus:.0%}), so the strength changes the first token, and not the "
            "direction."
        )
    if probe is not None and probe.share and (equal := sum(null >= probe.share for null in probe.nulls)):
        found.append(
            f"{equal} of {len(probe.nulls)} directions without a capability, through the same map, give the first tokens as "
            f"often as this one ({probe.share:.0%}), so a gain could not be credited to the source."
        )
    found += _low(layers, rank, ("coverage", "full_agreement"))
    if costly := [layer for layer in layers if _loses_by_rank(layer)]:
        found.append(
            f"At rank {rank} they agree with correlation {_mean(costly, 'agreement'):.2f} at {_named(costly)}, where the texts "
            f"allow {_mean(costly, 'full_agreement'):.2f}: raise the rank."
        )
    if probe is not None and probe.share is not None and probe.share < _BEGAN:
        strengths = ", ".join(f"{alpha:g}" for alpha, _ in probe.by_alpha)
        found.append(
            f"Steered at strength {strengths}, the target begins as the unlocked model does in at most {probe.share:.0%} of "
            f"the {probe.n_differing} prompts where that differs from what it does unsteered: mend the calibration before any "
            "sweep, or try strengths between and beyond these."
        )
    found += _low(layers, rank, ("stability", "own_cosine"))
    return found or ["Nothing that was looked at stands in the way."]


def _is_broken(layer: LayerDiagnosis) -> bool:
    """Whether the map sends everything to one axis."""
    return layer.map_rank is not None and layer.map_rank < BROKEN


def _low(layers: Sequence[LayerDiagnosis], rank: int, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        limit, text = _LOW[name]
        if low := [layer for layer in layers if (value := getattr(layer, name)) is not None and value < limit]:
            mean = _mean(low, name)
            yield text.format(mean=mean, missing=1 - mean, where=_named(low), rank=rank)


def _loses_by_rank(layer: LayerDiagnosis) -> bool:
    full, limited = layer.full_agreement, layer.agreement
    return full is not None and limited is not None and full >= _AGREED and full - limited > _RANK_COSTS


def _not_looked_at(layers: Sequence[LayerDiagnosis], ability: float | None, probe: Probe | None) -> Iterator[str]:
    if all(layer.agreement is None for layer in layers):
        yield "Not examined: whether the models agree on the direction, which says most of all; give source and target texts."
    if ability is None:
        yield "Not examined: whether the target can do it at all; give ability, its pass@k or its share when prompted."
    if probe is None:
        yield "Not examined: how the steered target begins, which alone says whether it works; give locked and unlocked."
    elif probe.share is None:
        yield f"The probe saw nothing: {probe.skipped}."


def _mean(layers: Sequence[LayerDiagnosis], name: str) -> float:
    return fmean(getattr(layer, name) for layer in layers)


def _named(layers: Sequence[LayerDiagnosis]) -> str:
    """As in: layer 3; layers 0-2, 5."""
    numbers = enumerate(sorted(layer.target_layer for layer in layers))
    runs = [[layer for _, layer in run] for _, run in groupby(numbers, key=lambda pair: pair[1] - pair[0])]
    spans = ", ".join("-".join(str(end) for end in sorted({run[0], run[-1]})) for run in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {spans}"
