"""The strength that is found from next-token passes is one that works, and costs what it may."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import lens, zoo
from unlock_lens.evidence import _search as module
from unlock_lens.hosts import Batch, Edits
from unlock_lens.hosts.base import Backend

TASK, OTHERS = zoo.running_sum(n=32, seed=4), zoo.running_sum(n=40, seed=9)
BATCH = 40


@cache
def own(model: Any, behaviour: str = "think") -> ul.CapabilityDirection:
    """The model's own direction."""
    task = zoo.running_sum(n=64)
    return ul.CapabilityDirection.extract(
        ul.Variant(model, task.direct), ul.Variant(model, task.prompts(behaviour)), progress=False
    )


def shares(model: Any, steer: ul.SteeringHook, behaviour: str = "think") -> float:
    """How many completions of other prompts show the behaviour."""
    written = ul.generate(model, OTHERS.direct, steer, max_new_tokens=12, batch_size=BATCH, progress=False)
    return OTHERS.behaviours(written).count(behaviour) / len(OTHERS.questions)


def found(direction: ul.CapabilityDirection, model: Any, **how: Any) -> ul.Strength:
    """With prompts of this file."""
    given: dict[str, Any] = {"locked": TASK.direct, "batch_size": BATCH, "progress": False}
    return ul.strength(direction, model, **given | how)


@contextmanager
def rows_read(monkeypatch: pytest.MonkeyPatch) -> Generator[list[int], None, None]:
    """Counts the rows of all forward passes of either host."""
    counted, log_probs = [0], Backend.log_probs

    def counting(self: Backend, batch: Batch, edits: Edits, prompt_length: int) -> torch.Tensor:
        counted[0] += len(batch.ids)
        return log_probs(self, batch, edits, prompt_length)

    with monkeypatch.context() as patched:
        patched.setattr(Backend, "log_probs", counting)
        yield counted


