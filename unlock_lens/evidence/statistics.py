"""Intervals, paired tests and sample sizes, on counts alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

import numpy as np

from unlock_lens.errors import InvalidInput

WORTHWHILE = 0.2
"""The gain that a sweep should be able to show."""
POWER, CONFIDENCE = 0.8, 0.95


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share, from scipy.

    Raises:
        InvalidInput: successes outside 0..n, or n below 1.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    from scipy.stats import binomtest

    if not 0 <= successes <= n or n < 1:
        raise InvalidInput(f"{successes} successes of {n} were given; expected 0 to n of at least 1")
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k samples is right, unbiased, from n samples of which c are: 1 - C(n-c, k) / C(n, k).

    Raises:
        InvalidInput: not 0 <= c <= n, or not 1 <= k <= n.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, section 2.1.
    """
    if not 0 <= c <= n:
        raise InvalidInput(f"{c} right samples of {n} were given; expected 0 to n")
    if not 1 <= k <= n:
        raise InvalidInput(f"pass@{k} of {n} samples was asked for; k is 1 to n, so draw at least k samples")
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p: could as many problems be gained and lost if neither were likelier?

    Raises:
        InvalidInput: a count below 0.

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
    after: Sequence[bool], before: Sequence[bool], confidence: float = CONFIDENCE, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(after) - mean(before), drawing problems, each with both its outcomes.

    Where all problems changed alike (as a single one does), the interval is a point: there is nothing to draw from.

    Raises:
        InvalidInput: no problems, or not the same number in both.

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
    # The difference of paired means is the mean of the differences; batches bound the memory.
    found = bootstrap(
        (differences,), np.mean, n_resamples=resamples, batch=1000, confidence_level=confidence, method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def detectable_difference(n: int, base_rate: float, power: float = POWER, confidence: float = CONFIDENCE) -> float | None:
    """The smallest gain over `base_rate` that n paired problems show with this power, by the exact McNemar test.

    This is the favourable case in which nothing is lost: each problem is gained with the probability that is returned.

    Returns:
        The gain as a share, or None if not even a perfect score would be shown.

    Raises:
        InvalidInput: n below 1, a base rate outside 0..1, power or confidence not between 0 and 1.

    Example:
        >>> round(detectable_difference(100, base_rate=0.1), 3), detectable_difference(5, base_rate=0.1)
        (0.078, None)
    """
    from scipy.stats import beta

    if n < 1 or not 0 <= base_rate <= 1:
        raise InvalidInput(f"{n} problems with a base rate of {base_rate} were given; expected at least 1, and 0 to 1")
    if not (0 < power < 1 and 0 < confidence < 1):
        raise InvalidInput(f"power {power} and confidence {confidence} were given; both lie between 0 and 1")
    needed = _least_gained(confidence)
    if needed > n:
        return None
    # P(at least k of n are gained) is the beta(k, n - k + 1) distribution function of the chance of each.
    gain = float(beta.ppf(power, needed, n - needed + 1))
    return gain if gain <= 1 - base_rate else None


def sample_size_in_words(n: int, base_rate: float) -> str | None:
    """What n problems are too few for, or None if they can show a gain of 20 points (or all that is left to gain).

    Example:
        >>> print(sample_size_in_words(10, base_rate=0.14))
        10 problems can only show a gain above 67 points (from 14%); take at least 39 to show 20 points
    """
    from scipy.stats import nbinom

    gain, wanted = detectable_difference(n, base_rate), min(WORTHWHILE, 1 - base_rate)
    if wanted == 0:
        return "a share of 100% leaves no gain to show; take harder problems"
    if gain is not None and gain <= wanted:
        return None
    can = f"can only show a gain above {_points(gain)}" if gain is not None else "cannot show any gain"
    needed = _least_gained(CONFIDENCE)
    enough = needed + int(nbinom.ppf(POWER, needed, wanted))
    return f"{n} problems {can} (from {base_rate:.0%}); take at least {enough} to show {_points(wanted)}"


def _least_gained(confidence: float) -> int:
    return next(gained for gained in count(1) if mcnemar(gained, 0) <= 1 - confidence)


def _points(share: float) -> str:
    return f"{100 * share:.2g} points"
