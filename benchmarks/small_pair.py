"""The small real pair: SmolLM2-135M-Instruct and Gemma-3-270m, both ways, with every control (docs/small_pair.md).

    python benchmarks/real_models.py --help                                         # how to get the models
    python benchmarks/small_pair.py run MODELS/smollm2 MODELS/gemma --way smollm2-gemma
    python benchmarks/small_pair.py run MODELS/gemma MODELS/smollm2 --way gemma-smollm2
    python benchmarks/small_pair.py table                                           # writes it to docs/small_pair.md

A run appends one line to benchmarks/results/small_pair.jsonl for each finished setting; the same command resumes it.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from decoding import Decoder
from languages import shows
from study_directions import read_side
from study_files import append, lines, written_between

import unlock_lens as ul
from unlock_lens import controls
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.evidence.statistics import wilson_interval
from unlock_lens.hosts import open_model

HERE = Path(__file__).parent
CONFIG, RESULTS = HERE / "small_pair.yaml", HERE / "results" / "small_pair.jsonl"
DOCUMENT = HERE.parent / "docs" / "small_pair.md"
ROWS = 100
"""Completions in one batch."""


@dataclass(frozen=True)
class Openings:
    """What is continued, what directions are made of, and what maps are fitted on."""

    choose: Sequence[str]
    test: Sequence[str]
    contrasts: Mapping[str, Sequence[str]]
    texts: Sequence[str]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Openings:
        parts = config["openings"]
        every = [f"{when}, {who} {did}" for when, who, did in product(parts["when"], parts["who"], parts["did"])]
        random.Random(0).shuffle(every)
        halves = {name: [line.split(" | ") for line in of.strip().split("\n")] for name, of in config["parallels"].items()}
        halves["capitals"] = [[part.upper() for part in line] for line in halves["english"]]
        contrasts = {name: [opening for opening, _ in of] for name, of in halves.items()}
        for name in config["capabilities"]:  # English that ends as the other does
            ends = [opening.split(" ")[-1] for opening in contrasts[name]]
            pairs = zip(contrasts["english"], ends, strict=True)
            contrasts[f"placebo {name}"] = [" ".join([*opening.split(" ")[:-1], end]) for opening, end in pairs]
        for name in ("english", *config["capabilities"]):
            contrasts[f"comma {name}"] = [f"{opening}," for opening in contrasts[name]]
        n = config["choose"]
        texts = [" ".join(line) for of in halves.values() for line in of]
        return cls(every[:n], every[n : n + config["test"]], contrasts, texts)


def directions(config: Mapping[str, Any], source: Any, target: Any, openings: Openings) -> dict[str, CapabilityDirection]:
    """Every arm's direction in the target, by "arm capability", or "arm" where it is one for all capabilities."""
    here, there = (read_side(model, openings.contrasts, add_special_tokens=True) for model in (source, target))
    aligner = ul.SubspaceAligner(config["rank"], sinks="drop").fit(source, target, openings.texts)
    found: dict[str, CapabilityDirection] = {}
    for name in config["capabilities"]:
        for kind, unlocked, locked in (("comma-", f"comma {name}", "comma english"), ("", name, "english")):
            moved, own = aligner.transport(here.contrast(unlocked, locked=locked)), there.contrast(unlocked, locked=locked)
            found |= {f"{kind}transferred {name}": moved, f"{kind}own {name}": own, f"{kind}minus {name}": -moved}
            states = here.states[locked], there.states[locked]
            for rank in config["paper_ranks"]:
                paper = ul.SubspaceAligner.paper(rank).fit_activations(*states, aligner.source_model, aligner.target_model)
                found[f"{kind}paper-{rank} {name}"] = paper.transport(here.contrast(unlocked, locked=locked))
        found[f"placebo {name}"] = aligner.transport(here.contrast(f"placebo {name}", locked="english"))
    like = found[f"own {config['capabilities'][0]}"]
    found["anti-mean"] = controls.away_from(there.states["english"].double().mean(1).float(), like)
    noise_like = here.contrast(config["capabilities"][0], locked="english")
    for seed in range(config["noise"]):
        found[f"noise-{seed}"] = aligner.transport(controls.noise_of_states(noise_like, here.states["english"], seed))
    for seed in range(config["random"]):
        found[f"random-{seed}"] = controls.random_like(like, seed)
    return found


