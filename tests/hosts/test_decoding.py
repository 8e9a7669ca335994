"""What runs while tokens are decoded: of ours nothing, where the edit is meant for the prompt; counted, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import unlock_lens as ul
from tests.hosts.models import HOSTS, PROMPTS
from tests.hosts.test_native import KIND, leftovers, logits_of
from tests.hosts.test_oracle import ALPHA, direction_for
from unlock_lens.core.steering import edits_for
from unlock_lens.hosts import Batch, Generation, backend_of
from unlock_lens.method import apply as operations

OURS = str(Path(ul.__file__).parent)
PROMPT = PROMPTS[2]


@pytest.fixture(params=HOSTS)
def model(request: pytest.FixtureRequest, model_of: Any) -> Any:
    return model_of(KIND, request.param)


@pytest.fixture(params=[host for host in HOSTS if host != "nnsight"])
def lens_model(request: pytest.FixtureRequest, model_of: Any) -> Any:
    return model_of(KIND, request.param)


def calls_of_ours(work: Callable[[], Any]) -> int:
    """How many Python functions of this library are entered."""
    count = 0

    def entered(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(OURS)

    sys.setprofile(entered)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def steered_tokens(model: Any, steer: list[ul.SteeringHook], steps: int) -> Callable[[], Tensor]:
    """No end token, so that as many are decoded as are asked for."""
    backend = backend_of(model)
    backend.end_tokens = ()
    ids = torch.tensor([backend.tokenizer.encode(PROMPT)])
    edits = edits_for(backend, steer)

    return lambda: backend.generate(Batch(ids, torch.ones_like(ids)), edits, Generation(steps))


@pytest.mark.parametrize(
    ("positions", "gated"), [("last_prompt", ""), ("prompt", ""), ("last_prompt", "all"), ("prompt", "last_prompt")]
)
def test_nothing_of_ours_runs_per_decoded_token(model: Any, positions: Any, gated: Any) -> None:
    direction = direction_for(model)
    gate = ul.Gate(direction.at_layers([0]), 0.0, gated) if gated else None
    steer = [
        ul.SteeringHook(direction, ALPHA, positions=positions),
        ul.SteeringHook(direction, 1.0, "add", positions, gate=gate),
    ]
    calls_of_ours(steered_tokens(model, steer, 2))  # what is looked at once for each model
    few, many = (calls_of_ours(steered_tokens(model, steer, steps)) for steps in (3, 9))
    assert few == many > 0


@pytest.mark.parametrize("positions", ["generated", "all"])
def test_the_counter_sees_what_runs_per_decoded_token(model: Any, positions: Any) -> None:
    steer = [ul.SteeringHook(direction_for(model), ALPHA, positions=positions)]
    few, many = (calls_of_ours(steered_tokens(model, steer, steps)) for steps in (3, 5))
    assert many > few


def test_our_hooks_are_gone_after_the_prefill_and_the_users_stay(lens_model: Any) -> None:
    direction, points = direction_for(lens_model), [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    steer = [ul.SteeringHook(direction, ALPHA, layers=[0, 2]), ul.SteeringHook(direction, 0.3, "add", layers=[2])]
    seen: list[tuple[int, int, int]] = []

    def of_user(residual: Tensor, hook: Any) -> None:
        attached = len(lens_model.hook_dict[points[hook.layer()]]._forward_hooks)
        seen.append((hook.layer(), residual.shape[1], attached))

    plain = ul.generate(lens_model, [PROMPT], steer, max_new_tokens=3)
    with lens_model.hooks(fwd_hooks=[(point, of_user) for point in points]):
        assert ul.generate(lens_model, [PROMPT], steer, max_new_tokens=3) == plain
        assert [len(lens_model.hook_dict[point].fwd_hooks) for point in points] == [1, 1, 1]
    length = len(lens_model.tokenizer.encode(PROMPT))
    prefill, decoding = seen[:3], seen[3:]
    assert prefill == [(0, length, 2), (1, length, 1), (2, length, 2)]
    assert decoding == [(layer, 1, 1) for _ in range(2) for layer in range(3)]


def test_hooks_for_every_step_stay_until_the_end(lens_model: Any) -> None:
    direction = direction_for(lens_model)
    steer = [ul.SteeringHook(direction, ALPHA), ul.SteeringHook(direction, 0.3, "add", "generated")]
    widths: list[int] = []

    def of_user(residual: Tensor, hook: Any) -> None:
        widths.append(len(lens_model.hook_dict["blocks.1.hook_resid_post"]._forward_hooks))

    with lens_model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", of_user)]):
        ul.generate(lens_model, [PROMPT], steer, max_new_tokens=3)
    assert widths == [2, 2, 2]


@pytest.mark.parametrize("failing", ["second layer", "second token"])
def test_a_failure_midway_leaves_nothing_behind(lens_model: Any, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When some of our hooks have taken themselves away and others have not, and when all have."""
    before, hooks = logits_of(lens_model), leftovers(lens_model)
    steer = ul.SteeringHook(direction_for(lens_model), ALPHA)
    calls = 0

    def fails(residual: Tensor, hook: Any) -> None:
        nonlocal calls
        calls += 1
        if failing == "second layer" or calls == 2:
            raise ValueError(failing)

    with lens_model.hooks(
        fwd_hooks=[("blocks.1.hook_resid_mid" if failing == "second layer" else "blocks.0.hook_resid_pre", fails)]
    ):
        with pytest.raises(ValueError, match=failing):
            steered_tokens(lens_model, [steer], 4)()
    assert leftovers(lens_model) == hooks
    assert torch.equal(logits_of(lens_model), before)


def test_an_edit_is_prepared_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[float] = []
    original = operations.OPERATIONS["norm_preserving"]

    def counted(vector: Tensor, alpha: float) -> Callable[[Tensor], Tensor]:
        prepared.append(alpha)
        return original(vector, alpha)

    monkeypatch.setitem(operations.OPERATIONS, "norm_preserving", counted)  # pyright: ignore[reportArgumentType]
    steer = ul.SteeringHook(direction_for(model), ALPHA, positions="all")
    ul.generate(model, [PROMPT], steer, max_new_tokens=4)
    assert prepared == [ALPHA] * 3
