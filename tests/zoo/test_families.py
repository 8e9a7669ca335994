"""Capabilities move between a Llama and a GPT-2 that share neither architecture nor tokenizer, both ways."""

from __future__ import annotations

from typing import Any

import pytest

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.core.tokens import paired_tokens

TEXT, TASK = zoo.text(600, seed=5), zoo.running_sum(n=100, seed=1)
TRAIN, TEST = zoo.running_sum(n=20, seed=4), zoo.running_sum(n=40, seed=9)
ALPHAS = (0.5, 0.6, 0.7)


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return zoo.load("small-gpt2")


def share(model: Any, direction: ul.CapabilityDirection, behaviour: str) -> float:
    """Of test completions that show the behaviour, at the strength that brings most of it on train."""

    def at(alpha: float, task: zoo.Task) -> float:
        steer = ul.SteeringHook(direction, alpha)
        written = ul.generate(model, task.direct, steer, max_new_tokens=12, batch_size=40)
        return task.behaviours(written).count(behaviour) / len(written)

    return at(max(ALPHAS, key=lambda alpha: at(alpha, TRAIN)), TEST)


@pytest.mark.parametrize("behaviour", ["think", "reverse", "double"])
@pytest.mark.parametrize("source", ["llama", "gpt2"])
def test_a_capability_arrives_in_another_family(large: Any, gpt2: Any, source: str, behaviour: str) -> None:
    """All of it, each its own; of eight random directions of the same norms less than half stumble on it.

    Some do, at strengths like these: the models have four behaviours and one token that decides between them.
    """
    sender, receiver = (large, gpt2) if source == "llama" else (gpt2, large)
    locked, unlocked = ul.Variant(sender, TASK.direct), ul.Variant(sender, TASK.prompts(behaviour))
    direction = ul.CapabilityDirection.extract(locked, unlocked, batch_size=100)
    aligner = ul.SubspaceAligner(centered=True, positions="all", method="ridge")
    texts = ul.Variant(sender, TEXT), ul.Variant(receiver, TEXT)
    moved = aligner.fit(*texts, batch_size=100, progress=False).transport(direction)
    assert share(receiver, moved, behaviour) >= 0.9
    assert sum(share(receiver, controls.random_like(moved, seed), behaviour) > 0.5 for seed in range(8)) < 4


def test_paired_tokens_end_at_the_same_character(large: Any, gpt2: Any) -> None:
    """Every word of the Llama's ends where a letter of the GPT-2's does; the letters within a tag are left out."""
    llama, letters = ul.Variant(large, TASK.think[:5]), ul.Variant(gpt2, TASK.think[:5])
    for i, pairs in enumerate(zip(*paired_tokens(llama, letters, "all"), strict=True)):
        ends = [[variant.spans[i][token][1] for token in side] for variant, side in zip((llama, letters), pairs, strict=True)]
        assert ends[0] == ends[1]
        assert len(ends[0]) == int(llama.tokens.lengths[i])
        assert int(letters.tokens.lengths[i]) == int(llama.tokens.lengths[i]) + len("think") - 1
    last = paired_tokens(llama, letters, "last")
    assert [int(side[0]) for side in last] == [int(v.tokens.lengths[0]) - 1 for v in (llama, letters)]


def test_a_tokenizer_that_cannot_tell_offsets_is_named(large: Any, gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llama, letters = ul.Variant(large, TASK.think[:5]), ul.Variant(gpt2, TASK.think[:5])
    monkeypatch.setattr(type(llama.backend.tokenizer), "is_fast", False)
    with pytest.raises(ul.InvalidInput, match="fast"):
        paired_tokens(llama, letters, "all")


def test_tokenizers_that_share_no_offset_are_reported(large: Any, gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llama, letters = ul.Variant(large, TASK.think[:2]), ul.Variant(gpt2, TASK.think[:2])
    monkeypatch.setitem(vars(llama), "spans", [[(0, 1000)]] * 2)
    with pytest.raises(ul.InvalidInput, match="large-base.*small-gpt2"):
        ul.SubspaceAligner(4, positions="all").fit(llama, letters)


def test_a_capability_leaves_a_state_space_model(small: Any) -> None:
    """The recurrent state of the source does not matter: what is read is its residual stream."""
    mamba, text = zoo.load("small-mamba"), zoo.text(n=600, seed=1)
    direction = ul.CapabilityDirection.extract(ul.Variant(mamba, TASK.direct), ul.Variant(mamba, TASK.think), batch_size=100)
    aligner = ul.SubspaceAligner(48).fit(mamba, small, text, batch_size=200, progress=False)
    steer = ul.SteeringHook(aligner.transport(direction), 0.4)
    written = ul.generate(small, TASK.direct, steer, max_new_tokens=12, batch_size=100)
    assert TASK.behaviours(written).count("think") >= 0.9 * len(written)
