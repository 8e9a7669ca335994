"""The demonstration reaches what it claims, and says so only where it does."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from unlock_lens.cli import demo, demo_report
from unlock_lens.cli.demo import Arm, Demo, Transfer
from unlock_lens.evidence.evaluation import Outcome
from unlock_lens.evidence.statistics import wilson_interval

ARMS = ("locked", "transferred", "paper", "own", "random", "anti_mean", "prompted")


@pytest.fixture(scope="module", params=["transformer_lens", "nnsight"])
def found(request: pytest.FixtureRequest) -> Demo:
    return demo.run(request.param, n=60)


def test_capabilities_arrive_and_controls_stay_at_chance(found: Demo) -> None:
    assert [(t.capability, t.source, t.target) for t in found.transfers] == [
        ("think", "large-base", "small-base"),
        ("post-training", "large-base", "small-base"),
        ("think", "small-base", "large-base"),
        ("post-training", "small-base", "large-base"),
    ]
    for transfer in found.transfers:
        assert tuple(transfer.arms) == ARMS
        accuracy = {name: arm.outcome.accuracy for name, arm in transfer.arms.items()}
        assert accuracy["transferred"] >= 0.9
        assert accuracy["own"] >= 0.9
        assert accuracy["prompted"] >= 0.9
        for control in ("locked", "random", "anti_mean"):
            assert accuracy[control] <= 0.3
        assert demo_report.arrived(transfer)


def test_each_direction_brings_its_own_behaviour_and_no_other(found: Demo) -> None:
    assert [(row.capability, row.source) for row in found.specificity] == [
        (behaviour, source) for source in ("large-base", "small-base") for behaviour in ("think", "reverse", "double")
    ]
    for row in found.specificity:
        assert row.arm.outcome.behaviours[row.capability] >= 0.9


def test_the_json_has_the_promised_keys(found: Demo) -> None:
    told: dict[str, Any] = json.loads(json.dumps(found.to_json()))
    assert set(told) == {"transfers", "specificity"}
    for transfer in told["transfers"]:
        assert {"capability", "source", "target", "backend", "rank", "alpha", "arms"} == set(transfer)
        assert set(transfer["arms"]) == set(ARMS)
        for arm in transfer["arms"].values():
            assert {"accuracy", "low", "high", "n", "behaviours"} <= set(arm)
            assert arm["n"] == 60
            assert sum(arm["behaviours"].values()) == pytest.approx(1)
        assert transfer["rank"] == transfer["arms"]["transferred"]["rank"] in demo.RANKS
        assert transfer["alpha"] == transfer["arms"]["transferred"]["alpha"] in demo.ALPHAS
    for row in told["specificity"]:
        assert {"capability", "source", "target", "behaviours"} <= set(row)


def test_the_report_is_words_and_tables_in_eighty_columns(found: Demo) -> None:
    console = Console(width=80, file=io.StringIO())
    demo_report.show(found, console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "…" not in text
    assert "think arrived: right answers go from" in text
    assert "6 of 6 directions bring their own behaviour" in text
    assert "chance is 1 in 7" in text


def outcome(right: int, n: int = 50) -> Outcome:
    return Outcome(right / n, *wilson_interval(right, n), n, {"direct": 1.0})


def test_the_verdict_is_no_where_a_control_does_as_well() -> None:
    arms = {name: Arm(outcome(7)) for name in ARMS}
    transfer = Transfer("think", "a", "b", "nnsight", {**arms, "transferred": Arm(outcome(45), 48, 0.5)})
    assert demo_report.arrived(transfer)
    for rival in ("locked", "random", "anti_mean"):
        rivalled = replace(transfer, arms={**transfer.arms, rival: Arm(outcome(40))})
        assert not demo_report.arrived(rivalled)
        assert demo_report.verdict(rivalled).startswith("think did not arrive: right answers go from")
