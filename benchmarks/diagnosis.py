"""How well `diagnose` forecasts: Spearman's rank correlation of its score with the true gain, over configurations of the zoo.

Beside configurations of true transfers there are 48 adversarial ones: sources without the capability, and shuffled maps. A
false promise is a score of at least one half where the gain is less than one half.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/diagnosis.py --json /tmp/diagnosis.json

The formula of the score was chosen on an earlier sample of configurations whose target was small-base ("development" here,
where configurations, problems and texts are drawn anew); the other targets are held out.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diagnosis_cases import BATCH, Bench, Case, adversarial, cases, model
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata
from tqdm.auto import tqdm

import unlock_lens as ul
from unlock_lens.evidence.diagnosis import LayerDiagnosis, diagnose

Row = Mapping[str, Any]
WORKED = 0.5  # a gain above it counts as a success
PARTS: Mapping[str, Callable[[Row], bool]] = {
    "development": lambda row: row["development"],
    "held out": lambda row: not row["development"] and not row["fake"],
    "of these varied": lambda row: "varied" in row["target"] and not row["fake"],
    "of these seed 2": lambda row: "base-2" in row["target"] and not row["fake"],
    "of these two tokenizers": lambda row: "gpt2" in row["source"] + row["target"],
    "adversarial": lambda row: bool(row["fake"]),
    "overall": lambda row: True,
}
FORECASTS: Mapping[str, Callable[[Row], float]] = {
    "baseline: cosine with own": lambda row: _layers(row, "own_cosine"),
    "baseline: coverage": lambda row: _layers(row, "coverage"),
    "baseline: R2": lambda row: _layers(row, "r2"),
    "baseline: cosine with own x ability": lambda row: _layers(row, "own_cosine") * row["able"],
    "baseline: cycle cosine": lambda row: row["cycle"],
    "baseline: cycle cosine x ability": lambda row: row["cycle"] * row["able"],
    "agreement": lambda row: _layers(row, "agreement"),
    "agreement at any rank": lambda row: _layers(row, "full_agreement"),
    "geometry": lambda row: row["geometry"],
    "ability": lambda row: row["able"],
    "score without a probe": lambda row: row["score_without_probe"],
    "probe at strength 0.5 alone": lambda row: dict(row["diagnosis"]["probe"]["by_alpha"])[0.5],
    "probe": lambda row: row["probe"],
    "score with the probe": lambda row: row["score"],
}


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Forecast one configuration, then find out."""
    states = bench.states(case)
    aligner = bench.aligner(case, states)
    direction, contrast = bench.direction(case), bench.contrast(case.source, case.capability).first(case.n_pairs)
    moved = aligner.transport(direction)
    ability = bench.ability(case.target, case.capability)
    given: dict[str, Any] = {"contrast": contrast, "own": bench.own(case), "ability": ability}
    given |= {"source_acts": states[0], "target_acts": states[1], "batch_size": BATCH}
    locked = ul.Variant(model(case.target), bench.tasks["probe"].direct)
    probed: dict[str, Any] = {"locked": locked, "unlocked": bench.unlocked(case.source, case.capability, "probe")}
    found = diagnose(direction, aligner, **given, **probed)
    geometric = diagnose(direction, aligner, **given)
    assert found.probe
    return {
        **asdict(case),
        "development": case.development,
        "ability": ability,
        "able": min(1.0, 2 * ability),
        "cycle": bench.cycle(case, states, direction, aligner),
        "geometry": found.geometry,
        "probe": found.probe.share or 0.0,
        "score": found.score,
        "score_without_probe": geometric.score,
        "diagnosis": found.to_json(),
        "gain": bench.gain(case, moved),
    }


def _layers(row: Row, name: str) -> float:
    """Mean over layers; 0 where it could not be had."""
    found = [LayerDiagnosis(**layer) for layer in row["diagnosis"]["layers"]]
    return float(np.mean([getattr(layer, name) or 0.0 for layer in found]))


