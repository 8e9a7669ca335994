"""Lens: what directions write, where runs lie along them, how they relate, which layer's edit brings the effect."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import lens, zoo
from unlock_lens.evidence.distributions import completion_log_probs

TASK = zoo.running_sum(n=32)
OPENS = {"think": "S", "reverse": "R", "double": "W"}
"""The token that begins each way of answering."""


@pytest.fixture(scope="module")
def directions(small: Any) -> dict[str, ul.CapabilityDirection]:
    locked = ul.Variant(small, TASK.direct)
    return {
        name: ul.CapabilityDirection.extract(locked, ul.Variant(small, getattr(TASK, name)), progress=False) for name in OPENS
    }


@pytest.fixture(scope="module")
def cache(small: Any) -> Any:
    ids = small.tokenizer(TASK.think[:3], return_tensors="pt")["input_ids"]
    return small.run_with_cache(ids)[1]


class TestTokens:
    @pytest.mark.parametrize(("one", "other"), [("think", "reverse"), ("reverse", "double"), ("double", "think")])
    def test_what_tells_two_capabilities_apart_opens_their_answers(
        self, small: Any, directions: dict[str, ul.CapabilityDirection], one: str, other: str
    ) -> None:
        """Direction arithmetic: at the last layer one minus the other raises the one's first token and lowers the other's."""
        table = lens.tokens_written(directions[one] - directions[other], small, k=1)
        assert (table.loc[(2, 1), "raises"], table.loc[(2, 1), "lowers"]) == (OPENS[one], OPENS[other])

    def test_ranks_go_down_and_signs_are_reported(self, small: Any, directions: dict[str, ul.CapabilityDirection]) -> None:
        table = lens.tokens_written(directions["think"], small, k=4)
        logits = lens.logits_written(directions["think"], small)
        assert table.index.names == ["layer", "rank"]
        for layer in (0, 1, 2):
            of_layer = table.loc[layer]
            assert of_layer["by"].tolist() == pytest.approx(sorted(logits[layer].tolist(), reverse=True)[:4], abs=1e-4)
            assert (-of_layer["down by"]).tolist() == pytest.approx(sorted(logits[layer].tolist())[:4], abs=1e-4)
            ids = small.tokenizer.convert_tokens_to_ids(of_layer["raises"].tolist())
            assert logits[layer, ids].tolist() == pytest.approx(of_layer["by"].tolist(), abs=1e-4)

    @pytest.mark.parametrize("k", [0, 23])
    def test_a_count_out_of_range(self, small: Any, directions: dict[str, ul.CapabilityDirection], k: int) -> None:
        with pytest.raises(ul.InvalidInput, match=f"k {k}"):
            lens.tokens_written(directions["think"], small, k)

    def test_a_direction_of_another_model(self, large: Any, directions: dict[str, ul.CapabilityDirection]) -> None:
        with pytest.raises(ul.IncompatibleModel, match="small-base.*large-base"):
            lens.logits_written(directions["think"], large)

    def test_a_model_without_weights(self, directions: dict[str, ul.CapabilityDirection]) -> None:
        import nnsight

        model = nnsight.TransformersModel(str(zoo.path() / "small-base"), task="text-generation")
        with pytest.raises(ul.UnsupportedModel, match="dispatch"):
            lens.logits_written(directions["think"], model)


def rounding(states: torch.Tensor) -> torch.Tensor:
    """Bounds what float32 loses in a projection on a unit vector, in any order of its sums."""
    return states.shape[-1] * torch.finfo(torch.float32).eps * states.norm(dim=-1)


class TestProjection:
    def test_is_the_component_along_the_unit_vector(self, directions: dict[str, ul.CapabilityDirection], cache: Any) -> None:
        trace = lens.projection(directions["think"], cache)
        cosines = lens.projection(directions["think"], cache, relative=True)
        assert trace.shape == (3, 3, 10)
        for layer, vector in enumerate(directions["think"].vectors):
            states = cache["resid_post", layer]
            exact = states.double() @ vector.double() / vector.double().norm()
            assert bool(((trace[layer] - exact).abs() <= rounding(states)).all())
            torch.testing.assert_close(cosines[layer].double(), exact / states.double().norm(dim=-1), rtol=0, atol=1e-5)

    def test_it_rises_where_the_prompt_asks_to_think(self, small: Any, directions: dict[str, ul.CapabilityDirection]) -> None:
        """At the last token of unlocked prompts a run lies further along the direction than at that of locked ones."""
        ends: list[torch.Tensor] = []
        for prompts in (TASK.think, TASK.direct):
            ids = small.tokenizer(prompts, return_tensors="pt")["input_ids"]
            ends.append(lens.projection(directions["think"], small.run_with_cache(ids)[1])[:, :, -1])
        differences = (ends[0] - ends[1]).mean(dim=1)
        torch.testing.assert_close(differences, directions["think"].vectors.norm(dim=1), rtol=1e-4, atol=0)

    def test_a_mapping_of_layers_will_do(self, directions: dict[str, ul.CapabilityDirection], cache: Any) -> None:
        """States that an nnsight trace saved, say."""
        states = {layer: cache["resid_post", layer] for layer in (1, 2)}
        some = directions["think"].at_layers([1, 2])
        apart = (lens.projection(some, states) - lens.projection(some, cache)).abs()
        assert bool((apart <= 2 * rounding(torch.stack([*states.values()]))).all())

    def test_a_layer_that_is_not_there(self, small: Any, directions: dict[str, ul.CapabilityDirection]) -> None:
        ids = small.tokenizer(TASK.think[:1], return_tensors="pt")["input_ids"]
        _, partial = small.run_with_cache(ids, names_filter=lambda name: name == "blocks.0.hook_resid_post")
        with pytest.raises(ul.InvalidInput, match=r"blocks\.1\.hook_resid_post.*names_filter"):
            lens.projection(directions["think"], partial)
        with pytest.raises(ul.InvalidInput, match=r"blocks\.0\.hook_resid_post"):
            lens.projection(directions["think"], {7: torch.ones(1, 64)})

    def test_states_of_another_width(self, directions: dict[str, ul.CapabilityDirection]) -> None:
        with pytest.raises(ul.IncompatibleModel, match="width 96.*small-base"):
            lens.projection(directions["think"], {0: torch.ones(2, 96)})


class TestCosines:
    def test_every_pair(self, directions: dict[str, ul.CapabilityDirection]) -> None:
        found = lens.cosines(directions)
        assert found.shape == (3, 3, 3)
        torch.testing.assert_close(found, found.transpose(1, 2))
        torch.testing.assert_close(found[:, 0, 2], directions["think"].cosine(directions["double"]))

    def test_none(self) -> None:
        with pytest.raises(ul.InvalidInput, match="directions"):
            lens.cosines({})


class TestEffectByLayer:
    def test_each_column_is_a_difference_of_runs(self, small: Any, directions: dict[str, ul.CapabilityDirection]) -> None:
        prompts, opening = TASK.direct[:6], ["S"] * 6
        alpha = {0: 0.3, 1: 0.4, 2: 0.5}
        steer = ul.SteeringHook(directions["think"], alpha)
        table = lens.effect_by_layer(small, prompts, opening, steer, progress=False)

        def sure(*layers: int) -> float:
            some = {layer: alpha[layer] for layer in layers}
            hooks = [ul.SteeringHook(directions["think"], some, layers=layers)] if layers else []
            return completion_log_probs(small, prompts, opening, hooks).mean().item()

        assert table["alone"].tolist() == pytest.approx([sure(i) - sure() for i in range(3)], abs=1e-5)
        assert table["left out"].tolist() == pytest.approx(
            [sure(0, 1, 2) - sure(1, 2), sure(0, 1, 2) - sure(0, 2), sure(0, 1, 2) - sure(0, 1)], abs=1e-5
        )
        assert table["up to"].tolist() == pytest.approx(
            [sure(0) - sure(), sure(0, 1) - sure(), sure(0, 1, 2) - sure()], abs=1e-5
        )

    def test_a_layer_that_is_not_steered_has_no_row(self, small: Any, directions: dict[str, ul.CapabilityDirection]) -> None:
        steer = ul.SteeringHook(directions["think"], 0.5, layers=[2, 0])
        table = lens.effect_by_layer(small, TASK.direct[:2], ["S", "S"], steer, progress=False)
        assert table.index.tolist() == [0, 2]

    def test_both_hosts_agree(self, small: Any, small_nnsight: Any, directions: dict[str, ul.CapabilityDirection]) -> None:
        steer = ul.SteeringHook(directions["think"], 0.5)
        tables = [
            lens.effect_by_layer(model, TASK.direct[:4], ["S"] * 4, steer, progress=False) for model in (small, small_nnsight)
        ]
        assert tables[0].to_numpy() == pytest.approx(tables[1].to_numpy(), abs=1e-4)

    def test_special_tokens_are_added_or_not_as_asked(
        self, small: Any, directions: dict[str, ul.CapabilityDirection], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The embedded family's tokenizers have none to add, so what is asked of the runs is looked at."""
        asked: list[bool] = []

        def recorded(model: Any, prompts: Any, completions: Any, steer: Any, batch_size: int, add: bool, remote: Any) -> Any:
            asked.append(add)
            return torch.zeros(len(prompts))

        monkeypatch.setattr(lens, "completion_log_probs", recorded)
        steer = ul.SteeringHook(directions["think"], 0.5)
        lens.effect_by_layer(small, ["Q"], ["S"], steer, add_special_tokens=False, progress=False)
        assert asked == [False] * 8, "3 L - 1 runs"

    def test_one_hook_is_taken_apart(self, small: Any, directions: dict[str, ul.CapabilityDirection]) -> None:
        with unchecked(), pytest.raises(ul.InvalidInput, match="list.*SteeringHook"):
            lens.effect_by_layer(small, ["Q"], ["S"], [ul.SteeringHook(directions["think"], 0.5)])  # pyright: ignore[reportArgumentType]

    def test_a_completion_for_each_prompt(self, small: Any, directions: dict[str, ul.CapabilityDirection]) -> None:
        with pytest.raises(ul.InvalidInput, match="2 prompts"):
            lens.effect_by_layer(small, ["Q", "Q"], ["S"], ul.SteeringHook(directions["think"], 0.5), progress=False)


