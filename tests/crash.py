"""`make test-crash`: sweeps and saves that are killed, and disks that fail, `python -m tests.crash COUNT [CASE ...]`.

Every run is a process of its own, forked from one that has imported everything and holds the models, so that a kill is a real
SIGKILL and costs no start. Moments are drawn with a fixed seed, as shares of the time that an uninterrupted run takes.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.errors import DiskError, InvalidInput, UnlockLensError
from unlock_lens.evidence import recipes, results, sweep
from unlock_lens.evidence.sweep.config import SweepConfig

WHOLE, REFUSED, DISK, OTHER, FOREIGN = 0, 3, 4, 5, 6
"""How a run ends: as asked, with InvalidInput, with DiskError, with another error of the library, with a foreign one."""
KILLED = -signal.SIGKILL
CONFIG = SweepConfig.parse(
    {
        **recipes.smallest().model_dump(mode="json"),
        "sizes": {"extract": 40, "train": 10, "test": 10},
        "grid": {"aligner": ["text"], "n": [40], "rank": [48], "alpha": [0.4, 0.5]},
        "nulls": 4,
        "sampling": {"samples": 0},
        "max_new_tokens": 4,
    }
)


class Failed(AssertionError):
    """What must not happen."""


def check(holds: bool, told: str) -> None:
    if not holds:
        raise Failed(told)


def forked(work: Callable[[], object]) -> int:
    """The process that does some work; how it ends says which error it met."""
    process = os.fork()
    if process:
        return process
    code = FOREIGN
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
        code = WHOLE
    except UnlockLensError as error:
        code = DISK if isinstance(error, DiskError) else REFUSED if isinstance(error, InvalidInput) else OTHER
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_after(process: int, seconds: float) -> int:
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return ended(process)


def swept(folder: Path) -> int:
    """The process that runs the sweep, or resumes it."""
    return forked(lambda: swept_here(folder))


def swept_here(folder: Path) -> None:
    sweep.run(CONFIG, folder, progress=False)


@cache
def hold_models() -> None:
    """Open the models once, in the process from which runs are forked."""
    zoo.load = cache(zoo.load)
    for name in (CONFIG.source, CONFIG.target, CONFIG.naive):
        zoo.load(str(name).removeprefix("zoo:"), CONFIG.backend, CONFIG.dtype)


def content(folder: Path) -> dict[str, Any]:
    """What a finished sweep left, without times; a line that stands there twice is an error."""
    lines = [json.loads(line) for line in (folder / results.LINES).read_text().splitlines()]
    keys = Counter(results.key_of(line["config"], line["split"]) for line in lines)
    check(max(keys.values()) == 1, f"a line stands twice in {folder}")
    found: dict[str, Any] = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("problems", "geometry", "diagnosis")
    }
    return {**found, "lines": [{name: value for name, value in line.items() if name != "seconds"} for line in lines]}


class Reference:
    """A sweep that nothing interrupts."""

    def __init__(self, scratch: Path) -> None:
        hold_models()
        self.seconds = 0.0
        for name in ("first", "again"):  # the first one reads files that are then in memory
            began = time.monotonic()
            check(ended(swept(scratch / name)) == WHOLE, "the uninterrupted sweep failed")
            self.seconds = time.monotonic() - began
        self.content = content(scratch / "first")
        check(content(scratch / "again") == self.content, "two uninterrupted sweeps differ")

    def same(self, folder: Path) -> None:
        """Resume, and compare."""
        check(ended(swept(folder)) == WHOLE, f"{folder} cannot be resumed")
        check(content(folder) == self.content, f"{folder} differs from the uninterrupted sweep")


def kills(count: int, scratch: Path, rng: random.Random) -> str:
    """SIGKILL at random moments, resumed each time, and compared once no run is left to be killed."""
    whole, done, finished = Reference(scratch), 0, 0
    while done < count:
        folder = scratch / f"kills-{finished}"
        while done < count and killed_after(swept(folder), rng.uniform(0, whole.seconds)) == KILLED:
            done += 1
        whole.same(folder)
        finished += 1
    lines = len(whole.content["lines"])
    return f"{done} kills, {finished} sweeps of {lines} lines finished after them, all equal to the uninterrupted one"


def two(count: int, scratch: Path, rng: random.Random) -> str:
    """Two processes in one folder: one runs the sweep, the other is refused, or finds it finished."""
    whole, ends = Reference(scratch), Counter[int]()
    for i in range(count):
        folder = scratch / f"two-{i}"
        first = swept(folder)
        time.sleep(rng.uniform(0, 0.3 * whole.seconds))
        both = [ended(second_or_first) for second_or_first in (swept(folder), first)]
        check(WHOLE in both and set(both) <= {WHOLE, REFUSED}, f"two processes ended with {both}")
        ends.update(both)
        check(content(folder) == whole.content, f"{folder} differs")
    return f"{count} pairs of processes: {ends[REFUSED]} refused, every folder equal to the uninterrupted one"


def full(count: int, scratch: Path, rng: random.Random) -> str:
    """A disk that is full at a random moment, then has room again."""
    whole = Reference(scratch)
    needed = sum(file.stat().st_size for file in (scratch / "first").iterdir())
    ends = Counter[int]()
    for i in range(count):
        room = int(rng.uniform(0, 1.1 * needed))
        with small_disk(scratch / f"full-{i}", room) as (folder, limited, free):
            ends[ended(forked(lambda folder=folder, limited=limited: (limited(), swept_here(folder))))] += 1
            free()
            whole.same(folder)
    check(set(ends) <= {WHOLE, DISK}, f"runs ended with {dict(ends)}")
    check(ends[DISK] > 0, "no disk was full")
    how = "a tmpfs of 1 MB" if can_mount(scratch) else "RLIMIT_FSIZE"
    return f"{count} runs with little room ({how}): {ends[DISK]} ended with DiskError, all resumed to equal results"


@contextmanager
def small_disk(place: Path, room: int) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A sweep's folder with so many bytes of room, what a process does first in it, and what frees it."""
    place.mkdir()
    if not mounted(place, "size=1m"):
        yield place / "s", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)), lambda: None
        return
    try:
        ballast = place / "ballast"
        ballast.write_bytes(b"x" * max(0, 2**20 - 2**14 - room))
        yield place / "s", lambda: None, ballast.unlink
    finally:
        subprocess.run(["umount", place], check=True)


