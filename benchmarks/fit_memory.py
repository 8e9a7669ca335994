"""Peak memory of a fit at the shapes of Qwen1.5-14B to 7B on 5,000 tokens: random states, few layers, extrapolated by layer.

    .venv/bin/python benchmarks/fit_memory.py

A fit may hold the smaller of the states (float32) and the sums over them (float64), and one layer's decomposition.
Cross-validation may hold twice what a plain fit does. Both are measured from the allocator's own events at 1, 2 and 3 layers,
whose peaks must lie on a line.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from measure import Work, peak_bytes
from rich.console import Console

import unlock_lens as ul
from unlock_lens.method.calibrate import held_bytes, summed_bytes

TOKENS, WIDTHS, DEPTHS, RANK = 5_000, (5120, 4096), (40, 32), 256
LAYERS = (1, 2, 3)
GOAL, CROSS_VALIDATED = 1.2, 2.0


def fit(layers: int, scale: float, rank: int | Literal["cv"]) -> Any:
    """States of so many layers, and a fit on them."""
    n, d_source, d_target = (round(scale * size) for size in (TOKENS, *WIDTHS))
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(layers, n, d_source, generator=generator)
    target = torch.randn(layers, n, d_target, generator=generator)
    return ul.SubspaceAligner(rank, centered=True).fit_activations(source, target)


def peaks(scale: float, rank: int | Literal["cv"], layers: Sequence[int]) -> list[int]:
    """Bytes at each number of layers."""
    works: list[Work] = [partial(fit, count, scale, rank) for count in layers]
    return [peak_bytes(work, warm=False) for work in works]


def extrapolated(found: Sequence[int], depth: int) -> tuple[float, float]:
    """Bytes at all layers, and how far the three peaks are from a line, as a share of the last."""
    slope = (found[-1] - found[0]) / (LAYERS[-1] - LAYERS[0])
    off_line = abs(found[1] - (found[0] + slope * (LAYERS[1] - LAYERS[0]))) / found[-1]
    return found[0] + slope * (depth - LAYERS[0]), off_line


def main() -> None:
    """Measure, and say what is above its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scale", type=float, default=0.125, help="of tokens and widths; bytes fall with its square (default 0.125)"
    )
    scale = parser.parse_args().scale
    layer_map = {b: (DEPTHS[0] - 1) * b // (DEPTHS[1] - 1) for b in range(DEPTHS[1])}
    n, d_source, d_target = (round(scale * size) for size in (TOKENS, *WIDTHS))
    held, summed = held_bytes(n, layer_map, d_source, d_target), summed_bytes(layer_map, d_source, d_target)
    plain, off_line = extrapolated(peaks(scale, round(scale * RANK), LAYERS), DEPTHS[1])
    smaller, show = min(held, summed), Console(highlight=False).print
    gigabytes = 1e9 * scale**2  # as at full size: all of it grows with the square of the widths
    show(f"{n} tokens, widths {d_source} and {d_target}, {DEPTHS[1]} layers; GB at full size")
    show(f"states {held / gigabytes:.2f}, sums {summed / gigabytes:.2f}")
    show(f"fit {plain / gigabytes:.2f}: {plain / smaller:.3f} of the smaller (bar {GOAL}); {off_line:.1%} off a line")
    chosen, off_line = extrapolated(peaks(scale, "cv", LAYERS), DEPTHS[1])
    of_plain = f"{chosen / plain:.3f} of the plain fit (bar {CROSS_VALIDATED})"
    show(f"cross-validated {chosen / gigabytes:.2f}: {of_plain}; {off_line:.1%} off a line")


if __name__ == "__main__":
    main()
