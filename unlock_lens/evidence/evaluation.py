"""What steering achieved, with uncertainty: outcomes, paired comparisons, pass@k.

Arguments that several functions share (`model`, `steer`, `batch_size`, `remote` and so on) are those of `generate`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from unlock_lens.core.generation import Completion, Steer, complete, complete_arms, seeded
from unlock_lens.core.progress import shown
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant, variant_of
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.statistics import bootstrap_difference, mcnemar, pass_at_k, wilson_interval
from unlock_lens.hosts.remote import Where


@runtime_checkable
class Scored(Protocol):
    """Problems that judge completions: `unlock_lens.evidence.tasks.Task`, a zoo task, or one of your own."""

    @property
    def behaviour_names(self) -> Sequence[str]:
        """All that `behaviours` may return."""
        ...

    def correct(self, completions: Sequence[str]) -> list[bool]:
        """Whether each completion is right."""
        ...

    def behaviours(self, completions: Sequence[str]) -> list[str] | None:
        """Which behaviour each completion shows; None if the task does not tell them apart."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Accuracy of completions with its 95% Wilson interval, and the share of each behaviour among them.

    Attributes:
        accuracy: share of right completions.
        low, high: its 95% Wilson interval.
        n: number of completions.
        behaviours: share of the completions that show each behaviour; empty for tasks that do not tell behaviours apart.
    """

    accuracy: float
    low: float
    high: float
    n: int
    behaviours: Mapping[str, float]

    @classmethod
    def of(cls, task: Scored, completions: Sequence[str], right: Sequence[bool] | None = None) -> Outcome:
        """Judge completions; `right` is the result of `task.correct`, if you already have it."""
        n_right, n = sum(task.correct(completions) if right is None else right), len(completions)
        behaviours = task.behaviours(completions) or []
        shares = {name: behaviours.count(name) / n for name in task.behaviour_names} if behaviours else {}
        return cls(n_right / n, *wilson_interval(n_right, n), n, shares)


@dataclass(frozen=True)
class Evaluation:
    """A model's completions of a task's problems, judged.

    Attributes:
        outcome: accuracy and behaviours.
        right: for each problem, whether its completion is right.
        completions: in the order of the problems.
        lengths: lengths of the completions, in tokens.
        seconds: duration of the generation.
        cut: share of the completions that reached the budget of new tokens; None if unknown.
    """

    outcome: Outcome
    right: tuple[bool, ...]
    completions: tuple[str, ...]
    lengths: tuple[int, ...]
    seconds: float
    cut: float | None = None

    @classmethod
    def of(
        cls, task: Scored, completions: Sequence[str], asked: Variant, seconds: float, cut: float | None = None
    ) -> Evaluation:
        """Judge completions of the given prompts."""
        right = tuple(bool(found) for found in task.correct(completions))
        lengths = tuple(len(ids) for ids in asked.backend.tokenizer(list(completions), add_special_tokens=False)["input_ids"])
        return cls(Outcome.of(task, completions, right), right, tuple(completions), lengths, seconds, cut)


@dataclass(frozen=True)
class Comparison:
    """Steered compared with unsteered on the same problems.

    Attributes:
        difference: difference of the accuracies.
        low, high: its 95% bootstrap interval (pairs are drawn together).
        gained: problems that were wrong and became right.
        lost: problems that were right and became wrong.
        p: exact McNemar test, two-sided.
    """

    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p: float


@dataclass(frozen=True)
class Sampled:
    """Sampled completions of each problem.

    Attributes:
        pass_at: k -> mean unbiased estimate of pass@k.
        successes: the distinct right completions, each with the index of its problem.
    """

    pass_at: Mapping[int, float]
    successes: tuple[tuple[int, str], ...]


def evaluate(
    model: Any,
    task: Scored,
    prompts: Iterable[str] | Variant,
    steer: SteeringHook | Sequence[SteeringHook] | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    progress: bool = True,
    remote: Where = False,
    stop: Sequence[str] = (),
) -> Evaluation:
    """Complete the prompts greedily, steered or not, and judge the completions.

    Raises:
        InvalidInput: the number of prompts differs from that of problems; otherwise as `generate`.

    Example:
        >>> from unlock_lens import evaluation, zoo
        >>> task = zoo.running_sum(n=20)
        >>> evaluation.evaluate(zoo.load("small-base"), task, task.think, max_new_tokens=12).outcome.accuracy
        1.0
    """
    how = (max_new_tokens, batch_size, add_special_tokens, progress, remote, stop)
    (found,) = evaluate_arms(model, task, prompts, [steer], *how)
    return found


def evaluate_arms(
    model: Any,
    task: Scored,
    prompts: Iterable[str] | Variant,
    steers: Sequence[Steer],
    max_new_tokens: int = 64,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    progress: bool = True,
    remote: Where = False,
    stop: Sequence[str] = (),
) -> list[Evaluation]:
    """`evaluate` under each of several hooks (None: unsteered), with the same results in less time.

    Hooks at the last prompt token leave what the model makes of the tokens before it as it is, so these are read once for all
    arms; as many arms share a batch as `batch_size` has room for. Each evaluation's seconds are an equal share of the time.

    Raises:
        InvalidInput: as `evaluate`.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import evaluation, zoo
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=20)
        >>> direction = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think))
        >>> arms = [None, *(ul.SteeringHook(direction, alpha) for alpha in (0.1, 0.5))]
        >>> found = evaluation.evaluate_arms(model, task, task.direct, arms, max_new_tokens=12, batch_size=60)
        >>> [each.outcome.accuracy for each in found]
        [0.25, 0.4, 1.0]
    """
    started = time.perf_counter()
    asked = variant_of(model, prompts, add_special_tokens, remote)
    written = complete_arms(asked, steers, max_new_tokens, batch_size, progress=progress, stop=stop)
    seconds = (time.perf_counter() - started) / len(written) if written else 0.0
    return [Evaluation.of(task, [each.text for each in of_arm], asked, seconds, cut_share(of_arm)) for of_arm in written]


def cut_share(written: Sequence[Completion]) -> float:
    """The share of completions that reached the budget of new tokens."""
    return sum(not each.ended for each in written) / len(written)


def compare(after: Sequence[bool], before: Sequence[bool], seed: int = 0) -> Comparison:
    """Compare which problems were right before and after, for the same problems.

    Raises:
        InvalidInput: the numbers of problems differ.
    """
    if len(after) != len(before):
        raise InvalidInput(f"{len(after)} and {len(before)} problems were given; a paired comparison needs the same ones")
    changes = [bool(a) - bool(b) for a, b in zip(after, before, strict=True)]
    gained, lost = changes.count(1), changes.count(-1)
    low, high = bootstrap_difference(after, before, seed=seed)
    return Comparison((gained - lost) / len(after), low, high, gained, lost, mcnemar(gained, lost))


def sample(
    model: Any,
    task: Scored,
    prompts: Iterable[str] | Variant,
    samples: int = 8,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    progress: bool = True,
    remote: Where = False,
    stop: Sequence[str] = (),
) -> Sampled:
    """Sample completions of an unsteered model, for pass@k at k = 1, 2, 4, ... up to `samples`.

    The caller's random state is unchanged.

    Raises:
        InvalidInput: samples is below 1; otherwise as `generate`.
    """
    if samples < 1:
        raise InvalidInput(f"{samples} samples were asked for; at least 1 is needed")
    asked = variant_of(model, prompts, add_special_tokens, remote)
    rounds: list[list[str]] = []
    with seeded(seed):
        for _ in shown(range(samples), "sampling", progress):
            found = complete(asked, None, max_new_tokens, batch_size, temperature=temperature, progress=False, stop=stop)
            rounds.append([each.text for each in found])
    right = [task.correct(completions) for completions in rounds]
    counts = [sum(of_problem) for of_problem in zip(*right, strict=True)]
    ks = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    pass_at = {k: sum(pass_at_k(samples, c, k) for c in counts) / len(counts) for k in ks}
    successes = {
        (i, completions[i]): None
        for completions, of_round in zip(rounds, right, strict=True)
        for i, is_right in enumerate(of_round)
        if is_right
    }
    return Sampled(pass_at, tuple(successes))
