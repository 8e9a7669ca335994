"""Every host agrees with the formulas of the method, written plainly in tests/oracle.py.

Cases rotate: each host meets each family, position, operation, cache and native form, and not each with each other.
"""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests import oracle
from tests.hosts.models import HOSTS, KINDS, PARTNERS, PROMPTS, SHAPES
from unlock_lens import distributions
from unlock_lens.core import read
from unlock_lens.core.variant import tokenize
from unlock_lens.method.apply import OPERATIONS, POSITIONS

STEPS = 6
ALPHA = 0.6


def relative_error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


def direction_for(model: Any, aggregate: Any = "mean", **how: Any) -> ul.CapabilityDirection:
    return ul.CapabilityDirection.extract(ul.Variant(model, PROMPTS), ul.Variant(model, PARTNERS), aggregate, **how)


@pytest.mark.parametrize("position", [-1, 0])
def test_states_at_a_position_of_uneven_prompts(kind: str, host: str, model_of: Any, oracle_of: Any, position: int) -> None:
    found = read.at_position(ul.Variant(model_of(kind, host), PROMPTS), position=position, batch_size=3)
    assert relative_error(found, oracle_of(kind).at_position(PROMPTS, position)) < 1e-5


def test_states_at_all_tokens_keep_the_prompts_order(kind: str, host: str, model_of: Any, oracle_of: Any) -> None:
    skip_first = kind == "gpt2"
    found = read.at_all_tokens(ul.Variant(model_of(kind, host), PROMPTS), skip_first=skip_first, batch_size=2)
    true = oracle_of(kind).at_all_tokens(PROMPTS, skip_first)
    assert found.shape == true.shape
    assert relative_error(found, true) < 1e-5


def median(differences: torch.Tensor) -> torch.Tensor:
    return differences.median(dim=0).values


@pytest.mark.parametrize(("kind", "aggregate"), [("llama", "mean"), ("qwen2", "pca"), ("gpt2", median)])
def test_directions(kind: str, host: str, model_of: Any, oracle_of: Any, aggregate: Any) -> None:
    found = direction_for(model_of(kind, host), aggregate, layers=[2, 1], batch_size=4)
    locked, unlocked = (oracle_of(kind).at_position(prompts) for prompts in (PROMPTS, PARTNERS))
    if aggregate is median:
        true = (unlocked - locked).median(dim=1).values
    else:
        true = {"mean": oracle.mean_direction, "pca": oracle.pca_direction}[aggregate](unlocked, locked)
    assert found.layers == (1, 2)
    assert found.provenance.aggregate == getattr(aggregate, "__name__", aggregate)
    assert relative_error(found.vectors, true[1:]) < 1e-4


def test_model_contrast(host: str, model_of: Any, oracle_of: Any) -> None:
    """Two models of one shape, the same prompts."""
    locked, unlocked = (ul.Variant(model_of(kind, host), PROMPTS) for kind in ("llama", "qwen2"))
    found = ul.CapabilityDirection.extract(locked, unlocked)
    true = oracle.mean_direction(oracle_of("qwen2").at_position(PROMPTS), oracle_of("llama").at_position(PROMPTS))
    assert relative_error(found.vectors, true) < 1e-4
    assert found.model is not None
    assert found.provenance.unlocked_model is not None
    assert (found.model.name, found.provenance.unlocked_model.name) == ("llama-a", "qwen2-a")


@pytest.mark.parametrize(
    ("kind", "source", "target", "positions", "centered", "rank"),
    [
        ("llama", "a", "b", "last", False, 3),
        ("qwen2", "b", "a", "last", True, 2),
        ("gpt2", "a", "b", "all", True, 8),
        ("gpt2", "b", "a", "all", False, 5),
    ],
)
def test_maps(
    kind: str, host: str, model_of: Any, oracle_of: Any, source: str, target: str, positions: Any, centered: bool, rank: int
) -> None:
    aligner = ul.SubspaceAligner(rank, centered=centered, positions=positions).fit(
        ul.Variant(model_of(kind, host, source), PROMPTS), ul.Variant(model_of(kind, host, target), PROMPTS)
    )
    chosen = {"last": oracle.Oracle.at_position, "all": oracle.Oracle.at_all_tokens}[positions]
    h_s, h_t = chosen(oracle_of(kind, source), PROMPTS), chosen(oracle_of(kind, target), PROMPTS)
    for b in range(SHAPES[target][0]):
        a = oracle.layer_of_source(b, SHAPES[source][0], SHAPES[target][0])
        assert aligner.layer_map[b] == a
        assert relative_error(aligner.map(b), oracle.linear_map(h_s[a], h_t[b], rank, centered)) < 1e-3


