"""Results as lines of JSON, and tables between marks of a document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def lines(path: Path) -> list[dict[str, Any]]:
    """What is in a file of results; nothing if there is none yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one result in a single write, so that several processes can share a file."""
    with path.open("ab", buffering=0) as out:
        out.write((json.dumps(line, ensure_ascii=False) + "\n").encode())


def written_between(document: Path, name: str, text: str) -> None:
    """Replace what stands in a document between the marks of this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = document.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{document} has no marks {begin} and {end}")
    document.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")
