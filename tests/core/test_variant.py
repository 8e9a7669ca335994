"""Prompts and their tokens."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.core.variant import Tokens, tokenize


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 6))
def test_batches_hold_every_prompt_once_with_no_needless_padding(lengths: list[int], size: int) -> None:
    width = max(lengths)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
    tokens = Tokens(mask * 7, mask)
    batches = tokens.batches(size)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    seen = [lengths[i] for batch in batches for i in batch.tolist()]
    assert seen == sorted(seen, reverse=True)
    for batch in batches:
        rows = tokens.rows(batch)
        assert rows.ids.shape[1] == max(lengths[i] for i in batch.tolist())
        assert rows.mask.sum(dim=1).tolist() == [lengths[i] for i in batch.tolist()]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 6), st.integers(0, 9))
def test_filled_batches_hold_as_many_tokens_as_the_longest_prompts_would(lengths: list[int], size: int, new: int) -> None:
    width = max(lengths)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
    tokens = Tokens(mask * 7, mask)
    batches = [batch.tolist() for batch in tokens.filled(size, new)]
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    seen = [lengths[i] for batch in batches for i in batch]
    assert seen == sorted(seen, reverse=True)
    for batch in batches:
        held = lengths[batch[0]] + new
        assert len(batch) * held <= size * (width + new)
        assert batch is batches[-1] or (len(batch) + 1) * held > size * (width + new)


def test_tokens_are_the_tokenizers_own_padded_on_the_left(small: Any) -> None:
    prompts = ["Q 1", "Q 1 2 3"]
    tokens = ul.Variant(small, prompts).tokens
    for row, mask, prompt in zip(tokens.ids, tokens.mask, prompts, strict=True):
        assert row[mask.bool()].tolist() == small.tokenizer.encode(prompt)
    assert tokens.mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_bad_prompts_are_refused_at_once(small: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="no prompts were given; at least one is needed"):
        ul.Variant(small, [])
    with pytest.raises(ul.InvalidInput, match="prompt 1 is empty; leave it out or fill it"):
        ul.Variant(small, ["Q", "  "])
    with pytest.raises(ul.InvalidInput, match=r"one text was given \('Q 1'\); give a list of prompts"):
        ul.Variant(small, "Q 1")
    with unchecked(), pytest.raises(ul.InvalidInput, match="prompt 0 is int; give texts"):
        ul.Variant(small, [5])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ul.InvalidInput, match="no prompts were given"):
        ul.generate(small, [])
    with pytest.raises(ul.InvalidInput, match="prompt 0 is empty"):
        ul.generate(small, [""])


class FakeTokenizer:
    """Just enough of a tokenizer to have no pad token."""

    pad_token_id: int | None = None
    eos_token_id: int | None = 9
    eos_token = "</s>"

    def __init__(self, name: str) -> None:
        self.name_or_path = name

    def __call__(self, prompts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        bos = [1] if add_special_tokens else []
        return {"input_ids": [bos + [len(word) for word in prompt.split()] for prompt in prompts]}


def test_without_a_pad_token_eos_is_used_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = FakeTokenizer("no-pad")
    with caplog.at_level(logging.WARNING):
        tokens = [tokenize(tokenizer, ["a", "a bb"]) for _ in range(2)]
    assert tokens[0].ids.tolist() == [[9, 1, 1], [1, 1, 2]]
    assert caplog.text.count("the tokenizer no-pad has no pad token; its EOS token '</s>' is used") == 1
    neither = FakeTokenizer("neither")
    neither.eos_token_id = None
    with pytest.raises(ul.InvalidInput, match="neither a pad nor an EOS token; set tokenizer.pad_token"):
        tokenize(neither, ["a", "a bb"])
    assert tokenize(neither, ["a bb", "a c"]).ids.tolist() == [[1, 1, 2], [1, 1, 1]], "nothing to pad, nothing to ask for"


def test_special_tokens_are_as_the_caller_says() -> None:
    tokenizer = FakeTokenizer("special")
    assert tokenize(tokenizer, ["bb"], add_special_tokens=True).ids.tolist() == [[1, 2]]
    assert tokenize(tokenizer, ["bb"], add_special_tokens=False).ids.tolist() == [[2]]


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ul.InvalidInput, match=r"produces no tokens for prompt 1"):
        tokenize(FakeTokenizer("blank"), ["a", "\u200b".replace("\u200b", "")], add_special_tokens=False)


def test_one_prompt_hash_a_list_of_prompts(small: Any) -> None:
    def of(*prompts: str) -> str:
        return ul.Variant(small, prompts).prompts_hash

    assert of("a", "b") == of("a", "b") != of("b", "a")
    assert of("a", "b") != of("ab")
    assert len(ul.Variant(small, zoo.running_sum(n=5).direct)) == 5


def test_generation_numbers_are_checked(small: Any) -> None:
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}):
        with pytest.raises(ul.InvalidInput, match="at least 1 and 0"):
            ul.generate(small, ["Q"], **wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ul.InvalidInput, match="batch_size 0 was given"):
        ul.generate(small, ["Q"], batch_size=0)


CHAT = (
    "{% for turn in messages %}{{ turn['role'][0] }} {{ turn['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}A :{% endif %}"
)
"""A chat template in the zoo's words; the tokenizer splits at blanks, and drops what it does not know."""


