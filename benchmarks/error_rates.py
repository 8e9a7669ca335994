"""How often the verdict says "arrived" of a source without a capability, and how often of the true one.

Every null source takes the place of the transfer in a sweep of its own, and is judged by the report among others that are drawn
beside it, with the strengths of the recipe "zoo" to choose from. The pairs are both directions of two families.

    OMP_NUM_THREADS=1 python benchmarks/error_rates.py --draws 20 --json error_rates.json
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unlock_lens import recipes, report, sweep
from unlock_lens.evidence.evaluation import compare
from unlock_lens.evidence.results import NULL, Results
from unlock_lens.evidence.statistics import wilson_interval
from unlock_lens.evidence.sweep.config import Setting, SweepConfig
from unlock_lens.evidence.sweep.material import NULLS, Material
from unlock_lens.evidence.sweep.measurement import measured

TELL = Console(width=120, highlight=False, markup=False).print
PAIRS = [(mix, *sizes) for mix in ("base", "varied") for sizes in (("large", "small"), ("small", "large"))]
INERT = ("random", "anti_mean", "shuffled")
"""Controls that stay where the unsteered target is: the null sources alone are on trial."""
TRUE_SWEEPS = 40
Told = dict[str, Any]
Curve = dict[float, dict[str, Told]]
"""For each strength, what was measured on train and on test."""


@dataclass
class Pair:
    """A source and a target, and what every source of the pool does at every strength."""

    material: Material
    unsteered: Told
    asked: Told
    true: Curve
    pool: list[tuple[str, Curve]]

    @classmethod
    def measured(cls, mix: str, source: str, target: str, draws: int) -> Pair:
        """Measure the true source, other capabilities, and so many null sources of each kind."""
        whole = recipes.load("zoo").model_dump(mode="json")
        models = {"source": f"zoo:{source}-{mix}", "target": f"zoo:{target}-{mix}", "naive": None, "unrelated": None}
        small = {"sizes": {"extract": 200, "train": 50, "test": 100}, "controls": [], "sampling": {"samples": 0}}
        text = {"calibration": {**whole["calibration"], "mix": mix}}
        material = Material(SweepConfig.parse({**whole, **models, **small, **text}), progress=False)
        setting = sweep.grid(material.config, "think")[0]

        def curve(**changes: Any) -> Curve:
            tried = {alpha: replace(setting, alpha=alpha, **changes) for alpha in material.config.grid.alpha}
            return {alpha: {split: measured(material, of, split) for split in ("train", "test")} for alpha, of in tried.items()}

        pool = [(NULLS[seed % len(NULLS)], curve(control=NULL, seed=seed)) for seed in range(draws * len(NULLS))]
        pool += [("wrong capability", curve(control="wrong", seed=seed)) for seed in range(len(material.config.others))]
        base, asked = (measured(material, Setting("think", name), "test") for name in ("unsteered", "prompted"))
        return cls(material, base, asked, curve(), pool)

    def status(self, transfer: Curve, nulls: list[Curve]) -> str:
        """What the report says of a sweep whose transfer is this; its strength is chosen on train."""
        best = max(told["train"]["accuracy"] for told in transfer.values())
        equals = [alpha for alpha, told in transfer.items() if told["train"]["accuracy"] == best]
        alpha = equals[len(equals) // 2]
        reported = transfer[alpha]["test"]
        after, before = ([bool(right) for right in each["right"]] for each in (reported, self.unsteered))
        paired = compare(after, before)
        lines = [
            _line({**reported, "paired": asdict(paired)}, "test", None, alpha),
            _line(self.unsteered, "test", "unsteered"),
            _line(self.asked, "test", "prompted"),
            *(_line(self.unsteered, "test", name, alpha) for name in INERT),
            *(_line(told["train"], "train", None, a) for a, told in transfer.items()),
            *(_line(told["train"], "train", NULL, a, seed) for seed, null in enumerate(nulls) for a, told in null.items()),
        ]
        asks = {"capability": {"name": "think"}, "controls": list(INERT), "control_seeds": 1, "nulls": len(nulls)}
        return report.verdict(Results(asks, tuple(lines))).status


def _line(told: Told, split: str, control: str | None, alpha: float | None = None, seed: int = 0) -> Told:
    return {**told, "split": split, "config": {**asdict(Setting("think", control, seed)), "alpha": alpha}}


def main() -> None:
    """Print how often each kind of source arrives, pair by pair and over all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20, help="null sources of each kind and pair")
    parser.add_argument("--nulls", type=int, default=19, help="null sources that each verdict compares with")
    parser.add_argument("--json", type=Path, help="file for all counts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Told] = []
    for mix, source, target in PAIRS:
        pair, rng = Pair.measured(mix, source, target, given.draws), random.Random(0)
        found: Counter[tuple[str, str]] = Counter()
        for i, (kind, curve) in enumerate(pair.pool):
            others = [other for j, (_, other) in enumerate(pair.pool) if j != i]
            found[kind, pair.status(curve, rng.sample(others, given.nulls))] += 1
        curves = [curve for _, curve in pair.pool]
        power = Counter(pair.status(pair.true, rng.sample(curves, given.nulls)) for _ in range(TRUE_SWEEPS))
        arrived = {kind: n for (kind, status), n in found.items() if status == "arrived"}
        rows.append({"pair": f"{source} to {target}, {mix}", "n": len(pair.pool), "arrived": arrived, "true": dict(power)})
        TELL(json.dumps(rows[-1]))
    n, arrived = sum(row["n"] for row in rows), sum(sum(row["arrived"].values()) for row in rows)
    low, high = wilson_interval(arrived, n)
    TELL(f"arrived in {arrived} of {n} null sweeps: {arrived / n:.1%} (95% {low:.1%} to {high:.1%})")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
