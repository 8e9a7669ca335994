"""Memory and time of a fit against the number of calibration tokens: states are summed, so that a million fit.

    python benchmarks/tokens.py

Peak resident memory is the whole process's; what grows is the texts' own ids and the indices of paired tokens.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import unlock_lens as ul
from unlock_lens import zoo

TEXTS = (640, 6_400, 64_000)
BATCH = 512


def peak() -> float:
    """MiB, the highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write what was found")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    source, target = zoo.load("large-base"), zoo.load("small-base")
    found: list[dict[str, float]] = []
    table = Table("tokens", "states would take", "peak of the process", "tokens a second of CPU", box=SIMPLE_HEAD)
    for n in TEXTS:
        texts = zoo.text(n)
        began = time.process_time()
        aligner = ul.SubspaceAligner(48)
        aligner.fit(ul.Variant(source, texts), ul.Variant(target, texts), batch_size=BATCH)
        seconds, tokens = time.process_time() - began, aligner.n_tokens or 0
        whole = tokens * 4 * sum(len(set(side)) * d for side, d in zip(_layers(aligner), (96, 64), strict=True)) / 2**20
        found.append({"tokens": tokens, "states": whole, "peak": peak(), "rate": tokens / seconds})
        table.add_row(f"{tokens:,}", f"{whole:,.0f} MiB", f"{peak():,.0f} MiB", f"{tokens / seconds:,.0f}")
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


def _layers(aligner: ul.SubspaceAligner) -> tuple[list[int], list[int]]:
    return list(aligner.layer_map.values()), list(aligner.layer_map)


if __name__ == "__main__":
    main()
