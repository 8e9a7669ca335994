"""What the studies of real models rest on: their decoder, how they judge completions, and which settings they choose."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import zoo

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import languages
import study
from decoding import Decoder


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.load("small-base", backend="nnsight")


@pytest.fixture(scope="module")
def steer(model: Any) -> ul.SteeringHook:
    task = zoo.running_sum(n=32)
    direction = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think), progress=False)
    return ul.SteeringHook(direction, alpha=0.5)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Of uneven length, so that some are padded."""
    return [*zoo.running_sum(n=6, seed=1).direct, "Q 1 2 think A :", "Q 3 A :"]


def completed(model: Any, prompts: list[str], steer: Any, forced: Any = ()) -> list[str]:
    decoder, tokens = Decoder(model), ul.Variant(model, prompts).tokens
    ids = decoder.complete(decoder.prefix(tokens.ids, tokens.mask), steer, 12, forced)
    return [model.tokenizer.decode(row, skip_special_tokens=True) for row in ids]


def test_the_decoder_writes_what_generate_writes(model: Any, steer: ul.SteeringHook, prompts: list[str]) -> None:
    for hook in (None, steer):
        assert completed(model, prompts, hook) == ul.generate(model, prompts, hook, max_new_tokens=12, progress=False)


def test_each_prompt_may_have_its_own_hook(model: Any, steer: ul.SteeringHook, prompts: list[str]) -> None:
    weak = ul.SteeringHook(steer.direction, alpha=0.01)
    mixed = completed(model, prompts, [steer if i % 2 else weak for i in range(len(prompts))])
    apart = [completed(model, prompts, hook) for hook in (weak, steer)]
    assert mixed == [apart[i % 2][i] for i in range(len(prompts))]
    assert apart[0] != apart[1]


def test_a_prefix_serves_several_arms(model: Any, steer: ul.SteeringHook, prompts: list[str]) -> None:
    decoder, tokens = Decoder(model), ul.Variant(model, prompts).tokens
    prefix = decoder.prefix(tokens.ids, tokens.mask)
    first, _, again = (decoder.complete(prefix, hook, 12) for hook in (None, steer, None))
    assert first == again
    assert decoder.complete(prefix.repeated(2), None, 12) == first * 2


def test_forced_tokens_stand_first_and_the_model_continues(model: Any, prompts: list[str]) -> None:
    start = model.tokenizer("S", add_special_tokens=False)["input_ids"]
    written = completed(model, prompts[:6], None, [start] * 6)
    continued = ul.generate(model, [f"{prompt} S" for prompt in prompts[:6]], max_new_tokens=11, progress=False)
    assert written == [f"S {text}" for text in continued]


@pytest.mark.parametrize(
    ("completion", "flexible", "strict"),
    [
        ("18", True, True),
        ("16 - 3 = 13, and 13 + 5 is \\boxed{18}.", True, True),
        ("16 eggs less 3, so the answer is 18.", True, True),
        ("16 - 3 = 13 and 13 + 5 = 18", True, False),
        ("The answer is 17.\nThat is 1 less than 18", True, False),
        ("I do not know", False, False),
    ],
)
def test_both_readings_of_an_answer(completion: str, flexible: bool, strict: bool) -> None:
    found = study.judged(completion, "18")
    assert (found["flexible"], found["strict"]) == (flexible, strict)


def test_repetition_compresses() -> None:
    assert study.judged("and so on " * 30, "1")["zlib"] > 5 > study.judged("Janet sells nine eggs a day.", "1")["zlib"]


def test_ties_go_to_the_smallest_strength_and_untried_arms_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"moved": {"directions": ["a", "b"]}, "later": {"directions": ["c"]}, "plain": {}}
    config = {"files": "study", "alphas": [0.1, 0.2], "arms": arms}
    right = {("a", 0.1): 1, ("a", 0.2): 3, ("b", 0.1): 3, ("b", 0.2): 2}
    lines = [
        {"split": "choose", "arm": "moved", "direction": name, "alpha": alpha, "rows": [{"flexible": i < n} for i in range(4)]}
        for (name, alpha), n in right.items()
    ]
    monkeypatch.setattr(study, "lines", lambda _: lines)
    assert study.chosen_settings(config) == {"moved": ("b", 0.1)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" school to teach a class of children, and he was there", "english"),
        (" l'école, où il a parlé avec les enfants de la ville", "french"),
        (" der Schule und hat dort mit den Kindern gesprochen", "german"),
        (" 12 34 56", None),
        (" le", None),
        (" weltes und und und und und und und", None),
        ("", None),
    ],
)
def test_a_language_is_recognised_by_its_common_words(text: str, found: str | None) -> None:
    assert languages.language(text) == found


def test_capitals_are_most_of_the_letters() -> None:
    assert languages.shows("capitals", " AND THE DOOR WAS Open, 1999")
    assert not languages.shows("capitals", " And The Door Was Open")
    assert not languages.shows("capitals", " OK")
    assert not torch.tensor([languages.shows(name, "") for name in ("french", "german", "capitals")]).any()
