"""The study of a real pair: does a capability arrive in it, and is it more than a prompt, a placebo or a first token?

    python benchmarks/study.py prepare SOURCE TARGET PROBLEMS    # directions, into benchmarks/results/directions
    python benchmarks/study.py texts SOURCE TARGET PROBLEMS      # the same through maps of other texts
    python benchmarks/study.py untrained SOURCE TARGET PROBLEMS  # the same from random weights, which are made on the spot
    python benchmarks/study.py forecast SOURCE TARGET PROBLEMS   # what diagnose says before anything is generated
    python benchmarks/study.py choose TARGET PROBLEMS            # directions and strengths, on the choosing problems
    python benchmarks/study.py test TARGET PROBLEMS              # the test problems
    python benchmarks/study.py forced TARGET PROBLEMS            # the same with the transfer's first tokens written
    python benchmarks/study.py nulls TARGET PROBLEMS             # noise through the main map, on the first choosing problems
    python benchmarks/study.py price TARGET                      # what each chosen setting costs on unrelated text
    python benchmarks/study.py table                             # tables and figure, into docs/results.md

SOURCE and TARGET are folders of Hugging Face models, PROBLEMS is a JSONL file with a question and an answer in each line. Every
step resumes where it was stopped: a finished setting is one line of benchmarks/results/study.jsonl. What is compared, and how
settings are chosen, is in study.yaml, which was fixed before a test problem was read. With `--config study_up` every step is
about the other way, from the small model to the large one: study_up.yaml says what differs.
"""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from decoding import Decoder, Prefix
from study_directions import Preparation, paper_grid, prompt
from study_files import append, lines
from study_table import write

import unlock_lens as ul
from unlock_lens import distributions
from unlock_lens.evidence.tasks.problems import Problem
from unlock_lens.evidence.tasks.scoring import final_answer, number
from unlock_lens.hosts import open_model

HERE = Path(__file__).parent
TEXTS = 5
"""Completions of each setting that are kept as text."""
_DIGITS = re.compile(r"\d[\d,]*(?:\.\d+)?")
Setting = tuple[str, float]
"""A direction's name and its strength; ("", 0) is no steering."""


def configured(name: str) -> dict[str, Any]:
    """A study's config: what its own file says, and study.yaml for the rest."""
    return yaml.safe_load((HERE / "study.yaml").read_text()) | yaml.safe_load((HERE / f"{name}.yaml").read_text())


def results_of(config: Mapping[str, Any]) -> Path:
    """The file with a line for each finished setting."""
    return HERE / "results" / f"{config['files']}.jsonl"


def directions_of(config: Mapping[str, Any]) -> Path:
    """The folder of the transported directions."""
    return HERE / "results" / config["directions"]


def maps_of(config: Mapping[str, Any]) -> Path:
    """The folder of the main map, which only the forecast reads: it is too large to keep with the results."""
    return HERE.parent / "runs" / config["files"]


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


@dataclass(frozen=True)
class Job:
    """One setting of one arm on some problems."""

    split: str
    arm: str
    setting: Setting
    kind: str
    problems: range
    forced: int = 0


