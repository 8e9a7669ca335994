"""Sampling in `ul.generate`: a seed repeats it and leaves no trace, top_p narrows it; and completions that are garbage."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.core.repetition import caution_of_garbage, repeats

TASK = zoo.running_sum(n=12, seed=3)
HOW: Any = {"max_new_tokens": 6, "progress": False}


@pytest.fixture(params=["transformer_lens", "nnsight"], scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return zoo.load("small-base", request.param)


def test_a_seed_repeats_what_is_sampled_and_leaves_no_trace(model: Any) -> None:
    def drawn(seed: int | None) -> list[str]:
        return ul.generate(model, TASK.direct, temperature=3.0, seed=seed, **HOW)

    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = drawn(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == drawn(1) != drawn(2)
    torch.manual_seed(7)
    without = drawn(None)
    torch.manual_seed(7)
    assert drawn(None) == without  # torch's own state decides, as before


def test_top_p_narrows_what_is_sampled(model: Any) -> None:
    greedy = ul.generate(model, TASK.direct, **HOW)
    assert ul.generate(model, TASK.direct, temperature=3.0, top_p=1e-6, seed=1, **HOW) == greedy
    assert ul.generate(model, TASK.direct, temperature=3.0, top_p=1.0, seed=1, **HOW) != greedy


def test_greedy_completions_have_no_top_p(model: Any) -> None:
    for wrong in ({"top_p": 0.5}, {"top_p": 0.0, "temperature": 1.0}, {"top_p": 1.5, "temperature": 1.0}):
        with pytest.raises(ul.InvalidInput, match="top_p"):
            ul.generate(model, TASK.direct, **wrong, **HOW)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        (" tout tout tout tout tout tout tout tout tout tout tout tout tout tout tout", True),
        (" chaud, chaud, chaud, chaud, chaud, chaud, chaud, chaud, chaud, chaud, chaud,", True),
        ("몰" * 24, True),
        (" a bit of a mess.  I'm not sure if it's the weather or the weather conditions that are bad.", False),
        # A base model's ordinary loop, of whole sentences.
        (
            " car and I was wondering if I could get a loaner car for a month. I was wondering if I could get a loaner car.",
            False,
        ),
        ("S 1 3 6 3 1 0 = 0", False),
        ("ha ha ha", False),
        ("", False),
    ],
)
def test_garbage_is_known_by_its_repetition(text: str, broken: bool) -> None:
    assert repeats(text) is broken


def test_garbage_under_steering_is_told_with_a_way_out() -> None:
    direction, broken, sound = ul.CapabilityDirection(torch.ones(1, 64), (0,)), "tout " * 20, "It is a warm day."
    everywhere, once = (ul.SteeringHook(direction, 0.05, positions=where) for where in ("all", "last_prompt"))
    with pytest.warns(UserWarning, match="2 of 3 .* positions='last_prompt'"):
        caution_of_garbage([broken, sound, broken], [everywhere])
    with pytest.warns(UserWarning, match="weaker alpha"):
        caution_of_garbage([broken], [once])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caution_of_garbage([broken], [])  # unsteered
        caution_of_garbage([broken, sound, sound], [everywhere])
        caution_of_garbage([], [everywhere])


def test_a_seed_without_sampling_is_refused(model: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="seed.*temperature"):
        ul.generate(model, TASK.direct, seed=1, **HOW)
