"""Benchmarks: what steering costs or gains on tasks of lm-evaluation-harness (docs/evaluate.md)."""
# pyright: reportMissingImports=false
# The harness is an optional extra, and may be missing where types are checked.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

from unlock_lens.core.steering import SteeringHook
from unlock_lens.errors import InvalidInput, caution, require
from unlock_lens.evidence.statistics import bootstrap_difference


@dataclass(frozen=True)
class TaskPrice:
    """One metric of one task without and with steering, on the same problems.

    Attributes:
        task: its name in the harness.
        metric: its name, with that of the filter if there is one: "acc", "exact_match,strict-match".
        n: number of problems.
        unsteered: mean without steering.
        steered: mean with steering.
        difference: steered - unsteered.
        interval: 95% interval of the difference, by a bootstrap over problems, each with both its scores.
        gained: problems that score higher with steering.
        lost: problems that score lower.
    """

    task: str
    metric: str
    n: int
    unsteered: float
    steered: float
    difference: float
    interval: tuple[float, float]
    gained: int
    lost: int

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "interval": list(self.interval)}


def prices(
    model: Any,
    steer: SteeringHook | Sequence[SteeringHook] | str | Path,
    tasks: Sequence[str | Mapping[str, Any]],
    batch_size: int = 8,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    backend: str = "transformer_lens",
    include_path: str | Path | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    device: str | None = None,
) -> list[TaskPrice]:
    """Run tasks without and with steering, and compare them problem by problem.

    A metric that is not a mean over problems, such as a perplexity, is left out with a warning.

    Args:
        model: folder or hub id, or a model that is open.
        steer: a hook, several, or a key's file, folder or hub id.
        tasks: the harness' names, or task configs.
        batch_size: requests in one forward pass.
        limit: problems of each task; None for all.
        num_fewshot: examples before each problem; None for the task's own number.
        chat: whether to apply the model's chat template.
        backend: which framework opens a model by name.
        include_path: folder with your own task configs.
        gen_kwargs: settings of generation instead of the tasks' own, such as {"max_gen_toks": 64}.
        dtype: in which a model's weights are opened by name.
        device: where a model opens by name; None is the GPU where there is one.

    Raises:
        InvalidInput: there are no tasks, no metric can be compared, or as for `SteeredLM`.
        MissingPackage: lm-evaluation-harness is not installed.
        IncompatibleModel: the key was made for a different model.
    """
    require("lm-eval", "lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from unlock_lens.evidence.harness import SteeredLM

    if isinstance(tasks, str) or not tasks:
        raise InvalidInput(f'tasks={tasks!r} was given; give a list of at least one, such as ["mmlu", "ifeval"]')
    steered = SteeredLM(model, steer, backend, dtype, batch_size, device=device)
    if not steered.hooks:
        raise InvalidInput("no hook was given; a price compares a model with itself, steered")
    how: dict[str, Any] = {"limit": limit, "num_fewshot": num_fewshot, "apply_chat_template": chat, "bootstrap_iters": 0}
    how |= {"gen_kwargs": dict(gen_kwargs)} if gen_kwargs else {}
    before, after = (
        simple_evaluate(lm, tasks=deepcopy(list(tasks)), task_manager=TaskManager(include_path=include_path), **how)
        for lm in (SteeredLM(steered.model, batch_size=batch_size), steered)
    )
    found = list(_compared(before, after))
    if not found:
        raise InvalidInput(f"no metric of {', '.join(before['samples'])} is a mean over problems; use other tasks")
    return found


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[TaskPrice]:
    left_out: list[str] = []
    for task, samples in before["samples"].items():
        unsteered, steered = _scores(samples), _scores(after["samples"][task])
        for metric, scores in unsteered.items():
            told = before["results"][task].get(metric if "," in metric else f"{metric},none")
            if not isinstance(told, float | int) or not isclose(told, np.mean([*scores.values()]), abs_tol=1e-6):
                left_out.append(f"{metric} of {task}")
                continue
            yield _price(task, metric, scores, steered[metric])
    if left_out:
        caution(f"{', '.join(left_out)}: not a mean over problems, and so left out of the comparison")


def _scores(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """For each metric the score of each problem that has a number for one."""
    found: dict[str, dict[int, float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
            value = sample[metric]
            of_metric = found.setdefault(name, {})
            of_metric[sample["doc_id"]] = float(value) if isinstance(value, bool | int | float | np.number) else float("nan")
    return found


def _price(task: str, metric: str, before: Mapping[int, float], after: Mapping[int, float]) -> TaskPrice:
    unsteered, steered = ([of[problem] for problem in before] for of in (before, after))
    changes = np.subtract(steered, unsteered)
    interval = bootstrap_difference(steered, unsteered)
    means = float(np.mean(unsteered)), float(np.mean(steered))
    gained, lost = int((changes > 0).sum()), int((changes < 0).sum())
    return TaskPrice(task, metric, len(before), *means, float(changes.mean()), interval, gained, lost)
