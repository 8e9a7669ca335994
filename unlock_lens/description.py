"""What describes a sweep beside its results: problems, geometry, forecast, provenance."""

from __future__ import annotations

from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from unlock_lens.backends import backend_of
from unlock_lens.material import Material, Setting

VERSIONED = ("torch", "transformers", "transformer-lens", "nnsight")


def inputs(material: Material) -> dict[str, Any]:
    """What results depend on beyond the config: a sweep goes on only where this is the same."""
    named = {"source": material.config.source, "target": material.config.target, "naive": material.config.naive}
    return {
        "models": {side: str(backend_of(material.model(name)).identity) for side, name in named.items() if name},
        "problems": {name: getattr(material.splits, name).hash for name in ("extract", "train", "test")},
        "calibration": material.texts_hash,
        "unrelated": material.unrelated_hash,
    }


def described(material: Material, chosen: Setting) -> dict[str, Any]:
    """The contents of `problems.json`, `geometry.json`, `diagnosis.json` and `provenance.json`."""
    return {"problems": problems(material), "provenance": provenance(material)}


def problems(material: Material) -> dict[str, list[dict[str, str]]]:
    """Prompts and answers, in the order of the results' `right` and `completions`."""
    locked = material.config.capability.locked
    return {
        split: [{"prompt": prompt, "answer": answer} for prompt, answer in zip(task.prompts(locked), task.answers, strict=True)]
        for split, task in (("train", material.splits.train), ("test", material.splits.test))
    }


def provenance(material: Material) -> dict[str, Any]:
    """Versions, models, problems and texts."""
    told = inputs(material)
    return {
        "library_version": version("unlock-lens"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in VERSIONED},
        "models": told["models"],
        "task": material.splits.test.name,
        "hashes": {**told["problems"], "calibration": told["calibration"], "unrelated": told["unrelated"]},
        "controls_left_out": material.left_out,
    }
