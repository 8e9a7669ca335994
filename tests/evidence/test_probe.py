"""The probe: what it counts, what it cannot compare, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.evidence.controls import random_like
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


def test_models_of_two_vocabularies_are_compared_by_what_their_first_tokens_write() -> None:
    """A Llama with a token for each word, and a GPT-2 that spells its words."""
    source, target = zoo.load("small-gpt2"), zoo.load("small-base")
    task = zoo.running_sum(n=60, seed=6)
    direction = ul.CapabilityDirection.extract(ul.Variant(source, task.direct), ul.Variant(source, task.think))
    prompts = [*task.direct, *task.think]
    aligner = ul.SubspaceAligner().fit(ul.Variant(source, prompts), ul.Variant(target, prompts), progress=False)
    begins = ul.Variant(target, TASK.direct), ul.Variant(source, TASK.think)
    nulls = [aligner.transport(random_like(direction, seed)) for seed in range(3)]
    found = Probe.run(aligner.transport(direction), *begins, batch_size=32, nulls=nulls)
    assert found.share == 1.0
    assert found.minus == 0.0
    assert len(found.nulls) == 3


@pytest.mark.parametrize(
    ("written", "wanted", "alike"),
    [("Let", "Let's", True), ("Let's", "Let", True), ("To", "First", False), ("", "First", False), ("", "", False)],
)
def test_two_openings_are_alike_if_one_begins_with_the_other(written: str, wanted: str, alike: bool) -> None:
    found = Probe.counted([".", "."], [{wanted}, {"x"}], {0.5: [written, "."]}, in_words=True)
    assert found.by_alpha == ((0.5, 0.5 if alike else 0.0),)


def test_where_unlocked_prompts_continue_locked_ones_the_source_s_steered_run_is_the_example(small: Any, large: Any) -> None:
    """As in "Answer:" and "Answer: Let's think step by step.": a steered model may write the suffix itself."""
    longer = [f"{prompt} S" for prompt in TASK.direct]
    direction, source = (
        ul.CapabilityDirection.extract(ul.Variant(model, TASK.direct), ul.Variant(model, TASK.think))
        for model in (small, large)
    )
    begins = ul.Variant(small, TASK.direct), ul.Variant(large, longer)
    assert (Probe.run(direction, *begins, batch_size=32).share or 0.0) < 0.5
    found = Probe.run(direction, *begins, batch_size=32, example=(source, ul.Variant(large, TASK.direct)))
    assert found.share == 1.0
    assert found.minus == 0.0


def test_bad_probes_are_refused(small: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="0 strengths"):
        Probe.of(scores(0), scores(1), {})
    with unchecked(), pytest.raises(ul.InvalidInput, match="shapes"):
        Probe.of(scores(0), scores(1), {0.5: scores(1, 1)})
    direction = ul.CapabilityDirection(torch.ones(3, 64), (0, 1, 2))
    with pytest.raises(ul.InvalidInput, match="32 .* 31"):
        Probe.run(direction, ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think[1:]))