class TestReach:
    @pytest.mark.parametrize("behaviour", ["think", "double"])
    def test_lies_in_a_narrow_window(self, small: Any, large: Any, behaviour: str) -> None:
        """Small to large, where 0.5 does nothing and 0.7 breaks the output."""
        texts = zoo.text(200, seed=1) + TASK.direct + TASK.prompts(behaviour)
        aligner = ul.SubspaceAligner().fit(small, large, texts, batch_size=100, progress=False)
        direction = aligner.transport(own(small, behaviour))
        chosen = found(direction, large, unlocked=TASK.prompts(behaviour))
        assert chosen.reach is not None
        assert chosen.reach > 0.9
        assert shares(large, chosen.hook, behaviour) >= 0.9
        assert max(shares(large, ul.SteeringHook(direction, alpha), behaviour) for alpha in (0.4, 0.8)) < 0.1

    def test_without_asking_the_target(self, small: Any) -> None:
        chosen = found(own(small), small)
        assert chosen.reach is None
        assert "knee" in chosen.why
        assert shares(small, chosen.hook) >= 0.9

    @pytest.mark.parametrize("n", [8, 15, 32])
    def test_reads_the_prompts_eight_times_at_most(self, small: Any, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
        texts = zoo.text(n, seed=3)
        with rows_read(monkeypatch) as rows, pytest.warns(UserWarning, match="budget"):
            chosen = found(own(small), small, locked=TASK.direct[:n], unlocked=TASK.think[:n], unrelated=texts)
        assert rows[0] <= (8 + 1 + 8) * n  # locked, unlocked, unrelated
        assert chosen.passes <= 8

    def test_adds_too(self, small: Any) -> None:
        chosen = found(own(small), small, unlocked=TASK.think, operation="add")
        assert shares(small, chosen.hook) >= 0.9

    def test_is_the_same_in_both_hosts(self, small: Any, small_nnsight: Any) -> None:
        one, other = (found(own(small), model, unlocked=TASK.think) for model in (small, small_nnsight))
        assert one.alpha == other.alpha
        assert one.reach == pytest.approx(other.reach, abs=1e-4)

    def test_a_direction_that_does_not_arrive_is_reported(self, small: Any) -> None:
        with pytest.warns(UserWarning, match="diagnose"):
            chosen = found(-own(small), small, unlocked=TASK.think)
        assert chosen.reach is not None
        assert chosen.reach < 0.5

    def test_is_reported_in_a_line(self, small: Any, capsys: pytest.CaptureFixture[str]) -> None:
        steer = ul.calibrated(own(small), small, locked=TASK.direct, unlocked=TASK.think, batch_size=BATCH)
        assert f"alpha {steer.alpha:.3g}" in capsys.readouterr().err


class TestBlind:
    """The unlocked prompt is the locked one and the token that opens the answer."""

    UNLOCKED = tuple(f"{prompt} S" for prompt in TASK.direct)

    def test_a_continuation_is_scored(self, small: Any) -> None:
        chosen = found(own(small), small, unlocked=self.UNLOCKED)
        assert chosen.reach is not None
        assert chosen.reach > 0.9
        assert "first tokens say nothing" in chosen.why
        assert shares(small, chosen.hook) >= 0.9

    def test_first_tokens_would_say_nothing(self, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "goes_on", lambda before, after: False)
        with pytest.warns(UserWarning, match="diagnose"):
            chosen = found(own(small), small, unlocked=self.UNLOCKED)
        assert chosen.reach is not None
        assert chosen.reach < 0.5


class TestPrice:
    @pytest.mark.parametrize("budget", [0.01, 0.03])
    @pytest.mark.parametrize("host", ["small", "small_nnsight"])
    def test_a_budget_is_met_within_a_tenth(self, request: pytest.FixtureRequest, host: str, budget: float) -> None:
        model, texts = request.getfixturevalue(host), zoo.text(32, seed=3)
        with pytest.warns(UserWarning, match="no strength both reaches"):
            chosen = found(own(request.getfixturevalue("small")), model, unlocked=TASK.think, unrelated=texts, budget=budget)
        again = ul.distributions.price(model, texts, chosen.hook, batch_size=BATCH)
        assert 0.9 * budget <= again.kl <= budget
        assert again.kl_worst <= 1
        assert not chosen.met

    def test_the_worst_tokens_count_too(self, small: Any) -> None:
        with pytest.warns(UserWarning, match="worst 5%"):
            chosen = found(own(small), small, unlocked=TASK.think, unrelated=zoo.text(32, seed=3), budget=1.0)
        assert chosen.price is not None
        assert 0.9 <= chosen.price.kl_worst <= 1

    def test_a_strength_that_does_both(self, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "WORST", 50.0)
        chosen = found(own(small), small, unlocked=TASK.think, unrelated=zoo.text(32, seed=3), budget=5.0)
        assert chosen.met
        assert chosen.alpha == found(own(small), small, unlocked=TASK.think).alpha
        assert chosen.price is not None
        assert chosen.price.kl <= 5


class TestLayers:
    @pytest.mark.parametrize("name", ["small-base", "small-gpt2"])
    def test_a_forecast_is_the_same_in_both_hosts_padded_and_alone(self, name: str) -> None:
        task = zoo.running_sum(n=4)
        prompts = [*task.direct[:2], *task.think[2:]]
        model = zoo.load(name)
        steer = ul.SteeringHook(own(model), 0.4)
        found = [lens.forecast_by_layer(each, prompts, ["S"] * 4, steer) for each in (model, zoo.load(name, "nnsight"))]
        assert found[0].tolist() == pytest.approx(found[1].tolist(), abs=1e-4)
        alone = [lens.forecast_by_layer(model, [prompt], ["S"], steer) for prompt in prompts]
        assert found[0].tolist() == pytest.approx(torch.tensor([each.tolist() for each in alone]).mean(0).tolist(), abs=1e-4)

    def test_a_weak_edit_has_the_effect_that_is_forecast(self, small: Any) -> None:
        steer = ul.SteeringHook(own(small), 0.01)
        told = lens.forecast_by_layer(small, TASK.direct, ["S"] * 32, steer, batch_size=BATCH)
        measured = lens.effect_by_layer(small, TASK.direct, ["S"] * 32, steer, batch_size=BATCH, progress=False)["alone"]
        assert told.tolist() == pytest.approx(measured.tolist(), rel=0.02, abs=2e-5)

    @pytest.mark.parametrize("host", ["large", "small_nnsight"])
    def test_are_chosen(self, request: pytest.FixtureRequest, host: str) -> None:
        model = request.getfixturevalue(host)
        chosen = found(own(model), model, unlocked=TASK.think, layers="auto")
        assert chosen.reach is not None
        assert chosen.reach > 0.9
        assert shares(model, chosen.hook) >= 0.9
        assert "the best of" in chosen.why

    def test_the_cheapest_of_those_that_reach_as_far(self, large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "WORST", 50.0)
        how = {"unlocked": TASK.think, "unrelated": zoo.text(32, seed=3), "budget": 5.0}
        every, best = (found(own(large), large, layers=layers, **how) for layers in (None, "auto"))
        assert every.price is not None
        assert best.price is not None
        assert best.price.kl < 0.5 * every.price.kl
        assert shares(large, best.hook) >= 0.9

    def test_a_model_without_a_backward_pass(self, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*args: Any, **how: Any) -> Any:
            raise RuntimeError("element 0 of tensors does not require grad")

        monkeypatch.setattr(torch.autograd, "grad", broken)
        with pytest.raises(ul.UnsupportedModel, match="small-base.*does not require grad"):
            lens.forecast_by_layer(small, TASK.direct, ["S"] * 32, ul.SteeringHook(own(small), 0.4))

    def test_a_model_on_a_server(self, small: Any, small_nnsight: Any) -> None:
        prompts = ul.Variant(small_nnsight, TASK.direct, remote="local")
        with pytest.raises(ul.UnsupportedModel, match="server"):
            lens.forecast_by_layer(small_nnsight, prompts, ["S"] * 32, ul.SteeringHook(own(small), 0.4))


class TestBadInput:
    @pytest.mark.parametrize(
        ("how", "told"),
        [
            ({"unrelated": zoo.text(16), "budget": 1e-9}, "below the price of any edit"),
            ({"unrelated": zoo.text(16), "budget": 0.0}, "positive"),
            ({"budget": 0.1}, "unrelated="),
            ({"locked": TASK.direct[:7]}, "at least 8"),
            ({"unlocked": TASK.think[:9]}, "32 locked and 9 unlocked"),
            ({"unlocked": TASK.direct}, "the same after"),
            ({"unlocked": None, "layers": "auto"}, "to choose on"),
            ({"positions": "generated"}, "nothing moves"),
        ],
    )
    def test_is_refused(self, small: Any, how: dict[str, Any], told: str) -> None:
        with pytest.raises(ul.InvalidInput, match=told):
            found(own(small), small, **{"unlocked": TASK.think} | how)

    def test_layers_that_are_a_word(self, small: Any) -> None:
        with unchecked(), pytest.raises(ul.InvalidInput, match="best.*auto"):
            found(own(small), small, unlocked=TASK.think, layers="best")

    def test_another_model(self, small: Any, large: Any) -> None:
        with pytest.raises(ul.IncompatibleModel):
            found(own(small), large, unlocked=TASK.think)


def test_a_hook_with_a_gate_has_no_forecast(small: Any) -> None:
    task = zoo.running_sum(n=16)
    direct = ul.Variant(small, task.direct)
    direction = ul.CapabilityDirection.extract(direct, ul.Variant(small, task.think), progress=False)
    gate = ul.Gate.fit(direct, ul.Variant(small, task.reverse), layers=[0], progress=False)
    with pytest.raises(ul.InvalidInput, match="gate"):
        lens.forecast_by_layer(small, task.direct, ["S"] * 16, ul.SteeringHook(direction, 0.5, gate=gate))