class TestArithmetic:
    def test_without_another_nothing_is_left_along_it(self, directions: dict[str, ul.CapabilityDirection]) -> None:
        left = directions["think"].without(directions["reverse"])
        torch.testing.assert_close(left.cosine(directions["reverse"]), torch.zeros(3), atol=1e-5, rtol=0)
        assert left.provenance.steps == ("without its part along another direction",)

    def test_without_itself_nothing_is_left_at_all(self, directions: dict[str, ul.CapabilityDirection]) -> None:
        with pytest.raises(ul.InvalidInput, match="multiple"):
            directions["think"].without(3.0 * directions["think"])

    def test_unit(self, directions: dict[str, ul.CapabilityDirection]) -> None:
        unit = directions["think"].unit()
        torch.testing.assert_close(unit.vectors.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(unit.cosine(directions["think"]), torch.ones(3))
        assert unit.provenance.steps == ("scaled to norm 1",)

    def test_what_is_left_still_steers(self, small: Any, directions: dict[str, ul.CapabilityDirection]) -> None:
        """A hook at some of its layers keeps their strengths, and lacks the others."""
        steer = ul.SteeringHook(directions["think"], {0: 0.1, 1: 0.2, 2: 0.3})
        assert steer.at_layers([2, 0]).alpha == {0: 0.1, 2: 0.3}
        with pytest.raises(ul.InvalidInput, match=r"\[1, 2\].*\[0, 2\]"):
            steer.at_layers([0, 2]).at_layers([1, 2])


class TestBadInput:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda d: lens.cosines(cast("Any", [d])), "directions"),
            (lambda d: lens.projection(cast("Any", ul.SteeringHook(d, 1.0)), {}), "SteeringHook.*CapabilityDirection"),
            (lambda d: lens.projection(d, [1]), "list.*ActivationCache"),
            (lambda d: lens.projection(d, {0: [1.0]}), "hook_resid_post.*run_with_cache"),
        ],
    )
    def test_what_is_neither_a_direction_nor_a_cache(
        self, directions: dict[str, ul.CapabilityDirection], call: Any, message: str
    ) -> None:
        with unchecked(), pytest.raises(ul.InvalidInput, match=message):
            call(directions["think"])

    def test_layers_of_different_runs(self, directions: dict[str, ul.CapabilityDirection]) -> None:
        with pytest.raises(ul.InvalidInput, match=r"shapes.*\[4\], \[5\]"):
            lens.projection(directions["think"].at_layers([0, 1]), {0: torch.ones(4, 64), 1: torch.ones(5, 64)})

    def test_a_state_of_norm_zero_has_cosine_zero(self, directions: dict[str, ul.CapabilityDirection]) -> None:
        assert lens.projection(directions["think"].at_layers([0]), {0: torch.zeros(2, 64)}, relative=True).tolist() == [[0, 0]]


class TestBases:
    def test_a_centered_direction_writes_the_same_in_the_raw_model(self) -> None:
        model, task = zoo.load("small-gpt2"), zoo.running_sum(n=8)
        raw = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think), progress=False)
        torch.testing.assert_close(lens.logits_written(raw.zero_mean(), model), lens.logits_written(raw, model))

    def test_a_raw_direction_is_centered_for_the_cache_of_a_centered_model(self) -> None:
        """GPT-2 in compatibility mode holds the stream without its mean, and so must the direction."""
        model, task = zoo.load("small-gpt2"), zoo.running_sum(n=8)
        raw = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think), progress=False)
        ids = ul.Variant(model, task.direct[:1]).tokens.ids
        model.enable_compatibility_mode()
        _, cache = model.run_with_cache(ids)
        torch.testing.assert_close(lens.projection(raw, cache), lens.projection(raw.zero_mean(), cache))
        assert not torch.allclose(lens.projection(raw, cache), lens.projection(raw, dict(cache.items())))