@pytest.fixture
def chatting(small: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(small.tokenizer, "chat_template", CHAT)
    return small


def test_chat_prompts_are_the_tokenizers_own_rendering(chatting: Any) -> None:
    found = ul.Variant(chatting, ["Q 1 2"], chat=True, system="Q 3", demonstrations=[("Q 4", "5")])
    turns = [("system", "Q 3"), ("user", "Q 4"), ("assistant", "5"), ("user", "Q 1 2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert found.prompts == (chatting.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),)
    ids = chatting.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert found.tokens.ids[0].tolist() == ids
    assert found.add_special_tokens is False


def test_a_tokenizer_without_a_template_is_named(small: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="chat template"):
        ul.Variant(small, ["Q 1"], chat=True)
    with pytest.raises(ul.InvalidInput, match="chat=True"):
        ul.Variant(small, ["Q 1"], system="Q 2")


def test_demonstrations_stand_before_every_prompt(small: Any) -> None:
    found = ul.Variant(small, ["Q 1", "Q 2"], demonstrations=[("Q 3 A :", "4"), ("Q 5 A :", "6")])
    assert found.prompts == ("Q 3 A : 4\n\nQ 5 A : 6\n\nQ 1", "Q 3 A : 4\n\nQ 5 A : 6\n\nQ 2")


def test_ids_are_read_unchanged(small: Any) -> None:
    prompts = ["Q 1", "Q 1 2 3"]
    texts = ul.Variant(small, prompts)
    left = ul.Variant(small, tokens=texts.tokens.ids, attention_mask=texts.tokens.mask)
    right = ul.Variant(
        small, tokens=torch.tensor([[11, 2, 0, 0], [11, 2, 3, 4]]), attention_mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    )
    for found in (left, right):
        assert torch.equal(found.tokens.ids, texts.tokens.ids)
        assert torch.equal(found.tokens.mask, texts.tokens.mask)
        assert [prompt.split() for prompt in found.prompts] == [prompt.split() for prompt in prompts]
    assert ul.generate(small, right, max_new_tokens=4) == ul.generate(small, prompts, max_new_tokens=4)


def test_right_padding_without_a_mask_is_warned_of(small: Any) -> None:
    with pytest.warns(UserWarning, match="attention_mask"):
        ul.Variant(small, tokens=torch.tensor([[11, 2, 0, 0], [11, 2, 3, 4]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": torch.tensor([1, 2])}, "shape"),
        ({"tokens": torch.tensor([[1.0, 2.0]])}, "float"),
        ({"tokens": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1]])}, "attention_mask"),
        ({"tokens": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[0, 0]])}, "row 0"),
        ({"tokens": torch.tensor([[1, 2]]), "prompts": ["Q"]}, "either texts or token ids"),
        ({"tokens": torch.tensor([[1, 2]]), "chat": True}, "either texts or token ids"),
        ({"prompts": ["Q"], "attention_mask": torch.tensor([[1]])}, "attention_mask"),
        ({}, "no prompts"),
    ],
)
def test_options_that_exclude_each_other_are_refused(small: Any, options: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(ul.InvalidInput, match=message):
        _ = ul.Variant(small, **options).tokens


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize(("prepend_bos", "bos"), [(None, None), (True, 1), (False, 0)])
def test_bos_is_there_once_or_not_at_all(adds: bool, prepend_bos: bool | None, bos: int | None) -> None:
    tokenizer: Any = FakeTokenizer("bos")
    tokenizer.bos_token_id = 1
    row = tokenize(tokenizer, ["xx yyy"], adds, prepend_bos).ids[0].tolist()
    assert row == [1] * (int(adds) if bos is None else bos) + [2, 3]


def test_a_bos_token_that_is_not_there_is_not_prepended() -> None:
    tokenizer: Any = FakeTokenizer("no-bos")
    tokenizer.bos_token_id = None
    assert tokenize(tokenizer, ["xx"], False, prepend_bos=False).ids.tolist() == [[2]]
    with pytest.raises(ul.InvalidInput, match="BOS"):
        tokenize(tokenizer, ["xx"], False, prepend_bos=True)


def test_prompts_may_be_a_generator_and_a_variant_may_stand_for_them(small: Any, small_nnsight: Any) -> None:
    task = zoo.running_sum(n=3)
    variant = ul.Variant(small, (prompt for prompt in task.think))
    assert len(variant) == 3
    expected = ul.generate(small, task.think, max_new_tokens=12)
    assert ul.generate(small, variant, max_new_tokens=12) == expected
    assert ul.generate(variant, max_new_tokens=12) == expected
    assert ul.generate(small, iter(task.think), max_new_tokens=12) == expected
    with pytest.raises(ul.InvalidInput, match="a different model"):
        ul.generate(small_nnsight, variant)


def test_the_name_of_a_model_says_how_to_open_it() -> None:
    with unchecked(), pytest.raises(ul.UnsupportedModel, match="boot_transformers"):
        ul.Variant("gpt2", ["Q 1"])


def test_a_fit_takes_two_models_and_the_texts_once(large: Any, small: Any) -> None:
    texts = zoo.text(n=20)
    once = ul.SubspaceAligner(4, True, "all").fit(large, small, (text for text in texts))
    twice = ul.SubspaceAligner(4, True, "all").fit(ul.Variant(large, texts), ul.Variant(small, texts))
    assert torch.equal(once.map(2), twice.map(2))


def test_a_template_is_filled_and_reported(small: Any) -> None:
    found = ul.Variant(small, ["1 2", "3"], template="Q {question} A :")
    assert found.prompts == ("Q 1 2 A :", "Q 3 A :")
    told = found.description
    assert (told["template"], told["first"], told["n"]) == ("Q {question} A :", ["Q 1 2 A :", "Q 3 A :"], 2)
    assert ul.Variant(small, ["Q 1"], record_prompts=False).description["first"] == []
    with pytest.raises(ul.InvalidInput, match="question"):
        ul.Variant(small, ["1"], template="Q A :")


def test_generators_of_prompts_are_read_once(small: Any) -> None:
    task = zoo.running_sum(n=4)
    prompts = (prompt for prompt in task.think)
    assert ul.evaluation.evaluate(small, task, prompts, max_new_tokens=12).outcome.accuracy == 1.0


def test_functions_of_a_model_and_prompts_take_a_variant(small: Any) -> None:
    task = zoo.running_sum(n=4)
    variant = ul.Variant(small, task.direct)
    assert torch.equal(
        ul.distributions.next_token_log_probs(small, variant, batch_size=2),
        ul.distributions.next_token_log_probs(small, task.direct, batch_size=2),
    )
    written = ul.generate(variant, max_new_tokens=4)
    assert written == ul.generate(small, task.direct, max_new_tokens=4)
    assert torch.equal(
        ul.distributions.completion_log_probs(small, variant, written),
        ul.distributions.completion_log_probs(small, task.direct, written),
    )
    of_variant = ul.evaluation.evaluate(small, task, variant, max_new_tokens=12)
    assert of_variant.completions == ul.evaluation.evaluate(small, task, task.direct, max_new_tokens=12).completions
    other = ul.Variant(zoo.load("small-base"), task.direct)
    with pytest.raises(ul.InvalidInput, match="a different model"):
        ul.generate(small, other)
