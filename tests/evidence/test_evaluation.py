"""Outcomes, comparisons and samples count what is there; controls have the properties that make them controls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.core import read
from unlock_lens.evidence.evaluation import Outcome, compare, evaluate, sample
from unlock_lens.evidence.statistics import wilson_interval
from unlock_lens.evidence.tasks import CHECKS, Problem, Task


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
    mean = read.at_position(locked, [0, 2]).mean(dim=1)
    torch.testing.assert_close(torch.cosine_similarity(control.vectors, mean, dim=1), torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(control.vectors.norm(dim=1), own.vectors.norm(dim=1))
    assert control.model == own.model


def test_the_direction_without_its_mean_part_is_orthogonal_to_the_mean(small: Any) -> None:
    task = zoo.running_sum(n=10)
    locked = ul.Variant(small, task.direct)
    own = ul.CapabilityDirection.extract(locked, ul.Variant(small, task.think))
    left = controls.without_mean(locked, own)
    mean = read.at_position(locked).mean(dim=1)
    torch.testing.assert_close(torch.cosine_similarity(left.vectors, mean, dim=1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(left.vectors.norm(dim=1), own.vectors.norm(dim=1))
    with pytest.raises(ul.InvalidInput, match="multiple"):
        controls.without_mean(locked, controls.anti_mean(locked, own))


def test_a_map_of_shuffled_tokens_knows_nothing_of_the_source() -> None:
    """Where the true map is exact, the shuffled one sends directions elsewhere."""
    source = torch.randn(1, 400, 16, generator=torch.Generator().manual_seed(0))
    target = source @ torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q
    direction = ul.CapabilityDirection(torch.ones(1, 16), (0,))
    true, again, shuffled = (
        ul.SubspaceAligner(16).fit_activations(source, states).transport(direction)
        for states in (target, target, controls.shuffled(target, seed=0))
    )
    assert float(true.cosine(again)) > 0.9999
    assert abs(float(true.cosine(shuffled))) < 0.6
    assert torch.equal(controls.shuffled(target, 0).sort(dim=1).values, target.sort(dim=1).values)
    assert not torch.equal(controls.shuffled(target, 0), controls.shuffled(target, 1))


def test_unaligned_copies_follow_the_layer_map() -> None:
    identity = ul.ModelIdentity("target", n_layers=3, d_model=8)
    direction = ul.CapabilityDirection(torch.eye(2, 8), (0, 1))
    copied = controls.unaligned(direction, {0: 0, 1: 1, 2: 1}, identity)
    assert torch.equal(copied.vectors, torch.eye(2, 8)[[0, 1, 1]])
    assert (copied.layers, copied.model) == ((0, 1, 2), identity)
    with pytest.raises(ul.IncompatibleModel, match="d_model"):
        controls.unaligned(direction, {0: 0}, ul.ModelIdentity("target", n_layers=3, d_model=9))
    with pytest.raises(ul.InvalidInput, match=r"\[0, 1\].*\[5\]"):
        controls.unaligned(direction, {0: 5}, identity)


def test_evaluations_hold_each_completion_with_its_length(small: Any) -> None:
    task = zoo.running_sum(n=6)
    found = evaluate(small, task, task.think, max_new_tokens=12)
    assert found.outcome.accuracy == 1.0
    assert found.right == (True,) * 6
    assert found.lengths == tuple(len(text.split()) for text in found.completions) == (9,) * 6
    assert found.seconds > 0


def test_comparisons_are_paired() -> None:
    found = compare([True, True, False, True], [False, True, True, False])
    assert (found.gained, found.lost, found.difference) == (2, 1, 0.25)
    assert found.low <= 0.25 <= found.high
    with pytest.raises(ul.InvalidInput, match="4 and 3"):
        compare([True] * 4, [True] * 3)


def test_sampling_is_repeatable_and_leaves_the_random_state_alone(small: Any) -> None:
    task = zoo.running_sum(n=5)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    once, again, other = (
        sample(small, task, task.direct, samples=4, seed=seed, max_new_tokens=12, progress=False) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert once == again != other
    assert list(once.pass_at) == [1, 2, 4]
    assert list(once.pass_at.values()) == sorted(once.pass_at.values())
    for problem, completion in once.successes:
        assert task.correct([completion if i == problem else "" for i in range(5)])[problem]
    with pytest.raises(ul.InvalidInput, match="samples"):
        sample(small, task, task.direct, samples=0)


def test_tasks_that_tell_no_behaviours_apart_have_none() -> None:
    task = Task("sums", (Problem("1 + 1?", "2"),), CHECKS["number"])
    assert Outcome.of(task, ["2"]).behaviours == {}