class Study:
    """The target, the problems, and what is finished."""

    def __init__(self, config: Mapping[str, Any], target: str, problems: Path, rows: int) -> None:
        self.config, self.folder, self.problems, self.rows = config, target, lines(problems), rows
        self.results, self.directions = results_of(config), directions_of(config)
        self.done = {key for line in lines(self.results) for key in _keys(line)}

    @cached_property
    def model(self) -> Any:
        return open_model(self.folder, "nnsight", dtype=self.config["models"]["dtype"])

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder(self.model)

    def run(self, jobs: Iterable[Job]) -> None:
        """Do what is not done: jobs of the same prompts share their prefix and their batches."""
        left = [part for job in jobs for part in self._parts(job) if not self._is_done(part)]
        together: dict[tuple[str, range], list[Job]] = {}
        for job in left:
            together.setdefault((job.kind, job.problems), []).append(job)
        for (kind, problems), some in together.items():
            prefix, at_once = self._prefix(kind, problems), max(self.rows // len(problems), 1)
            for i in range(0, len(some), at_once):
                self._complete(prefix, some[i : i + at_once], len(problems))

    def _complete(self, prefix: Prefix, jobs: Sequence[Job], n: int) -> None:
        hooks = [hook for job in jobs for hook in [self._hook(job)] * n]
        forced = [ids for job in jobs for ids in self._begun(job)]
        ids = self.decoder.complete(prefix.repeated(len(jobs)), hooks, self.config["budget"], forced)
        for i, job in enumerate(jobs):
            self._keep(job, ids[i * n : (i + 1) * n])

    def _parts(self, job: Job) -> Iterator[Job]:
        """Jobs of no more problems than fit in a batch, so that each is kept when it is done."""
        for start in range(job.problems.start, job.problems.stop, self.rows):
            yield replace(job, problems=range(start, min(start + self.rows, job.problems.stop)))

    def _is_done(self, job: Job) -> bool:
        return all((job.split, job.arm, job.setting, problem) in self.done for problem in job.problems)

    def _prefix(self, kind: str, problems: range) -> Prefix:
        prompts = [prompt(self.config, kind, self.problems[i]["question"]) for i in problems]
        tokens = ul.Variant(self.model, prompts, add_special_tokens=False).tokens
        return self.decoder.prefix(tokens.ids, tokens.mask)

    def _hook(self, job: Job) -> ul.SteeringHook | None:
        name, alpha = job.setting
        return ul.SteeringHook(ul.CapabilityDirection.load(self.directions / f"{name}.safetensors"), alpha) if name else None

    def _begun(self, job: Job) -> list[list[int]]:
        """The first tokens that the transfer wrote for each problem, where a job wants them."""
        begun: dict[int, list[int]] = {}
        if job.forced:
            of = [line for line in lines(self.results) if line["split"] == "test" and line["arm"] == self.config["transfer"]]
            begun = {row["problem"]: row["begins"][: job.forced] for line in of for row in line["rows"]}
        return [begun[problem] if job.forced else [] for problem in job.problems]

    def _keep(self, job: Job, ids: Sequence[Sequence[int]]) -> None:
        rows: list[dict[str, Any]] = []
        for problem, written in zip(job.problems, ids, strict=True):
            text = self.model.tokenizer.decode(written, skip_special_tokens=True)
            found, ended = judged(text, self.problems[problem]["answer"]), written[-1] in self.decoder.ends
            row: dict[str, Any] = {"problem": problem, "flexible": found["flexible"], "tokens": len(written) - ended}
            if job.split == "test":
                row |= found | {"ended": ended, "characters": len(text)}
                row |= {"begins": list(written[:8])} if job.arm == self.config["transfer"] else {}
                row |= {"text": text} if problem < job.problems.start + TEXTS else {}
            rows.append(row)
        name, alpha = job.setting
        line = {"split": job.split, "arm": job.arm, "direction": name, "alpha": alpha, "rows": rows}
        self.done.update(_keys(line))
        append(self.results, line)
        right = sum(row["flexible"] for row in rows)
        print(job.split, job.arm, job.setting, "right:", right, "of", len(rows), flush=True)  # noqa: T201


def choosing(config: Mapping[str, Any]) -> Iterator[Job]:
    """Every setting of every arm on the choosing problems."""
    for arm, of in config["arms"].items():
        for setting in settings_of(config, of):
            yield Job("choose", arm, setting, "locked", range(*config["problems"]["choose"]))


def testing(config: Mapping[str, Any]) -> Iterator[Job]:
    """Every arm that forces no tokens at its chosen setting, on the test problems."""
    chosen, problems = chosen_settings(config), range(*config["problems"]["test"])
    for arm, of in config["arms"].items():
        if "forced" not in of and ("prompt" in of or arm in chosen):
            yield Job("test", arm, chosen.get(arm, ("", 0.0)), of.get("prompt", "locked"), problems)


def forcing(config: Mapping[str, Any]) -> Iterator[Job]:
    """The arms that write the transfer's first tokens."""
    for arm, of in config["arms"].items():
        if "forced" in of:
            yield Job("test", arm, ("", 0.0), "locked", range(*config["problems"]["test"]), of["forced"])


def nulls(config: Mapping[str, Any]) -> Iterator[Job]:
    """Noise with the covariance of the source's locked states, moved by the map that moves the transfer."""
    for seed in range(config["noise"]):
        for alpha in config["alphas"]:
            yield Job("null", f"noise {seed}", (f"noise_{seed}", alpha), "locked", range(*config["problems"]["noise"]))


PREPARING = ("prepare", "texts", "untrained", "forecast")
STEPS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Job]]] = {
    "choose": choosing,
    "test": testing,
    "forced": forcing,
    "nulls": nulls,
}


