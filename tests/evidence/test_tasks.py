"""Where problems come from; the hub's rows are stood in for by tiny ones of the same form."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.evidence.tasks import (
    AgiEvalMathSpec,
    Gsm8kSpec,
    JsonlSpec,
    MathSpec,
    PythonSpec,
    ReasoningGymSpec,
    RunningSumSpec,
    TaskSpec,
)
from unlock_lens.evidence.tasks.problems import Sizes, Splits

SMALL = Sizes(extract=2, train=1, test=2)
Rows = Mapping[tuple[str, str | None, str], list[dict[str, Any]]]


def questions(splits: Splits) -> list[list[str]]:
    return [splits.extract.questions, splits.train.questions, splits.test.questions]


def test_running_sums_are_the_zoo_s() -> None:
    splits = RunningSumSpec().splits(Sizes(extract=30, train=20, test=10), seed=3)
    zoos = zoo.running_sum(n=60, seed=3)
    theirs = dict(zip(zoos.direct, zoos.answers, strict=True))
    for task in (splits.extract, splits.train, splits.test):
        assert [theirs[prompt] for prompt in task.prompts("Q {question} A :")] == task.answers
    test = splits.test
    assert all(test.correct([f"S 0 0 0 0 0 0 = {answer} ." for answer in test.answers]))
    assert not any(test.correct(["R 1 2 3 4 5 6", *[f"= {(int(answer) + 1) % 7}" for answer in test.answers[1:]]]))
    assert test.first(3).behaviours(["= 1", "R 1 2 3 4 5 6", "?"]) == ["direct", "reverse", "other"]
    assert test.behaviour_names == zoo.BEHAVIOURS
    with pytest.raises(ul.InvalidInput, match="117649.* 200002"):
        RunningSumSpec().splits(Sizes(extract=200_000, train=1, test=1), seed=0)


def write(file: Path, *lines: Any) -> Path:
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return file


def test_files_of_your_own(tmp_path: Path) -> None:
    own = [{"problem": f"{i} + 1 = ?", "result": result} for i, result in enumerate([1, "2", 3.0, "$4", "5\u2028"])]
    spec = JsonlSpec(path=write(tmp_path / "own.jsonl", *own, ""), question="problem", answer="result", check="number")
    splits = spec.splits(SMALL, seed=0)
    found = {
        problem.question: problem.answer for task in (splits.extract, splits.train, splits.test) for problem in task.problems
    }
    assert found == {"0 + 1 = ?": "1", "1 + 1 = ?": "2", "2 + 1 = ?": "3.0", "3 + 1 = ?": "$4", "4 + 1 = ?": "5\u2028"}
    assert all(all(task.correct(task.answers)) for task in (splits.extract, splits.train, splits.test))
    fresh = write(tmp_path / "test.jsonl", *({"problem": f"{i} + 2 = ?", "result": i + 2} for i in range(2)))
    assert sorted(spec.model_copy(update={"test_path": fresh}).splits(SMALL, seed=0).test.answers) == ["2", "3"]


def test_test_files_share_nothing_with_the_others(tmp_path: Path) -> None:
    lines = [{"question": f"{i}?", "answer": i} for i in range(20)]
    spec = JsonlSpec(path=write(tmp_path / "a.jsonl", *lines), test_path=write(tmp_path / "b.jsonl", lines[7], {**lines[7]}))
    with pytest.raises(ul.InvalidInput, match=r"a.jsonl.*b.jsonl.*'7\?'"):
        spec.splits(Sizes(extract=1, train=1, test=1), seed=0)


@pytest.mark.parametrize(
    ("line", "check", "message"),
    [
        ("{oops", "exact", "a.jsonl, line 2.*JSON"),
        ("[1]", "exact", "a.jsonl, line 2.*list"),
        ('{"q": "x"}', "exact", "line 2.*question.* q "),
        ('{"question": " ", "answer": 1}', "exact", "line 2.*question"),
        ('{"question": "x", "answer": null}', "exact", "line 2.*under answer"),
        ('{"question": "x", "answer": true}', "exact", "line 2.*under answer"),
        ('{"question": "x", "answer": ""}', "exact", "line 2.*under answer"),
        ('{"question": "x", "answer": "six"}', "number", "line 2.*six.*number"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, check: Any, message: str) -> None:
    spec = JsonlSpec(path=write(tmp_path / "a.jsonl", {"question": "1?", "answer": "1"}, line), check=check)
    with pytest.raises(ul.InvalidInput, match=message):
        spec.splits(SMALL, seed=0)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ul.InvalidInput, match="nothing.jsonl"):
        JsonlSpec(path=tmp_path / "nothing.jsonl").splits(SMALL, seed=0)
    (tmp_path / "latin.jsonl").write_bytes(b"caf\xe9")
    with pytest.raises(ul.InvalidInput, match="latin.jsonl.*UTF-8"):
        JsonlSpec(path=tmp_path / "latin.jsonl").splits(SMALL, seed=0)
    with pytest.raises(ul.InvalidInput, match="empty.jsonl"):
        JsonlSpec(path=write(tmp_path / "empty.jsonl", "")).splits(SMALL, seed=0)


OWN_TASK = """
from unlock_lens.evidence.tasks import Problem, Task

