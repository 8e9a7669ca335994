"""Progress bars of work that takes a while."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
_QUIET_SECONDS = 1.0
"""Work that ends within this time shows no bar."""


def shown(batches: Sequence[T], doing: str, progress: bool) -> Iterable[T]:
    """The batches, with a bar of what is being done and the time left."""
    return tqdm(batches, desc=doing, unit="batch", disable=not progress, delay=_QUIET_SECONDS)
