"""Peak memory of a fit at the shapes of Qwen1.5-14B to 7B on 5,000 tokens, all layers, at a sixteenth of widths and tokens.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/fit_memory.py

Bytes fall with the square of the scale, all of them, so what is measured is shown at full size. States are random, and the
target's are a linear map of the source's in noise, so that cross-validation has a rank to find. A fit may hold the smaller of
the states (float32) and the sums over them (float64), one layer's decomposition, and the maps that it makes; cross-validation
may hold twice what the same fit does. Peaks at a half and at all of the layers must be in proportion.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from measure import peak_bytes
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import unlock_lens as ul
from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.method.align import layer_map_of
from unlock_lens.method.calibrate import held_bytes, summed_bytes

TOKENS, WIDTHS, DEPTHS, RANK = 5_000, (5120, 4096), (40, 32), 256
GOAL, CROSS_VALIDATED = 1.2, 2.0


def states(layers: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """States of the mapped layers of source and target, [layer, n, d]."""
    n, d_source, d_target = (round(scale * size) for size in (TOKENS, *WIDTHS))
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(layers, n, d_source, generator=generator)
    relation = torch.randn(d_source, d_target, generator=generator) / d_source**0.5
    target = torch.randn(layers, n, d_target, generator=generator)
    for of_target, of_source in zip(target, source, strict=True):
        of_target.mul_(0.1).addmm_(of_source, relation)
    return source, target


def fit(layers: int, scale: float, options: dict[str, Any]) -> SubspaceAligner:
    """States, and a fit on them."""
    return ul.SubspaceAligner(**options).fit_activations(*states(layers, scale))


def main() -> None:
    """Measure, and show each peak beside its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1 / 16, help="of tokens and widths (default 1/16)")
    scale, depth = parser.parse_args().scale, DEPTHS[1]
    n, d_source, d_target = (round(scale * size) for size in (TOKENS, *WIDTHS))
    layer_map = layer_map_of({b: b for b in range(depth)}, depth, depth)  # states of the mapped layers alone are made
    held, summed = held_bytes(n, layer_map, d_source, d_target), summed_bytes(layer_map, d_source, d_target)
    gigabyte, console = 1e9 * scale**2, Console(width=100)
    console.print(f"{n} tokens, widths {d_source} and {d_target}, {depth} layers; told at full size:")
    console.print(f"states {held / gigabyte:.2f} GB, sums {summed / gigabyte:.2f} GB")
    rank = round(scale * RANK)
    plain = {"unlock": {"rank": rank}, "ridge": {"method": "ridge", "rank": rank}}
    full = {"ridge, full rank": {"method": "ridge"}, "procrustes, full rank": {"method": "procrustes"}}
    chosen = {"unlock, rank cv": {"rank": "cv"}, "ridge, ridge cv": {"method": "ridge", "ridge": "cv", "rank": rank}}
    table = Table("fit", "GB", "half the layers", "ratio", "of", "bar", box=SIMPLE_HEAD)
    for name, options in {**plain, **full, **chosen}.items():
        peak, half = (peak_bytes(partial(fit, layers, scale, options), warm=False) for layers in (depth, depth // 2))
        against, told = min(held, summed), "states"
        if name in chosen:  # the maps of the rank that it chose are the plain fit's too
            found = fit(depth, scale, options)
            same = {**options, "rank": found.maps.rank, "ridge": found.ridge_ if "ridge" in options else None}
            against, told = peak_bytes(partial(fit, depth, scale, same), warm=False), f"plain, rank {found.maps.rank}"
        bar = GOAL if name in plain else CROSS_VALIDATED if name in chosen else ""
        table.add_row(name, f"{peak / gigabyte:.2f}", f"{half / gigabyte:.2f}", f"{peak / against:.3f}", told, str(bar))
    console.print(table)


if __name__ == "__main__":
    main()
