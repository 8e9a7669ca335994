"""Intervals, paired tests and sample sizes, computed from counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from unlock_lens.errors import InvalidInput

WORTHWHILE = 0.2
"""The gain that a sweep should be able to show."""
POWER, CONFIDENCE = 0.8, 0.95
MANY = 5000
"""Problems from which on a bootstrap draws how often each outcome comes, instead of the problems themselves."""
LOSSES = 0.1
"""Share of problems that steering is expected to lose, unless a pilot says otherwise."""


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share, from scipy.

    Raises:
        InvalidInput: successes is outside 0..n, or n is below 1.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    from scipy.stats import binomtest

    if not 0 <= successes <= n or n < 1:
        raise InvalidInput(f"{successes} successes of {n} were given; expected 0 to n of at least 1")
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased probability that one of k samples is right, from n samples with c right: 1 - C(n-c, k) / C(n, k).

    Raises:
        InvalidInput: 0 <= c <= n or 1 <= k <= n does not hold.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, section 2.1.
    """
    if not 0 <= c <= n:
        raise InvalidInput(f"{c} right samples of {n} were given; expected 0 to n")
    if not 1 <= k <= n:
        raise InvalidInput(f"pass@{k} of {n} samples was asked for; k is 1 to n, so draw at least k samples")
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p, under the hypothesis that gains and losses are equally likely.

    Raises:
        InvalidInput: a count is below 0.

    Source: McNemar, Psychometrika 12 (1947), exactly: a binomial test of the problems that changed.

    Example:
        >>> round(mcnemar(gained=9, lost=1), 4), mcnemar(gained=0, lost=0)
        (0.0215, 1.0)
    """
    from scipy.stats import binomtest

    if min(gained, lost) < 0:
        raise InvalidInput(f"{gained} gained and {lost} lost problems were given; counts are not negative")
    if gained == lost == 0:
        return 1.0
    return float(binomtest(gained, gained + lost).pvalue)


def bootstrap_difference(
    after: Sequence[float], before: Sequence[float], confidence: float = CONFIDENCE, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(after) - mean(before), drawing problems, each with both its outcomes.

    If all problems changed alike (as a single one does), the interval is a point, because there is no variation to draw from.

    Raises:
        InvalidInput: there are no problems, or the numbers differ.

    Source: Efron, Annals of Statistics 7 (1979).
    """
    from scipy.stats import bootstrap

    if len(after) != len(before) or not len(after):
        raise InvalidInput(
            f"{len(after)} outcomes after and {len(before)} before were given; give both of the same problems, at least one"
        )
    differences = np.subtract(after, before, dtype=float)
    if len(differences) == 1:
        return float(differences[0]), float(differences[0])
    values, counts = np.unique(differences, return_counts=True)
    if len(differences) > MANY > len(values):  # how often each value is drawn is all that counts, and quicker to draw
        n = len(differences)
        means = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples) @ values / n
        low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)
    # The difference of paired means is the mean of the differences; batches bound the memory.
    found = bootstrap(
        (differences,), np.mean, n_resamples=resamples, batch=1000, confidence_level=confidence, method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def detectable_difference(
    n: int, base_rate: float, power: float = POWER, confidence: float = CONFIDENCE, losses: float = LOSSES
) -> float | None:
    """The smallest gain over `base_rate` that n paired problems show with this power, by the exact McNemar test.

    Some problems are lost while others are gained. `losses` is the share of all problems that is lost, limited to those that
    were right before. Estimate it with a pilot; 0 is the favourable case.

    Returns:
        The net gain as a share, or None if even the largest possible gain would not be shown.

    Raises:
        InvalidInput: n is below 1, the base rate or losses are outside 0..1, or power or confidence are not between 0 and 1.

    Example:
        >>> round(detectable_difference(100, base_rate=0.1, losses=0), 3), detectable_difference(5, base_rate=0.1)
        (0.078, None)
    """
    if n < 1 or not (0 <= base_rate <= 1 and 0 <= losses <= 1):
        raise InvalidInput(
            f"{n} problems with a base rate of {base_rate} and losses of {losses} were given; expected at least 1, and 0 to 1"
        )
    if not (0 < power < 1 and 0 < confidence < 1):
        raise InvalidInput(f"power {power} and confidence {confidence} were given; both lie between 0 and 1")
    lost = min(losses, base_rate)
    low, high = lost, 1 - base_rate  # of the share that is gained
    if high < low or power_of(n, high, lost, confidence) < power:
        return None
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(n, middle, lost, confidence) >= power else (middle, high)
    return high - lost


def power_of(n: int, gained: float, lost: float, confidence: float = CONFIDENCE) -> float:
    """The probability that the exact McNemar test shows a gain, if these shares of n problems are gained and lost.

    Example:
        >>> round(power_of(100, gained=0.3, lost=0.1), 2)
        0.88
    """
    from scipy.stats import binom

    changed = np.arange(n + 1)
    # With d changed problems the test needs at least this many gained ones.
    needed = binom.isf((1 - confidence) / 2, changed, 0.5) + 1
    share = gained / (gained + lost) if gained + lost else 0.0
    return float((binom.pmf(changed, n, min(gained + lost, 1.0)) * binom.sf(needed - 1, changed, share)).sum())


def sample_size_in_words(n: int, base_rate: float, losses: float = LOSSES) -> str | None:
    """A warning if n problems are too few to show a gain of 20 points (or all that is left to gain), otherwise None.

    Raises:
        InvalidInput: n is below 1, or the base rate or losses are outside 0..1.

    Example:
        >>> print(sample_size_in_words(10, base_rate=0.14))
        10 problems cannot show any gain (from 14%, 10% lost); take at least 84 to show 20 points
    """
    if not 0 <= base_rate <= 1:
        raise InvalidInput(f"a base rate of {base_rate} was given; expected 0 to 1")
    wanted = min(WORTHWHILE, 1 - base_rate)
    lost = min(losses, base_rate, 1 - base_rate - wanted)  # so many that the gain is still possible
    gain = detectable_difference(n, base_rate, losses=lost)
    if wanted == 0:
        return "a share of 100% leaves no gain to show; take harder problems"
    if gain is not None and gain <= wanted:
        return None
    can = f"can only show a gain above {_points(gain)}" if gain is not None else "cannot show any gain"
    told = f"from {base_rate:.0%}, {lost:.0%} lost" if lost else f"from {base_rate:.0%}"
    return f"{n} problems {can} ({told}); take at least {_enough(wanted, lost)} to show {_points(wanted)}"


def _enough(wanted: float, lost: float) -> int:
    """The least number of problems that show this net gain."""
    high = 1
    while power_of(high, wanted + lost, lost) < POWER:
        high *= 2
    return next(n for n in range(high // 2, high + 1) if power_of(n, wanted + lost, lost) >= POWER)


def _points(share: float) -> str:
    return f"{100 * share:.2g} points"
