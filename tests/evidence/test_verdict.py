"""The verdict says what the numbers bear out, and no more."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import pytest

from tests.sweeps import sweep
from unlock_lens import report
from unlock_lens.evidence.report.comparisons import gain, null_test
from unlock_lens.evidence.report.numbers import p_value
from unlock_lens.evidence.results import Results
from unlock_lens.evidence.statistics import wilson_interval


def judged(
    n: int = 200, transferred: float = 0.98, shares: Mapping[str, float] | None = None, without: Collection[str] = ()
) -> report.Verdict:
    return report.verdict(sweep(n, transferred, shares, without))


@pytest.mark.parametrize(
    ("transferred", "shares", "without", "status", "said"),
    [
        (0.98, {}, (), "arrived", "13.0% to 98.0%.*unaligned reaches 15.0%.*none of 19"),
        (0.98, {"null": 0.9}, (), "not from the source", "1 of 19 sources .* does as well"),
        (0.98, {}, ("nulls",), "unchecked", "null sources"),
        (0.45, {}, (), "a small gain", "less than half of what asking gives"),
        (0.98, {"anti_mean": 0.97}, (), "not from the source", "anti-mean reaches 97.0%"),
        (0.98, {"random": 0.97}, (), "not from the source", "random reaches 97.0%"),
        (0.13, {}, (), "did not arrive", "chance"),
        (0.01, {"unsteered": 0.3}, (), "did harm", "30.0% to 1.0%"),
        (0.98, {}, ("controls",), "unchecked", "random, anti-mean and shuffled were not run"),
        (0.98, {}, ("shuffled",), "unchecked", "shuffled was not run"),
        (0.98, {}, ("naive", "unaligned"), "arrived", "no control"),
        (0.24, {"unaligned": 0.2}, (), "undecided", "13.0% to 24.0%.*unaligned"),
        (0.98, {"naive": 0.97}, (), "undecided", "naive target"),
        (0.98, {"naive": 0.99, "random": 0.95, "unaligned": 0.97}, (), "not from the source", "unaligned reaches 97.0%"),
        (0.70, {"unaligned": 0.5}, (), "arrived", "every control.*unaligned reaches 50.0%.*asking does better"),
        (0.98, {"own": 1.0, "paper": 0.98, "prompted": 1.0, "without_mean": 1.0}, (), "arrived", "no control"),
    ],
)
def test_the_judgement(transferred: float, shares: dict[str, float], without: tuple[str, ...], status: str, said: str) -> None:
    found = judged(transferred=transferred, shares=shares, without=without)
    assert found.status == status
    assert re.search(said, found.headline)
    assert found.headline.startswith("“think”")


def test_the_headline_tells_the_doubt() -> None:
    """Where nothing is left without the part along the target's mean state, "arrived" alone would be too much."""
    found = judged(shares={"without_mean": 0.13})
    assert found.status == "arrived"
    assert "mean state" in found.headline
    assert "suspect an anti-mean" in str(found)


def test_too_small_a_sample_decides_nothing_and_reports_it() -> None:
    found = judged(n=8, transferred=0.25)
    assert found.status == "undecided"
    assert "8 problems" in str(found)


def test_an_unfinished_sweep_is_not_judged() -> None:
    found = judged(n=12, without={"test"})
    assert found.status == "unfinished"
    assert "transferred, unsteered, " in found.headline
    assert "unlock-lens sweep" in str(found)


def test_the_words_hold_every_number_a_sceptic_asks_for() -> None:
    results = sweep(200)
    paired = results.arms()["transferred"]["paired"]
    told = str(report.verdict(results))
    for number in (
        r"\+85\.0 points",
        "p < 0.0001",
        f"{paired['gained']} wrong .*{paired['lost']} right",
        r"every control \(5 were run\)",
        r"random \(14\.0%, best of 3 seeds: \+84\.0 points",
        "own direction 100.0%",
        "most of the gain",
        "0% to 98% .*correctness follows",
        "3 of 3",
        r"0\.021 nats .*own direction 0\.021 and random 0\.021.* 4 to 4\.1 \(\+2\.5%\)",
        "8 samples .*68% .*98%",
        "41 questions .*17% .*83%",
        "144 configurations on 200 other questions: aligner text, rank 64, n 200, alpha 0.5",
        "one pair of models",
    ):
        assert re.search(number, told), number


def stopped_before(results: Results, control: str, seed: int = 0, **described: Mapping[str, object]) -> Results:
    """As a sweep leaves it that is stopped: no line from there on, and no description."""
    lines = list(results.lines)
    at = next(
        i
        for i, line in enumerate(lines)
        if line["split"] == "test" and (line["config"]["control"], line["config"]["seed"]) == (control, seed)
    )
    return Results(results.config, tuple(lines[:at]), provenance=described.get("provenance"))


