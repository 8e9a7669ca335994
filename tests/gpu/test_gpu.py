"""What only a GPU can show. `make test-gpu` runs these tests and those of the oracle, whose models are then on the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.hosts.models import PARTNERS, PROMPTS
from tests.hosts.test_oracle import direction_for, relative_error
from unlock_lens import distributions, zoo
from unlock_lens.core import read
from unlock_lens.hosts import open_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU: torch.cuda.is_available() is False")

ALPHA = 0.6
OF_HALF = 0.05
"""Relative error that half precision may bring: it keeps 8 bits, and these models' weights are large."""
BACKENDS = {"bridge": "transformer_lens", "nnsight": "nnsight"}


@pytest.fixture(scope="session")
def half_of(folders: dict[tuple[str, str], str]) -> Any:
    """Models in bfloat16."""
    made: dict[tuple[str, str], Any] = {}

    def get(kind: str, host: str) -> Any:
        if (kind, host) not in made:
            made[kind, host] = open_model(folders[kind, "a"], BACKENDS[host], dtype="bfloat16")
        return made[kind, host]

    return get


def steered_log_probs(oracle: Any, direction: ul.CapabilityDirection) -> torch.Tensor:
    """What the oracle predicts after each prompt when its last token is steered."""
    vectors = dict(zip(direction.layers, direction.vectors.double(), strict=True))
    rows: list[torch.Tensor] = []
    for prompt in PROMPTS:
        ids = oracle.tokenizer.encode(prompt)
        edit = oracle._editing(len(ids), vectors, ALPHA, "norm_preserving", "last_prompt")
        rows.append(oracle.run(ids, edit)[1][-1].log_softmax(-1))
    return torch.stack(rows)


def test_models_are_opened_on_the_gpu(kind: str, host: str, model_of: Any) -> None:
    model = model_of(kind, host)
    assert next(model.parameters()).device.type == "cuda"


def test_states_in_half_precision(kind: str, host: str, half_of: Any, oracle_of: Any) -> None:
    found = read.at_position(ul.Variant(half_of(kind, host), PROMPTS), batch_size=3)
    assert relative_error(found, oracle_of(kind).at_position(PROMPTS, -1)) < OF_HALF


def test_steering_in_half_precision(kind: str, host: str, half_of: Any, model_of: Any, oracle_of: Any) -> None:
    direction = direction_for(model_of(kind, host))
    steer = ul.SteeringHook(direction, ALPHA)
    found = distributions.next_token_log_probs(half_of(kind, host), PROMPTS, steer)
    assert relative_error(found, steered_log_probs(oracle_of(kind), direction)) < OF_HALF


def test_steering_under_autocast(kind: str, host: str, model_of: Any, oracle_of: Any) -> None:
    """One prompt at a time: TransformerLens' mask of padding overflows there."""
    model = model_of(kind, host)
    direction = direction_for(model)
    with torch.autocast("cuda", torch.bfloat16):
        found = distributions.next_token_log_probs(model, PROMPTS, ul.SteeringHook(direction, ALPHA), batch_size=1)
    assert relative_error(found, steered_log_probs(oracle_of(kind), direction)) < OF_HALF


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_steering_with_both_kinds_of_attention(attention: str, folders: Any, model_of: Any, oracle_of: Any) -> None:
    from nnsight import TransformersModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folders["llama", "a"]
    weights: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation=attention)
    weights.cuda()
    model = TransformersModel(weights, tokenizer=AutoTokenizer.from_pretrained(folder))
    direction = direction_for(model_of("llama", "nnsight"))
    found = distributions.next_token_log_probs(model, PROMPTS, ul.SteeringHook(direction, ALPHA), batch_size=3)
    assert relative_error(found, steered_log_probs(oracle_of("llama"), direction)) < OF_HALF


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each copy from the GPU to the host's memory had."""
    found: list[int] = []
    copy, convert = torch.Tensor.cpu, torch.Tensor.to

    def cpu(self: torch.Tensor, *args: Any, **how: Any) -> torch.Tensor:
        found.append(self.numel() if self.is_cuda else 0)
        return copy(self, *args, **how)

    def to(self: torch.Tensor, *args: Any, **how: Any) -> torch.Tensor:
        converted = convert(self, *args, **how)
        found.append(self.numel() if self.is_cuda and not converted.is_cuda else 0)
        return converted

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.Tensor, "to", to)
    return found


def test_a_fit_keeps_the_states_on_the_gpu(host: str, model_of: Any, moved: list[int]) -> None:
    """What is copied does not grow with the number of tokens."""
    source, target = model_of("llama", host), model_of("llama", host, "b")
    most: list[int] = []
    for n in (40, 160):
        moved.clear()
        ul.SubspaceAligner(rank=4).fit(source, target, zoo.text(n=n), progress=False)
        most.append(sum(moved))
    assert most[0] > 0
    assert most[1] < 2 * most[0]


def test_a_direction_is_that_of_the_cpu(kind: str, host: str, model_of: Any, oracle_of: Any) -> None:
    found = direction_for(model_of(kind, host))
    locked, unlocked = (oracle_of(kind).at_position(prompts, -1) for prompts in (PROMPTS, PARTNERS))
    assert found.vectors.device.type == "cpu"
    assert relative_error(found.vectors, (unlocked - locked).mean(dim=1)) < 1e-4


@pytest.mark.parametrize("backend", BACKENDS.values())
def test_a_capability_arrives(backend: str) -> None:
    source, target = (zoo.load(name, backend) for name in ("large-base", "small-base"))
    task = zoo.running_sum(n=32)
    direction = ul.CapabilityDirection.extract(ul.Variant(source, task.direct), ul.Variant(source, task.think), progress=False)
    aligner = ul.SubspaceAligner(rank=48).fit(source, target, zoo.text(n=300), progress=False)
    steer = ul.SteeringHook(aligner.transport(direction), 0.5)
    behaviours = task.behaviours(ul.generate(target, task.direct, steer, max_new_tokens=9, progress=False))
    assert behaviours.count("think") > 0.9 * len(behaviours)