def written_by_generate(model: Any, steer: ul.SteeringHook, cached: bool) -> list[str]:
    return ul.generate(model, PROMPTS, steer=steer, max_new_tokens=STEPS, use_cache=cached)


def written_by_fwd_hooks(model: Any, steer: ul.SteeringHook, cached: bool) -> list[str]:
    with model.hooks(fwd_hooks=steer.fwd_hooks(model)):
        return lens_texts(model, cached)


def written_while_attached(model: Any, steer: ul.SteeringHook, cached: bool) -> list[str]:
    with steer.attached(model):
        return nnsight_texts(model, cached) if hasattr(model, "trace") else lens_texts(model, cached)


def written_by_apply(model: Any, steer: ul.SteeringHook, cached: bool) -> list[str]:
    """The tracer may be left out where the edit is meant for the prompt, which comes once."""
    return nnsight_texts(model, cached, steer, every_step=not cached or steer.positions != "last_prompt")


def lens_texts(model: Any, cached: bool = True) -> list[str]:
    """TransformerLens' own generate, prompt by prompt, so that it needs no mask; each steers its own prompt."""
    rows: list[list[int]] = []
    for prompt in PROMPTS:
        ids = torch.tensor([model.tokenizer.encode(prompt)])
        whole = model.generate(
            ids,
            max_new_tokens=STEPS,
            do_sample=False,
            use_past_kv_cache=cached,
            stop_at_eos=False,
            prepend_bos=False,
            return_type="tokens",
            verbose=False,
        )
        rows.append(whole[0, ids.shape[1] :].tolist())
    return texts_of(model.tokenizer, rows)


def nnsight_texts(model: Any, cached: bool, steer: ul.SteeringHook | None = None, every_step: bool = False) -> list[str]:
    """nnsight's own generate, all prompts at once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was never reached")
        with model.generate(max_new_tokens=STEPS, do_sample=False, use_cache=cached) as tracer:
            with tracer.invoke(PROMPTS):
                if steer is not None:
                    steer.apply(model, tracer if every_step else None)
            with tracer.invoke():
                ids = tracer.result.save()
    return texts_of(model.tokenizer, ids[:, tokenize(model.tokenizer, PROMPTS).ids.shape[1] :].tolist())


def texts_of(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    ends = [row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row) for row in rows]
    return [tokenizer.decode(row[:end], skip_special_tokens=True) for row, end in zip(rows, ends, strict=True)]


def oracle_completions(
    of: oracle.Oracle, direction: ul.CapabilityDirection, operation: str, positions: str, alpha: float = ALPHA
) -> list[str]:
    vectors = dict(zip(direction.layers, direction.vectors, strict=True))
    return texts_of(of.tokenizer, [of.greedy(p, vectors, alpha, STEPS, operation, positions) for p in PROMPTS])


FORMS = {
    "generate": written_by_generate,
    "attached": written_while_attached,
    "fwd_hooks": written_by_fwd_hooks,
    "apply": written_by_apply,
}
ELSEWHERE = {"fwd_hooks": ["nnsight"], "apply": [host for host in HOSTS if host != "nnsight"]}
"""Hosts that do not have a form."""
CASES = [
    (host, form, positions, cached)
    for host, form, positions, cached in product(HOSTS, FORMS, POSITIONS, (True, False))
    if host not in ELSEWHERE.get(form, [])
]


@pytest.mark.parametrize(
    ("host", "form", "positions", "cached", "kind", "operation"),
    [(*case, KINDS[i % 3], sorted(OPERATIONS)[(i // 3 + i) % 3]) for i, case in enumerate(CASES)],
)
def test_steered_tokens(
    host: str, form: str, positions: Any, cached: bool, kind: str, operation: Any, model_of: Any, oracle_of: Any
) -> None:
    """In every form, greedy tokens are those of the oracle, for prompts of uneven length; and steering changes some."""
    direction = direction_for(model_of(kind, host))
    found = FORMS[form](model_of(kind, host), ul.SteeringHook(direction, ALPHA, operation, positions), cached)
    assert found == oracle_completions(oracle_of(kind), direction, operation, positions)
    assert found != oracle_completions(oracle_of(kind), direction, "add", positions, alpha=0.0)


COMPLETIONS = ["S 3 4 = 4", "= 1", "R 3", "W 1 2 3 4 5", "S"]


@pytest.mark.parametrize(
    ("positions", "operation", "kind"),
    [(POSITIONS[i % 4], sorted(OPERATIONS)[i % 3], KINDS[(i // 2) % 3]) for i in range(6)],
)
def test_log_probs_of_completions(kind: str, host: str, model_of: Any, oracle_of: Any, operation: Any, positions: Any) -> None:
    """Prompts and completions of uneven length in one batch, read in one edited pass, are those of one at a time."""
    model, of = model_of(kind, host), oracle_of(kind)
    direction = direction_for(model)
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
