"""`import unlock_lens` against `import torch`, each in a process of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from measure import Times
from speed_rows import Row, Setup

IMPORTS = ("import unlock_lens", "import torch")


def import_rows(setup: Setup) -> list[Row]:
    """CPU time of the whole process, by the system's own account of processes that have ended."""
    for code in IMPORTS:
        _seconds(code, setup.folder)
    found: dict[str, list[float]] = {code: [] for code in IMPORTS}
    for _ in range(3 * setup.rounds):
        for code in IMPORTS:
            found[code].append(_seconds(code, setup.folder))
        setup.tell()
    times = Times({code: tuple(seconds) for code, seconds in found.items()})
    return [Row.timed(times, *IMPORTS, bar=1.1)]


def _seconds(code: str, folder: Path) -> float:
    # Byte code is kept, as in any installation, but in a folder of this run.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = _used()
    subprocess.run([sys.executable, "-c", code], check=True, env={**kept, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")})
    return _used() - start


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