class Runs:
    """The finished settings, and the model that makes the others."""

    def __init__(self, way: str, target: Any, tokens: int, path: Path) -> None:
        self.way, self.target, self.tokens, self.path = way, target, tokens, path
        self.decoder = Decoder(target)
        self.done = {_key(line) for line in lines(path)}

    def complete(
        self, split: str, openings: Sequence[str], settings: Sequence[tuple[str, float, ul.SteeringHook | None]]
    ) -> None:
        """Complete the openings with each setting (arm, alpha, hook), as many settings in one batch as fit."""
        left = [one for one in settings if (self.way, split, one[0], one[1]) not in self.done]
        at_once = max(ROWS // len(openings), 1)
        for start in range(0, len(left), at_once):
            some = left[start : start + at_once]
            tokens = ul.Variant(self.target, list(openings) * len(some)).tokens
            steers = [hook for _, _, hook in some for _ in openings]
            ids = self.decoder.complete(self.decoder.prefix(tokens.ids, tokens.mask), steers, self.tokens)
            texts = self.target.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for i, (arm, alpha, _) in enumerate(some):
                self._keep(split, arm, alpha, texts[i * len(openings) : (i + 1) * len(openings)])

    def _keep(self, split: str, arm: str, alpha: float, completions: Sequence[str]) -> None:
        line = {"way": self.way, "split": split, "arm": arm, "alpha": alpha, "completions": completions}
        self.done.add(_key(line))
        append(self.path, line)
        print(self.way, split, arm, alpha, flush=True)  # noqa: T201


def _key(line: Mapping[str, Any]) -> tuple[str, str, str, float]:
    return line["way"], line["split"], line["arm"], line["alpha"]


def run(source_folder: str, target_folder: str, way: str) -> None:
    """Do what is not yet done of one way."""
    config = yaml.safe_load(CONFIG.read_text())
    openings = Openings.of(config)
    source, target = (open_model(folder, "nnsight", dtype="bfloat16") for folder in (source_folder, target_folder))
    RESULTS.parent.mkdir(exist_ok=True)
    runs = Runs(way, target, config["tokens"], RESULTS)
    runs.complete("test", openings.test, [("unsteered", 0.0, None)])
    for name, template in config["prompted"].items():
        runs.complete("test", [template.replace("{opening}", o) for o in openings.test], [(f"prompted {name}", 0.0, None)])
        runs.complete("test", openings.contrasts[name], [(f"opened {name}", 0.0, None)])
    found = directions(config, source, target, openings)
    del source
    hooks = {(arm, a): ul.SteeringHook(direction, a) for arm, direction in found.items() for a in config["alphas"]}
    names = config["capabilities"]
    for are_nulls in (False, True):  # what decides most comes first
        settings = [(*setting, hook) for setting, hook in hooks.items() if is_null(setting[0]) == are_nulls]
        runs.complete("choose", openings.choose, settings)
        chosen = dict.fromkeys(setting for name in names for setting in chosen_settings(way, name).values())
        runs.complete("test", openings.test, [(*setting, hooks[setting]) for setting in chosen])


def is_null(arm: str) -> bool:
    """Whether an arm is a draw that knows nothing of any capability."""
    return arm.startswith(("random-", "noise-"))


def chosen_settings(way: str, capability: str) -> dict[str, tuple[str, float]]:
    """For each row of the table the arm and strength that showed the capability most often on "choose"; of ties the first."""
    score = scores(way, "choose", capability)
    best: dict[str, tuple[str, float]] = {}
    for setting, share in score.items():
        row = _row(setting[0], capability)
        if row and (row not in best or share > score[best[row]]):
            best[row] = setting
    return best


def scores(way: str, split: str, capability: str) -> dict[tuple[str, float], int]:
    """How many completions of each setting show the capability."""
    return {
        (line["arm"], line["alpha"]): sum(shows(capability, text) for text in line["completions"])
        for line in lines(RESULTS)
        if (line["way"], line["split"]) == (way, split)
    }


NAMES = {
    "unsteered": "unsteered",
    "prompted": "prompted",
    "opened": "of 24 openings in that language or in capitals, unsteered",
    "comma-transferred": "**transferred, both sides end in a comma**",
    "comma-own": "target's own, both end in a comma",
    "comma-paper": "paper's calibration, both end in a comma",
    "comma-minus": "minus the first",
    "comma-wrong": "another capability's, both end in a comma",
    "transferred": "transferred, openings as they are",
    "placebo": "transferred, the last word alone",
    "own": "target's own, openings as they are",
    "paper": "paper's calibration, openings as they are",
    "minus": "minus the transferred, openings as they are",
    "wrong": "another capability's, openings as they are",
    "anti-mean": "anti-mean",
    "random": "random, best of 20",
    "noise": "noise, best of 19",
    "nulls comma-transferred": "nulls as good as the first, on the choosing openings",
    "nulls transferred": "nulls as good as the transfer of openings as they are",
}
"""The rows of the table, and what they are called there."""


def _row(arm: str, capability: str) -> str | None:
    """The row of the table that an arm is a setting of."""
    kind, _, of = arm.partition(" ")
    kind = re.sub(r"-\d+$", "", kind)  # a rank, or a seed
    if of in ("", capability):
        return kind
    return {"comma-transferred": "comma-wrong", "transferred": "wrong"}.get(kind)


def tables(config: Mapping[str, Any]) -> Iterator[str]:
    """Markdown: one table for each way."""
    for way in dict.fromkeys(line["way"] for line in lines(RESULTS)):
        yield f"**{way.replace('-', ' to ')}**, {config['test']} openings\n"
        yield from table(config, way, NAMES)
        yield ""


def table(config: Mapping[str, Any], way: str, rows: Iterable[str]) -> Iterator[str]:
    """Markdown: some rows of one way; those that nothing is known of are left out."""
    names = config["capabilities"]
    columns = {name: _column(config, way, name) for name in names}
    yield "| arm | " + " | ".join(names) + " |\n|---|" + "---|" * len(names)
    for row in rows:
        if any(row in columns[name] for name in names):
            yield f"| {NAMES[row]} | " + " | ".join(columns[name].get(row, "") for name in names) + " |"


def _column(config: Mapping[str, Any], way: str, capability: str) -> dict[str, str]:
    score = scores(way, "test", capability)
    settings = {"unsteered": ("unsteered", 0.0), "prompted": (f"prompted {capability}", 0.0)}
    settings |= chosen_settings(way, capability)
    cells = {row: _cell(score[of], config["test"], of) for row, of in settings.items() if of in score}
    if (opened := (f"opened {capability}", 0.0)) in score:
        cells["opened"] = str(score[opened])
    best: dict[str, int] = {}
    for (arm, _), shown in scores(way, "choose", capability).items():
        best[arm] = max(shown, best.get(arm, 0))
    nulls = [shown for arm, shown in best.items() if is_null(arm)]
    for arm in ("comma-transferred", "transferred"):
        if nulls and f"{arm} {capability}" in best:
            cells[f"nulls {arm}"] = f"{sum(shown >= best[f'{arm} {capability}'] for shown in nulls)} of {len(nulls)}"
    return cells


def _cell(shown: int, n: int, setting: tuple[str, float]) -> str:
    low, high = wilson_interval(shown, n)
    return f"{shown} ({100 * low:.0f}-{100 * high:.0f}%)" + (f" at {setting[1]:g}" if setting[1] else "")


def main() -> None:
    """Run a way, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_run = commands.add_parser("run")
    of_run.add_argument("source")
    of_run.add_argument("target")
    of_run.add_argument("--way", required=True, help="the pair's name in the results, SOURCE-TARGET")
    commands.add_parser("table")
    given = parser.parse_args()
    if given.command == "run":
        torch.set_num_threads(1)
        run(given.source, given.target, given.way)
    else:
        config = yaml.safe_load(CONFIG.read_text())
        written_between(DOCUMENT, "small pair", "\n".join(tables(config)))


if __name__ == "__main__":
    main()
