"""A plan beside what went over the wire: the same requests and tokens, and no more bytes than containers add to its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.remote.asking import make_llama
from unlock_lens import zoo
from unlock_lens.core.plan import Step, plan

Open = Callable[[str], Any]
TASK, TEXTS = zoo.running_sum(n=60), zoo.text(n=80)
PROMPTS = (TASK.direct, TASK.think)
MODELS = ["large-base", "planned"]
"""Of the zoo, and a random one that is wider."""
WIDTH, LAYERS = 512, 6
CODE, CONTAINERS = 72_000, 4_000
"""Bytes in one request and in one result of these models, besides the data of tensors."""


@pytest.fixture(scope="module", autouse=True)
def planned(models: Path) -> None:
    make_planned(models / "planned")


def make_planned(folder: Path) -> None:
    """A random Llama with the zoo's tokenizer, whose completions do not end."""
    shape = {"intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}
    make_llama(folder, hidden_size=WIDTH, num_hidden_layers=LAYERS, eos_token_id=None, **shape)
    (folder / "generation_config.json").unlink(missing_ok=True)


def _agrees(steps: Sequence[Step], traffic: ul.Traffic) -> None:
    found = Step.summed("", "", steps)
    assert found.requests == traffic.requests
    assert 0 < traffic.up - found.bytes_up < CODE * found.requests
    assert 0 < traffic.down - found.bytes_down < CONTAINERS * found.requests


def _tokens(*of: Sequence[str]) -> int:
    """The zoo's tokenizer makes a token of each word."""
    return sum(len(prompt.split()) for prompts in of for prompt in prompts)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("aggregate", ["mean", "pca"])
@pytest.mark.parametrize("batches", [None, 3])
def test_extraction(remote_model: Open, name: str, aggregate: Any, batches: int | None) -> None:
    model, remote = remote_model(name), ul.Remote(batches=batches)
    found = plan(model, prompts=PROMPTS, aggregate=aggregate, remote=remote)
    locked, unlocked = (ul.Variant(model, of, remote=remote) for of in PROMPTS)
    ul.CapabilityDirection.extract(locked, unlocked, aggregate)
    assert found.total.tokens == _tokens(*PROMPTS)
    assert found.total.requests == (3 if batches else 1)
    _agrees(found.steps, remote.traffic)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{}, {"positions": 200}, {"half": True}, {"positions": 200, "batches": 4}])
def test_calibration(remote_model: Open, name: str, settings: dict[str, Any]) -> None:
    """All tokens, a sample of them, in half precision, in several requests."""
    remote = ul.Remote(**settings)
    source, target = remote_model(name), remote_model("small-base")
    found = plan(source, target, texts=TEXTS, rank=16, remote=remote)
    aligner = ul.SubspaceAligner(16, centered=True, positions="all")
    aligner.fit(ul.Variant(source, TEXTS, remote=remote), ul.Variant(target, TEXTS, remote=remote))
    assert [step.tokens for step in found.steps] == [_tokens(TEXTS)] * 2
    _agrees(found.steps, remote.traffic)


@pytest.mark.parametrize("name", MODELS)
def test_generation(remote_model: Open, name: str) -> None:
    """Steered, of two tokens, before which none of the completions ends."""
    model, remote = remote_model(name), ul.Remote()
    found = plan(model, prompts=PROMPTS, max_new_tokens=2, remote=remote).steps[1]
    width, layers = (WIDTH, LAYERS) if name == "planned" else (96, 4)
    torch.manual_seed(0)
    steer = ul.SteeringHook(ul.CapabilityDirection(torch.randn(layers, width), tuple(range(layers))), 0.01)
    ul.generate(model, TASK.direct, steer, max_new_tokens=2, remote=remote)
    assert found.tokens == _tokens(TASK.direct) + 2 * len(TASK.direct)
    _agrees([found], remote.traffic)
