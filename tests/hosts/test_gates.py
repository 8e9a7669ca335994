"""Gated hooks agree with the oracle, in every host and form: rows of a batch decide each for itself."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.hosts.models import HOSTS, KINDS, PROMPTS
from tests.hosts.test_oracle import ALPHA, ELSEWHERE, FORMS, STEPS, direction_for, oracle_completions, texts_of
from unlock_lens import distributions
from unlock_lens.method.apply import GATE_POSITIONS, POSITIONS

LAYER = 1
STEERED = [1, 2]


def gate_for(of: Any, model: Any, positions: Any) -> ul.Gate:
    """A random reader whose threshold lies in the widest gap between readings of some prompts and those of others."""
    reader = torch.randn(32, generator=torch.Generator().manual_seed(5))
    read = (of.at_position(PROMPTS)[LAYER] @ reader.double()).sort().values
    gap = int((read[1:] - read[:-1])[1:3].argmax()) + 1  # two to three of the five prompts act
    direction = ul.CapabilityDirection(reader.unsqueeze(0), (LAYER,), model=direction_for(model).model)
    return ul.Gate(direction, float(read[gap] + read[gap + 1]) / 2, positions)


def of_oracle(gate: ul.Gate) -> tuple[int, torch.Tensor, float, str]:
    return gate.layer, gate.direction.vectors[0], gate.threshold, gate.positions


CASES = [
    (host, form, positions, cached)
    for host, form, positions, cached in product(HOSTS, FORMS, POSITIONS, (True, False))
    if host not in ELSEWHERE.get(form, [])
]


@pytest.mark.parametrize(
    ("host", "form", "positions", "cached", "kind", "gated"),
    [(*case, KINDS[(i // 2) % 3], GATE_POSITIONS[i % 2]) for i, case in enumerate(CASES)]
    + [(*case, KINDS[(i + 1) % 3], GATE_POSITIONS[(i + 1) % 2]) for i, case in enumerate(CASES)],
)
def test_gated_tokens(
    host: str, form: str, positions: Any, cached: bool, kind: str, gated: Any, model_of: Any, oracle_of: Any
) -> None:
    """Greedy tokens are the oracle's where some rows act and others do not, for prompts of uneven length in one batch."""
    model, of = model_of(kind, host), oracle_of(kind)
    direction = direction_for(model).at_layers(STEERED)
    gate = gate_for(of, model, gated)
    found = FORMS[form](model, ul.SteeringHook(direction, ALPHA, "add", positions, gate=gate), cached)
    vectors = dict(zip(direction.layers, direction.vectors, strict=True))
    ids = [of.greedy(p, vectors, ALPHA, STEPS, "add", positions, of_oracle(gate)) for p in PROMPTS]
    assert found == texts_of(of.tokenizer, ids)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_not_let_through_are_untouched(kind: str, host: str, model_of: Any, oracle_of: Any) -> None:
    """Some rows of one batch read as the steered model, the others as the model itself, and either share is there."""
    model, gate = model_of(kind, host), gate_for(oracle_of(kind), model_of(kind, host), "last_prompt")
    steer = ul.SteeringHook(direction_for(model).at_layers(STEERED), ALPHA, "add", gate=gate)
    acts = gate.readings(ul.Variant(model, PROMPTS)) > gate.threshold
    assert 0 < int(acts.sum()) < len(PROMPTS)
    plain, always, gated = (
        distributions.next_token_log_probs(model, PROMPTS, each)
        for each in (None, ul.SteeringHook(steer.direction, ALPHA, "add"), steer)
    )
    assert torch.equal(gated[~acts], plain[~acts])
    assert torch.equal(gated[acts], always[acts])
    assert not torch.allclose(plain, always)


def test_a_gate_before_the_layers_that_are_steered(host: str, model_of: Any, oracle_of: Any) -> None:
    """Nothing is edited where it reads; two hooks with two gates in one run do not share decisions."""
    model, of = model_of("llama", host), oracle_of("llama")
    gate, vectors = gate_for(of, model, "last_prompt"), direction_for(model)
    other = ul.Gate(-1 * gate.direction, -gate.threshold)
    hooks = [ul.SteeringHook(vectors, ALPHA, "add", layers=[2], gate=each) for each in (gate, other)]
    found = ul.generate(model, PROMPTS, hooks, max_new_tokens=STEPS)
    assert found == oracle_completions(
        of, vectors.at_layers([2]), "add", "last_prompt"
    )  # each row is let through by one of them


def test_batches_of_one_generation_decide_again(host: str, model_of: Any, oracle_of: Any) -> None:
    model = model_of("gpt2", host)
    gate = gate_for(oracle_of("gpt2"), model, "last_prompt")
    steer = ul.SteeringHook(direction_for(model).at_layers(STEERED), ALPHA, "add", "generated", gate=gate)
    together, alone = (ul.generate(model, PROMPTS, steer, max_new_tokens=STEPS, batch_size=size) for size in (5, 1))
    assert together == alone
    with steer.attached(model):
        assert ul.generate(model, PROMPTS, max_new_tokens=STEPS, batch_size=2) == together
