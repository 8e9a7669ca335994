"""Answers between tags, strictly and flexibly read; budgets that cut; splits in order, and of separate tasks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import unlock_lens as ul
from tests.sweeps import sweep as made_up
from unlock_lens import recipes, report, sweep
from unlock_lens.evidence.results import Results
from unlock_lens.evidence.sweep import SweepConfig
from unlock_lens.evidence.tasks import CHECKS, HubSpec, JsonlSpec, Problem, RunningSumSpec, SeparateSpec, Task
from unlock_lens.evidence.tasks.problems import Sizes, between

TAGS = ("<atok>", "</atok>")


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        ("so <atok>12</atok>.", "12"),
        ("so <atok> 12", "12"),  # a stop string cut off the rest
        ("In <atok> I write: <atok>12</atok> <b>", "12"),
        ("12", None),
        ("12</atok>", None),
    ],
)
def test_what_stands_between_tags(completion: str, said: str | None) -> None:
    assert between(completion, TAGS) == said


def test_strict_and_flexible_reading_side_by_side() -> None:
    problems = tuple(Problem(f"{i}?", "12") for i in range(4))
    task = Task("sums", problems, CHECKS["number"], answer_tags=TAGS)
    written = ["It is 12, <atok>12</atok> of 15", "It is 12", "<atok>13</atok>, or 12", "<atok>13</atok>"]
    assert task.strict(written) == [True, False, False, False]
    assert task.correct(written) == [True, True, True, False]
    without = replace(task, answer_tags=None)
    assert without.strict(written) is None
    assert without.correct(written) == [False, True, True, False]
    with pytest.raises(ul.InvalidInput, match="tags"):
        replace(task, answer_tags=("<atok>", ""))


@pytest.mark.parametrize("answer", [r"\frac{1}{2}", "x^2+1", "12", "3/4", "(1,2)"])
def test_an_expression_in_a_tag_needs_no_dollars(answer: str) -> None:
    task = Task("one", (Problem("?", answer),), CHECKS["math"], answer_tags=TAGS)
    assert task.strict([f"so <atok>{answer}</atok>"]) == [True]
    assert task.strict([f"{answer}"]) == [False]
    assert task.strict(["<atok>17</atok>"]) == [False]


def write(file: Path, n: int) -> Path:
    file.write_text("".join(json.dumps({"question": f"{file.stem} {i}?", "answer": str(i)}) + "\n" for i in range(n)))
    return file


def test_splits_in_order(tmp_path: Path) -> None:
    """The paper's: settings on the first training rows, the direction from the last n."""
    train, test = write(tmp_path / "train.jsonl", 10), write(tmp_path / "test.jsonl", 4)
    splits = JsonlSpec(path=train, test_path=test).splits(Sizes(extract=3, train=2, test=4, in_order=True), seed=5)
    assert splits.train.answers == ["0", "1"]
    assert splits.extract.answers == ["9", "8", "7"]
    assert splits.extract.first(2).answers == ["9", "8"]
    assert splits.test.questions == [f"test {i}?" for i in range(4)]
    alone = JsonlSpec(path=train).splits(Sizes(extract=3, train=2, test=4, in_order=True), seed=5)
    assert (alone.train.answers, alone.test.answers, alone.extract.answers) == (
        ["0", "1"], ["2", "3", "4", "5"], ["9", "8", "7"],
    )  # fmt: skip
    for sizes in (Sizes(extract=6, train=5, test=1, in_order=True), Sizes(extract=1, train=1, test=5, in_order=True)):
        with pytest.raises(ul.InvalidInput, match="different questions"):
            JsonlSpec(path=train, test_path=test).splits(sizes, seed=0)


def test_each_split_may_have_a_different_task(tmp_path: Path) -> None:
    a, b, c, d = (write(tmp_path / f"{name}.jsonl", 6) for name in "abcd")
    with d.open("a") as more:
        more.write('{"question": "a 0?", "answer": "0"}\n{"question": "b 0?", "answer": "0"}\n')
    specs = {name: JsonlSpec(path=file, answer_tags=TAGS) for name, file in zip("abcd", (a, b, c, d), strict=True)}
    spec = SeparateSpec(extract=specs["a"], train=(specs["b"], specs["c"]), test=specs["d"])
    splits = spec.splits(Sizes(extract=5, train=11, test=8), seed=0)
    assert {question[0] for question in splits.extract.questions} == {"a"}
    assert {question[0] for question in splits.train.questions} == {"b", "c"}
    assert {"a 0?", "b 0?"} <= set(splits.test.questions)
    assert splits.test.answer_tags == splits.train.answer_tags == TAGS
    with pytest.raises(ul.InvalidInput, match="5 different questions"):
        spec.splits(Sizes(extract=6, train=11, test=8), seed=0)
    mixed = SeparateSpec(extract=specs["a"], train=(specs["b"], JsonlSpec(path=c, check="number")), test=specs["d"])
    with pytest.raises(ul.InvalidInput, match="check"):
        mixed.splits(Sizes(extract=1, train=1, test=1), seed=0)
    own_test = SeparateSpec(extract=specs["a"], train=(specs["b"],), test=JsonlSpec(path=c, test_path=d))
    assert {question[0] for question in own_test.splits(Sizes(extract=1, train=1, test=8), 0).test.questions} == {"a", "b", "d"}