@pytest.mark.parametrize(
    ("control", "seed", "absent"),
    [
        ("random", 1, "random (seeds 1, 2), anti-mean, without mean, shuffled, unaligned and naive target"),
        ("shuffled", 2, "shuffled (seed 2), unaligned and naive target"),
        ("naive", 0, "naive target"),
    ],
)
def test_a_sweep_that_was_stopped_among_its_controls_is_not_judged(control: str, seed: int, absent: str) -> None:
    found = report.verdict(stopped_before(sweep(60), control, seed))
    assert found.status == "unfinished"
    assert found.headline.endswith(f" {absent}.")


def test_only_the_provenance_tells_that_a_control_cannot_be_had() -> None:
    results, reason = sweep(120), {"controls_left_out": {"naive": "no naive model is named"}}
    assert report.verdict(stopped_before(results, "naive")).status == "unfinished"
    found = report.verdict(stopped_before(results, "naive", provenance=reason))
    assert found.status == "arrived"
    assert "naive target (no naive model is named)" in str(found)


def test_a_required_control_that_was_left_out_leaves_it_unchecked() -> None:
    results, reason = sweep(120, without={"shuffled"}), {"controls_left_out": {"shuffled": "too few texts"}}
    asked = {**results.config, "controls": [*results.config["controls"], "shuffled"]}
    found = report.verdict(Results(asked, results.lines, provenance=reason))
    assert found.status == "unchecked"
    assert "shuffled (too few texts)" in str(found)


def test_other_capabilities_that_were_asked_for_must_be_there() -> None:
    results = sweep(60)
    asked = {**results.config, "others": [{"name": "reverse"}, {"name": "sort"}]}
    found = report.verdict(Results(asked, results.lines))
    assert found.status == "unfinished"
    assert "“sort”" in found.headline
    assert "“reverse”" not in found.headline


def test_results_that_list_no_controls_ask_for_what_is_there() -> None:
    results = sweep(120, without={"naive", "unaligned"})
    config = {key: value for key, value in results.config.items() if key not in ("controls", "control_seeds")}
    assert report.verdict(Results(config, results.lines)).status == "arrived"


CONFIG: dict[str, object] = {"capability": "think", "seed": 0}


def arm_line(control: str | None, right: list[int], **more: object) -> dict[str, object]:
    share = sum(right) / len(right)
    low, high = wilson_interval(sum(right), len(right))
    config = {"capability": "think", "control": control, "seed": 0}
    return {
        "config": config, "split": "test", "accuracy": share, "low": low, "high": high, "n": len(right), "right": right, **more,
    }  # fmt: skip


def arms_of(n: int, base: int, gained: int, lost: int, keep: bool = True, **controls: list[int]) -> Results:
    """Controls answer as the unsteered target does, where no other answers are given."""
    unsteered = [1] * base + [0] * (n - base)
    transferred = [0] * lost + [1] * (base - lost + gained) + [0] * (n - base - gained)
    answers = {"unsteered": unsteered, None: transferred} | dict.fromkeys(("random", "anti_mean", "shuffled"), unsteered)
    lines = [arm_line(name, right) for name, right in (answers | controls).items()]
    kept = lines if keep else [{key: value for key, value in line.items() if key != "right"} for line in lines]
    nulls = [
        {**arm_line("null", unsteered), "split": "train", "config": {**CONFIG, "control": "null", "seed": seed, "alpha": 0.5}}
        for seed in range(19)
    ]
    trained = {**arm_line(None, transferred), "split": "train", "config": {**CONFIG, "control": None, "alpha": 0.5}}
    return Results({"capability": {"name": "think"}, "nulls": 19}, (*kept, trained, *nulls))


def test_answers_to_the_same_questions_are_compared_as_such() -> None:
    """Intervals meet here, 55.3% to 66.5% and 65.7% to 76.1%; the pairs leave no doubt."""
    results = arms_of(288, base=176, gained=42, lost=13)
    arms = results.arms()
    assert arms["unsteered"]["high"] > arms["transferred"]["low"]
    found = report.verdict(results)
    assert found.status == "arrived"
    assert re.search("61.1% to 71.2%.*random reaches 61.1%", found.headline)
    assert re.search(r"\+10\.1 points .*\+5\.2 to \+14\.9, .*p = 0\.00011.*42 wrong", str(found))


@pytest.mark.parametrize(("gained", "lost"), [(5, 0), (0, 5)])
def test_a_difference_that_chance_may_bring_decides_nothing(gained: int, lost: int) -> None:
    """The bootstrap interval lies on one side of 0, but McNemar's p of 5 changes is 0.0625."""
    results = arms_of(200, base=20, gained=gained, lost=lost)
    found = gain(results.arms()["transferred"], results.arms()["unsteered"])
    assert found is not None
    assert found["low"] * found["high"] > 0
    assert found["p"] == pytest.approx(0.0625)
    assert report.verdict(results).status == "did not arrive"