def judge(rows: list[Row], forecast: Callable[[Row], float]) -> tuple[float | None, float]:
    """Spearman's rho with the gain (None for a constant), and the AUC for a gain above `WORKED`."""
    scores, gains = np.array([forecast(row) for row in rows]), np.array([row["gain"] for row in rows])
    worked = gains > WORKED
    ranks, n = rankdata(scores), int(worked.sum())
    auc = (ranks[worked].sum() - n * (n + 1) / 2) / (n * (len(rows) - n)) if 0 < n < len(rows) else float("nan")
    constant = len(set(scores.tolist())) == 1
    return (None if constant else _spearman(scores, gains)), float(auc)


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def best_untied(rows: list[Row]) -> float:
    """Rho of a forecast that orders all gains rightly, and equal gains at random."""
    gains = np.array([row["gain"] for row in rows])
    jitter = np.random.default_rng(0).random(len(gains)) * 1e-6
    return _spearman(gains + jitter, gains)


def show(rows: list[Row], console: Console) -> dict[str, Any]:
    """Print the tables; returns what they show."""
    parts = {name: [row for row in rows if chosen(row)] for name, chosen in PARTS.items()}
    table = Table("rho (AUC)", *(f"{name}, {len(of)}" for name, of in parts.items()), box=SIMPLE_HEAD)
    found: dict[str, Any] = {}
    for name, forecast in FORECASTS.items():
        found[name] = {part: judge(of, forecast) for part, of in parts.items()}
        table.add_row(name, *(f"{'-' if rho is None else f'{rho:.2f}'} ({auc:.2f})" for rho, auc in found[name].values()))
    promises = {part: _false_promises(of) for part, of in parts.items()}
    table.add_row("false promises of the score with the probe", *(f"{vain} of {n}" for vain, n in promises.values()))
    found["false promises"] = promises
    found["best untied"] = {part: best_untied(of) for part, of in parts.items()}
    table.add_row("(right order, ties broken at random)", *(f"{rho:.2f}" for rho in found["best untied"].values()))
    console.print(table)
    for name in ("score without a probe", "score with the probe"):
        console.print(_bands(rows, name))
        console.print(_errors(rows, name))
    return found


def _false_promises(rows: list[Row]) -> tuple[int, int]:
    """How often the score with the probe promises a gain that does not come, and of how many."""
    return sum(row["score"] >= 0.5 and row["gain"] <= WORKED for row in rows), len(rows)


def _bands(rows: list[Row], name: str) -> Table:
    table = Table(name, "configurations", "mean gain", f"gain above {WORKED:g}", box=SIMPLE_HEAD)
    for low, high in ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01)):
        gains = [row["gain"] for row in rows if low <= FORECASTS[name](row) < high]
        shares = (f"{np.mean(gains):.2f}", f"{np.mean(np.array(gains) > WORKED):.0%}") if gains else ("", "")
        table.add_row(f"{low:g} to {min(high, 1):g}", str(len(gains)), *shares)
    return table


def _errors(rows: list[Row], name: str) -> Table:
    """Where forecast and gain are on different sides of one half, by calibration and target."""
    table = Table(f"{name}: wrong at 0.5", "configurations", "promised in vain", "came unforeseen", box=SIMPLE_HEAD)
    for key in ("calibration", "target", "capability", "layer_map", "fake"):
        for value in sorted({row[key] for row in rows}):
            of = [(FORECASTS[name](row) >= 0.5, row["gain"] > WORKED) for row in rows if row[key] == value]
            vain, unforeseen = sum(said and not came for said, came in of), sum(came and not said for said, came in of)
            table.add_row(f"{key}: {value}", str(len(of)), str(vain), str(unforeseen))
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of configurations, problems and texts")
    parser.add_argument("--development", type=int, default=30, help="configurations a capability, target small-base")
    parser.add_argument("--held-out", type=int, default=10, help="configurations a pair and capability, other targets")
    parser.add_argument("--json", type=Path, help="where to write what was found")
    parser.add_argument("--read", type=Path, help="show the tables of an earlier --json file, and run nothing")
    asked = parser.parse_args()
    if asked.read:
        show(json.loads(asked.read.read_text())["configurations"], Console(width=160))
        return
    torch.set_num_threads(1)
    logging.getLogger("unlock_lens").setLevel(logging.ERROR)  # ranks beyond what few texts span are meant here
    bench = Bench(asked.seed)
    rows: list[Row] = [
        run(case, bench)
        for case in tqdm([*adversarial(), *cases(asked.seed, asked.development, asked.held_out)], desc="configurations")
    ]
    found = show(rows, Console(width=160))
    if asked.json:
        asked.json.write_text(json.dumps({"seed": asked.seed, "correlations": found, "configurations": rows}, indent=1))


if __name__ == "__main__":
    main()
