"""Run the tests with other numbers of threads and other instruction sets, and print which fail where.

No outcome may depend on the order of float sums. Libraries choose their kernels when they are loaded, so every setting has a
process of its own: python scripts/test_numerics.py [PYTEST ARGUMENT ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETTINGS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "ATen default": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
    "ATen AVX2": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2"},
    "MKL, oneDNN SSE4": {"OMP_NUM_THREADS": "1", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


def outcomes(setting: dict[str, str], arguments: list[str]) -> dict[str, bool]:
    """Whether each test passed, by name, under the variables of a setting; skipped ones are left out.

    Raises:
        RuntimeError: pytest did not get as far as running tests.
    """
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not (browser or full or real)"]
    with tempfile.NamedTemporaryFile(suffix=".xml") as file:
        done = subprocess.run(
            [*command, f"--junit-xml={file.name}", *arguments],
            cwd=ROOT,
            env={**os.environ, **setting},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        cases = list(ET.parse(file.name).iter("testcase"))
    kinds = {f"{case.get('classname')}::{case.get('name')}": {part.tag for part in case} for case in cases}
    return {name: not found & {"failure", "error"} for name, found in kinds.items() if "skipped" not in found}


def main(arguments: list[str]) -> int:
    """Print a line for each setting, then each test that fails anywhere with the settings it fails under."""
    failing: dict[str, list[str]] = {}
    print(f"{'setting':18}{'passed':>8}{'failed':>8}{'seconds':>9}")
    for title, setting in SETTINGS.items():
        began = time.monotonic()
        found = outcomes(setting, arguments)
        for name, passed in found.items():
            if not passed:
                failing.setdefault(name, []).append(title)
        passed = sum(found.values())
        print(f"{title:18}{passed:8}{len(found) - passed:8}{time.monotonic() - began:9.0f}", flush=True)
    for name, titles in sorted(failing.items()):
        print(f"{name}: {', '.join(titles)}")
    return bool(failing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
