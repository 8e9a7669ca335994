"""The study of a real pair: does a capability arrive in it, and is it more than a prompt, a placebo or a first token?

    python benchmarks/study.py prepare SOURCE TARGET PROBLEMS    # directions, into benchmarks/results/directions
    python benchmarks/study.py choose TARGET PROBLEMS            # strengths and ranks, on the choosing problems
    python benchmarks/study.py test TARGET PROBLEMS              # the test problems, block by block
    python benchmarks/study.py nulls TARGET PROBLEMS             # noise through the same map, on the choosing problems
    python benchmarks/study.py table                             # table and figure, into docs/results.md

SOURCE and TARGET are folders of Hugging Face models, PROBLEMS is a JSONL file with a question and an answer in each line. Every
step resumes where it was stopped: a finished setting is one line of benchmarks/results/study.jsonl. What is compared, and how
settings are chosen, is in study.yaml, which was fixed before a test problem was read.
"""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from decoding import Decoder, Prefix
from study_directions import prepare
from study_files import append, lines
from study_table import write

import unlock_lens as ul
from unlock_lens.evidence.tasks.problems import Problem
from unlock_lens.evidence.tasks.scoring import final_answer, number
from unlock_lens.hosts import open_model

HERE = Path(__file__).parent
CONFIG, RESULTS, DIRECTIONS = HERE / "study.yaml", HERE / "results" / "study.jsonl", HERE / "results" / "directions"
ROWS = 96
"""Completions in one batch, while settings are chosen."""
_DIGITS = re.compile(r"\d[\d,]*(?:\.\d+)?")
Setting = tuple[str, float]
"""A direction's name and its strength; ("", 0) is no steering."""


def judged(completion: str, answer: str) -> dict[str, Any]:
    """Right by both readings: the last number; and the number in a box, after "answer is" or ####, or the only one there is."""
    problem, stated = Problem("", answer), final_answer(completion)
    is_stated = stated != completion.strip() or len(_DIGITS.findall(completion)) == 1
    raw = completion.encode()
    return {
        "flexible": number(completion, problem),
        "strict": is_stated and number(stated, problem),
        "zlib": round(len(raw) / len(zlib.compress(raw)), 2),
    }


