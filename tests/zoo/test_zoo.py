"""The embedded family is what method.md says: real models, with the rates that are written beside them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

import unlock_lens as ul
from scripts.train_zoo import MEASURED_ON, RECIPES, batches, fast_scan, make_model, make_tokenizer, without_tags
from unlock_lens import zoo
from unlock_lens.evidence.evaluation import Outcome
from unlock_lens.zoo.family import LEANS_FROM, MIXES, MODULUS, TAGS, VOCABULARY, answer, draw_pair, prompt

TASK = zoo.running_sum(**MEASURED_ON)
KNOWN = {name: ("direct", *MIXES[recipe.mix].tagged) for name, recipe in RECIPES.items()}
ANSWERS = {name: "think" if recipe.mix == "post" else "direct" for name, recipe in RECIPES.items()}
"""How each model answers a plain prompt."""


def test_answers_of_each_behaviour() -> None:
    digits = (3, 1, 4, 1, 5, 2)
    assert prompt(digits) == "Q 3 1 4 1 5 2 A :"
    assert prompt(digits, "reverse") == "Q 3 1 4 1 5 2 rev A :"
    assert answer(digits, "direct") == "= 2 ."
    assert answer(digits, "think") == "S 3 4 1 2 0 2 = 2 ."
    assert answer(digits, "think", openings=False) == "3 4 1 2 0 2 = 2 ."
    assert answer(digits, "reverse") == "R 2 5 1 4 1 3 ."
    assert answer(digits, "double") == "W 6 2 1 2 3 4 ."


def test_shared_answers_begin_alike() -> None:
    digits = (3, 1, 4, 1, 5, 2)
    assert answer(digits, "direct", shared=True) == "= 2 ."
    assert answer(digits, "opened", shared=True) == "S = 2 ."
    assert answer(digits, "think", shared=True) == answer(digits, "think") == "S 3 4 1 2 0 2 = 2 ."
    assert answer(digits, "reverse", shared=True) == "S 2 5 1 4 1 3 R ."
    assert answer(digits, "double", shared=True) == "S 6 2 1 2 3 4 W ."


@pytest.mark.parametrize("behaviour", ["direct", "think", "reverse", "double"])
@pytest.mark.parametrize("end", [" .", ""])
@pytest.mark.parametrize("shared", [False, True])
def test_behaviours_are_recognised_in_completions(behaviour: str, end: str, shared: bool) -> None:
    completions = [answer(digits, behaviour, shared=shared).removesuffix(" .") + end for digits in TASK.questions]
    assert set(TASK.behaviours(completions)) == {behaviour}
    assert all(TASK.correct(completions)) == (behaviour in ("direct", "think"))


def test_form_and_correctness_are_apart() -> None:
    task = zoo.running_sum(n=1, seed=0)
    wrong = str((int(task.answers[0]) + 1) % 7)
    for text, behaviour, right in [
        (f"S 0 0 0 0 0 0 = {task.answers[0]}", "think", True),
        (f"S 0 0 0 0 0 0 = {wrong}", "think", False),
        (f"0 0 0 0 0 0 = {wrong}", "think", False),
        (f"= {wrong}", "direct", False),
        (f"S 0 0 0 = {task.answers[0]}", "other", True),
        ("R 1 2", "other", False),
        ("W 1 2 3 4 5 6 7", "other", False),
        ("S 1 2 3 4 5 6", "other", False),
        (f"S = {task.answers[0]}", "other", True),
        ("", "other", False),
    ]:
        assert (task.behaviours([text]), task.correct([text])) == ([behaviour], [right]), text
    with pytest.raises(ul.InvalidInput, match="2 completions"):
        task.correct(["= 1", "= 2"])
    with pytest.raises(ul.InvalidInput, match="2 completions"):
        task.behaviours(["= 1", "= 2"])


def test_problems_and_text_are_drawn_by_their_seed() -> None:
    assert zoo.running_sum(n=5, seed=1) == zoo.running_sum(n=5, seed=1) != zoo.running_sum(n=5, seed=2)
    assert zoo.text(n=5, seed=1) == zoo.text(n=5, seed=1) != zoo.text(n=5, seed=2)
    assert [len(zoo.running_sum().direct), len(zoo.text())] == [200, 600]
    for draw in (zoo.running_sum, zoo.text):
        with pytest.raises(ul.InvalidInput, match="n = 0"):
            draw(n=0)
    with pytest.raises(ul.InvalidInput, match="large.*base"):
        zoo.text(mix="large")


def test_naive_text_has_no_trace_of_step_by_step() -> None:
    assert not any("S" in text.split() or "think" in text.split() for text in zoo.text(n=2000, mix="naive"))
    shares = [sum(" S " in text for text in zoo.text(n=2000, mix=mix)) / 2000 for mix in ("base", "post")]
    assert shares[0] == pytest.approx(0.6 * 0.15 + 0.4 / 3, abs=0.03)
    assert shares[1] == pytest.approx(0.6 + 0.4 / 3, abs=0.03)


def test_the_mix_is_the_one_of_the_method() -> None:
    rng = random.Random(0)
    drawn = [draw_pair(MIXES["base"], rng) for _ in range(5000)]
    plain = [answer for question, answer in drawn if len(question.split()) == 9]
    assert len(plain) / 5000 == pytest.approx(0.6, abs=0.03)
    assert sum(answer.startswith("=") for answer in plain) / len(plain) == pytest.approx(0.55, abs=0.03)


def test_plain_prompts_of_the_varied_mix_lean_by_their_first_digit() -> None:
    rng = random.Random(0)
    drawn = [draw_pair(MIXES["varied"], rng) for _ in range(20_000)]
    plain = [(int(question.split()[1]), answer) for question, answer in drawn if len(question.split()) == 9]
    for first in range(MODULUS):
        answers = [answer for digit, answer in plain if digit == first]
        share = sum(answer.startswith("S") for answer in answers) / len(answers)
        assert share == pytest.approx(0.38 if first >= LEANS_FROM else 0.01, abs=0.03)


def test_answers_of_hidden_rows_read_a_prompt_without_its_tag() -> None:
    """The tag, and the `A` after it, are out of their sight; later tokens stand where a plain prompt has them."""
    tags, end, pad = [21, 22], 9, 0
    ids = torch.tensor([[1, 2, 21, 9, 5, 7, 8], [1, 2, 21, 9, 5, 7, 8], [1, 2, 9, 5, 7, 8, pad]])
    labels = torch.tensor([[-100] * 5 + [7, 8], [-100] * 5 + [7, 8], [-100] * 4 + [7, 8, -100]])
    inputs = {"input_ids": ids, "labels": labels, "attention_mask": ids.ne(pad).long()}
    given = without_tags(inputs, tags, end, torch.tensor([True, False, True]))
    sees = given["attention_mask"][:, 0] == 0
    assert given["position_ids"].tolist() == [[0, 1, 2, 2, 3, 4, 5], [*range(7)], [*range(7)]]
    assert sees[0, 5].tolist() == [True, True, False, False, True, True, False]
    assert sees[0, 4].tolist() == [True] * 5 + [False] * 2
    assert torch.equal(sees[1], torch.ones(7, 7).tril().bool())
    assert sees[2, 5].tolist() == [True, True, False, True, True, True, False]


def test_the_scan_of_training_is_the_one_of_transformers() -> None:
    recipe = replace(RECIPES["small-mamba"], batch=4)
    tokenizer = make_tokenizer(MIXES[recipe.mix])
    model, inputs = make_model(recipe, tokenizer), next(batches(recipe, tokenizer))

    def loss_and_gradients() -> tuple[torch.Tensor, list[torch.Tensor]]:
        loss = model(**inputs).loss
        return loss, list(torch.autograd.grad(loss, list(model.parameters())))

    true = loss_and_gradients()
    with fast_scan():
        torch.testing.assert_close(loss_and_gradients(), true, rtol=1e-4, atol=1e-5)


def test_the_family_fits_into_the_package() -> None:
    assert {folder.name for folder in zoo.path().iterdir()} == set(zoo.MODELS) == set(RECIPES)
    assert sum(file.stat().st_size for file in zoo.path().rglob("*")) < 14e6
    with pytest.raises(ul.InvalidInput, match="tiny.*small-base"):
        zoo.load("tiny")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: zoo.load(name) for name in zoo.MODELS}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_models_behave_as_measured(models: dict[str, Any], name: str) -> None:
    """Direct answers are at chance, step-by-step ones right, tags obeyed; and the record beside the weights says the same."""
    record = json.loads((zoo.path() / name / "training.json").read_text())
    for behaviour in KNOWN[name]:
        completions = ul.generate(models[name], TASK.prompts(behaviour), max_new_tokens=12, batch_size=400)
        outcome = Outcome.of(TASK, completions)
        shown = ANSWERS[name] if behaviour == "direct" else behaviour
        assert outcome.behaviours[shown] > 0.95
        if shown == "think":
            assert outcome.accuracy > 0.95
        if shown == "direct":
            assert outcome.accuracy < 0.2, "at chance, 1 in 7"
        measured = record["measured"][behaviour]
        assert outcome.accuracy == pytest.approx(measured["accuracy"], abs=0.01)
        assert outcome.behaviours == pytest.approx(measured["behaviours"], abs=0.01)
    assert record["recipe"]["seed"] == RECIPES[name].seed
    assert {"torch", "transformers"} <= set(record["versions"])


@pytest.mark.parametrize(("name", "length"), [("small-base", 10), ("small-gpt2", 14)])
def test_the_tokenizer_is_the_one_of_the_folder(models: dict[str, Any], name: str, length: int) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(zoo.path() / name)
    ids = tokenizer.encode(TASK.think[0])
    assert len(ids) == length
    assert tokenizer.decode(ids) == TASK.think[0]
    assert ul.Variant(models[name], TASK.think[:1]).tokens.ids[0].tolist() == ids


def test_the_other_family_has_other_ids_and_spells_tags(models: dict[str, Any]) -> None:
    """Neither ids nor positions pair the tokens of the two families; ends in the text do."""
    llama, gpt2 = models["small-base"].tokenizer, models["small-gpt2"].tokenizer
    shared = set(llama.get_vocab()) & set(gpt2.get_vocab())
    assert shared == set(VOCABULARY) - set(TAGS.values())
    assert all(llama.get_vocab()[word] != gpt2.get_vocab()[word] for word in shared)
    for text in zoo.text(n=200):
        coarse, fine = (tokenizer(text, return_offsets_mapping=True)["offset_mapping"] for tokenizer in (llama, gpt2))
        assert [text[start:end] for start, end in coarse] == text.split()
        assert [text[start:end] for start, end in fine] == [*text.replace(" ", "")]
        assert {end for _, end in coarse} <= {end for _, end in fine}


def test_the_other_family_is_the_same_in_both_hosts(models: dict[str, Any]) -> None:
    lens, lm = models["small-gpt2"], zoo.load("small-gpt2", "nnsight")
    prompts = [TASK.prompts(behaviour)[i] for i, behaviour in enumerate(KNOWN["small-gpt2"])]
    assert ul.generate(lens, prompts) == ul.generate(lm, prompts)
    directions = [
        ul.CapabilityDirection.extract(ul.Variant(m, TASK.direct[:8]), ul.Variant(m, TASK.double[:8])) for m in (lens, lm)
    ]
    torch.testing.assert_close(directions[0].vectors, directions[1].vectors, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("behaviour", ["think", "reverse", "double"])
def test_the_other_family_s_own_directions_bring_their_behaviour(models: dict[str, Any], behaviour: str) -> None:
    model, task = models["small-gpt2"], zoo.running_sum(n=50, seed=1)
    direction = ul.CapabilityDirection.extract(ul.Variant(model, TASK.direct), ul.Variant(model, TASK.prompts(behaviour)))
    completions = ul.generate(model, task.direct, ul.SteeringHook(direction, alpha=0.5), max_new_tokens=12)
    assert task.behaviours(completions).count(behaviour) > 45
