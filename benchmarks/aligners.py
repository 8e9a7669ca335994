"""Which calibration brings a capability: method x calibration x centering x rank x n on every pair of the zoo.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/aligners.py --workers 2 --json /tmp/aligners.json
    .venv/bin/python benchmarks/aligners.py --read /tmp/aligners.json --markdown

"mean" is the share of steered completions with the wanted behaviour, over all transfers but those of the duo models, where
anti-mean does the same; "arrived" counts transfers with at least 90% of them; "window" the strengths, of five, at which they
do; "another" and "broken" are the shares with another behaviour and with none; "right" counts final answers where the
capability is to think. R2 is that of the map, on texts like those it was fitted on, and on ordinary text; both were held out.
Strengths are chosen on other problems.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from aligner_bench import ALPHAS, Bench, Job, jobs
from aligner_cases import Line, Transfer, lines, transfers
from aligner_tables import tables
from rich.console import Console
from tqdm.auto import tqdm

ONLY = 'part of the name of a transfer or a setting ("large-base -> small-base", "other family", "unlock 48"); may be repeated'


@cache
def _bench(seed: int) -> Bench:
    """One a process."""
    torch.set_num_threads(1)
    logging.getLogger("unlock_lens").setLevel(logging.ERROR)  # ranks beyond what few texts span are meant here
    return Bench(seed)


def _run(seed: int, job: Job) -> list[dict[str, Any]]:
    return _bench(seed).run(job)


def measured(seed: int, asked: Sequence[Job], workers: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of each job, in order; each worker has one thread."""
    if workers == 1:
        yield from (_run(seed, job) for job in asked)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_run, [seed] * len(asked), asked)


def chosen(only: Sequence[str]) -> tuple[list[Transfer], list[Line]]:
    """Transfers and settings whose words hold every `only` that says anything about them."""

    def kept(found: Sequence[Any], told: Callable[[Any], str]) -> list[Any]:
        about = [part for part in only if any(part in told(each) for each in found)]
        return [each for each in found if all(part in told(each) for part in about)]

    return kept(transfers(), lambda transfer: f"{transfer}, {transfer.family}"), kept(lines(), str)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of problems and texts")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--only", action="append", default=[], help=ONLY)
    parser.add_argument("--json", type=Path, help="where to write what was found")
    parser.add_argument("--read", type=Path, help="show the tables of an earlier --json file, and run nothing")
    parser.add_argument("--markdown", action="store_true", help="write the tables as the documentation has them")
    asked = parser.parse_args()
    if asked.read:
        rows = json.loads(asked.read.read_text())["rows"]
    else:
        todo = jobs(*chosen(asked.only))
        rows: list[dict[str, Any]] = []
        with tqdm(total=sum(job.measurements for job in todo), desc="measurements") as bar:
            for found in measured(asked.seed, todo, asked.workers):
                rows += found
                bar.update(len(found))
        if asked.json:
            asked.json.write_text(json.dumps({"seed": asked.seed, "alphas": sorted(ALPHAS), "rows": rows}, indent=1))
    for table in tables(rows):
        if asked.markdown:
            print(table.markdown())  # noqa: T201
        else:
            Console(width=160).print(table.rich())


if __name__ == "__main__":
    main()