def mounted(place: Path, options: str) -> bool:
    """Whether a file system in memory can be mounted there."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    return (
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False).returncode
        == 0
    )


def can_mount(scratch: Path) -> bool:
    place = scratch / "mounted"
    place.mkdir()
    return mounted(place, "size=1m") and subprocess.run(["umount", place], check=True).returncode == 0


def read_only(count: int, scratch: Path, rng: random.Random) -> str:
    """A folder that may not be written to, for sweeps and for artifacts."""
    place = scratch / "read-only"
    place.mkdir()
    is_mounted = mounted(place, "ro")
    how = "a tmpfs mounted read-only" if is_mounted else "a folder of mode 0555"
    if not is_mounted:
        place.chmod(0o555)
    try:
        for _ in range(count):
            check(ended(swept(place / "s")) == DISK, "a sweep in a read-only folder did not end with DiskError")
            for save in (direction().save, direction().save_pretrained):
                check(ended(forked(lambda save=save: save(place / "d"))) == DISK, "a save did not end with DiskError")
    finally:
        if is_mounted:
            subprocess.run(["umount", place], check=True)
        place.chmod(0o755)
    return f"{count} sweeps and {2 * count} saves in {how}: all ended with DiskError"


def removed(count: int, scratch: Path, rng: random.Random) -> str:
    """A folder that is moved away while the sweep runs."""
    whole, ends = Reference(scratch), Counter[int]()
    for i in range(count):
        folder = scratch / f"removed-{i}"
        process, lines = swept(folder), rng.randrange(len(whole.content["lines"]))
        file = folder / results.LINES if lines else folder
        while not file.exists() or (lines and file.read_bytes().count(b"\n") < lines):
            time.sleep(0.001)
        folder.rename(scratch / f"gone-{i}")
        ends[ended(process)] += 1
        whole.same(folder)
        whole.same(scratch / f"gone-{i}")
    check(FOREIGN not in ends, f"runs ended with {dict(ends)}")
    others = f"{ends[REFUSED]} with InvalidInput, {ends[WHOLE]} had finished"
    return (
        f"{count} folders moved away: {ends[DISK]} runs ended with DiskError, {others}; what was moved resumes to equal results"
    )


def direction(seed: float = 0.0) -> ul.CapabilityDirection:
    return ul.CapabilityDirection(torch.full((24, 4096), 1.0 + seed), tuple(range(24)))


def saves(count: int, scratch: Path, rng: random.Random) -> str:
    """Saves that are killed, read while they are written: the old file or the new one, whole, at any time."""
    path, found = scratch / "d.safetensors", Counter[float]()
    direction().save(path)
    began = time.monotonic()
    ul.CapabilityDirection.load(path)
    direction().save(path)
    seconds = time.monotonic() - began

    def saving(seed: int) -> None:
        while True:
            direction(seed % 7).save(path)
            seed += 1

    for i in range(count):
        process = forked(lambda i=i: saving(i))
        deadline = time.monotonic() + rng.uniform(0, 4 * seconds)
        while time.monotonic() < deadline:
            found[ul.CapabilityDirection.load(path).vectors.unique().item()] += 1
        check(killed_after(process, 0) == KILLED, "a save failed")
        found[ul.CapabilityDirection.load(path).vectors.unique().item()] += 1
    left = [file for file in scratch.iterdir() if file != path]
    for file in left:
        os.utime(file, (0, 0))  # as if an hour had passed
    direction().save(path)
    check([*scratch.iterdir()] == [path], "leftovers of killed saves stay")
    return f"{count} killed saves, {found.total()} reads beside them and after, all whole; {len(left)} leftovers, then removed"


CASES = {"kills": kills, "two": two, "full": full, "read_only": read_only, "removed": removed, "saves": saves}
USUAL = {"kills": 50, "two": 10, "full": 10, "read_only": 3, "removed": 10, "saves": 200}


def main(count: int | None, names: list[str]) -> int:
    """Run each case and print what came of it; 1 if something failed."""
    logging.disable(logging.WARNING)
    failed = False
    for name in names or list(CASES):
        with tempfile.TemporaryDirectory() as scratch:
            began = time.monotonic()
            try:
                told = CASES[name](count or USUAL[name], Path(scratch), random.Random(f"crash {name}"))
            except Failed as error:
                told, failed = f"FAILED: {error}", True
        print(f"{name}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
    return int(failed)


if __name__ == "__main__":
    asked = sys.argv[1:]
    number = int(asked.pop(0)) if asked and asked[0].isdecimal() else None
    sys.exit(main(number, asked))
