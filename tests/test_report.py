"""The verdict says what the numbers bear out, and the page holds it all."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from tests.evidence import SCRIPT, save, sweep
from unlock_lens import report
from unlock_lens.errors import InvalidInput
from unlock_lens.report.judgement import p_value
from unlock_lens.results import Results


def judged(
    n: int = 200, transferred: float = 0.98, shares: Mapping[str, float] | None = None, without: Collection[str] = ()
) -> report.Verdict:
    return report.verdict(sweep(n, transferred, shares, without))


@pytest.mark.parametrize(
    ("transferred", "shares", "without", "status", "said"),
    [
        (0.98, {}, (), "arrived", "go from 13.0% to 98.0%, and no control comes near (unaligned reaches 15.0% at most)"),
        (0.98, {"anti_mean": 0.97}, (), "not from the source", "anti-mean reaches 97.0% as well"),
        (0.98, {"random": 0.97}, (), "not from the source", "random reaches 97.0% as well"),
        (0.13, {}, (), "did not arrive", "no more than chance would change"),
        (0.01, {"unsteered": 0.3}, (), "did harm", "go from 30.0% to 1.0%"),
        (0.98, {}, ("controls",), "unchecked", "no control was run"),
        (0.30, {"unaligned": 0.2}, (), "undecided", "the 95% intervals do not tell it apart"),
        (0.98, {"naive": 0.97}, (), "undecided", "what it must beat"),
        (0.98, {"own": 1.0, "paper": 0.98, "prompted": 1.0, "without_mean": 1.0}, (), "arrived", "no control comes near"),
    ],
)
def test_the_judgement(transferred: float, shares: dict[str, float], without: tuple[str, ...], status: str, said: str) -> None:
    found = judged(transferred=transferred, shares=shares, without=without)
    assert found.status == status
    assert said in found.headline
    assert found.headline.startswith("“think”")


def test_too_small_a_sample_decides_nothing_and_says_so() -> None:
    found = judged(n=8, transferred=0.25)
    assert found.status == "undecided"
    assert "Mind the sample: 8 problems can" in str(found)


def test_an_unfinished_sweep_is_not_judged() -> None:
    found = judged(n=12, without={"test"})
    assert found.status == "unfinished"
    assert found.headline == "The sweep is unfinished: the test split has no result yet of transferred and unsteered."
    assert "run `unlock-lens sweep` again" in str(found)


def test_the_words_hold_every_number_a_sceptic_asks_for() -> None:
    results = sweep(200)
    paired = results.arms()["transferred"]["paired"]
    told = str(report.verdict(results))
    for number in (
        "+85.0 points (95% paired interval",
        "McNemar p < 0.0001",
        f"{paired['gained']} wrong answers became right, {paired['lost']} right ones became wrong",
        "random (14.0% [9.9% to 19.5%], best of 3 seeds)",
        "own direction 100.0%",
        "keeps most of the gain",
        "from 0% to 98% of completions, and correctness follows it",
        "3 of 3 transferred capabilities bring their own behaviour",
        "0.021 nats a token from the unsteered target (own direction 0.021 and random 0.021), perplexity 4 to 4.1 (+2.5%)",
        "one of 8 samples is right in 68% of questions; steered, the greedy answer in 98%",
        "Of the 41 questions that it solves in some sample, those right completions have 17% of the probability unsteered",
        "Chosen among 144 configurations on 200 other questions: aligner text, rank 64, n 200, alpha 0.5",
        "one pair of models and one task",
    ):
        assert number in told


def test_a_control_that_was_not_run_is_named_with_its_reason() -> None:
    results = sweep(without={"naive", "anti_mean"})
    told = Results(results.config, results.lines, provenance={"controls_left_out": {"naive": "no naive model is named"}})
    said = "Not run, and so not ruled out: anti-mean and naive target (no naive model is named)."
    assert said in str(report.verdict(told))


def test_a_gain_that_lives_in_the_mean_is_suspect() -> None:
    assert "suspect an anti-mean in disguise" in str(judged(shares={"without_mean": 0.15}))


def test_a_naive_target_that_gains_is_told() -> None:
    assert "brought to it, not unlocked in it" in str(judged(shares={"naive": 0.97}))
    assert "The naive target does not gain, as it must not." in str(judged())


def test_behaviour_without_correctness_is_told_apart() -> None:
    results = sweep(200, 0.15)
    lines = [{**line, "behaviours": {"think": 0.9}} if line["config"]["control"] is None else line for line in results.lines]
    told = str(report.verdict(Results(results.config, tuple(lines))))
    assert "correctness does not follow: behaviour alone was moved" in told


@pytest.mark.parametrize(
    ("without", "said"),
    [("behaviours", "Behaviour was not told apart from correctness"), ("price", "price on unrelated text was not measured")],
)
def test_what_was_not_measured_is_not_claimed(without: str, said: str) -> None:
    assert said in str(judged(without={without}))


@pytest.mark.parametrize(("p", "told"), [(1e-50, "p < 0.0001"), (0.0312, "p = 0.031"), (1.0, "p = 1")])
def test_p_values_are_readable(p: float, told: str) -> None:
    assert p_value(p) == told


def test_the_summary_has_a_row_an_arm() -> None:
    results = sweep()
    found = report.summary(results)
    assert list(found.index[:4]) == ["transferred", "unsteered", "prompted", "own"]
    for name, line in results.arms().items():
        assert found.loc[name, "accuracy"] == line["accuracy"]
    assert found.loc["random", "seeds"] == 3
    assert found.loc["random", "role"] == "rival"
    assert math.isnan(found.loc["unsteered", "gained"])
    assert report.summary(sweep(n=12, without={"test"})).empty


def test_the_page_is_whole_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    report.write(sweep(n=12), file)
    page = file.read_text(encoding="utf-8")
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert page.count("plotly.js v") == 1
    assert not re.search(r'<(script|link|img|iframe)[^>]*\s(src|href)="?http', page)
    assert "default-src 'none'" in page
    assert "<title>think, large to small · arrived · unlock-lens</title>" in page
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_completions_are_text_not_markup(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    results = sweep(n=12)
    report.write(Results({**results.config, "name": SCRIPT}, results.lines, results.problems), file)
    page = file.read_text(encoding="utf-8")
    assert SCRIPT not in page
    assert page.count("&lt;script&gt;document.title") == 5  # two completions, the title, the heading and the config


def test_names_in_figures_are_text_not_markup(tmp_path: Path) -> None:
    results = sweep(n=12)
    lines = [{**line, "behaviours": {SCRIPT: 1.0}} for line in results.lines]
    report.write(Results(results.config, tuple(lines)), tmp_path / "report.html")
    assert SCRIPT not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "without",
    [("test",), ("controls",), ("behaviours",), ("price",), ("sharpening",), ("geometry",), ("problems",), ("diagnosis",),
     ("provenance",), ("paired", "price", "sharpening", "behaviours", "controls", "geometry", "problems", "provenance")],
)  # fmt: skip
def test_the_page_copes_with_what_is_switched_off(tmp_path: Path, without: tuple[str, ...]) -> None:
    file = tmp_path / "report.html"
    report.write(sweep(n=12, without=without), file)
    page = file.read_text(encoding="utf-8")
    assert ("left out, for want of data" in page) == bool(
        {"test", "behaviours", "sharpening", "geometry", "paired"} & set(without)
    )
    assert "None" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_a_loaded_sweep_gives_the_same_page(tmp_path: Path) -> None:
    results = sweep(n=12)
    report.write(results, tmp_path / "made.html")
    report.write(Results.load(save(results, tmp_path / "sweep")), tmp_path / "loaded.html")
    pages = [
        re.sub(r"<pre class=\"scroll\".*?</pre>", "", (tmp_path / f"{name}.html").read_text(), flags=re.DOTALL)
        for name in ("made", "loaded")
    ]
    assert pages[0] == pages[1]  # but for the order of the config's keys


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    file.write_text("the last report")
    monkeypatch.setattr("os.replace", _full_disk)
    with pytest.raises(OSError, match="disk"):
        report.write(sweep(n=12), file)
    assert file.read_text() == "the last report"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is a folder; give a file in it, such as"):
        report.write(sweep(n=12), tmp_path)


def test_the_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"there is no folder {tmp_path / 'none'} to write report.html into")):
        report.write(sweep(n=12), tmp_path / "none" / "report.html")


def test_of_several_seeds_the_least_flattering_counts() -> None:
    results = sweep()
    line = results.arms()["transferred"]
    worse = {**line, "config": {**line["config"], "seed": 1}, "accuracy": 0.5}
    both = Results(results.config, (*results.lines, worse))
    assert both.arms()["transferred"]["accuracy"] == 0.5
    assert len(both.tested()["transferred"]) == 2
    rivals = both.tested()["random"]
    assert both.arms()["random"]["accuracy"] == max(each["accuracy"] for each in rivals)


def _full_disk(*_: object) -> None:
    raise OSError("no room left on the disk")
