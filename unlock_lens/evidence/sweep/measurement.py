"""One configuration of a sweep, measured: what `results.jsonl` says of it beside its setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from unlock_lens.core.steering import SteeringHook
from unlock_lens.evidence.distributions import completion_log_probs, first_token_entropies, price
from unlock_lens.evidence.evaluation import Evaluation, Sampled, compare, evaluate, sample
from unlock_lens.evidence.results import PROMPTED, Line
from unlock_lens.evidence.sweep.material import Material
from unlock_lens.evidence.sweep.setting import NAIVE, NAIVE_UNSTEERED, Setting


def on_train(material: Material, setting: Setting) -> dict[str, Any]:
    """Accuracy with its interval, behaviours, and what is right."""
    return _outcome(_evaluated(material, setting, "train"))


def on_test(material: Material, setting: Setting, baseline: Line | None) -> dict[str, Any]:
    """The same with completions; of steered settings the paired comparison and the price, of the transfer the sharpening.

    `baseline` is the line of `material.baseline(setting)`; None for a setting that steers nothing.
    """
    found = _evaluated(material, setting, "test")
    told = {**_outcome(found), "lengths": list(found.lengths), "completions": list(found.completions)}
    if baseline is None:
        return told
    before = [bool(right) for right in baseline["right"]]
    told["paired"] = asdict(compare(found.right, before, material.config.seed))
    if material.unrelated:
        end = material.config.unrelated.prompt_end if material.config.unrelated else None
        steer = material.steer(setting)
        told["price"] = asdict(price(_model(material, setting), material.unrelated, steer, **_how(material), prompt_end=end))
    is_transfer = setting.control is None and setting.capability == material.config.capability.name
    if is_transfer and material.config.sampling.samples:
        told["sharpening"] = sharpening(material, material.steer(setting), baseline, found)
    return told


def sharpening(material: Material, steer: SteeringHook, unsteered: Line, steered: Evaluation) -> dict[str, Any]:
    """Whether steering concentrates the target on what it could already write (docs/method.md, "What the paper looks at")."""
    config, target = material.config, material.target
    task = material.splits.test.first(min(config.sampling.problems, config.sizes.test))
    prompts = task.prompts(config.capability.locked)
    sampled = sample(
        target, task, prompts, config.sampling.samples, config.sampling.temperature, config.seed, config.max_new_tokens,
        progress=False, **_how(material),
    )  # fmt: skip
    hooks = {"unsteered": None, "steered": steer}
    written: Mapping[str, Sequence[str]] = {"unsteered": unsteered["completions"], "steered": steered.completions}
    return {
        "entropy": {
            name: first_token_entropies(target, prompts, written[name][: len(prompts)], hook, **_how(material))
            for name, hook in hooks.items()
        },
        "success": {name: _of_successes(material, prompts, sampled, hook) for name, hook in hooks.items()},
        "pass_at_k": {str(k): value for k, value in sampled.pass_at.items()},
        "greedy": {
            name: sum(right[: len(prompts)]) / len(prompts)
            for name, right in (("unsteered", unsteered["right"]), ("steered", steered.right))
        },
    }


def _of_successes(material: Material, prompts: Sequence[str], sampled: Sampled, steer: SteeringHook | None) -> dict[str, Any]:
    """How likely the model's own successful samples are: each problem's different ones together, then the mean."""
    asked = [prompts[i] for i, _ in sampled.successes]
    if not asked:
        return {"probability": None, "log_prob": None, "n": 0}
    log_probs = completion_log_probs(material.target, asked, [text for _, text in sampled.successes], steer, **_how(material))
    problems = torch.tensor([i for i, _ in sampled.successes])
    together = torch.stack([log_probs[problems == i].logsumexp(0) for i in problems.unique()])
    return {"probability": float(together.exp().mean()), "log_prob": float(together.mean()), "n": len(together)}


def _outcome(found: Evaluation) -> dict[str, Any]:
    return {
        **asdict(found.outcome),
        "right": [int(right) for right in found.right],
        "tokens": sum(found.lengths) / len(found.lengths),
        "seconds": found.seconds,
    }


def _evaluated(material: Material, setting: Setting, split: str) -> Evaluation:
    task = getattr(material.splits, split)
    capability = material.capability(setting.capability)
    template = capability.unlocked_template if setting.control == PROMPTED else capability.locked
    steer = None if setting.alpha is None else material.steer(setting)
    return evaluate(
        _model(material, setting), task, task.prompts(template), steer, material.config.max_new_tokens,
        progress=False, **_how(material),
    )  # fmt: skip


def _model(material: Material, setting: Setting) -> Any:
    if setting.control in (NAIVE, NAIVE_UNSTEERED):
        return material.model(material.config.naive or "")
    unlocked = material.capability(setting.capability).target_unlocked
    if setting.control == PROMPTED and unlocked:
        return material.model(unlocked)
    return material.target


def _how(material: Material) -> dict[str, Any]:
    config = material.config
    return {"batch_size": config.batch_size, "add_special_tokens": config.special_tokens, "remote": config.remote}
