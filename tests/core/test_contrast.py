"""Directions from kept differences are those of extract; resampling does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.core.contrast import Contrast

N = 40


@pytest.fixture(scope="module")
def contrast(small: Any) -> Contrast:
    task = zoo.running_sum(n=N)
    return Contrast.capture(ul.Variant(small, task.direct), ul.Variant(small, task.think), progress=False)


def extracted(model: Any, n: int, aggregate: Any) -> ul.CapabilityDirection:
    task = zoo.running_sum(n=N)
    locked, unlocked = ul.Variant(model, task.direct[:n]), ul.Variant(model, task.think[:n])
    return ul.CapabilityDirection.extract(locked, unlocked, aggregate, progress=False)


@pytest.mark.parametrize("aggregate", ["mean", "pca"])
@pytest.mark.parametrize("n", [5, N])
def test_directions_are_those_of_extract(contrast: Contrast, small: Any, aggregate: Any, n: int) -> None:
    found, true = contrast.first(n).direction(aggregate), extracted(small, n, aggregate)
    torch.testing.assert_close(found.vectors, true.vectors, rtol=1e-5, atol=1e-5)
    assert (found.layers, found.model, found.provenance.aggregate, found.provenance.n_prompts) == (
        true.layers,
        true.model,
        aggregate,
        n,
    )


def test_a_function_aggregates_too(contrast: Contrast) -> None:
    def median(differences: torch.Tensor) -> torch.Tensor:
        return differences.median(dim=0).values

    found = contrast.direction(median)
    torch.testing.assert_close(found.vectors, contrast.differences.median(dim=1).values)
    assert found.provenance.aggregate == "median"


def test_bootstrap_samples_are_of_its_own_prompts_and_repeatable(contrast: Contrast) -> None:
    once, again, other = (contrast.resampled(seed).differences for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    rows = {tuple(row.tolist()) for row in contrast.differences[0]}
    assert {tuple(row.tolist()) for row in once[0]} < rows  # some are drawn twice, so some are missing


def test_more_prompts_than_there_are_is_an_error(contrast: Contrast) -> None:
    with pytest.raises(ul.InvalidInput, match=f"41 prompts were requested; this contrast has {N}"):
        contrast.first(N + 1)


def test_variants_that_do_not_pair_are_refused(small: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="1 locked and 2 unlocked prompts"):
        Contrast.capture(ul.Variant(small, ["Q 1 A :"]), ul.Variant(small, ["Q 1 A :", "Q 2 A :"]))
