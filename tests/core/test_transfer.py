"""Calibration text that the models write themselves, and a whole transfer in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import recipes, sweep, zoo
from unlock_lens.core.transfer import joined
from unlock_lens.evidence.sweep import SweepConfig
from unlock_lens.evidence.sweep.material import Material

TASK, NEW = zoo.running_sum(n=100, seed=0), zoo.running_sum(n=30, seed=5)


@pytest.fixture(scope="module", params=["transformer_lens", "nnsight"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return zoo.load("large-base", request.param), zoo.load("small-base", request.param)


def variants(model: Any, n: int = 20) -> tuple[ul.Variant, ul.Variant]:
    return ul.Variant(model, TASK.direct[:n]), ul.Variant(model, TASK.think[:n])


def test_calibration_texts_are_both_sides_prompts_with_what_the_model_writes(pair: tuple[Any, Any]) -> None:
    for model in pair:  # source or target may write them
        texts = ul.calibration_texts(*variants(model), max_new_tokens=12)
        prompts = [prompt for both in zip(TASK.direct[:20], TASK.think[:20], strict=True) for prompt in both]
        completions = ul.generate(model, prompts, max_new_tokens=12)
        assert texts == [f"{prompt} {completion}" for prompt, completion in zip(prompts, completions, strict=True)]
        assert sum(" S " in text for text in texts) == 20


def test_fit_takes_what_is_written(pair: tuple[Any, Any]) -> None:
    texts = ul.calibration_texts(*variants(pair[0]), max_new_tokens=12, batch_size=4)
    aligner = ul.SubspaceAligner().fit(*pair, texts)
    assert aligner.n_tokens == ul.Variant(pair[0], texts).tokens.mask.sum() > 500


@pytest.mark.parametrize("given", [True, False])
def test_one_call_transfers(pair: tuple[Any, Any], given: bool) -> None:
    source, target = pair
    texts = zoo.text(n=600) if given else None
    steer = ul.transfer(source, target, locked=TASK.direct, unlocked=TASK.think, texts=texts, alpha=0.5, max_new_tokens=12)
    assert sum(NEW.correct(ul.generate(target, NEW.direct, max_new_tokens=12))) < 10
    completions = ul.generate(target, NEW.direct, steer, max_new_tokens=12)
    assert sum(NEW.correct(completions)) >= 28
    assert NEW.behaviours(completions).count("think") >= 28


def test_it_is_what_the_steps_give(large: Any, small: Any) -> None:
    locked, unlocked = variants(large)
    texts = zoo.text(n=60)
    aligner = ul.SubspaceAligner(rank=8, sinks="keep")
    steer = ul.transfer(
        large, small, locked, unlocked, texts, 0.4, "pca", aligner, "add", "prompt", batch_size=4, progress=False
    )
    both = [prompt for pair in zip(locked.prompts, unlocked.prompts, strict=True) for prompt in pair]
    expected = (
        ul.SubspaceAligner(rank=8, sinks="keep")
        .fit(large, small, [*texts, *both])
        .transport(ul.CapabilityDirection.extract(locked, unlocked, "pca"))
    )
    torch.testing.assert_close(steer.direction.vectors, expected.vectors)
    assert (steer.alpha, steer.operation, steer.positions) == (0.4, "add", "prompt")
    assert aligner.n_tokens


def test_a_contrast_of_models_needs_given_texts(large: Any, small: Any) -> None:
    """Each model writes its own side, but all prompts are plain: what is written spans too little of the residual stream."""
    post = ul.Variant(zoo.load("large-post"), TASK.direct)

    def thinks(texts: list[str] | None) -> int:
        steer = ul.transfer(large, small, TASK.direct, post, texts, alpha=0.6, max_new_tokens=12)
        return NEW.behaviours(ul.generate(small, NEW.direct, steer, max_new_tokens=12)).count("think")

    assert thinks(zoo.text(n=600)) >= 28
    assert thinks(None) == 0


def test_prompts_that_are_the_same_on_both_sides_are_read_once(large: Any, small: Any) -> None:
    post, texts = ul.Variant(zoo.load("large-post"), TASK.direct), zoo.text(n=60)
    once = ul.transfer(large, small, TASK.direct, post, texts)
    direction = ul.CapabilityDirection.extract(ul.Variant(large, TASK.direct), post)
    again = ul.SubspaceAligner().fit(large, small, [*texts, *TASK.direct]).transport(direction)
    torch.testing.assert_close(once.direction.vectors, again.vectors)


def test_texts_that_say_little_are_warned_of(small: Any) -> None:
    with pytest.warns(UserWarning, match="20 of 20 completions .* are empty"):
        texts = ul.calibration_texts(*variants(small), max_new_tokens=12, stop=["S"])
    assert texts[1] == TASK.think[0]
    with pytest.warns(UserWarning, match="all 20 completions .* ran to 3 tokens"):
        ul.calibration_texts(ul.Variant(small, TASK.think[:20]), ul.Variant(small, TASK.reverse[:20]), max_new_tokens=3)


def test_mistakes_are_reported_before_any_text_is_written(large: Any, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlock_lens.core.transfer.complete", lambda *_, **__: pytest.fail("text was written"))
    with pytest.raises(ul.InvalidInput, match="prompts"):
        ul.transfer(large, small, TASK.direct[:3], TASK.think[:2])
    with pytest.raises(ul.InvalidInput, match="prompts"):
        ul.calibration_texts(ul.Variant(large, TASK.direct[:3]), ul.Variant(large, TASK.think[:2]))
    with unchecked(), pytest.raises(ul.InvalidInput, match="one text"):
        ul.transfer(large, small, TASK.direct, TASK.think, "text")
    with pytest.raises(ul.InvalidInput, match="a different model"):
        ul.transfer(large, small, ul.Variant(small, TASK.direct), TASK.think)


def test_text_is_joined_as_its_model_would_go_on(small: Any) -> None:
    assert joined(small.tokenizer, "Q 1 A :", "= 1") == "Q 1 A : = 1"
    assert joined(small.tokenizer, "Q 1 A :", "") == "Q 1 A :"
    assert joined(zoo.load("small-gpt2", "nnsight").tokenizer, "Q 1 A :", "= 1") == "Q 1 A : = 1"


def config(**calibration: Any) -> SweepConfig:
    few = {"sizes": {"extract": 100, "train": 10, "test": 20}, "nulls": 0, "unrelated": None, "sampling": {"samples": 0}}
    content = {**recipes.smallest().model_dump(mode="json"), **few, "calibration": {"kind": "self", **calibration}}
    return SweepConfig.parse({**content, "controls": ["anti_mean"]})


@pytest.mark.parametrize("by", ["source", "target"])
def test_a_config_may_let_the_models_write(by: str, tmp_path: Path) -> None:
    found = sweep.run(config(by=by), tmp_path / "out", progress=False)
    assert found.arms()["transferred"]["accuracy"] > 0.9
    assert found.arms()["anti_mean"]["accuracy"] < 0.5


def test_a_config_s_texts_are_those_of_the_extract_split() -> None:
    material = Material(config(n=30, max_new_tokens=11), progress=False)
    variant = material._calibrating("target", "text")  # pyright: ignore[reportPrivateUsage]
    assert len(variant) == 60
    asked = material.asked(material.source, material.splits.extract.first(30))
    assert [text.startswith(prompt) for text, prompt in zip(variant.prompts[::2], asked.prompts, strict=True)] == [True] * 30
    assert variant.model is material.target
    with pytest.raises(ul.InvalidInput, match="calibration.n asks for 200"):
        config(n=200)
