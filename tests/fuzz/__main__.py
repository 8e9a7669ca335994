"""`make fuzz`: many damaged files of each kind, `python -m tests.fuzz COUNT [KIND ...]`; of whole folders a quarter as many."""

from __future__ import annotations

import sys

from tests.fuzz.cases import FOLDERS, KINDS, run

count, kinds = int(sys.argv[1]), sys.argv[2:] or list(KINDS)
print("| kind | files | read | as another | refused | faults | slowest, s | most memory of Python, MB | process grew by, MB |")
print("|---" * 9 + "|")
total, failed = 0, False
for kind in kinds:
    cases = max(1, count // 4) if kind in FOLDERS else count
    found = run(kind, cases)
    numbers = [cases, *(found.counts[name] for name in ("read", "another", "refused")), len(found.faults)]
    sizes = f"{found.slowest:.2f} | {found.largest / 2**20:.0f} | {found.grown / 2**20:.0f}"
    print(f"| {kind} | {' | '.join(map(str, numbers))} | {sizes} |", flush=True)
    for fault in found.faults[:10]:
        print(f"  {fault}", file=sys.stderr)
    total, failed = total + cases, failed or bool(found.faults)
print(f"{total} cases")
sys.exit(failed)
