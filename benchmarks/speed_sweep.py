"""Sweeps whose arms share their prompts, against the same sweeps with each arm a run of the host's own `generate`.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/speed_sweep.py zoo
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/speed_sweep.py real --model FOLDER

CPU time of one process, after a run that is not counted; what both wrote is compared. docs/speed.md has the table.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import unlock_lens as ul
from unlock_lens.evidence import recipes, sweep
from unlock_lens.evidence.evaluation import evaluate_arms
from unlock_lens.evidence.tasks import CHECKS
from unlock_lens.evidence.tasks.problems import Problem, Task
from unlock_lens.hosts import Backend, open_model

HOSTS = ("nnsight", "transformer_lens")
ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Seven steered arms and one that is not."""
NEW, BATCH = 48, 8


@contextmanager
def apart() -> Generator[None, None, None]:
    """Each arm by the host's own `generate`, which reads the prompts anew."""
    with patch.object(Backend, "_shares", lambda *_: False):
        yield


def of_zoo(host: str) -> Callable[[], list[Any]]:
    """The whole sweep of the embedded family: `unlock-lens sweep --zoo`."""
    config = recipes.load("zoo").model_copy(update={"backend": host})
    sweep.run(recipes.load("demo").model_copy(update={"backend": host, "controls": ()}), tempfile.mkdtemp(), progress=False)

    def run() -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            lines = sweep.run(config, folder, progress=False).lines
        return [line.get("completions", line["right"]) for line in sorted(lines, key=lambda line: str(line["config"]))]

    return run


def questions(n: int) -> Task:
    """Sums in words, after three examples: prompts of 140 to 150 tokens."""
    draw = random.Random(0)

    def problem() -> tuple[str, int]:
        a, b, c = (draw.randint(2, 30) for _ in range(3))
        return f"A farmer has {a} boxes with {b} apples each. He sells {c} apples. How many apples are left?", a * b - c

    shots = "".join(f"Question: {text}\nAnswer: The answer is {answer}.\n\n" for text, answer in (problem() for _ in range(3)))
    asked = [problem() for _ in range(n)]
    return Task(
        "sums", tuple(Problem(f"{shots}Question: {text}\nAnswer:", str(answer)) for text, answer in asked), CHECKS["number"]
    )


def of_real(host: str, folder: str, n: int) -> Callable[[], list[Any]]:
    """Eight arms on one set of few-shot prompts."""
    model, task = open_model(folder, host, "float32"), questions(n)
    texts = list(task.questions)
    locked, unlocked = (ul.Variant(model, [f"{end}{text}" for text in texts[:4]]) for end in ("", "Think step by step.\n"))
    direction = ul.CapabilityDirection.extract(locked, unlocked, progress=False)
    arms = [None, *(ul.SteeringHook(direction, alpha) for alpha in ALPHAS)]

    evaluate_arms(model, task.first(2), ul.Variant(model, texts[:2]), arms[:2], 2, BATCH, progress=False)

    def run() -> list[Any]:
        asked = ul.Variant(model, texts)
        found = evaluate_arms(model, task, asked, arms, NEW, BATCH, progress=False, stop=["\n\n"])
        return [each.completions for each in found]

    return run


def compared(name: str, run: Callable[[], list[Any]], rounds: int) -> str:
    """One line of the table: the least times, and in how many arms both wrote the same."""
    seconds: dict[str, list[float]] = {"together": [], "apart": []}
    written: dict[str, list[Any]] = {}
    for _ in range(rounds):
        for way, manner in (("together", nullcontext), ("apart", apart)):
            started = time.process_time()
            with manner():
                written[way] = run()
            seconds[way].append(time.process_time() - started)
    least = {way: min(found) for way, found in seconds.items()}
    pairs = list(zip(written["together"], written["apart"], strict=True))
    same = f"{sum(ours == theirs for ours, theirs in pairs)} of {len(pairs)}"
    times = f"{least['apart']:.1f} to {least['together']:.1f}"
    return f"| {name} | {times} | {least['apart'] / least['together']:.2f} | {same} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["zoo", "real"], help="the embedded family's sweep, or eight arms on a real model")
    parser.add_argument("--model", type=Path, help="folder of the real model")
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=HOSTS)
    parser.add_argument("--rounds", type=int, default=1, help="how often each is timed (1)")
    parser.add_argument("-n", type=int, default=16, help="prompts of the real model (16)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("unlock_lens").setLevel(logging.ERROR)
    print("| sweep | CPU seconds | times faster | arms that wrote the same |\n|---|---|---|---|")  # noqa: T201
    for host in asked.hosts:
        run = of_zoo(host) if asked.what == "zoo" else of_real(host, str(asked.model), asked.n)
        print(compared(f"{asked.what}, {host}", run, asked.rounds), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