def test_problems_of_any_dataset_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"problem": f"{i}?", "answer": i} for i in range(9)]
    monkeypatch.setattr("datasets.load_dataset", lambda dataset, config, split: rows if split == "test" else [])
    spec = HubSpec(dataset="org/set", question="problem", check="number", n=6)
    splits = spec.splits(Sizes(extract=2, train=2, test=2, in_order=True), seed=0)
    assert (splits.train.answers, splits.extract.answers) == (["0", "1"], ["5", "4"])
    with pytest.raises(ul.InvalidInput, match="org/set has no question; it has problem, answer"):
        HubSpec(dataset="org/set").splits(Sizes(extract=2, train=2, test=2), seed=0)


def test_bad_tags_and_stop_strings_in_a_config_are_refused() -> None:
    with pytest.raises(ValidationError, match="answer_tags"):
        RunningSumSpec(answer_tags=("", ">"))
    content = recipes.smallest().model_dump(mode="json")
    with pytest.raises(ul.InvalidInput, match=r"stop\.1"):
        SweepConfig.parse({**content, "stop": ["Question", ""]})


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The embedded family writes its final answer after "="; a stop string ends it before "."."""
    few = {"sizes": {"extract": 40, "train": 8, "test": 20}, "controls": ["anti_mean"], "nulls": 0, "unrelated": None}
    grid = {"aligner": ["text"], "n": [40], "rank": [48], "alpha": [0.5]}
    task = {"kind": "running_sum", "answer_tags": ["=", "."]}
    change = {"task": task, "grid": grid, "sampling": {"samples": 2, "problems": 4}, "stop": ["S 0 "], **few}
    config = SweepConfig.parse({**recipes.smallest().model_dump(mode="json"), **change})
    return sweep.run(config, tmp_path_factory.mktemp("tagged"), progress=False)


def test_a_sweep_reports_both_readings_and_stops(tagged: Results) -> None:
    for line in tagged.lines:
        strict = line["strict"]
        assert strict["tags"] == ["=", "."]
        assert strict["accuracy"] <= line["accuracy"]
        assert line["cut"] == 0
    main = tagged.arms()["transferred"]
    begun = [completion for completion in main["completions"] if "=" in completion]
    assert main["strict"]["tagged"] == len(begun) / 20 > 0.5
    assert sum(main["strict"]["right"]) == sum(main["right"]) > 10
    assert not any("S 0 " in completion for completion in main["completions"])
    assert "" in main["completions"]  # one that began with the stop string
    found = report.summary(tagged)
    assert found.loc["transferred", "strict"] == main["strict"]["accuracy"]
    assert "Read between = and . alone" in str(report.verdict(tagged))


def with_lines(results: Results, **changes: Any) -> Results:
    lines = [{**line, **{key: make(line) for key, make in changes.items()}} for line in results.lines]
    return replace(results, lines=tuple(lines))


def test_the_verdict_tells_of_absent_tags_and_tight_budgets(tmp_path: Path) -> None:
    plain = made_up(n=100)
    assert "budget" not in str(report.verdict(plain))
    assert "tag" not in str(report.verdict(plain))
    strict = {"tags": list(TAGS), "accuracy": 0.0, "low": 0.0, "high": 0.1, "right": [0] * 100}
    found = with_lines(
        plain,
        strict=lambda line: {**strict, "tagged": 0.0 if line["config"]["control"] == "unsteered" else 0.5},
        cut=lambda line: 0.2 if line["config"]["control"] == "unsteered" else 0.21,
    )
    told = str(report.verdict(found))
    assert "never appears in completions of: unsteered;" in told
    assert "(prompted 21% and transferred 21%)" in told or "(transferred 21% and prompted 21%)" in told
    assert report.verdict(found).status == report.verdict(plain).status
    report.write(found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "in the tag</th>" in page
    report.write(plain, tmp_path / "plain.html")
    assert "in the tag</th>" not in (tmp_path / "plain.html").read_text(encoding="utf-8")