class Study:
    """The target, the problems, and what is finished."""

    def __init__(self, config: Mapping[str, Any], target: str, problems: Path) -> None:
        self.config, self.folder, self.problems = config, target, lines(problems)
        self.done = {key for line in lines(RESULTS) for key in _keys(line)}

    @cached_property
    def model(self) -> Any:
        return open_model(self.folder, "nnsight", dtype=self.config["models"]["dtype"])

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder(self.model)

    def choose(self, arms: Mapping[str, Any]) -> None:
        """Complete the choosing problems at every setting of these arms."""
        start, end = self.config["problems"]["choose"]
        settings = [(arm, one) for arm in arms for one in settings_of(self.config, arms[arm])]
        settings = [(arm, one) for arm, one in settings if not self._is_done("choose", arm, one, range(start, end))]
        at_once = max(ROWS // (end - start), 1)
        for i in range(0, len(settings), at_once):
            some = settings[i : i + at_once]
            repeated = self._prefix("locked", range(start, end)).repeated(len(some))
            hooks = [self._hook(arm, one) for arm, one in some]
            ids = self.decoder.complete(repeated, [hook for hook in hooks for _ in range(start, end)], self.config["budget"])
            for j, (arm, one) in enumerate(some):
                self._keep("choose", arm, one, start, ids[j * (end - start) : (j + 1) * (end - start)])

    def test(self, only: Sequence[str] = ()) -> None:
        """Complete the test problems, block by block, each block with every arm in turn, or with some."""
        first, end = self.config["problems"]["test"]
        size, chosen = self.config["problems"]["block"], chosen_settings(self.config)
        for start in range(first, end, size):
            block, prefixes = range(start, min(start + size, end)), dict[str, Prefix]()
            for arm, of in self.config["arms"].items():
                one = chosen.get(arm, ("", 0.0))
                is_ready = arm in chosen if "directions" in of else "forced" not in of or self.config["transfer"] in chosen
                if self._is_done("test", arm, one, block) or not is_ready or (only and arm not in only):
                    continue
                kind = of.get("prompt", "locked")
                prefixes[kind] = prefixes.get(kind) or self._prefix(kind, block)
                forced = self._begun(block, of["forced"]) if "forced" in of else ()
                hook = self._hook(arm, one) if one[0] else None
                ids = self.decoder.complete(prefixes[kind], hook, self.config["budget"], forced)
                self._keep("test", arm, one, start, ids)

    def _is_done(self, split: str, arm: str, setting: Setting, problems: range) -> bool:
        return all((split, arm, setting, problem) in self.done for problem in problems)

    def _prefix(self, kind: str, problems: range) -> Prefix:
        template = self.config["prompts"][kind]
        prompts = [template.replace("{question}", self.problems[i]["question"]) for i in problems]
        tokens = ul.Variant(self.model, prompts, add_special_tokens=False).tokens
        return self.decoder.prefix(tokens.ids, tokens.mask)

    def _hook(self, arm: str, setting: Setting) -> ul.SteeringHook:
        direction = ul.CapabilityDirection.load(DIRECTIONS / f"{setting[0]}.safetensors")
        sign = self.config["arms"].get(arm, {}).get("sign", 1)
        return ul.SteeringHook(sign * direction, setting[1])

    def _begun(self, problems: range, n: int) -> list[list[int]]:
        """The first tokens that the transfer wrote, for each problem of a block."""
        of = [line for line in lines(RESULTS) if line["split"] == "test" and line["arm"] == self.config["transfer"]]
        begun = {row["problem"]: row["begins"][:n] for line in of for row in line["rows"]}
        return [begun[problem] for problem in problems]

    def _keep(self, split: str, arm: str, setting: Setting, start: int, ids: Sequence[Sequence[int]]) -> None:
        rows: list[dict[str, Any]] = []
        for i, written in enumerate(ids):
            text = self.model.tokenizer.decode(written, skip_special_tokens=True)
            ended = written[-1] in self.decoder.ends
            row = {"problem": start + i, "tokens": len(written) - ended, "ended": ended, "begins": list(written[:8])}
            rows.append({**row, **judged(text, self.problems[start + i]["answer"]), "text": text})
        line = {"split": split, "arm": arm, "direction": setting[0], "alpha": setting[1], "start": start, "rows": rows}
        self.done.update(_keys(line))
        append(RESULTS, line)
        right = sum(row["flexible"] for row in rows)
        print(split, arm, setting, start, "right:", right, "of", len(rows), flush=True)  # noqa: T201


def nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arms of noise with the covariance of the source's states, moved by the map that moves the transfer."""
    return {f"noise {seed}": {"directions": [f"noise_{seed}"]} for seed in range(config["noise"])}


def settings_of(config: Mapping[str, Any], arm: Mapping[str, Any]) -> Iterator[Setting]:
    """What an arm may choose from."""
    for direction in arm.get("directions", ()):
        yield from ((direction, alpha) for alpha in config["alphas"])


def chosen_settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    """The setting of each arm with most right answers on the choosing problems; of ties the smallest strength, then the first.

    Arms with settings that were not yet tried are left out.
    """
    right = {
        (line["arm"], (line["direction"], line["alpha"])): sum(row["flexible"] for row in line["rows"])
        for line in lines(RESULTS)
        if line["split"] == "choose"
    }
    chosen: dict[str, Setting] = {}
    for arm in config["arms"]:
        settings = list(settings_of(config, config["arms"][arm]))
        if settings and all((arm, one) in right for one in settings):
            chosen[arm] = min(settings, key=lambda one: (-right[arm, one], one[1], settings.index(one)))
    return chosen


def _keys(line: Mapping[str, Any]) -> set[tuple[str, str, Setting, int]]:
    setting = line["direction"], line["alpha"]
    return {(line["split"], line["arm"], setting, row["problem"]) for row in line["rows"]}


def main() -> None:
    """Do one step of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, models in {
        "prepare": ("source", "target"),
        "choose": ("target",),
        "test": ("target",),
        "nulls": ("target",),
        "table": (),
    }.items():
        command = commands.add_parser(name)
        for argument in (*models, *(["problems"] if models else [])):
            command.add_argument(argument)
        if name == "test":
            command.add_argument("--only", nargs="*", default=(), help="these arms alone, to share the work")
    given = parser.parse_args()
    config = yaml.safe_load(CONFIG.read_text())
    torch.set_num_threads(1)
    if given.command == "prepare":
        of = config["problems"]
        questions = [line["question"] for line in lines(Path(given.problems))[slice(*of["extract"])]]
        prepare(config, given.source, given.target, sorted(questions, key=len)[: of["shortest"]], DIRECTIONS)
    elif given.command == "table":
        write(config, lines(RESULTS))
    else:
        study = Study(config, given.target, Path(given.problems))
        if given.command == "test":
            study.test(given.only)
        else:
            study.choose(config["arms"] if given.command == "choose" else nulls(config))


if __name__ == "__main__":
    main()
