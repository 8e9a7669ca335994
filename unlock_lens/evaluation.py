"""What steering achieved, with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlock_lens.errors import InvalidInput
from unlock_lens.zoo.task import BEHAVIOURS, Task


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, from scipy.

    Raises:
        InvalidInput: successes outside 0..n, or n below 1.

    Example:
        >>> low, high = wilson_interval(9, 10)
        >>> round(low, 3), round(high, 3)
        (0.596, 0.982)
    """
    from scipy.stats import binomtest

    if not 0 <= successes <= n or n < 1:
        raise InvalidInput(f"{successes} successes of {n} were given; expected 0 to n of at least 1")
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Outcome:
    """Accuracy of completions with its 95% Wilson interval, and the share of each behaviour among them."""

    accuracy: float
    low: float
    high: float
    n: int
    behaviours: Mapping[str, float]

    @classmethod
    def of(cls, task: Task, completions: Sequence[str]) -> Outcome:
        right, shown, n = sum(task.correct(completions)), task.behaviours(completions), len(completions)
        return cls(right / n, *wilson_interval(right, n), n, {name: shown.count(name) / n for name in BEHAVIOURS})
