"""The edit function in a fake of a serving engine: any chunks of prompts, beside decoded tokens, give the hook's own residuals.

The fake schedules as vLLM does: each pass takes a few tokens of several requests in one flat batch, requests keep KV caches of
their own, and blocks hand the residual stream on in two parts.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.hosts.endings import text_of
from unlock_lens.interchange import EngineEdit, to_engine

PROMPTS = ["Q 3 2 0 6 0 2 A :", "Q 1 1 A :", "W 5", "Q 6 6 6 6 1 2 think A :"]
STEPS = 4
TOLERANCE: dict[str, Any] = {"atol": 1e-6, "rtol": 0.0}


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.load("small-base", dtype="float64")


@dataclass
class Request:
    """A request of the engine: its tokens, and how many of them are in its cache."""

    ids: list[int]
    prompt_length: int
    cache: Any
    seen: int = 0
    states: dict[int, list[Tensor]] = field(default_factory=dict)
    """By layer, of each token that was run."""


class Engine:
    """Runs a Llama as a serving engine does, block by block, all tokens of a pass in one flat batch."""

    def __init__(self, model: Any, edit: EngineEdit | None, budget: Sequence[int]) -> None:
        self.hf, self.edit, self.budget = model.original_model, edit, budget

    def request(self, ids: list[int]) -> Request:
        from transformers import DynamicCache

        return Request(list(ids), len(ids), DynamicCache(config=self.hf.config))

    @torch.no_grad()
    def step(self, requests: Sequence[Request], sizes: Sequence[int]) -> None:
        """One pass over the next tokens of each request, as many as its size says; who has no more decodes the next."""
        taken = [request.ids[request.seen : request.seen + size] for request, size in zip(requests, sizes, strict=True)]
        body, lengths = self.hf.model, [len(ids) for ids in taken]
        positions = [torch.arange(of.seen, of.seen + n) for of, n in zip(requests, lengths, strict=True)]
        flat = (
            torch.cat(positions),
            torch.tensor([of.prompt_length for of, n in zip(requests, lengths, strict=True) for _ in range(n)]),
        )
        hidden = body.embed_tokens(torch.tensor([token for ids in taken for token in ids]))
        residual = torch.zeros_like(hidden)
        for layer, block in enumerate(body.layers):
            stream = [
                self._block(block, part, of, at) if len(part) else part
                for part, of, at in zip((hidden + residual).split(lengths), requests, positions, strict=True)
            ]
            whole = torch.cat(stream)
            hidden = whole / 3
            residual = whole - hidden
            if self.edit is not None and layer in self.edit.layers:
                hidden, residual = self.edit.of_parts(layer, hidden, residual, *flat)
            for of, part in zip(requests, (hidden + residual).split(lengths), strict=True):
                of.states.setdefault(layer, []).extend(part)
        logits = self.hf.lm_head(body.norm(hidden + residual)).split(lengths)
        for of, n, written in zip(requests, lengths, logits, strict=True):
            of.seen += n
            if n and of.seen == len(of.ids):
                of.ids.append(int(written[-1].argmax()))

    def _block(self, block: Any, part: Tensor, of: Request, at: Tensor) -> Tensor:
        mask = torch.zeros(1, 1, len(at), of.seen + len(at), dtype=part.dtype)
        mask.masked_fill_(torch.arange(of.seen + len(at)) > at[:, None], float("-inf"))
        rotation = self.hf.model.rotary_emb(part.unsqueeze(0), at.unsqueeze(0))
        found = block(
            part.unsqueeze(0), attention_mask=mask, position_ids=at.unsqueeze(0), past_key_values=of.cache, use_cache=True,
            position_embeddings=rotation,
        )  # fmt: skip
        return (found if isinstance(found, Tensor) else found[0])[0]

    def run(self, prompts: Sequence[list[int]]) -> list[Request]:
        """Requests come one pass after another, so that prefill and decode are in one batch; sizes go round."""
        waiting, requests, turn = [self.request(ids) for ids in prompts], list[Request](), 0
        while waiting or any(len(of.ids) < of.prompt_length + STEPS for of in requests):
            requests += [waiting.pop(0)] if waiting else []
            sizes: list[int] = []
            for of in requests:
                done = len(of.ids) >= of.prompt_length + STEPS
                left = max(of.prompt_length - of.seen, 1)  # of the prompt; then one at a time
                sizes.append(0 if done else min(self.budget[turn % len(self.budget)], left))
                turn += 1
            self.step(requests, sizes)
        return requests


def hook(model: Any, **how: Any) -> ul.SteeringHook:
    vectors = torch.randn(model.cfg.n_layers, 64, generator=torch.Generator().manual_seed(1))
    direction = ul.CapabilityDirection(
        vectors, tuple(range(model.cfg.n_layers)), "raw", ul.Variant(model, ["Q"]).backend.identity
    )
    return ul.SteeringHook(direction, how.pop("alpha", 0.4), **how)


def gate(model: Any, **how: Any) -> ul.Gate:
    direction = ul.CapabilityDirection(torch.randn(1, 64, generator=torch.Generator().manual_seed(2)), (0,))
    readings = ul.Gate(direction, 0.0).readings(ul.Variant(model, PROMPTS))
    return ul.Gate(direction, float(readings.median()), **how)


def wanted(model: Any, steer: ul.SteeringHook, ids: list[int], prompt_length: int) -> dict[int, Tensor]:
    """States of the whole sequence with the hook in its own host."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        return lambda states, hook: found.__setitem__(layer, states[0].clone())

    steering = steer.fwd_hooks(model, attention_mask=torch.ones(1, prompt_length, dtype=torch.long))
    keeping = [(f"blocks.{layer}.hook_resid_post", keep(layer)) for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        model.run_with_hooks(torch.tensor([ids]), fwd_hooks=[*steering, *keeping])
    return found


def prompts(model: Any) -> list[list[int]]:
    return [model.tokenizer.encode(prompt) for prompt in PROMPTS]


KINDS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "add everywhere": {"operation": "add", "positions": "all", "alpha": 0.3},
    "ablate the prompt": {"operation": "ablate", "positions": "prompt", "alpha": 1.0},
    "generated": {"positions": "generated"},
    "strengths by layer": {"alpha": {0: 0.2, 1: 0.5}, "layers": (0, 1)},
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(budget=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_any_schedule_gives_the_residuals_of_the_hook(model: Any, kind: str, budget: list[int]) -> None:
    check(model, hook(model, **KINDS[kind]), budget)


@pytest.mark.parametrize("budget", [[1], [3, 2], [9]])
def test_gates_decide_as_in_the_hosts(model: Any, budget: list[int]) -> None:
    last = hook(model, gate=gate(model), layers=(1, 2))
    acted = check(model, last, budget)
    assert 0 < acted < len(PROMPTS)  # some rows are let through
    check(model, hook(model, gate=gate(model, positions="all"), positions="all", layers=(1, 2)), budget)


def check(model: Any, steer: ul.SteeringHook, budget: list[int]) -> int:
    """Compare a run of the engine with the hook; how many requests were edited at their last prompt token."""
    edit = pickle.loads(pickle.dumps(to_engine(steer)))  # as it reaches the engine's workers
    acted = 0
    for request in Engine(model, edit, budget).run(prompts(model)):
        ids = request.ids[: request.seen]
        assert request.seen == request.prompt_length + STEPS - 1
        true = wanted(model, steer, ids, request.prompt_length)
        plain = wanted(model, replace(steer, alpha=0.0) if steer.operation == "add" else off(steer), ids, request.prompt_length)
        for layer, states in request.states.items():
            torch.testing.assert_close(torch.stack(states), true[layer], **TOLERANCE)
        acted += not torch.allclose(true[2], plain[2], atol=1e-3)
    return acted


def off(steer: ul.SteeringHook) -> ul.SteeringHook:
    return replace(steer, operation="add", alpha=0.0, layers=steer.layers if isinstance(steer.layers, tuple) else None)


def test_tokens_are_those_of_generate(model: Any) -> None:
    steer = hook(model, alpha=2.0)
    written = [
        text_of(model.tokenizer, [model.tokenizer.eos_token_id], request.ids[request.prompt_length :])
        for request in Engine(model, to_engine(steer), [2, 5, 1]).run(prompts(model))
    ]
    assert written == ul.generate(model, PROMPTS, steer, max_new_tokens=STEPS)
    assert written != ul.generate(model, PROMPTS, max_new_tokens=STEPS)


def test_a_cached_prefix_is_exact_up_to_the_token_before_the_last(model: Any) -> None:
    """vLLM's prefix cache: what an unsteered request left may be used by a steered one, whose last token runs again; what a
    steered prompt left may not be used by a longer prompt, in which its last token is not the last.
    """
    ids, steer = prompts(model)[0], hook(model)
    longer = [*ids, *model.tokenizer.encode("S 1")]
    for edit, cached, prompt, same in (
        (None, ids[:-1], ids, True),
        (to_engine(steer), ids[:-1], ids, False),  # steered as a prompt of its own, one token shorter
        (to_engine(steer), ids, longer, False),
    ):
        first = Engine(model, edit, [99])
        request = first.request(cached)
        first.step([request], [99])
        request.ids, request.prompt_length, request.states = list(prompt), len(prompt), {}
        Engine(model, to_engine(steer), [99]).step([request], [99])
        true = wanted(model, steer, prompt, len(prompt))
        assert torch.allclose(request.states[2][-1], true[2][-1], **TOLERANCE) == same


def test_what_an_engine_cannot_run_is_refused(model: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="gate"):
        to_engine(hook(model, gate=gate(model), positions="generated", layers=(1,)))
    zero_mean = ul.CapabilityDirection(torch.randn(1, 64), (1,), "zero_mean")
    with pytest.raises(ul.IncompatibleModel, match="zero-mean"):
        to_engine(ul.SteeringHook(zero_mean, 0.5))
    edit = to_engine(hook(model, layers=(1,)))
    states, places = torch.zeros(2, 64, dtype=torch.float64), torch.tensor([0, 1])
    with pytest.raises(ul.InvalidInput, match="layer 0"):
        edit(0, states, places, places)
    with unchecked(), pytest.raises(ul.InvalidInput, match="positions"):
        edit(1, states, places[:1], places[:1])


def test_nothing_is_copied_where_no_token_is_meant(model: Any) -> None:
    edit, states = to_engine(hook(model)), torch.randn(2, 64, dtype=torch.float64)
    decoded, length = torch.tensor([7, 9]), torch.tensor([5, 5])
    assert edit(0, states, decoded, length) is states
    hidden, residual = edit.of_parts(0, states, states, decoded, length)
    assert hidden is states
    assert residual is states
