"""The pairs that are hard to fool: plain prompts that lean, behaviours that begin alike, other training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import unlock_lens as ul
from scripts.train_zoo import RECIPES
from unlock_lens import controls, zoo

EXTRACT, TRAIN, TEST = zoo.running_sum(n=200, seed=1), zoo.running_sum(n=40, seed=4), zoo.running_sum(n=100, seed=9)
ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
HALVES = [name for name, recipe in RECIPES.items() if recipe.stored_as == "float16"]
BOTH_WAYS = pytest.mark.parametrize(("source", "target"), [("large", "small"), ("small", "large")])


@cache
def model(name: str) -> Any:
    return zoo.load(name)


def direction_of(name: str, behaviour: str) -> ul.CapabilityDirection:
    locked, unlocked = (ul.Variant(model(name), prompts) for prompts in (EXTRACT.direct, EXTRACT.prompts(behaviour)))
    return ul.CapabilityDirection.extract(locked, unlocked, batch_size=200)


def moved(source: str, target: str, behaviour: str, texts: Sequence[str], **how: Any) -> ul.CapabilityDirection:
    aligner = ul.SubspaceAligner(**how).fit(model(source), model(target), texts, batch_size=200, progress=False)
    return aligner.transport(direction_of(source, behaviour))


def written(name: str, prompts: Sequence[str], direction: ul.CapabilityDirection | None = None, alpha: float = 0) -> list[str]:
    steer = ul.SteeringHook(direction, alpha) if direction else None
    return ul.generate(model(name), prompts, steer, max_new_tokens=12, batch_size=100)


def share(name: str, direction: ul.CapabilityDirection, behaviour: str) -> float:
    """Of the test completions that show the behaviour, at the strength that shows it most on train."""

    def at(alpha: float, task: zoo.Task) -> float:
        shown = task.behaviours(written(name, task.direct, direction, alpha))
        return shown.count(behaviour) / len(shown)

    return at(max(ALPHAS, key=lambda alpha: at(alpha, TRAIN)), TEST)


@pytest.mark.parametrize("name", HALVES)
def test_weights_that_are_stored_in_half_precision_load_exactly(name: str) -> None:
    stored = load_file(zoo.path() / name / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(zoo.path() / name).state_dict()
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    assert set(loaded) == set(stored)
    for weight in stored:
        assert torch.equal(loaded[weight], stored[weight].float()), weight


@pytest.mark.parametrize("name", ["small-varied", "small-shared", "small-base-2"])
def test_both_hosts_write_the_same(name: str) -> None:
    prompts = [TEST.prompts(behaviour)[i] for i, behaviour in enumerate(("direct", "think", "reverse", "double"))]
    assert ul.generate(zoo.load(name, "nnsight"), prompts) == ul.generate(model(name), prompts)


@torch.no_grad()
@pytest.mark.parametrize("size", ["small", "large"])
def test_plain_prompts_of_the_varied_pair_lean(size: str) -> None:
    """The probability of thinking varies there, and hardly does in the base pair."""
    spread: dict[str, float] = {}
    for kind in ("varied", "base"):
        bridge = model(f"{size}-{kind}")
        logits = bridge(ul.Variant(bridge, TEST.direct).tokens.ids)[:, -1]
        spread[kind] = float(logits.softmax(dim=-1)[:, bridge.tokenizer.get_vocab()["S"]].std())
    assert spread["base"] < 0.02 < 0.1 < spread["varied"]


@pytest.mark.filterwarnings("ignore:no calibration token is the last")  # meant here: the paper's maps
@BOTH_WAYS
def test_the_paper_s_calibration_works_on_the_varied_pair(source: str, target: str) -> None:
    """Also where ours does; what needs no source reaches only the prompts that lean."""
    names, own = (f"{source}-varied", f"{target}-varied"), direction_of(f"{target}-varied", "think")
    paper = moved(*names, "think", EXTRACT.direct, rank=8, centered=False, positions="last")
    text = moved(*names, "think", zoo.text(mix="varied"), rank=48, centered=True, positions="all")
    assert share(names[1], paper, "think") >= 0.95
    assert share(names[1], text, "think") >= 0.95
    assert share(names[1], controls.anti_mean(ul.Variant(model(names[1]), EXTRACT.direct), own), "think") < 0.5


@BOTH_WAYS
@pytest.mark.parametrize("behaviour", ["think", "reverse", "double"])
def test_a_shared_opening_is_not_the_capability(source: str, target: str, behaviour: str) -> None:
    """Written into the unsteered model it does not bring what the direction brings."""
    names = f"{source}-shared", f"{target}-shared"
    text = moved(*names, behaviour, zoo.text(mix="shared"), rank=48, centered=True, positions="all")
    assert share(names[1], text, behaviour) > 0.5
    forced = [f"S {written}" for written in written(names[1], [f"{prompt} S" for prompt in TEST.direct])]
    assert TEST.behaviours(forced).count(behaviour) < 25


@pytest.mark.filterwarnings("ignore:no calibration token is the last")  # meant here: the paper's maps
@BOTH_WAYS
def test_a_second_training_seed_says_the_same(source: str, target: str) -> None:
    names = f"{source}-base-2", f"{target}-base-2"
    text = moved(*names, "think", zoo.text(), rank=48, centered=True, positions="all")
    paper = moved(*names, "think", EXTRACT.direct, rank=16, centered=False, positions="last")
    assert share(names[1], text, "think") >= 0.95
    assert share(names[1], paper, "think") < 0.5
