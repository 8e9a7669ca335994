"""How the benchmarks measure: CPU time in interleaved rounds, memory by the allocator's own events, calls by the interpreter.

CPU time of one process with one thread, not wall time, because others work on the machine; A B A B, so that what disturbs one
disturbs the other. The least of a work's times is the one that was disturbed least: bars are held against the ratio of the
least times. The median of the rounds' ratios stands beside it and says how steady the machine was.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from torch.profiler import ProfilerActivity, profile

Work = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """One work's time over another's."""

    minimum: float
    median: float


@dataclass(frozen=True)
class Times:
    """CPU seconds of several works, round by round."""

    seconds: Mapping[str, tuple[float, ...]]

    def least(self, name: str) -> float:
        return min(self.seconds[name])

    def ratio(self, name: str, against: str) -> Ratio:
        pairs = zip(self.seconds[name], self.seconds[against], strict=True)
        return Ratio(self.least(name) / self.least(against), median(ours / theirs for ours, theirs in pairs))


def interleaved(works: Mapping[str, Work], rounds: int, told: Callable[[], Any] = lambda: None) -> Times:
    """CPU seconds of each work in every round, after one that does not count; `told` is called after each round."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            gc.collect()  # so that none pays for the garbage of another
            start = time.process_time()
            work()
            found[name].append(time.process_time() - start)
        told()
    return Times({name: tuple(seconds) for name, seconds in found.items()})


def peak_bytes(work: Work, warm: bool = True) -> int:
    """The most that the work's tensors held at once, beyond what was there before: exact, from every allocation and release.

    The profiler notes each event of torch's CPU allocator with its signed size; their running sum is what the work holds.
    Unlike the process's resident memory it knows neither the allocator's reserve nor the pages of Python.
    """
    if warm:
        work()  # what is kept for good (caches of masks, say) is not part of the next run's peak
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    del result  # it counts as long as the work is measured
    held = most = 0
    for event in _memory_events(profiler):
        held += event
        most = max(most, held)
    return most


def _memory_events(profiler: Any) -> list[int]:
    """Signed bytes, in the order of time."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def calls_into(package: Path, work: Work) -> int:
    """How many Python functions of a package are entered while the work runs."""
    return _calls(work, lambda frame, event: event == "call" and frame.f_code.co_filename.startswith(str(package)))


def all_calls(work: Work) -> int:
    """How many functions are entered while the work runs, whose ever, in Python or in C: every tensor operation is one."""
    return _calls(work, lambda frame, event: event in ("call", "c_call"))


def _calls(work: Work, counted: Callable[[FrameType, str], bool]) -> int:
    count = 0

    def happened(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += counted(frame, event)

    sys.setprofile(happened)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count
