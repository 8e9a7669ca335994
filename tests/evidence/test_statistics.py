"""Statistics against statsmodels, scipy and plain counting."""

from __future__ import annotations

import math
import re
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, multinomial
from statsmodels.stats import contingency_tables
from statsmodels.stats.proportion import proportion_confint

import unlock_lens as ul
from unlock_lens.evidence.statistics import (
    bootstrap_difference,
    detectable_difference,
    mcnemar,
    pass_at_k,
    power_of,
    sample_size_in_words,
    wilson_interval,
)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_statsmodels(drawn: tuple[int, int], confidence: float) -> None:
    successes, n = drawn
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ul.InvalidInput, match="successes"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = [any(i < c for i in draw) for draw in combinations(range(n), k)]
            assert pass_at_k(n, c, k) == pytest.approx(sum(draws) / len(draws), abs=1e-15)


def test_pass_at_k_is_exact_for_many_samples() -> None:
    assert pass_at_k(10_000, 1, 1) == 1e-4
    product = math.prod(1 - 1000 / i for i in range(10_000 - 5 + 1, 10_001))
    assert pass_at_k(10_000, 5, 1000) == pytest.approx(1 - product, abs=1e-12)


def test_pass_at_k_refuses_impossible_counts() -> None:
    with pytest.raises(ul.InvalidInput, match="5.*of 4"):
        pass_at_k(4, 5, 1)
    for k in (0, 5):
        with pytest.raises(ul.InvalidInput, match=f"pass@{k}"):
            pass_at_k(4, 2, k)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_statsmodels(gained: int, lost: int) -> None:
    theirs: Any = contingency_tables.mcnemar([[3, lost], [gained, 4]], exact=True)
    assert mcnemar(gained, lost) == pytest.approx(theirs.pvalue if gained + lost else 1.0, abs=1e-12)
    assert mcnemar(gained, lost) == mcnemar(lost, gained) <= 1


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ul.InvalidInput, match="-1"):
        mcnemar(2, -1)


def outcomes(seed: int, n: int, share: float) -> list[bool]:
    return [bool(right) for right in np.random.default_rng(seed).random(n) < share]


@pytest.mark.parametrize(("n", "before", "after"), [(30, 0.2, 0.6), (200, 0.5, 0.5), (57, 0.9, 0.1)])
def test_the_bootstrap_draws_pairs(n: int, before: float, after: float) -> None:
    a, b = outcomes(1, n, after), outcomes(2, n, before)
    paired = bootstrap(
        (np.array(a, float), np.array(b, float)),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    found = bootstrap_difference(a, b)
    assert found == pytest.approx((paired.low, paired.high), abs=1 / n + 1e-9)  # another draw of the same
    assert found == bootstrap_difference(a, b)
    assert found[0] <= np.mean(a) - np.mean(b) <= found[1]


def test_the_bootstrap_is_the_multinomial_of_gains_and_losses() -> None:
    a, b = outcomes(3, 80, 0.5), outcomes(4, 80, 0.3)
    gained, lost = sum(x and not y for x, y in zip(a, b, strict=True)), sum(y and not x for x, y in zip(a, b, strict=True))
    drawn = np.random.default_rng(6).multinomial(80, [gained / 80, lost / 80, 1 - (gained + lost) / 80], size=100_000)
    for confidence in (0.5, 0.95):
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        expected = np.quantile((drawn[:, 0] - drawn[:, 1]) / 80, tails)
        assert bootstrap_difference(a, b, confidence) == pytest.approx(tuple(expected), abs=1 / 80 + 1e-9)


def test_the_interval_holds_no_change_that_no_draw_can_have() -> None:
    """One problem of ten is gained, and none lost: no draw loses any, so the interval of percentiles begins at 0."""
    assert bootstrap_difference([True] * 10, [False] + [True] * 9) == pytest.approx((0.0, 0.3))
    assert bootstrap_difference([False] + [True] * 9, [True] * 10) == pytest.approx((-0.3, 0.0))


@pytest.mark.parametrize("n", [1, 2, 50])
def test_problems_that_all_changed_alike_give_a_point(n: int) -> None:
    yes, no = [True] * n, [False] * n
    assert bootstrap_difference(yes, no) == (1, 1)
    assert bootstrap_difference(no, yes) == (-1, -1)
    assert bootstrap_difference(yes, yes) == bootstrap_difference(no, no) == (0, 0)


def test_the_bootstrap_refuses_what_is_not_paired() -> None:
    with pytest.raises(ul.InvalidInput, match="2.*1"):
        bootstrap_difference([True, False], [True])
    with pytest.raises(ul.InvalidInput, match="at least one"):
        bootstrap_difference([], [])


def plain_power(n: int, gained: float, lost: float, confidence: float = 0.95) -> float:
    """Plainly: the chance of numbers of gained and lost problems for which the test shows a gain."""
    total = 0.0
    for g in range(n + 1):
        for k in range(n + 1 - g):
            if g > k and mcnemar(g, k) <= 1 - confidence + 1e-12:
                total += float(multinomial.pmf([g, k, n - g - k], n, [gained, lost, 1 - gained - lost]))
    return total


@pytest.mark.parametrize(
    ("n", "gained", "lost"), [(1, 0.5, 0.1), (12, 0.6, 0.0), (20, 0.5, 0.1), (35, 0.3, 0.2), (8, 1.0, 0.0)]
)
def test_power_is_the_sum_over_what_may_be_gained_and_lost(n: int, gained: float, lost: float) -> None:
    assert power_of(n, gained, lost) == pytest.approx(plain_power(n, gained, lost), abs=1e-9)


@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from([0.5, 0.8, 0.95]), st.sampled_from([0.0, 0.05, 0.1]))
def test_the_detectable_difference_has_its_power_and_no_more(n: int, base: float, power: float, losses: float) -> None:
    gain, lost = detectable_difference(n, base, power, losses=losses), min(losses, base)
    if gain is None:
        assert 1 - base < lost or power_of(n, 1 - base, lost) < power + 1e-9
    else:
        assert 0 <= gain <= 1 - base - lost + 1e-9
        assert power_of(n, gain + lost, lost) >= power - 1e-9
        assert power_of(n, max(gain + lost - 1e-4, 0), lost) < power


