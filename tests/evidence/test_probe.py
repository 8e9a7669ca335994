"""The probe: what it counts, what it cannot compare, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.evidence.probe import Probe

TASK = zoo.running_sum(n=32, seed=5)


def scores(*likeliest: int) -> torch.Tensor:
    return torch.eye(4)[list(likeliest)].log_softmax(-1)


def test_the_probe_counts_prompts_that_begin_as_the_unlocked_model_does() -> None:
    """The last prompt begins alike either way and does not count."""
    steered = {0.2: scores(0, 0, 0, 3), 0.4: scores(1, 2, 0, 3), 0.6: scores(1, 2, 0, 0), 0.8: scores(3, 2, 0, 3)}
    found = Probe.of(scores(0, 0, 0, 3), scores(1, 2, 2, 3), steered)
    assert (found.n_prompts, found.n_differing) == (4, 3)
    assert dict(found.by_alpha) == pytest.approx({0.2: 0, 0.4: 2 / 3, 0.6: 2 / 3, 0.8: 1 / 3})
    assert (found.share, found.alpha) == (pytest.approx(2 / 3), 0.6)


def test_models_of_different_vocabularies_are_not_compared(small: Any) -> None:
    duo = zoo.load("large-duo")
    direction = ul.CapabilityDirection(torch.ones(3, 64), (0, 1, 2))
    found = Probe.run(direction, ul.Variant(small, TASK.direct), ul.Variant(duo, TASK.think))
    assert (found.share, found.by_alpha) == (None, ())
    assert "vocabular" in (found.skipped or "")


def test_unlocked_prompts_that_go_on_where_locked_ones_end_have_no_first_token_to_compare(small: Any) -> None:
    """As in "Answer:" and "Answer: Let's think step by step."."""
    longer = [f"{prompt} S" for prompt in TASK.direct]
    found = Probe.run(
        ul.CapabilityDirection(torch.ones(3, 64), (0, 1, 2)), ul.Variant(small, TASK.direct), ul.Variant(small, longer)
    )
    assert found.share is None
    assert "unlocked prompts" in (found.skipped or "")


def test_bad_probes_are_refused(small: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="0 strengths"):
        Probe.of(scores(0), scores(1), {})
    with unchecked(), pytest.raises(ul.InvalidInput, match="shapes"):
        Probe.of(scores(0), scores(1), {0.5: scores(1, 1)})
    direction = ul.CapabilityDirection(torch.ones(3, 64), (0, 1, 2))
    with pytest.raises(ul.InvalidInput, match="32 .* 31"):
        Probe.run(direction, ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think[1:]))
