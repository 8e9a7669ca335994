"""Stop strings: completions end before the first, and rows stop being written there, in every host."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import evaluation, zoo
from unlock_lens.core.generation import complete
from unlock_lens.hosts import ndif, transformer_lens
from unlock_lens.hosts.endings import StopCriterion, before

TASK = zoo.running_sum(n=8, seed=0)
REQUEST = """
import unlock_lens as ul
from unlock_lens import zoo

model, prompts = zoo.load("small-base", "nnsight"), zoo.running_sum(n=8).think
how = {"max_new_tokens": 12, "stop": ["5 5", "="]}
here = ul.generate(model, prompts, **how)
assert not any("=" in text or "5 5" in text for text in here)
assert ul.generate(model, prompts, remote="local", **how) == here
"""
"""What is sent to a server, sent to this machine."""


@pytest.fixture(params=["small", "small_nnsight"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def written(model: Any, *stop: str, **how: Any) -> list[str]:
    return ul.generate(model, TASK.think, max_new_tokens=12, stop=stop, **how)


def passes(model: Any, *stop: str) -> int:
    """How many forward passes a generation takes."""
    root, count = getattr(model, "original_model", None) or model._module, [0]
    handle = root.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    try:
        written(model, *stop)
    finally:
        handle.remove()
    return count[0]


def test_a_completion_ends_before_the_first_stop_string(model: Any) -> None:
    whole = written(model)
    assert all(" = " in text for text in whole)
    assert written(model, "=") == [text.partition("=")[0] for text in whole]
    assert written(model, "never", "=", " =") == [text.partition(" =")[0] for text in whole]


def test_a_stop_string_of_several_tokens_ends_its_rows_alone(model: Any) -> None:
    whole, stop = written(model), "5 5"
    assert len(model.tokenizer.tokenize(stop)) == 2
    assert 0 < sum(stop in text for text in whole) < len(whole)
    assert written(model, stop) == [text.partition(stop)[0] for text in whole]


def test_stop_strings_in_the_prompt_do_not_count(model: Any) -> None:
    """Nor do those that begin in the prompt and end in the completion."""
    assert all(prompt.endswith("think A :") for prompt in TASK.think)
    assert written(model, "think", ":", ": S", ":S") == written(model)


def test_nothing_is_written_after_a_stop_string(model: Any) -> None:
    assert passes(model, "=") < passes(model)
    assert passes(model, "S") == 1
    assert passes(model, "never") == passes(model)


def test_the_text_is_the_same_where_rows_are_written_to_the_end(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = [("=",), ("5 5",), ("= 6", "1 1"), ("5", "0 ")]
    early, steps = [written(model, *stop) for stop in stops], passes(model)
    for host in (ndif, transformer_lens):
        monkeypatch.setattr(host, "stopping", lambda *_: {})
    assert passes(model, "=") == steps
    assert [written(model, *stop) for stop in stops] == early


def test_a_request_stops_as_a_run_here_does() -> None:
    """In another process: what the hook that checks shapes has wrapped cannot be sent."""
    done = subprocess.run([sys.executable, "-c", REQUEST], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_steered_and_sampled_completions_stop_too(model: Any) -> None:
    task = zoo.running_sum(n=40)
    direction = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think))
    steer = ul.SteeringHook(direction, 0.5)
    how: dict[str, Any] = {"max_new_tokens": 12}
    steered = ul.generate(model, TASK.direct, steer, **how)
    assert sum("=" in text for text in steered) >= 6
    assert ul.generate(model, TASK.direct, steer, stop=["="], **how) == [text.partition("=")[0] for text in steered]
    sampled = ul.generate(model, TASK.direct, temperature=2.0, stop=["="], **how)
    assert not any("=" in text for text in sampled)


def test_what_was_cut_by_the_budget_is_known(model: Any) -> None:
    variant = ul.Variant(model, TASK.think)
    assert not any(each.ended for each in complete(variant, None, 3, 8))
    assert all(each.ended for each in complete(variant, None, 12, 8))
    assert all(each.ended for each in complete(variant, None, 9, 8, stop=["="]))
    found = evaluation.evaluate(model, TASK, TASK.think, max_new_tokens=8, stop=["5 5"], progress=False)
    assert found.cut == sum("5 5" not in text for text in written(model)) / len(TASK.think)


@pytest.mark.parametrize("stop", [[""], ["=", ""], "=", [5]])
def test_bad_stop_strings_are_refused_before_any_work(small: Any, stop: Any) -> None:
    with unchecked(), pytest.raises(ul.InvalidInput, match="stop"):
        ul.generate(small, TASK.direct, stop=stop)


def test_the_criterion_looks_at_the_last_tokens_of_the_completion_alone(small: Any) -> None:
    criterion = StopCriterion(small.tokenizer, (), ["= 6"], prompt_length=2)
    rows = ["= 6 " + "1 " * 40 + "= 6", "= 6 " + "1 " * 40 + "= 5", "= 6 " + "1 " * 40 + "6 6"]
    ids = torch.tensor([small.tokenizer.encode(row) for row in rows])
    assert criterion(ids).tolist() == [True, False, False]
    assert criterion(ids[:, :2]).tolist() == [False, False, False]
    assert before("one two", ["two", "e t"]) == "on"
