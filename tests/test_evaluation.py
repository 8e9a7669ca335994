"""Intervals against the formula written out, and the controls' properties."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unlock_lens as ul
from unlock_lens import capture, controls, zoo
from unlock_lens.evaluation import Outcome
from unlock_lens.statistics import wilson_interval


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_its_formula(drawn: tuple[int, int]) -> None:
    successes, n = drawn
    z, p = 1.959963984540054, successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = wilson_interval(successes, n)
    assert low == pytest.approx(max(middle - half, 0), abs=1e-9)
    assert high == pytest.approx(min(middle + half, 1), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ul.InvalidInput, match="expected 0 to n of at least 1"):
        wilson_interval(successes, n)


def test_outcomes_count_what_is_there() -> None:
    task = zoo.running_sum(n=4, seed=0)
    right = [f"= {answer}" for answer in task.answers]
    outcome = Outcome.of(task, [*right[:3], "R 1 2 3 4 5 6"])
    assert outcome.accuracy == 0.75
    assert outcome.behaviours == {"direct": 0.75, "think": 0, "reverse": 0.25, "double": 0, "other": 0}
    assert (outcome.low, outcome.high) == wilson_interval(3, 4)


def test_random_controls_have_the_norms_and_nothing_else() -> None:
    drawn = torch.randn(3, 400, generator=torch.Generator().manual_seed(99))
    direction = ul.CapabilityDirection(drawn, (0, 1, 5))
    first, again, other = (controls.random_like(direction, seed) for seed in (0, 0, 1))
    assert torch.equal(first.vectors, again.vectors)
    torch.testing.assert_close(first.vectors.norm(dim=1), direction.vectors.norm(dim=1))
    assert bool((first.cosine(direction).abs() < 0.2).all())
    assert bool((first.cosine(other).abs() < 0.2).all())
    assert (first.layers, first.provenance.steps) == ((0, 1, 5), ("random control, seed 0",))


def test_the_anti_mean_points_away_from_the_locked_state(small: Any) -> None:
    task = zoo.running_sum(n=10)
    locked = ul.Variant(small, task.direct)
    own = ul.CapabilityDirection.extract(locked, ul.Variant(small, task.think), layers=[0, 2])
    control = controls.anti_mean(locked, own)
    mean = capture.at_position(locked, [0, 2]).mean(dim=1)
    torch.testing.assert_close(torch.cosine_similarity(control.vectors, mean, dim=1), torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(control.vectors.norm(dim=1), own.vectors.norm(dim=1))
    assert control.model == own.model
