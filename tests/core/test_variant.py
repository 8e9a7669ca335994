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
    with pytest.raises(ul.InvalidInput, match=r"makes no token of prompt 1"):
        tokenize(FakeTokenizer("blank"), ["a", "\u200b".replace("\u200b", "")], add_special_tokens=False)


def test_one_prompt_hash_a_list_of_prompts(small: Any) -> None:
    def of(*prompts: str) -> str:
        return ul.Variant(small, prompts).prompts_hash

    assert of("a", "b") == of("a", "b") != of("b", "a")
    assert of("a", "b") != of("ab")
    assert len(ul.Variant(small, zoo.running_sum(n=5).direct)) == 5


def test_generation_numbers_are_checked(small: Any) -> None:
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}):
        with pytest.raises(ul.InvalidInput, match="at least 1 and 0 are needed"):
            ul.generate(small, ["Q"], **wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ul.InvalidInput, match="batch_size 0 was given"):
        ul.generate(small, ["Q"], batch_size=0)
