"""The demonstration reaches what it claims, and its JSON has the keys that other programs read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unlock_lens import report
from unlock_lens.cli import demo
from unlock_lens.evidence.report.comparisons import null_test
from unlock_lens.evidence.results import Results

ARMS = {"locked", "transferred", "paper", "own", "random", "anti_mean", "prompted"}
TRANSFERS = [
    ("think", "large-base", "small-base"),
    ("post-training", "large-base", "small-base"),
    ("think", "small-base", "large-base"),
    ("post-training", "small-base", "large-base"),
    ("think", "large-varied", "small-varied"),
    ("think", "small-varied", "large-varied"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    return demo.run(demo.configs(n=100), tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def told(found: list[Results]) -> dict[str, Any]:
    return json.loads(json.dumps(demo.to_json(found)))


def test_capabilities_come_and_the_verdict_says_whether_noise_does_as_well(found: list[Results], told: dict[str, Any]) -> None:
    assert [(each["capability"], each["source"], each["target"]) for each in told["transfers"]] == TRANSFERS
    for results, transfer in zip(found, told["transfers"], strict=True):
        accuracy = {name: arm["accuracy"] for name, arm in transfer["arms"].items()}
        for name in ("transferred", "own", "prompted"):
            assert accuracy[name] >= 0.9, name
        for control in ("locked", "random", "anti_mean"):
            assert accuracy[control] <= 0.5, control
        nulls = null_test(results)
        assert nulls is not None
        assert report.verdict(results).status != "did not arrive"
        assert (report.verdict(results).status == "not from the source") is not nulls.is_rare
    assert report.verdict(found[4]).status == "arrived"


def test_the_papers_calibration_works_where_plain_prompts_vary_and_not_where_they_do_not(told: dict[str, Any]) -> None:
    papers = {(each["capability"], each["source"]): each["arms"]["paper"]["accuracy"] for each in told["transfers"]}
    assert papers["think", "large-base"] <= 0.3
    assert papers["think", "large-varied"] >= 0.9


def test_each_direction_brings_its_own_behaviour_and_no_other(told: dict[str, Any]) -> None:
    assert [(row["capability"], row["source"], row["target"]) for row in told["specificity"]] == [
        (behaviour, f"{source}-base", f"{target}-base")
        for source, target in (("large", "small"), ("small", "large"))
        for behaviour in ("think", "reverse", "double")
    ]
    for row in told["specificity"]:
        assert row["behaviours"][row["capability"]] >= 0.9


def test_the_json_has_the_promised_keys(told: dict[str, Any]) -> None:
    assert set(told) == {"transfers", "specificity"}
    for transfer in told["transfers"]:
        assert set(transfer) == {"capability", "source", "target", "backend", "rank", "alpha", "arms"}
        assert transfer["backend"] == "transformer_lens"
        assert set(transfer["arms"]) == ARMS
        for arm in transfer["arms"].values():
            assert set(arm) == {"accuracy", "low", "high", "n", "behaviours", "rank", "alpha"}
            assert arm["n"] == 100
            assert sum(arm["behaviours"].values()) == pytest.approx(1)
        for key in ("rank", "alpha"):
            assert transfer[key] == transfer["arms"]["transferred"][key] > 0
            assert transfer["arms"]["locked"][key] is transfer["arms"]["prompted"][key] is None
    for row in told["specificity"]:
        assert set(row) == {"capability", "source", "target", "behaviours", "rank", "alpha"}


def test_the_targets_own_prompt_is_the_yardstick_of_both_contrasts(told: dict[str, Any]) -> None:
    """A model contrast prompts nothing; its problems are those of the prompt contrast into the same target."""
    prompt, model = (transfer["arms"]["prompted"] for transfer in told["transfers"][:2])
    assert prompt == model
    assert prompt["behaviours"]["think"] == 1


def test_table_and_verdict_fit_in_eighty_columns(found: list[Results]) -> None:
    console = Console(width=80, file=io.StringIO())
    demo.show(found, console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "…" not in text
    for results in found:
        assert results.config["name"] in text
    assert text.count("sources without a capability") + text.count("sources without a") >= len(found) - 1
    assert text.count("3 of 3") == 2
    assert "1 in 7" in text


def test_the_other_backend_finds_the_same(told: dict[str, Any], tmp_path: Path) -> None:
    first = demo.configs("nnsight", n=100)[0]
    (transfer,) = demo.to_json(demo.run([first], tmp_path))["transfers"]
    assert transfer["backend"] == "nnsight"
    assert transfer["arms"]["transferred"]["accuracy"] >= 0.9
    assert transfer["arms"]["locked"] == told["transfers"][0]["arms"]["locked"]


def test_seed_and_size_are_those_asked_for() -> None:
    few = demo.configs(n=2, seed=3)
    assert {(config.seed, config.sizes.train, config.sizes.test) for config in few} == {(3, 1, 2)}
