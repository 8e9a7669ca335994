"""How time grows: extraction with prompts, layers and width; fitting with tokens and width, below and above n = d."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import Work
from speed_fit import fit, states
from speed_models import BATCH, HOSTS, Models, bare_pass, batches, make_folder, prompts

import unlock_lens as ul
from unlock_lens.core import read
from unlock_lens.core.differences import mean_state

REPEATS = 3
PROMPTS = (16, 64, 256, 1024, 4096)
LAYERS = (2, 4, 8, 16, 32)
WIDTHS = (64, 128, 256, 512, 1024)
TOKENS = (16, 32, 64, 128, 256, 1024, 2048, 4096, 8192)
FIT_WIDTHS = (64, 128, 256, 1024, 2048, 4096)
FIXED = 512
"""The width where tokens grow, and the number of tokens where the width grows."""
RANK = 16
VOCABULARY = 512
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Growth:
    """CPU seconds of one work at growing sizes; the slope of their logarithms says by which power they grow."""

    work: str
    against: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Of the last three sizes, where what does not grow matters least."""
        x, y = (np.log(np.array(values[-3:], dtype=float)) for values in (self.sizes, self.seconds))
        return float(np.polyfit(x, y, 1)[0])


def curves(folder: Path, tell: Callable[[], Any]) -> list[Growth]:
    """Every curve; `tell` is called after each point."""
    tokens = _measured(TOKENS, lambda n: partial(fit, states(n, FIXED, 0), states(n, FIXED, 1), RANK), tell)
    widths = _measured(FIT_WIDTHS, lambda d: partial(fit, states(FIXED, d, 0), states(FIXED, d, 1), RANK), tell)
    return [
        *_extractions(folder, "prompts", PROMPTS, lambda n: (TINY, n), tell),
        *_extractions(folder, "layers", LAYERS, lambda layers: ({**TINY, "num_hidden_layers": layers}, 64), tell),
        *_extractions(folder, "d", WIDTHS, lambda d: ({**TINY, "hidden_size": d, "intermediate_size": 2 * d}, 32), tell),
        *_both_sides(f"fit, d {FIXED}", "n", tokens),
        *_both_sides(f"fit, n {FIXED}", "d", widths),
    ]


def _extractions(
    folder: Path,
    against: str,
    sizes: Sequence[int],
    shaped: Callable[[int], tuple[dict[str, int], int]],
    tell: Callable[[], Any],
) -> list[Growth]:
    """Each host and the bare Hugging Face body."""
    works: dict[str, dict[int, Work]] = {"bare HF body": {}, **{f"extract, {host}": {} for host in HOSTS}}
    for size in sizes:
        shape, n = shaped(size)
        place = folder / f"growth-{'-'.join(map(str, shape.values()))}"
        if not place.exists():
            make_folder(place, shape, VOCABULARY)
        models, texts = Models(place), prompts(n, 12, 12, VOCABULARY)
        for host in HOSTS:
            variant = ul.Variant(models.of_host(host), texts)
            works[f"extract, {host}"][size] = partial(mean_state, variant, how=read.How(BATCH))
            works["bare HF body"][size] = partial(bare_pass, models.bare, batches(variant))
    found = [(work, _measured(sizes, of_size.__getitem__, tell)) for work, of_size in works.items()]
    return [Growth(work, against, tuple(seconds), tuple(seconds.values())) for work, seconds in found]


def _both_sides(work: str, against: str, seconds: Mapping[int, float]) -> list[Growth]:
    """The smaller of n and d grows; then the larger."""
    below, above = ({k: v for k, v in seconds.items() if (k < FIXED) == small} for small in (True, False))
    return [
        Growth(
            f"{work}, {against} smaller" if part is below else f"{work}, {against} larger",
            against,
            tuple(part),
            tuple(part.values()),
        )
        for part in (below, above)
    ]


def _measured(sizes: Sequence[int], of_size: Callable[[int], Work], tell: Callable[[], Any]) -> dict[int, float]:
    """The least CPU time of a few runs."""
    found: dict[int, float] = {}
    for size in sizes:
        work, least = of_size(size), math.inf
        work()
        for _ in range(REPEATS):
            gc.collect()
            start = time.process_time()
            work()
            least = min(least, time.process_time() - start)
        found[size] = least
        tell()
    return found


def points() -> int:
    """How many points there are to measure."""
    return 3 * (len(PROMPTS) + len(LAYERS) + len(WIDTHS)) + len(TOKENS) + len(FIT_WIDTHS)
