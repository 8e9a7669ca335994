"""What servers answer is compared with what was asked: shapes, dtypes, numbers, orthonormal axes, ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unlock_lens.hosts import Batch
from unlock_lens.hosts.answers import fault_of_ids, fault_of_log_probs, fault_of_logits, fault_of_reduction
from unlock_lens.method.reduce import LeadingAxes, Mean, Reduction, States

N, D, AXES = 12, 6, 4


def honest(reduction: Reduction) -> dict[str, Tensor]:
    states = torch.randn(2, N, D, generator=torch.Generator().manual_seed(0)) + 1
    for i, layer in enumerate(states):
        reduction.add(i, layer, torch.arange(N), 1)
    return reduction.result()


def reductions(half: bool = False) -> list[Reduction]:
    return [States(2, N, D), Mean(N), LeadingAxes(AXES, N, N, True, half), LeadingAxes(D, N, N, False, half)]


@pytest.mark.parametrize("half", [False, True])
def test_honest_results_pass(half: bool) -> None:
    for reduction in reductions(half):
        assert fault_of_reduction(honest(reduction), reduction, [], 2, D) is None


def test_results_whose_smallest_axes_are_rounding_pass() -> None:
    reduction = LeadingAxes(D, N, N, True, half=False)
    states = torch.randn(2, N, D, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -5.8, D)
    for i, layer in enumerate(states):
        reduction.add(i, layer + 3, torch.arange(N), 1)
    assert fault_of_reduction(reduction.result(), reduction, [], 2, D) is None


def changed(name: str, change: Callable[[Tensor], Any]) -> Callable[[dict[str, Tensor]], Any]:
    return lambda found: {**found, name: change(found[name].clone())}


@pytest.mark.parametrize(
    ("change", "keyword"),
    [
        (lambda found: None, "asked for"),
        (lambda found: [found], "asked for"),
        (lambda found: {}, "names"),
        (lambda found: {**found, "more": found["mean"]}, "names"),
        (changed("mean", lambda t: t[:, :-1]), "mean"),
        (changed("mean", lambda t: t.double()), "mean"),
        (changed("mean", lambda t: t.to_sparse()), "mean"),
        (changed("mean", lambda t: "x"), "mean"),
        (changed("mean", torch.zeros_like), "mean state"),
        (changed("energy", torch.zeros_like), "energy"),
        (changed("values", torch.zeros_like), "energy"),
        (changed("values", lambda t: -t), "negative"),
        (changed("values", lambda t: t.flip(1)), "descend"),
        (changed("values", lambda t: 100 * t), "energy"),
        (changed("vectors", torch.zeros_like), "orthonormal"),
        (changed("vectors", lambda t: 2 * t), "orthonormal"),
        (changed("vectors", lambda t: t[:, :1].expand_as(t)), "orthonormal"),
        (changed("vectors", lambda t: t * torch.nan), "not finite"),
        (changed("left", lambda t: 10 * t), "scores"),
        (changed("left", lambda t: t[:, :-1]), "left"),
    ],
)
def test_axes_that_no_states_have_are_refused(change: Callable[[Any], Any], keyword: str) -> None:
    reduction = LeadingAxes(AXES, N, N, True, half=False)
    assert keyword in str(fault_of_reduction(change(honest(reduction)), reduction, [], 2, D))


IDS = torch.tensor([[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("found", "keyword"),
    [
        (None, "batches"),
        ({}, "batches"),
        ({"1": IDS}, "batches"),
        ({"0": IDS.float()}, "int64"),
        ({"0": IDS[:1]}, "batch 0"),
        ({"0": IDS[0]}, "batch 0"),
        ({"0": IDS[:, :0]}, "batch 0"),
        ({"0": IDS.repeat(1, 2)}, "3 columns"),
        ({"0": IDS - 2}, "vocabulary"),
        ({"0": IDS + 20}, "vocabulary"),
    ],
)
def test_ids_that_no_model_writes_are_refused(found: Any, keyword: str) -> None:
    batch = Batch(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64))
    assert fault_of_ids({"0": IDS}, [batch], 3, 22) is None
    assert keyword in str(fault_of_ids(found, [batch], 3, 22))


def test_log_probs_add_up_to_one() -> None:
    found = torch.randn(2, 3, 5).log_softmax(-1)
    assert fault_of_log_probs(found, 2, 3, 5) is None
    for wrong in (found[:1], found + 1, found.double(), found * torch.nan, torch.zeros_like(found), None):
        assert fault_of_log_probs(wrong, 2, 3, 5)


def test_logits_have_the_shapes_that_were_asked_for() -> None:
    found = [torch.randn(2, 5), torch.randn(1, 3, 5)]
    assert fault_of_logits(found, [(2,), (1, 3)], 5) is None
    for wrong in (None, found[:1], [found[0], found[0]], [found[0].int(), found[1]], [found[0] * torch.nan, found[1]]):
        assert fault_of_logits(wrong, [(2,), (1, 3)], 5)
