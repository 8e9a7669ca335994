"""How far from the floor: what this library costs beyond the work that cannot be avoided (docs/speed.md explains each row).

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/speed.py --json /tmp/speed.json

Ratios of CPU time in one process and one thread, in interleaved rounds; the bar is held against the ratio of the least times.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from growth import Growth, curves, points
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from speed_extract import extract_rows, memory_rows, uneven_rows
from speed_fit import fit_rows, rank_rows
from speed_generate import generate_rows
from speed_import import import_rows
from speed_models import HOSTS, SHAPE, Models, make_folder
from speed_rows import Row, Setup
from tqdm.auto import tqdm

GROUPS: Mapping[str, Callable[[Setup], list[Row]]] = {
    "extract": extract_rows,
    "uneven": uneven_rows,
    "memory": memory_rows,
    "fit": fit_rows,
    "ranks": rank_rows,
    "generate": generate_rows,
    "import": import_rows,
}
GROWTH = "growth"


def measured(setup: Setup, groups: Sequence[str]) -> tuple[list[Row], list[Growth]]:
    """The rows of the chosen groups, and the curves if they are among them."""
    rows = [row for name, of_group in GROUPS.items() if name in groups for row in of_group(setup)]
    return rows, curves(setup.folder, setup.tell) if GROWTH in groups else []


def show(rows: Sequence[Row], grown: Sequence[Growth], console: Console) -> None:
    """Print the tables."""
    if rows:
        table = Table("work", "against", "ratio (median)", "bar", "met", box=SIMPLE_HEAD)
        for row in rows:
            bar = "" if row.bar is None else f"{row.bar:.4g}"
            met = {None: "", True: "yes", False: "NO"}[row.met]
            table.add_row(row.work, row.against, f"{_number(row.ratio.minimum)} ({_number(row.ratio.median)})", bar, met)
        console.print(table)
    if grown:
        table = Table("work", "grows with", "from", "to", "CPU ms", "slope", box=SIMPLE_HEAD)
        for curve in grown:
            ends = f"{curve.seconds[0] * 1000:.1f} to {curve.seconds[-1] * 1000:.1f}"
            table.add_row(curve.work, curve.against, str(curve.sizes[0]), str(curve.sizes[-1]), ends, f"{curve.slope:.2f}")
        console.print(table)


def _number(value: float) -> str:
    return f"{value:.3f}" if value == 0 or value >= 0.001 else f"{value:.1e}"


def as_json(rows: Sequence[Row], grown: Sequence[Growth], rounds: int) -> dict[str, Any]:
    """What the tables show, and the points of the curves."""
    return {
        "rounds": rounds,
        "torch": torch.__version__,
        "model": SHAPE,
        "rows": [{**asdict(row), "met": row.met} for row in rows],
        "growth": [{**asdict(curve), "slope": curve.slope} for curve in grown],
    }


def steps(groups: Sequence[str], rounds: int) -> int:
    """How often the groups will tell that they are further on."""
    rounded = {"extract": 1, "uneven": 1, "fit": 1, "ranks": 1, "generate": len(HOSTS), "import": 3}
    return sum(rounds * rounded.get(name, 0) for name in groups) + 4 * ("memory" in groups) + points() * (GROWTH in groups)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each work is timed (5)")
    parser.add_argument("--only", nargs="+", choices=[*GROUPS, GROWTH], default=[*GROUPS, GROWTH], help="some groups of rows")
    parser.add_argument("--json", type=Path, help="where to write what was found")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("unlock_lens").setLevel(logging.ERROR)  # fits at a rank beyond what few tokens span are meant here
    with tempfile.TemporaryDirectory() as folder, tqdm(total=steps(asked.only, asked.rounds), desc="measured") as bar:
        place = Path(folder)
        make_folder(place / "model", SHAPE)
        setup = Setup(Models(place / "model"), place, asked.rounds, bar.update)
        rows, grown = measured(setup, asked.only)
    show(rows, grown, Console(width=128))
    if asked.json:
        asked.json.write_text(json.dumps(as_json(rows, grown, asked.rounds), indent=1))


if __name__ == "__main__":
    main()
