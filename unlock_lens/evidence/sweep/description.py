"""The description of a sweep, besides its results: inputs, problems, forecast, provenance."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from unlock_lens.core.inputs import read_pairs
from unlock_lens.evidence.diagnosis import Diagnosis, diagnose
from unlock_lens.evidence.evaluation import evaluate, sample
from unlock_lens.evidence.sweep.config import Setting
from unlock_lens.evidence.sweep.material import Material, hash_of
from unlock_lens.hosts import backend_of

MAX_TOKENS = 4_000
"""Calibration tokens that a forecast within a sweep looks at: what it costs on wide models lies in their number."""
VERSIONED = ("torch", "transformers", "transformer-lens", "nnsight")


def inputs(material: Material) -> dict[str, Any]:
    """What results depend on beyond the config: a sweep is resumed only if this is the same."""
    config = material.config
    named = {"source": config.source, "target": config.target, "naive": config.naive}
    for capability in (config.capability, *config.others):
        named[f"{capability.name}, source unlocked"] = capability.source_unlocked
        named[f"{capability.name}, target unlocked"] = capability.target_unlocked
    pairs = {each.name: read_pairs(each.pairs) for each in (config.capability, *config.others) if each.pairs}
    return {
        "models": {side: str(backend_of(material.model(name)).identity) for side, name in named.items() if name},
        "problems": {name: getattr(material.splits, name).hash for name in ("extract", "train", "test")},
        "calibration": hash_of(material.texts),
        "unrelated": hash_of(material.unrelated),
        "pairs": {name: hash_of([*locked, *unlocked]) for name, (locked, unlocked) in pairs.items()},
        "library": version("unlock-lens"),
    }


def forecast(material: Material, setting: Setting) -> Diagnosis:
    """`diagnose` for one setting, from what the sweep has captured; the test split is not looked at."""
    return diagnose(
        material.source_direction(setting),
        material.aligner(setting),
        contrast=material.contrast("source", setting),
        own=material.own_direction(setting) if "own" in material.controls else None,
        ability=material.once("ability", lambda: ability(material)),
        source_acts=material.states("source", setting.aligner or "text", setting.n),
        target_acts=material.states("target", setting.aligner or "text", setting.n),
        probe=material.probe(setting),
        max_tokens=MAX_TOKENS,
    )


def ability(material: Material) -> float:
    """The share of train problems that the target solves: asked to, or, where no prompt can ask, in any of its samples."""
    config, task = material.config, material.probed
    how: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "progress": False, "batch_size": config.batch_size}
    how["stop"] = config.stop
    if config.capability.asks:
        return evaluate(material.target, task, material.asked(material.target, task, unlocked=True), **how).outcome.accuracy
    sampling, prompts = config.sampling, material.asked(material.target, task)
    sampled = sample(material.target, task, prompts, max(sampling.samples, 1), sampling.temperature, config.seed, **how)
    name, classify = config.capability.name, task.classify
    if classify is None or name not in task.behaviour_names:
        return len({i for i, _ in sampled.successes}) / len(task)
    # A right final answer may be guessed: where the task tells behaviours apart, it must have come by this one.
    return len({i for i, completion in sampled.successes if classify(completion) == name}) / len(task)


def problems(material: Material) -> dict[str, list[dict[str, str]]]:
    """Prompts and answers, in the order of the results' `right` and `completions`."""
    asked = {split: material.asked(material.target, getattr(material.splits, split)) for split in ("train", "test")}
    return {
        split: [
            {"prompt": prompt, "answer": answer}
            for prompt, answer in zip(variant.prompts, getattr(material.splits, split).answers, strict=True)
        ]
        for split, variant in asked.items()
    }


def provenance(material: Material) -> dict[str, Any]:
    """Versions, models, problems and texts."""
    now = inputs(material)
    return {
        "library_version": now["library"],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": _versions(),
        "models": now["models"],
        "task": material.splits.test.name,
        "hashes": {**now["problems"], "calibration": now["calibration"], "unrelated": now["unrelated"]},
        "calibration_texts_left_out": f"{material.leaking} that hold a train or test question",
        "controls_left_out": material.left_out,
    }


def _versions() -> dict[str, str]:
    """Of the packages that are installed: one host does without the other."""
    found: dict[str, str] = {}
    for package in VERSIONED:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
