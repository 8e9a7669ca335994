"""Every host agrees with the formulas of the method, written plainly in tests/oracle.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests import oracle
from tests.hosts.models import PARTNERS, PROMPTS, SHAPES
from unlock_lens import distributions
from unlock_lens.core import read

STEPS = 6
ALPHA = 0.6


def relative_error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


@pytest.mark.parametrize("position", [-1, 0])
def test_states_at_a_position_of_uneven_prompts(kind: str, host: str, model_of: Any, oracle_of: Any, position: int) -> None:
    found = read.at_position(ul.Variant(model_of(kind, host), PROMPTS), position=position, batch_size=3)
    assert relative_error(found, oracle_of(kind).at_position(PROMPTS, position)) < 1e-5


@pytest.mark.parametrize("skip_first", [False, True])
def test_states_at_all_tokens_keep_the_prompts_order(
    kind: str, host: str, model_of: Any, oracle_of: Any, skip_first: bool
) -> None:
    found = read.at_all_tokens(ul.Variant(model_of(kind, host), PROMPTS), skip_first=skip_first, batch_size=2)
    true = oracle_of(kind).at_all_tokens(PROMPTS, skip_first)
    assert found.shape == true.shape
    assert relative_error(found, true) < 1e-5


@pytest.mark.parametrize("aggregate", ["mean", "pca"])
def test_directions(kind: str, host: str, model_of: Any, oracle_of: Any, aggregate: Any) -> None:
    model = model_of(kind, host)
    found = ul.CapabilityDirection.extract(
        ul.Variant(model, PROMPTS), ul.Variant(model, PARTNERS), aggregate=aggregate, batch_size=4
    )
    states = [oracle_of(kind).at_position(prompts) for prompts in (PARTNERS, PROMPTS)]
    true = {"mean": oracle.mean_direction, "pca": oracle.pca_direction}[aggregate](*states)
    assert relative_error(found.vectors, true) < 1e-4


def test_any_callable_aggregates(kind: str, host: str, model_of: Any, oracle_of: Any) -> None:
    model = model_of(kind, host)

    def median(differences: torch.Tensor) -> torch.Tensor:
        return differences.median(dim=0).values

    found = ul.CapabilityDirection.extract(
        ul.Variant(model, PROMPTS), ul.Variant(model, PARTNERS), aggregate=median, layers=[2, 1]
    )
    true = oracle_of(kind).at_position(PARTNERS) - oracle_of(kind).at_position(PROMPTS)
    assert found.layers == (1, 2)
    assert found.provenance.aggregate == "median"
    assert relative_error(found.vectors, true[1:].median(dim=1).values) < 1e-4


def test_model_contrast(kind: str, host: str, model_of: Any, oracle_of: Any, folders: Any) -> None:
    """Two models of one shape, the same prompts."""
    locked = model_of(kind, host)
    other = "qwen2" if kind == "llama" else "llama"
    unlocked = model_of(other, host)
    found = ul.CapabilityDirection.extract(ul.Variant(locked, PROMPTS), ul.Variant(unlocked, PROMPTS))
    true = oracle.mean_direction(oracle_of(other).at_position(PROMPTS), oracle_of(kind).at_position(PROMPTS))
    assert relative_error(found.vectors, true) < 1e-4
    assert found.model is not None
    assert found.provenance.unlocked_model is not None
    assert found.model.name == f"{kind}-a"
    assert found.provenance.unlocked_model.name == f"{other}-a"


@pytest.mark.parametrize(("source", "target"), [("a", "b"), ("b", "a")])
@pytest.mark.parametrize(
    ("positions", "centered", "rank"), [("last", False, 3), ("last", True, 2), ("all", True, 8), ("all", False, 5)]
)
def test_maps(
    kind: str, host: str, model_of: Any, oracle_of: Any, source: str, target: str, positions: Any, centered: bool, rank: int
) -> None:
    aligner = ul.SubspaceAligner(rank, centered=centered, positions=positions).fit(
        ul.Variant(model_of(kind, host, source), PROMPTS), ul.Variant(model_of(kind, host, target), PROMPTS)
    )
    read = {"last": oracle.Oracle.at_position, "all": oracle.Oracle.at_all_tokens}[positions]
    h_s, h_t = read(oracle_of(kind, source), PROMPTS), read(oracle_of(kind, target), PROMPTS)
    for b in range(SHAPES[target][0]):
        a = oracle.layer_of_source(b, SHAPES[source][0], SHAPES[target][0])
        assert aligner.layer_map[b] == a
        assert relative_error(aligner.map(b), oracle.linear_map(h_s[a], h_t[b], rank, centered)) < 1e-3


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("positions", ["last_prompt", "prompt", "generated", "all"])
@pytest.mark.parametrize("operation", ["norm_preserving", "add", "ablate"])
def test_steered_tokens(
    kind: str, host: str, model_of: Any, oracle_of: Any, operation: Any, positions: Any, use_cache: bool
) -> None:
    """Greedy tokens are those of the oracle, for prompts of uneven length in one batch; and steering changes some."""
    model = model_of(kind, host)
    direction = ul.CapabilityDirection.extract(ul.Variant(model, PROMPTS), ul.Variant(model, PARTNERS))
    steer = ul.SteeringHook(direction, ALPHA, operation, positions)
    found = ul.generate(model, PROMPTS, steer=steer, max_new_tokens=STEPS, use_cache=use_cache)
    true = oracle_completions(oracle_of(kind), direction, operation, positions)
    assert found == true
    assert found != ul.generate(model, PROMPTS, max_new_tokens=STEPS, use_cache=use_cache)


def oracle_completions(of: oracle.Oracle, direction: ul.CapabilityDirection, operation: str, positions: str) -> list[str]:
    vectors = dict(zip(direction.layers, direction.vectors, strict=True))
    written = [of.greedy(prompt, vectors, ALPHA, STEPS, operation, positions) for prompt in PROMPTS]
    return [of.tokenizer.decode(up_to_end(ids, of.tokenizer.eos_token_id), skip_special_tokens=True) for ids in written]


def up_to_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


COMPLETIONS = ["S 3 4 = 4", "= 1", "R 3", "W 1 2 3 4 5", "S"]


@pytest.mark.parametrize("positions", ["last_prompt", "prompt", "generated", "all"])
@pytest.mark.parametrize("operation", ["norm_preserving", "add", "ablate"])
def test_log_probs_of_completions(kind: str, host: str, model_of: Any, oracle_of: Any, operation: Any, positions: Any) -> None:
    """Prompts and completions of uneven length in one batch, read in one edited pass, are those of one at a time."""
    model, of = model_of(kind, host), oracle_of(kind)
    direction = ul.CapabilityDirection.extract(ul.Variant(model, PROMPTS), ul.Variant(model, PARTNERS))
    vectors = dict(zip(direction.layers, direction.vectors, strict=True))
    steer = ul.SteeringHook(direction, ALPHA, operation, positions)
    found = distributions.completion_log_probs(model, PROMPTS, COMPLETIONS, steer, batch_size=3)
    firsts = distributions.next_token_log_probs(model, PROMPTS, steer, batch_size=2)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        true = of.log_probs(prompt, completion, vectors, ALPHA, operation, positions)
        ids = torch.tensor(of.tokenizer.encode(completion))
        assert float(found[i]) == pytest.approx(float(true[range(len(ids)), ids].sum()), abs=1e-3)
        # Nothing is generated yet, so "generated" edits nothing there.
        torch.testing.assert_close(firsts[i].double(), true[0], rtol=0, atol=1e-3)