def settings_of(config: Mapping[str, Any], arm: Mapping[str, Any]) -> Iterator[Setting]:
    """What an arm may choose from."""
    if "paper" in arm:
        names = [name for name, kind, *_ in paper_grid(config) if kind == arm["paper"]]
        yield from ((name, alpha) for name in names for alpha in config["paper_alphas"])
    for direction in arm.get("directions", ()):
        yield from ((direction, alpha) for alpha in config["alphas"])


def chosen_settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    """The setting of each arm with most right answers on the choosing problems; of ties the smallest strength, then the first.

    Arms with settings that were not yet tried are left out.
    """
    right: dict[tuple[str, Setting], int] = {}
    for line in (line for line in lines(results_of(config)) if line["split"] == "choose"):
        key = line["arm"], (line["direction"], line["alpha"])
        right[key] = right.get(key, 0) + sum(row["flexible"] for row in line["rows"])
    chosen: dict[str, Setting] = {}
    for arm in config["arms"]:
        settings = list(settings_of(config, config["arms"][arm]))
        if settings and all((arm, one) in right for one in settings):
            chosen[arm] = min(settings, key=lambda one: (-right[arm, one], one[1], settings.index(one)))
    return chosen


def prices(config: Mapping[str, Any], target: str) -> None:
    """What each chosen setting costs on sentences that have nothing to do with problems."""
    model = open_model(target, "nnsight", dtype=config["models"]["dtype"])
    sentences = unrelated()
    results, directions = results_of(config), directions_of(config)
    done = {(line["arm"], line["direction"], line["alpha"]) for line in lines(results) if line["split"] == "price"}
    for arm, (name, alpha) in chosen_settings(config).items():
        if (arm, name, alpha) not in done:
            hook = ul.SteeringHook(ul.CapabilityDirection.load(directions / f"{name}.safetensors"), alpha)
            found = distributions.price(model, sentences, hook, batch_size=24, add_special_tokens=False)
            line = {"split": "price", "arm": arm, "direction": name, "alpha": alpha, "rows": []}
            append(results, line | {"kl": round(found.kl, 4), "kl_worst": round(found.kl_worst, 3)})
            print("price", arm, name, alpha, f"{found.kl:.3f}", flush=True)  # noqa: T201


def unrelated() -> list[str]:
    """Sentences of everyday life."""
    sentences = yaml.safe_load((HERE / "small_pair.yaml").read_text())["parallels"]["english"].strip().split("\n")
    return [sentence.replace(" | ", " ") for sentence in sentences]


def _keys(line: Mapping[str, Any]) -> set[tuple[str, str, Setting, int]]:
    setting = line["direction"], line["alpha"]
    return {(line["split"], line["arm"], setting, row["problem"]) for row in line["rows"]}


def prepare(config: Mapping[str, Any], step: str, source: str, target: str, problems: str) -> None:
    """Make directions, or the forecast of those that there are."""
    of = config["problems"]
    questions = [line["question"] for line in lines(Path(problems))[slice(*of["extract"])]]
    shortest = sorted(questions, key=len)[: of["shortest"]]
    preparation = Preparation(config, source, target, shortest, directions_of(config), maps_of(config))
    if step == "prepare":
        preparation.all()
    elif step == "texts":
        preparation.other_texts()
    elif step == "untrained":
        preparation.untrained()
    else:
        for kind, found in preparation.forecast().items():
            line = {"split": "forecast", "arm": kind, "direction": f"text_{kind}", "alpha": 0.0, "rows": []}
            said = {"verdict": found.verdict, "score": round(found.score, 2), "reasons": found.reasons}
            append(results_of(config), line | said)


def main() -> None:
    """Do one step of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=[*PREPARING, *STEPS, "price", "table"])
    parser.add_argument("paths", nargs="*", help="SOURCE, TARGET and PROBLEMS, as far as the step wants them")
    parser.add_argument("--config", default="study", choices=["study", "study_up"])
    parser.add_argument("--rows", type=int, default=100, help="completions in one batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share", default="0/1", help="i/n: this one of n processes that share the work")
    parser.add_argument("--only", nargs="*", help="these arms alone")
    given = parser.parse_args()
    config = configured(given.config)
    torch.set_num_threads(given.threads)
    if given.step in PREPARING:
        prepare(config, given.step, *given.paths)
    elif given.step == "price":
        prices(config, *given.paths)
    elif given.step == "table":
        write(config, lines(results_of(config)))
    else:
        target, problems = given.paths
        i, n = (int(part) for part in given.share.split("/"))
        jobs = [job for job in STEPS[given.step](config) if not given.only or job.arm in given.only]
        Study(config, target, Path(problems), given.rows).run(jobs[i::n])


if __name__ == "__main__":
    main()
