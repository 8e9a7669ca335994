"""`make fuzz`: many damaged files of each kind, `python -m tests.fuzz COUNT [KIND ...]`."""

from __future__ import annotations

import sys

from tests.fuzz.cases import KINDS, run

count, kinds = int(sys.argv[1]), sys.argv[2:] or list(KINDS)
print("| kind | files | read | as another | refused | faults | slowest, s | most memory, MB |")
print("|---" * 8 + "|")
failed = False
for kind in kinds:
    found = run(kind, count)
    numbers = [count, *(found.counts[name] for name in ("read", "another", "refused")), len(found.faults)]
    print(f"| {kind} | {' | '.join(map(str, numbers))} | {found.slowest:.2f} | {found.largest / 2**20:.0f} |", flush=True)
    for fault in found.faults[:10]:
        print(f"  {fault}", file=sys.stderr)
    failed = failed or bool(found.faults)
sys.exit(failed)
