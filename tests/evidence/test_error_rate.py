"""How often noise would be called arrived: simulated here, and measured on the embedded family by benchmarks/error_rates.py."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import pytest

from unlock_lens import report
from unlock_lens.evidence.evaluation import compare
from unlock_lens.evidence.results import NULL, Results
from unlock_lens.evidence.statistics import wilson_interval
from unlock_lens.evidence.sweep.config import Setting

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7)
N, CHANCE, NULLS = 100, 0.15, 19
INERT = ("random", "anti_mean", "shuffled")


def line(rng: random.Random, share: float, split: str, control: str | None, alpha: float | None = None, seed: int = 0) -> Any:
    right = [int(rng.random() < share) for _ in range(N)]
    low, high = wilson_interval(sum(right), N)
    config = {**asdict(Setting("think", control, seed)), "alpha": alpha}
    return {"config": config, "split": split, "accuracy": sum(right) / N, "low": low, "high": high, "n": N, "right": right,
            "tokens": 5.0}  # fmt: skip


def simulated(rng: random.Random, arrives: float, noise_arrives: float) -> str:
    """What is said of a sweep whose transfer and null sources arrive with these probabilities, from some strength on."""

    def curve(chance: float) -> dict[float, float]:
        onset = rng.randrange(len(ALPHAS)) if rng.random() < chance else len(ALPHAS)
        return {alpha: 0.95 if i >= onset else CHANCE for i, alpha in enumerate(ALPHAS)}

    transfer, nulls = curve(arrives), [curve(noise_arrives) for _ in range(NULLS)]
    trained = [line(rng, share, "train", None, alpha) for alpha, share in transfer.items()]
    best = max(trained, key=lambda found: found["accuracy"])["config"]["alpha"]
    unsteered, reported = line(rng, CHANCE, "test", "unsteered"), line(rng, transfer[best], "test", None, best)
    reported["paired"] = asdict(compare([bool(r) for r in reported["right"]], [bool(r) for r in unsteered["right"]]))
    lines = [
        *trained,
        *(line(rng, share, "train", NULL, a, seed) for seed, null in enumerate(nulls) for a, share in null.items()),
        *(unsteered, reported, line(rng, 0.95, "test", "prompted")),
        *({**unsteered, "config": {**unsteered["config"], "control": name, "alpha": 0.5}} for name in INERT),
    ]
    asked = {"capability": {"name": "think"}, "controls": list(INERT), "control_seeds": 1, "nulls": NULLS}
    return report.verdict(Results(asked, tuple(lines))).status


@pytest.mark.parametrize("noise_arrives", [0.1, 0.5, 1.0])
def test_one_more_null_source_is_called_arrived_in_at_most_one_sweep_of_twenty(noise_arrives: float) -> None:
    """However often noise brings the behaviour: here the transfer is drawn as the null sources are."""
    rng = random.Random(1)
    found = [simulated(rng, noise_arrives, noise_arrives) for _ in range(60)]
    assert found.count("arrived") <= 3
    assert found.count("not from the source") > 0


def test_a_transfer_is_recognised_where_noise_seldom_arrives() -> None:
    rng = random.Random(2)
    found = [simulated(rng, 1.0, 0.01) for _ in range(40)]
    assert found.count("arrived") >= 30
