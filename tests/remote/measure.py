"""Local against remote: requests, bytes and seconds of each call, on the embedded family. `make bench-ndif` prints it.

Seconds are the best of three, after a first one that loads the model; the server's wait and its store are in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import unlock_lens as ul
from unlock_lens import zoo

Open = Callable[[str], Any]
TASK, TEXT = zoo.running_sum(n=512), zoo.text(n=512)
ROUNDS = 3


def calls(opened: Open, where: ul.Remote | bool) -> dict[str, Callable[[], Any]]:
    source, target = opened("large-base"), opened("small-base")
    pair = ul.Variant(source, TASK.direct, remote=where), ul.Variant(source, TASK.think, remote=where)
    sides = ul.Variant(source, TEXT, remote=where), ul.Variant(target, TEXT, remote=where)
    direction = ul.CapabilityDirection.extract(*pair, progress=False)
    text: dict[str, Any] = {"rank": 48, "centered": True, "positions": "all"}
    steer = ul.SteeringHook(ul.SubspaceAligner(**text).fit(*sides, progress=False).transport(direction), 0.5)
    prompts = TASK.direct[:64]
    return {
        "extract, mean, n = 512": lambda: ul.CapabilityDirection.extract(*pair, batch_size=32, progress=False),
        "extract, pca, n = 512": lambda: ul.CapabilityDirection.extract(*pair, "pca", batch_size=32, progress=False),
        "fit, last token, rank 16": lambda: ul.SubspaceAligner(16).fit(*sides, batch_size=32, progress=False),
        "fit, all tokens, rank 48": lambda: ul.SubspaceAligner(**text).fit(*sides, batch_size=32, progress=False),
        "generate, 64 prompts, 12 tokens": lambda: ul.generate(
            target, prompts, steer, 12, batch_size=32, remote=where, progress=False
        ),
    }


def test_what_it_costs(remote_model: Open, local_model: Open) -> None:
    remote = ul.Remote()
    there, here = calls(remote_model, remote), calls(local_model, False)
    print(f"\n\n{'call':34}{'requests':>9}{'kB up':>9}{'kB down':>9}{'s local':>9}{'s remote':>10}{'ratio':>8}")
    for what, call in there.items():
        before = replace(remote.traffic)
        call()
        used = [getattr(remote.traffic, name) - getattr(before, name) for name in ("requests", "up", "down")]
        local, served = seconds(here[what]), seconds(call)
        sizes = f"{used[0]:9}{used[1] / 1e3:9.1f}{used[2] / 1e3:9.1f}"
        print(f"{what:34}{sizes}{local:9.2f}{served:10.2f}{served / local:8.2f}")
        assert used[0] >= 1


def seconds(call: Callable[[], Any]) -> float:
    times: list[float] = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
