"""Progress bars of work that takes a while."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
_QUIET_SECONDS = 1.0
"""Work that ends within this time shows no bar."""


def shown(parts: Sequence[T], doing: str, progress: bool, unit: str = "batch") -> Iterable[T]:
    """The parts, with a bar of what is being done and the time left."""
    return tqdm(parts, desc=doing, unit=unit, disable=not progress, delay=_QUIET_SECONDS)


def tell(what: str, progress: bool) -> None:
    """A line about what was found, where bars go."""
    if progress:
        tqdm.write(what, file=sys.stderr)
