"""Problems, tasks, and splits that share no question."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import unlock_lens as ul
from unlock_lens.evidence.tasks.problems import Problem, Sizes, Splits, Task, split
from unlock_lens.evidence.tasks.scoring import CHECKS

SUMS = tuple(Problem(f"{i} + 1?", str(i + 1)) for i in range(9))
SMALL = Sizes(extract=2, train=1, test=2)


def sums(*problems: Problem) -> Task:
    return Task("sums", problems, CHECKS["number"])


def questions(splits: Splits) -> list[list[str]]:
    return [splits.extract.questions, splits.train.questions, splits.test.questions]


def test_a_task_asks_and_checks() -> None:
    task = sums(*SUMS[:2])
    assert (len(task), task.questions, task.answers) == (2, ["0 + 1?", "1 + 1?"], ["1", "2"])
    assert task.prompts("Q: {question}\nA:") == ["Q: 0 + 1?\nA:", "Q: 1 + 1?\nA:"]
    assert task.correct(["It is 1.", "It is 3."]) == [True, False]
    assert task.behaviours(["a", "b"]) is None
    assert task.first(1) == sums(SUMS[0])
    told = Task("sums", SUMS[:2], CHECKS["number"], lambda text: "long" if len(text) > 3 else "short", ("long", "short"))
    assert told.behaviours(["1", "it is 2"]) == ["short", "long"]


def test_a_task_is_known_by_its_questions_and_answers() -> None:
    task = sums(*SUMS[:2])
    assert len(task.hash) == 16
    assert task.hash == Task("other", SUMS[:2], CHECKS["exact"]).hash
    others = [sums(SUMS[0]), sums(*SUMS[1::-1]), sums(SUMS[0], Problem("1 + 1?", "3")), sums(SUMS[0], Problem("1 + 2?", "2"))]
    assert len({task.hash, *(other.hash for other in others)}) == 5


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ((), "no problems"),
        ((SUMS[0], Problem(" \n", "1")), "problem 2.*question"),
        ((Problem("why?", ""),), "problem 1.*answer"),
    ],
)
def test_broken_problems_are_refused(problems: tuple[Problem, ...], message: str) -> None:
    with pytest.raises(ul.InvalidInput, match=message):
        sums(*problems)


def test_counts_must_fit() -> None:
    for ask in (sums(*SUMS).correct, sums(*SUMS).behaviours):
        with pytest.raises(ul.InvalidInput, match="1 completions"):
            ask(["1"])
    for n in (0, 10):
        with pytest.raises(ul.InvalidInput, match=f"first {n} problems"):
            sums(*SUMS).first(n)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(0, 99))
def test_splits_are_disjoint_and_of_the_sizes(extract: int, train: int, test: int, seed: int) -> None:
    sizes = Sizes(extract=extract, train=train, test=test)
    parts = questions(split(sums(*SUMS, *SUMS), sizes, seed))
    assert [len(part) for part in parts] == [extract, train, test]
    assert len({question for part in parts for question in part}) == sizes.total
    assert parts == questions(split(sums(*SUMS), sizes, seed))


def test_the_seed_draws_the_splits() -> None:
    drawn = [questions(split(sums(*SUMS), SMALL, seed)) for seed in range(5)]
    assert any(drawn[0] != other for other in drawn[1:])
    native = split(sums(*SUMS[:4]), SMALL, seed=0, test=sums(*SUMS[4:]))
    assert {*native.extract.questions, *native.train.questions} <= {problem.question for problem in SUMS[:4]}
    assert set(native.test.questions) <= {problem.question for problem in SUMS[4:]}


def test_shared_questions_are_refused() -> None:
    again = Problem(" 0 +  1?\n", "1")
    for parts, names in [
        ((SUMS[0], SUMS[1], again), "extract and test"),
        ((SUMS[0], again, SUMS[1]), "extract and train"),
        ((SUMS[1], SUMS[0], again), "train and test"),
    ]:
        with pytest.raises(ul.InvalidInput, match=rf"{names}.*'0 \+ 1\?'"):
            Splits(*(sums(part) for part in parts))
    with pytest.raises(ul.InvalidInput, match=r"sums and sums.*'0 \+ 1\?'"):
        split(sums(*SUMS), SMALL, seed=0, test=sums(again))


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(ul.InvalidInput, match="4 different.* 5"):
        split(sums(*SUMS[:4], *SUMS[:4]), SMALL, seed=0)
    with pytest.raises(ul.InvalidInput, match="1 different.* 2"):
        split(sums(*SUMS[:4]), SMALL, seed=0, test=sums(SUMS[5]))


@pytest.mark.parametrize("wrong", [{"extract": 0, "train": 1, "test": 1}, {"extract": 1, "train": 1}])
def test_sizes_are_at_least_one(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="extract|test"):
        Sizes(**wrong)


def test_a_behaviour_that_is_not_named_is_reported() -> None:
    """It would vanish from every count."""
    task = Task("sums", (Problem("1 + 1?", "2"),), lambda completion, problem: True, lambda completion: "other", ("a", "b"))
    with pytest.raises(ul.InvalidInput, match="other.*behaviour_names"):
        task.behaviours(["2"])
