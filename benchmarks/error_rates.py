"""How often the verdict says "arrived" of a source without a capability, and how often of a true one.

Every null source takes the place of the transfer in a sweep of its own, judged among others that are drawn beside it. All have
the strengths of the recipe "zoo" to choose from.

    OMP_NUM_THREADS=1 python benchmarks/error_rates.py --draws 30 --json error_rates.json
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from unlock_lens import recipes, report, sweep
from unlock_lens.evidence.evaluation import compare
from unlock_lens.evidence.results import NULL, Results
from unlock_lens.evidence.statistics import wilson_interval
from unlock_lens.evidence.sweep.config import Setting, SweepConfig
from unlock_lens.evidence.sweep.material import NULLS, Material
from unlock_lens.evidence.sweep.measurement import measured

PAIRS = [(mix, *sizes) for mix in ("base", "varied") for sizes in (("large", "small"), ("small", "large"))]
CAPABILITIES = ("think", "reverse", "double")
INERT = ("random", "anti_mean", "shuffled")
Curve = dict[float, dict[str, dict[str, Any]]]
"""For each strength, the lines of both splits."""


def config(mix: str, source: str, target: str) -> SweepConfig:
    """The recipe "zoo" for a pair of a family, without controls: what is asked is how the null sources do."""
    whole = recipes.load("zoo").model_dump(mode="json")
    text = {**whole["calibration"], "mix": mix}
    pair = {"source": f"zoo:{source}-{mix}", "target": f"zoo:{target}-{mix}", "naive": None, "calibration": text}
    sizes = {"extract": 200, "train": 50, "test": 100}
    return SweepConfig.parse({**whole, **pair, "sizes": sizes, "unrelated": None, "controls": [], "sampling": {"samples": 0}})


def curve(material: Material, setting: Setting, capability: str) -> Curve:
    """What a source does at every strength; right is a completion that shows the capability's behaviour."""
    found: Curve = {}
    for alpha in material.config.grid.alpha:
        lines = {split: measured(material, replace(setting, alpha=alpha), split) for split in ("train", "test")}
        found[alpha] = {split: judged(material, line, split, capability) for split, line in lines.items()}
    return found


def judged(material: Material, line: dict[str, Any], split: str, capability: str) -> dict[str, Any]:
    """The line with the capability's own behaviour for a right answer, which think's sums and the others' forms are alike."""
    task = getattr(material.splits, split)
    if "completions" in line and capability != "think":
        right = [int(name == capability) for name in task.behaviours(line["completions"]) or []]
    else:
        right = line["right"]
    share = line["behaviours"][capability] if capability != "think" else sum(right) / len(right)
    low, high = wilson_interval(round(share * line["n"]), line["n"])
    return {**line, "accuracy": share, "low": low, "high": high, "right": right}


def verdict_of(transfer: Curve, nulls: list[Curve], unsteered: dict[str, Any], asked: dict[str, Any], capability: str) -> str:
    """The status that the report gives to a sweep of these curves; the strength is chosen on train."""
    best = max(line["train"]["accuracy"] for line in transfer.values())
    equals = [alpha for alpha, line in transfer.items() if line["train"]["accuracy"] == best]
    alpha = equals[len(equals) // 2]
    reported = transfer[alpha]["test"]
    paired = asdict(compare([bool(r) for r in reported["right"]], [bool(r) for r in unsteered["right"]]))

    def line(
        told: dict[str, Any], split: str, control: str | None, alpha: float | None = None, seed: int = 0
    ) -> dict[str, Any]:
        return {**told, "split": split, "config": {**asdict(Setting(capability, control, seed)), "alpha": alpha}}

    lines = [
        line({**reported, "paired": paired}, "test", None, alpha),
        line(unsteered, "test", "unsteered"),
        line(asked, "test", "prompted"),
        *(line(unsteered, "test", name, alpha) for name in INERT),
        *(line(told["train"], "train", None, strength) for strength, told in transfer.items()),
        *(line(told["train"], "train", NULL, a, k) for k, null in enumerate(nulls) for a, told in null.items()),
    ]
    settings = {"capability": {"name": capability}, "controls": list(INERT), "control_seeds": 1, "nulls": len(nulls)}
    return report.verdict(Results(settings, tuple(lines))).status


def main() -> None:
    """Print, for every pair, how often each kind of source arrives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=30, help="null sources of each kind and pair")
    parser.add_argument("--nulls", type=int, default=19, help="null sources that each verdict compares with")
    parser.add_argument("--json", type=Path, help="file for all counts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    told: list[dict[str, Any]] = []
    for mix, source, target in PAIRS:
        material = Material(config(mix, source, target), progress=False)
        setting = sweep.grid(material.config, "think")[0]
        asked = {name: {} for name in CAPABILITIES}
        base = {
            name: judged(material, measured(material, Setting("think", "unsteered"), "test"), "test", name)
            for name in CAPABILITIES
        }
        for name in CAPABILITIES:
            asked[name] = judged(material, measured(material, Setting(name, "prompted"), "test"), "test", name)
        raw = [
            (NULLS[seed % 3], curve(material, replace(setting, control=NULL, seed=seed), "think"))
            for seed in range(3 * given.draws)
        ]
        true = {name: curve(material, replace(setting, capability=name), name) for name in CAPABILITIES}
        wrong = [("wrong", curve(material, replace(setting, capability=name), "think")) for name in ("reverse", "double")]
        rng = random.Random(0)
        counts: Counter[tuple[str, str]] = Counter()
        for i, (kind, null) in enumerate([*raw, *wrong]):
            others = rng.sample([other for j, (_, other) in enumerate(raw) if j != i], given.nulls)
            counts[kind, verdict_of(null, others, base["think"], asked["think"], "think")] += 1
        power: Counter[str] = Counter()
        for _ in range(40):
            power[
                verdict_of(
                    true["think"], rng.sample([null for _, null in raw], given.nulls), base["think"], asked["think"], "think"
                )
            ] += 1
        arrived = sum(n for (_, status), n in counts.items() if status == "arrived")
        total = sum(counts.values())
        row = {"pair": f"{source} to {target}, {mix}", "null sweeps": total, "arrived": arrived, "power": power["arrived"] / 40}
        told.append(
            {**row, "statuses": {f"{kind}: {status}": n for (kind, status), n in sorted(counts.items())}, "true": dict(power)}
        )
        print(json.dumps(told[-1]), flush=True)
    arrived, total = (sum(row[key] for row in told) for key in ("arrived", "null sweeps"))
    low, high = wilson_interval(arrived, total)
    print(f"arrived: {arrived} of {total} null sweeps, {arrived / total:.1%} ({low:.1%} to {high:.1%})")
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
