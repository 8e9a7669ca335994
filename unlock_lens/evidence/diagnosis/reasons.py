"""A forecast in words: what stands in the way, in numbers, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from unlock_lens.evidence.diagnosis.layers import LayerDiagnosis
from unlock_lens.evidence.diagnosis.probe import Probe

LIKELY, UNLIKELY = 0.5, 0.25
ENOUGH_ABILITY = 0.5
"""Share of problems within the target's reach from which on ability stands in the way no more."""

_COVERED, _AGREED, _RANK_COSTS, _STABLE, _LIKE_OWN, _BEGAN = 0.8, 0.6, 0.2, 0.9, 0.5, 0.5


def verdict_of(score: float, probe: Probe | None) -> str:
    """The score as a sentence."""
    seen = probe is not None and probe.share is not None
    told = "what a probe saw" if seen else "geometry alone: a probe is much surer"
    forecast = "likely to work" if score >= LIKELY else "uncertain" if score >= UNLIKELY else "unlikely to work"
    return f"The transfer is {forecast} (score {score:.2f}, by {told})."


def reasons_of(layers: Sequence[LayerDiagnosis], rank: int, ability: float | None, probe: Probe | None) -> tuple[str, ...]:
    """What stands in the way, the gravest first; then what was not looked at."""
    found = (*_of_ability(ability), *_of_calibration(layers, rank), *_of_probe(probe), *_of_directions(layers))
    return (*(found or ("Nothing that was looked at stands in the way.",)), *_not_looked_at(layers, ability, probe))


def _of_ability(ability: float | None) -> Iterator[str]:
    if ability is not None and ability < ENOUGH_ABILITY:
        yield (
            f"The target solves {ability:.0%} of the problems even when it is asked to, or tries several times: steering "
            "unlocks what is there and adds nothing; choose a target that saw the capability in training, or easier problems."
        )


def _of_probe(probe: Probe | None) -> Iterator[str]:
    if probe is None or probe.share is None or probe.share >= _BEGAN:
        return
    strengths = ", ".join(f"{alpha:g}" for alpha, _ in probe.by_alpha)
    yield (
        f"Steered at strength {strengths}, the target begins as the unlocked model does in at most {probe.share:.0%} of the "
        f"{probe.n_differing} prompts where that differs from what it does unsteered: mend the calibration before any sweep, "
        "or try strengths between and beyond these."
    )


def _of_calibration(layers: Sequence[LayerDiagnosis], rank: int) -> Iterator[str]:
    outside, where = _which(layers, lambda layer: layer.coverage, lambda layer: layer.coverage < _COVERED)
    if where:
        yield (
            f"{1 - outside:.0%} of the direction's squared norm at {where} lies outside what the calibration texts span at "
            f"rank {rank}: raise the rank, or add texts that show the behaviour."
        )
    poor, where = _which(layers, lambda layer: layer.full_agreement, lambda layer: _below(layer.full_agreement, _AGREED))
    if where:
        yield (
            f"On held-out calibration tokens, whatever the rank, source and target agree with correlation {poor:.2f} at "
            f"{where} on where the direction is active: "
            "add texts that show the behaviour, and more of them; look at the layer map."
        )
    lost, where = _which(layers, lambda layer: layer.agreement, _loses_by_rank)
    if where:
        allowed, _ = _which(layers, lambda layer: layer.full_agreement, _loses_by_rank)
        yield (
            f"At rank {rank} they agree with correlation {lost:.2f} at {where}, where the texts allow {allowed:.2f}: "
            "raise the rank."
        )


def _of_directions(layers: Sequence[LayerDiagnosis]) -> Iterator[str]:
    loose, where = _which(layers, lambda layer: layer.stability, lambda layer: _below(layer.stability, _STABLE))
    if where:
        yield (
            f"Directions of resampled prompts have cosine {loose:.2f} with this one at {where}: "
            "extract it from more prompt pairs."
        )
    unlike, where = _which(layers, lambda layer: layer.own_cosine, lambda layer: _below(layer.own_cosine, _LIKE_OWN))
    if where:
        yield (
            f"The transported direction has cosine {unlike:.2f} with the target's own at {where}: "
            "steer only the other layers, or look at the layer map and the rank."
        )


def _not_looked_at(layers: Sequence[LayerDiagnosis], ability: float | None, probe: Probe | None) -> Iterator[str]:
    if all(layer.agreement is None for layer in layers):
        yield "Not looked at: whether the models agree on the direction, which says most of all; give source and target texts."
    if ability is None:
        yield "Not looked at: whether the target can do it at all; give ability, its pass@k or its share when prompted."
    if probe is None:
        yield "Not looked at: how the steered target begins, the best forecast; give a probe, Probe.run(transported, ...)."
    elif probe.share is None:
        yield f"The probe saw nothing: {probe.skipped}."


def _loses_by_rank(layer: LayerDiagnosis) -> bool:
    if layer.agreement is None or layer.full_agreement is None or layer.full_agreement < _AGREED:
        return False
    return layer.full_agreement - layer.agreement > _RANK_COSTS


def _below(value: float | None, limit: float) -> bool:
    return value is not None and value < limit


def _which(
    layers: Sequence[LayerDiagnosis], value: Callable[[LayerDiagnosis], float | None], chosen: Callable[[LayerDiagnosis], bool]
) -> tuple[float, str]:
    """The mean over the chosen layers, and their name."""
    found = {layer.target_layer: value(layer) or 0.0 for layer in layers if chosen(layer)}
    if not found:
        return 0.0, ""
    return sum(found.values()) / len(found), _named(sorted(found))


def _named(layers: Sequence[int]) -> str:
    """As in: layer 3; layers 0-2, 5."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    told = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"layer {told}" if len(layers) == 1 else f"layers {told}"