problems = tuple(Problem(f"{i} + 1?", str(i + 1)) for i in range(9))
mine = Task(
    "sums",
    problems,
    lambda completion, problem: completion.endswith(problem.answer),
    lambda completion: "words" if " " in completion else "digits",
    ("words", "digits"),
)
"""


def test_a_task_in_python(tmp_path: Path) -> None:
    """Own check and behaviours; another text of the file is another task, so that a sweep does not mix the two."""
    (tmp_path / "mine.py").write_text(OWN_TASK)
    spec = PythonSpec(path=tmp_path / "mine.py", name="mine")
    splits = spec.splits(SMALL, seed=0)
    assert splits.test.correct([f"it is {answer}" for answer in splits.test.answers]) == [True, True]
    assert splits.test.behaviours(["it is 4", "4"]) == ["words", "digits"]
    assert not set(splits.extract.questions) & set(splits.test.questions)
    before = splits.test.hash
    assert spec.splits(SMALL, seed=0).test.hash == before
    (tmp_path / "mine.py").write_text(OWN_TASK.replace("endswith", "startswith"))
    assert spec.splits(SMALL, seed=0).test.hash != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "mine.py.*ZeroDivisionError"),
        ("raise SystemExit", "mine.py.*SystemExit"),
        ("def (", "mine.py.*SyntaxError"),
        ("other = 1", "mine.py.*nothing.*Task"),
        ("mine = [1, 2]", "mine.py.*list.*Task"),
    ],
)
def test_a_file_without_a_task_is_reported(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ul.InvalidInput, match=message):
        PythonSpec(path=tmp_path / "mine.py", name="mine").splits(SMALL, seed=0)
    with pytest.raises(ul.InvalidInput, match="gone.py"):
        PythonSpec(path=tmp_path / "gone.py").splits(SMALL, seed=0)


def test_reasoning_gym_scores_its_own_problems() -> None:
    spec = ReasoningGymSpec(dataset="chain_sum", options={"min_terms": 2, "max_terms": 2})
    splits = spec.splits(SMALL, seed=0)
    assert splits.extract.name == "reasoning_gym/chain_sum"
    for task in (splits.extract, splits.train, splits.test):
        assert all(task.correct([f"Let me see. The answer is {answer}." for answer in task.answers]))
        assert not any(task.correct([f"{answer} or so" for answer in task.answers]))
    assert questions(splits) == questions(spec.splits(SMALL, seed=0))
    assert all({*splits.extract.questions}.isdisjoint(part) for part in questions(spec.splits(SMALL, seed=1)))
    lenient = spec.model_copy(update={"check": "number"}).splits(SMALL, seed=0).test
    assert all(lenient.correct([f"{answer} or so" for answer in lenient.answers]))


def test_reasoning_gym_s_partial_credit_and_stumbling_are_not_right() -> None:
    task = ReasoningGymSpec(dataset="prime_factorization").splits(SMALL, seed=0).extract
    assert task.correct(task.answers) == [True, True]
    assert task.correct(["The answer is not known.", "2 x 2"]) == [False, False]


def test_reasoning_gym_draws_each_question_once() -> None:
    spec = ReasoningGymSpec(dataset="tower_of_hanoi", options={"min_disks": 3, "max_disks": 3, "min_pegs": 3, "max_pegs": 3})
    splits = spec.splits(Sizes(extract=3, train=2, test=1), seed=0)
    assert len({question for part in questions(splits) for question in part}) == 6
    with pytest.raises(ul.InvalidInput, match="tower_of_hanoi.* 6 .* 7"):
        spec.splits(Sizes(extract=4, train=2, test=1), seed=0)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("chain_sums", {}, "'chain_sums'.* chain_sum"),
        ("???", {}, r"'\?\?\?'.*nearest"),
        ("chain_sum", {"terms": 3}, "chain_sum.*options.*'terms'"),
        ("chain_sum", {"min_terms": -1}, "chain_sum.*options"),
        ("chain_sum", {"seed": 3}, "chain_sum.*options.*'seed'"),
        ("rubiks_cube", {}, "rubiks_cube.*answer"),
    ],
)
def test_reasoning_gym_s_errors_are_explained(dataset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ul.InvalidInput, match=message):
        ReasoningGymSpec(dataset=dataset, options=options).splits(SMALL, seed=0)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ul.InvalidInput, match=r"reasoning-gym.*\[tasks\]"):
        ReasoningGymSpec(dataset="chain_sum").splits(SMALL, seed=0)
    with pytest.raises(ul.InvalidInput, match=r"openai/gsm8k.*\[tasks\]"):
        Gsm8kSpec().splits(SMALL, seed=0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rows], None]:
    def holds(rows: Rows) -> None:
        monkeypatch.setattr("datasets.load_dataset", lambda dataset, config, split: rows[dataset, config, split])

    return holds


def test_gsm8k(hub: Callable[[Rows], None]) -> None:
    def row(i: int) -> dict[str, Any]:
        return {"question": f"What is {i} thousand?", "answer": f"It is <<{i}*1000={i}000>>{i},000.\n#### {i},000"}

    hub({("openai/gsm8k", "main", "train"): [row(i) for i in range(5)], ("openai/gsm8k", "main", "test"): [row(4), row(5)]})
    splits = Gsm8kSpec().splits(SMALL, seed=0)
    assert sorted(splits.test.answers) == ["4,000", "5,000"]
    assert "4,000" not in [*splits.extract.answers, *splits.train.answers]  # a question of the test
    assert splits.test.correct([f"So it is ${answer}.00" for answer in splits.test.answers]) == [True, True]
    with pytest.raises(ul.InvalidInput, match=r"gsm8k \(train\).* 4 .* 5"):
        Gsm8kSpec().splits(Sizes(extract=4, train=1, test=1), seed=0)


def test_math(hub: Callable[[Rows], None]) -> None:
    def rows(subject: str, part: str) -> list[dict[str, Any]]:
        return [
            {
                "problem": f"{subject} {part} {i}: what is $\\frac{{{i}}}{{7}}$?",
                "level": f"Level {i}",
                "type": subject,
                "solution": f"First $\\boxed{{x}}$, then\n\\[\\boxed{{\\frac{{{i}}}{{7}}}}.\\]",
            }
            for i in (1, 2, 3)
        ]

    subjects = MathSpec().subjects
    assert len(subjects) == 7
    hub({("EleutherAI/hendrycks_math", name, part): rows(name, part) for name in subjects for part in ("train", "test")})
    every = MathSpec().splits(Sizes(extract=20, train=1, test=21), seed=0)
    assert all("train" in question for question in every.extract.questions)
    assert all("test" in question for question in every.test.questions)
    some = MathSpec(subjects=("geometry", "algebra"), levels=(2, 3)).splits(SMALL, seed=0)
    assert {question.split()[0] for part in questions(some) for question in part} <= {"geometry", "algebra"}
    assert {*some.extract.answers} <= {r"\frac{2}{7}", r"\frac{3}{7}"}
    assert all(some.test.correct([f"It is $\\boxed{{{answer}}}$." for answer in some.test.answers]))


def test_agieval_math(hub: Callable[[Rows], None]) -> None:
    rows = [{"query": f"Q: A: is ${i} < \\sqrt{{x}}$?\nB: find $x$.\nA: The answer is", "answer": f"{i}^2"} for i in range(5)]
    hub({("hails/agieval-math", None, "test"): rows})
    splits = AgiEvalMathSpec().splits(SMALL, seed=0)
    assert sorted(question for part in questions(splits) for question in part) == [
        f"A: is ${i} < \\sqrt{{x}}$?\nB: find $x$." for i in range(5)
    ]
    assert all(splits.test.correct([f" ${answer}$." for answer in splits.test.answers]))


@pytest.mark.parametrize("error", [ConnectionError("no network"), FileNotFoundError("no network"), ValueError("no network")])
def test_an_unreachable_hub_is_explained(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(dataset: str, config: str | None, split: str) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(ul.InvalidInput, match="openai/gsm8k.*no network"):
        Gsm8kSpec().splits(SMALL, seed=0)


def test_specs_are_distinguished_by_kind() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(TaskSpec)
    assert adapter.validate_python({"kind": "math", "levels": [5]}) == MathSpec(levels=(5,))
    assert adapter.validate_python({"kind": "jsonl", "path": "a.jsonl"}) == JsonlSpec(path=Path("a.jsonl"))
    for wrong, message in [
        ({"kind": "maths"}, "maths"),
        ({"kind": "math", "level": [5]}, "levels"),
        ({"kind": "math", "levels": [6]}, "levels"),
        ({"kind": "math", "subjects": []}, "subjects"),
        ({"kind": "jsonl", "path": "a", "check": "fuzzy"}, "check"),
    ]:
        with pytest.raises(ValidationError, match=message):
            adapter.validate_python(wrong)


def test_running_sums_may_ask_for_another_behaviour() -> None:
    task = RunningSumSpec(behaviour="reverse").splits(SMALL, seed=0).test
    digits = task.questions[0].split()
    assert task.answers[0] == " ".join(["R", *reversed(digits)])
    first = task.first(1)
    assert first.correct([" ".join(["R", *reversed(digits)])]) == [True]
    assert first.correct([" ".join(["R", *digits])]) == [digits == digits[::-1]]