def test_the_detectable_difference_is_what_simulation_finds() -> None:
    gain = detectable_difference(60, 0.3)
    assert gain is not None
    drawn = np.random.default_rng(0).multinomial(60, [gain + 0.1, 0.1, 0.8 - gain], size=20_000)
    shown = sum(g > k and mcnemar(int(g), int(k)) <= 0.05 for g, k, _ in drawn)
    assert shown / 20_000 == pytest.approx(0.8, abs=0.01)


@given(st.integers(1, 120), st.floats(0, 0.95))
def test_words_come_when_problems_are_too_few_and_their_number_is_enough(n: int, base: float) -> None:
    words, wanted = sample_size_in_words(n, base), min(0.2, 1 - base)
    lost = min(0.1, base, 1 - base - wanted)
    if words is None:
        assert power_of(n, wanted + lost, lost) >= 0.8 - 1e-4
        return
    assert power_of(n, wanted + lost, lost) < 0.8
    enough = int(words.split("take at least ")[1].split()[0])
    assert power_of(enough, wanted + lost, lost) >= 0.8 > power_of(enough - 1, wanted + lost, lost)


@pytest.mark.parametrize(
    ("n", "base", "numbers"),
    [
        (30, 0.14, ["30", "39", "14", "10", "84", "20"]),  # it shows a gain above 39 points; 84 problems show 20
        (5, 0.14, ["5", "14", "10", "84", "20"]),  # it shows no gain at all
        (10, 0.9, ["10", "90", "78", "10"]),  # room for 10 points, and for no loss
        (10, 1.0, ["100"]),  # nothing is left to gain
    ],
)
def test_words_hold_the_numbers(n: int, base: float, numbers: list[str]) -> None:
    assert sample_size_in_words(200, 0.14) is None
    assert re.findall(r"\d+", sample_size_in_words(n, base) or "") == numbers


def test_impossible_designs_are_refused() -> None:
    with pytest.raises(ul.InvalidInput, match="0 problems"):
        detectable_difference(0, 0.5)
    with pytest.raises(ul.InvalidInput, match="base rate"):
        sample_size_in_words(10, 14)
    with pytest.raises(ul.InvalidInput, match="power"):
        detectable_difference(10, 0.5, power=1)
