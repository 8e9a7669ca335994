"""One setting of a sweep, measured: what `results.jsonl` says about it."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from unlock_lens.core.generation import complete
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant, padded
from unlock_lens.evidence.distributions import Price, completion_log_probs, first_token_entropies, price
from unlock_lens.evidence.evaluation import Evaluation, Sampled, compare, cut_share, evaluate_arms, sample
from unlock_lens.evidence.results import FORCED, NAIVE, NAIVE_UNSTEERED, PROMPTED, Line
from unlock_lens.evidence.statistics import wilson_interval
from unlock_lens.evidence.sweep.config import Setting
from unlock_lens.evidence.sweep.material import Material
from unlock_lens.evidence.tasks.problems import Task, between
from unlock_lens.hosts.endings import before

_BRACKET, _BISECTIONS = 16.0, 8


def measured(
    material: Material, setting: Setting, split: str, baseline: Line | None = None, steered: Line | None = None
) -> dict[str, Any]:
    """Accuracy with its interval, behaviours and right answers; on test the completions too.

    With a baseline (the test line of `material.baseline(setting)`) also the paired comparison, the price on unrelated text and,
    for the transfer, the sharpening. `steered` is the line of the run whose first tokens a forced run begins with.
    """
    if setting.control in FORCED and steered is not None:
        found = _forced(material, setting, split, steered["completions"])
    else:
        found = evaluated(material, [setting], split)[0]
    return described(material, setting, split, found, baseline)


def alike(material: Material, setting: Setting) -> tuple[Hashable, ...]:
    """Equal for settings whose completions begin with the same prompts in the same model."""
    return id(_model(material, setting)), material.capability(setting.capability).plain, setting.control == PROMPTED


def evaluated(material: Material, settings: Sequence[Setting], split: str) -> list[Evaluation]:
    """The completions of settings that are alike, judged."""
    config, model, task = material.config, _model(material, settings[0]), getattr(material.splits, split)
    steers = [None if setting.alpha is None else material.steer(setting) for setting in settings]
    prompts = _prompts(material, settings[0], split)
    return evaluate_arms(
        model, task, prompts, steers, config.max_new_tokens, config.batch_size, progress=False, stop=config.stop
    )


def _prompts(material: Material, setting: Setting, split: str) -> Variant:
    task, capability = getattr(material.splits, split), material.capability(setting.capability)
    return material.asked(_model(material, setting), task, capability, unlocked=setting.control == PROMPTED)


def described(
    material: Material, setting: Setting, split: str, found: Evaluation, baseline: Line | None = None
) -> dict[str, Any]:
    """What `measured` says of an evaluation."""
    config, task = material.config, getattr(material.splits, split)
    steer = None if setting.alpha is None else material.steer(setting)
    told = {
        **asdict(found.outcome),
        "right": [int(right) for right in found.right],
        "tokens": sum(found.lengths) / len(found.lengths),
        "seconds": found.seconds,
        "cut": found.cut,
        "strict": _strict(task, found.completions),
    }
    if split == "test":
        told |= {"lengths": list(found.lengths), "completions": list(found.completions)}
    if baseline is None:
        return told
    before = [bool(right) for right in baseline["right"]]
    told["paired"] = asdict(compare(found.right, before, config.seed))
    if steer is None:
        return told
    if material.unrelated:
        told["price"] = asdict(_price(material, setting))
    is_transfer = setting.control is None and setting.capability == config.capability.name
    if is_transfer and config.sampling.samples:
        told["sharpening"] = sharpening(material, steer, baseline, found)
    return told


def at_price(material: Material, setting: Setting, kl: float) -> Setting:
    """The setting at the strength, to 3 digits, at which it costs closest to `kl` nats per token on unrelated text.

    Bisection on the logarithm, from a sixteenth of the setting's strength to sixteen times it.
    """
    low, high = (setting.alpha or 1.0) / _BRACKET, (setting.alpha or 1.0) * _BRACKET
    tried: dict[float, float] = {}
    for _ in range(_BISECTIONS):
        alpha = float(f"{(low * high) ** 0.5:.3g}")
        tried[alpha] = _price(material, replace(setting, alpha=alpha)).kl
        low, high = (alpha, high) if tried[alpha] < kl else (low, alpha)
    return replace(setting, alpha=min(tried, key=lambda alpha: abs(tried[alpha] - kl)))


def _price(material: Material, setting: Setting) -> Price:
    end = material.config.unrelated.prompt_end if material.config.unrelated else None
    model, texts = _model(material, setting), material.unrelated or ()
    return price(model, texts, material.steer(setting), **material.how, prompt_end=end)


def _strict(task: Task, completions: Sequence[str]) -> dict[str, Any] | None:
    """The same completions judged by what stands between the answer tags alone; `tagged` is the share that has them."""
    right = task.strict(completions)
    if right is None or task.answer_tags is None:
        return None
    low, high = wilson_interval(sum(right), len(right))
    tagged = sum(between(completion, task.answer_tags) is not None for completion in completions) / len(right)
    share = {"accuracy": sum(right) / len(right), "low": low, "high": high}
    return {"tags": list(task.answer_tags), **share, "right": [int(each) for each in right], "tagged": tagged}


def _forced(material: Material, setting: Setting, split: str, steered: Sequence[str]) -> Evaluation:
    """The unsteered target, continuing from the first k tokens that the steered one wrote: the effect of the opening."""
    task, prompts, k = (
        getattr(material.splits, split),
        _prompts(material, setting, split),
        int((setting.control or "").rpartition("_")[2]),
    )
    started, tokenizer, asked = time.perf_counter(), prompts.backend.tokenizer, prompts.tokens
    openings = [ids[:k] for ids in tokenizer(list(steered), add_special_tokens=False)["input_ids"]]
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(asked.ids, asked.mask, strict=True)]
    begun = padded(tokenizer, [row + opening for row, opening in zip(rows, openings, strict=True)])
    variant = Variant(prompts.model, tokens=begun.ids, attention_mask=begun.mask, remote=prompts.remote)
    config = material.config
    left = max(config.max_new_tokens - k, 1)
    rest = complete(variant, None, left, config.batch_size, progress=False, stop=config.stop)
    written = tokenizer([each.text for each in rest], add_special_tokens=False)["input_ids"]
    whole = [
        before(tokenizer.decode([*opening, *more], skip_special_tokens=True), config.stop)
        for opening, more in zip(openings, written, strict=True)
    ]
    return Evaluation.of(task, whole, prompts, time.perf_counter() - started, cut_share(rest))


def sharpening(material: Material, steer: SteeringHook, unsteered: Line, steered: Evaluation) -> dict[str, Any]:
    """Whether steering concentrates the target on what it could already write (docs/method.md: the paper's analysis)."""
    config, target = material.config, material.target
    task = material.splits.test.first(min(config.sampling.problems, config.sizes.test))
    prompts = material.asked(target, task)
    sampled = sample(
        target, task, prompts, config.sampling.samples, config.sampling.temperature, config.seed, config.max_new_tokens,
        config.batch_size, progress=False, stop=config.stop,
    )  # fmt: skip
    hooks = {"unsteered": None, "steered": steer}
    written: Mapping[str, Sequence[str]] = {"unsteered": unsteered["completions"], "steered": steered.completions}
    return {
        "entropy": {
            name: first_token_entropies(target, prompts, written[name][: len(prompts)], hook, batch_size=config.batch_size)
            for name, hook in hooks.items()
        },
        "success": {name: _of_successes(material, task, sampled, hook) for name, hook in hooks.items()},
        "pass_at_k": {str(k): value for k, value in sampled.pass_at.items()},
        "greedy": {
            name: sum(right[: len(prompts)]) / len(prompts)
            for name, right in (("unsteered", unsteered["right"]), ("steered", steered.right))
        },
    }


def _of_successes(material: Material, task: Task, sampled: Sampled, steer: SteeringHook | None) -> dict[str, Any]:
    """How likely the model's own successful samples are: each problem's different ones together, then the mean."""
    if not sampled.successes:
        return {"probability": None, "log_prob": None, "n": 0}
    of_each = replace(task, problems=tuple(task.problems[i] for i, _ in sampled.successes))
    written, asked = [text for _, text in sampled.successes], material.asked(material.target, of_each)
    log_probs = completion_log_probs(material.target, asked, written, steer, material.config.batch_size)
    problems = torch.tensor([i for i, _ in sampled.successes])
    together = torch.stack([log_probs[problems == i].logsumexp(0) for i in problems.unique()])
    return {"probability": float(together.exp().mean()), "log_prob": float(together.mean()), "n": len(together)}


def _model(material: Material, setting: Setting) -> Any:
    if setting.control in (NAIVE, NAIVE_UNSTEERED):
        return material.model(material.config.naive or "")
    unlocked = material.capability(setting.capability).target_unlocked
    if setting.control == PROMPTED and unlocked:
        return material.model(unlocked)
    return material.target