def test_without_answers_intervals_decide() -> None:
    assert report.verdict(arms_of(288, base=176, gained=42, lost=13, keep=False)).status == "did not arrive"
    found = report.verdict(arms_of(288, base=60, gained=200, lost=0, keep=False))
    assert found.status == "arrived"
    assert re.search(r"intervals .*random \(20\.8% \[16\.5% to 25\.9%\]\)", str(found))


def test_a_rival_that_gains_is_not_a_reason_where_it_is_beaten() -> None:
    half = [1] * 100 + [0] * 100
    assert report.verdict(arms_of(200, base=20, gained=160, lost=0, random=half)).status == "arrived"
    assert report.verdict(arms_of(200, base=20, gained=82, lost=0, random=half)).status == "not from the source"


def test_a_capability_without_a_name_is_not_quoted() -> None:
    results = arms_of(120, base=12, gained=100, lost=0)
    lines = [{**line, "config": {**line["config"], "capability": None}} for line in results.lines]
    assert report.verdict(Results({"nulls": 19}, tuple(lines))).headline.startswith("The capability arrived")


def test_a_control_that_was_not_run_is_named_with_its_reason() -> None:
    results = sweep(without={"naive", "anti_mean"})
    told = Results(results.config, results.lines, provenance={"controls_left_out": {"naive": "no naive model is named"}})
    assert "Not run" in str(report.verdict(told))
    assert "anti-mean and naive target (no naive model is named)." in str(report.verdict(told))


def test_a_gain_that_lives_in_the_mean_is_suspect() -> None:
    assert "suspect an anti-mean" in str(judged(shares={"without_mean": 0.15}))


def test_a_naive_target_that_gains_is_reported() -> None:
    assert "naive target gains too" in str(judged(shares={"naive": 0.97}))
    assert "naive target shows no gain" in str(judged())


def test_a_sample_too_small_says_nothing_of_the_naive_target() -> None:
    told = str(judged(n=12))
    assert re.search(r"naive target .*16\.7% to 16\.7%.*12 problems", told)
    assert "shows no gain" not in told


def test_behaviour_without_correctness_is_distinguished() -> None:
    results = sweep(200, 0.15)
    lines = [{**line, "behaviours": {"think": 0.9}} if line["config"]["control"] is None else line for line in results.lines]
    told = str(report.verdict(Results(results.config, tuple(lines))))
    assert "correctness does not follow" in told


@pytest.mark.parametrize(
    ("without", "said"),
    [("behaviours", "does not tell behaviour"), ("price", "was not measured")],
)
def test_what_was_not_measured_is_not_claimed(without: str, said: str) -> None:
    assert said in str(judged(without={without}))


@pytest.mark.parametrize(("p", "told"), [(1e-50, "p < 0.0001"), (0.0312, "p = 0.031"), (1.0, "p = 1")])
def test_p_values_are_readable(p: float, told: str) -> None:
    assert p_value(p) == told


def test_a_source_without_a_capability_at_the_same_setting_leaves_it_undecided() -> None:
    """It needs more strength to arrive than the transfer does, and still reaches half of the gain where that was reported."""
    results = sweep(200)
    lines: list[Any] = [
        {**line, "accuracy": 0.6} if line["config"]["control"] == "null" and line["config"]["alpha"] == 0.5 else line
        for line in results.lines
        if line["config"]["control"] != "null" or line["config"]["seed"] or line["config"]["alpha"] > 0.3
    ]
    earlier = [
        {**line, "accuracy": 0.98} if line["config"]["control"] is None and line["config"]["alpha"] == 0.3 else line
        for line in lines
    ]
    found = report.verdict(Results(results.config, tuple(earlier)))
    assert found.status == "undecided"
    assert "at the same setting" in found.headline


def test_the_null_test_counts_itself() -> None:
    found = null_test(sweep(200))
    assert found is not None
    assert (found.n, found.as_good, found.p, found.is_rare) == (19, 0, 1 / 20, True)
    one = null_test(sweep(200, shares={"null": 1.0}))
    assert one is not None
    assert (one.as_good, one.p, one.is_rare, one.arrive) == (1, 2 / 20, False, 1)


def test_missing_null_sources_are_unfinished() -> None:
    results = sweep(120)
    lines = [line for line in results.lines if line["config"]["control"] != "null" or line["config"]["seed"] < 17]
    found = report.verdict(Results(results.config, tuple(lines)))
    assert found.status == "unfinished"
    assert "2 null sources" in found.headline
