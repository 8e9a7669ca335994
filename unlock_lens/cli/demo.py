"""The demonstration: capabilities moved both ways between the sizes of the embedded families, each by a sweep with controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from unlock_lens.evidence import recipes, report, sweep
from unlock_lens.evidence.report.table import show as show_table
from unlock_lens.evidence.results import PROMPTED, TRANSFERRED, UNSTEERED, Line, Results
from unlock_lens.evidence.sweep import SweepConfig

ARMS = {"locked": UNSTEERED} | {name: name for name in (TRANSFERRED, "paper", "own", "random", "anti_mean", PROMPTED)}
"""What `--json` calls an arm, and what a sweep does."""
OUTCOME = ("accuracy", "low", "high", "n", "behaviours")


def configs(backend: str = "transformer_lens", n: int = 100, seed: int = 0) -> list[SweepConfig]:
    """The recipe "demo", both ways between the two sizes: as a contrast of prompts, then of a model with its post-trained one.

    At last the contrast of prompts in the family whose plain prompts vary, where the paper's calibration works.

    Args:
        backend: "transformer_lens" or "nnsight".
        n: number of problems that are reported; half as many others choose the strength.
        seed: of all problems and texts.
    """
    recipe = recipes.load("demo").model_dump(mode="json")
    sizes = {**recipe["sizes"], "train": max(n // 2, 1), "test": n}
    found: list[SweepConfig] = []
    for source, target in (("large", "small"), ("small", "large")):
        models = {"source": f"zoo:{source}-base", "target": f"zoo:{target}-base", "backend": backend}
        post_trained = {side: f"zoo:{size}-post" for side, size in (("source", source), ("target", target))}
        contrast = {f"{side}_unlocked": name for side, name in post_trained.items()}
        contrasts = {
            "think": {},
            "post-training": {"capability": {**recipe["capability"], "unlocked": None, **contrast}, "others": []},
        }
        for name, change in contrasts.items():
            named = {"name": f"{name}, {source} to {target}", "sizes": sizes, "seed": seed}
            found.append(SweepConfig.parse({**recipe, **models, **named, **change}))
    for config in [config for config in found if config.name.startswith("think")]:
        family = {side: getattr(config, side).replace("-base", "-varied") for side in ("source", "target")}
        named = {"name": f"{config.name}, varied", "calibration": {**recipe["calibration"], "mix": "varied"}, "others": []}
        found.append(SweepConfig.parse({**config.model_dump(mode="json"), **family, **named}))
    return found


def run(configs: Sequence[SweepConfig], folder: Path, progress: bool = False) -> list[Results]:
    """Run each sweep in a separate folder."""
    return [sweep.run(config, folder / config.name.replace(", ", "-").replace(" ", "-"), progress) for config in configs]


def show(found: Sequence[Results], console: Console) -> None:
    """Print table and verdict of each sweep, and which behaviour each direction brings."""
    for results in found:
        judged = report.verdict(results)
        console.rule(results.config["name"], align="left")
        show_table(report.summary(results), console)
        style = "bold green" if judged.status == "arrived" else "bold yellow"
        console.print(judged.headline, style=style, highlight=False, end="\n\n")
    for results in found:
        if specific := report.specificity(results):
            console.print(f"{results.config['name']}. {specific}", highlight=False)
    n = found[0].arms()[UNSTEERED]["n"]
    console.print(f"{n} problems; chance is 1 in 7. The strength of every arm was chosen on other problems.")
    console.print("The models have 0.2 and 0.5 million parameters: a controlled case, not a promise for large models.")


def to_json(found: Sequence[Results]) -> dict[str, Any]:
    """What `--json` prints: every transfer with its arms, and the behaviours that each direction brings."""
    prompted = {results.config["target"]: results.arms()[PROMPTED] for results in found if PROMPTED in results.arms()}
    transfers: list[dict[str, Any]] = []
    for results in found:
        arms = {PROMPTED: prompted[results.config["target"]], **results.arms()}
        chosen = {key: arms[TRANSFERRED]["config"][key] for key in ("rank", "alpha")}
        told = {name: _outcome(arms[arm]) for name, arm in ARMS.items()}
        transfers.append({**_pair(results), "backend": results.config["backend"], **chosen, "arms": told})
    return {"transfers": transfers, "specificity": [row for results in found for row in _specificity(results)]}


def _pair(results: Results) -> dict[str, str]:
    models = {side: results.config[side].removeprefix("zoo:") for side in ("source", "target")}
    return {"capability": results.config["name"].partition(",")[0], **models}


def _specificity(results: Results) -> Iterator[dict[str, Any]]:
    for line in results.lines if results.config["others"] else ():
        if line["split"] == "test" and line["config"]["control"] is None:
            told = {**_pair(results), "capability": line["config"]["capability"], "behaviours": line["behaviours"]}
            yield {**told, "rank": line["config"]["rank"], "alpha": line["config"]["alpha"]}


def _outcome(line: Line) -> Mapping[str, Any]:
    return {**{key: line[key] for key in OUTCOME}, "rank": line["config"]["rank"], "alpha": line["config"]["alpha"]}
