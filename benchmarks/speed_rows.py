"""One row of the speed table, and what every group of rows is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Ratio, Times
from speed_models import Models


@dataclass(frozen=True)
class Row:
    """A work, what it is held against, and how it did.

    Attributes:
        bar: the ratio of the least times may not be above it; None where the ratio is told for comparison alone.
    """

    work: str
    against: str
    ratio: Ratio
    bar: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.bar is None else self.ratio.minimum <= self.bar

    @classmethod
    def timed(cls, times: Times, work: str, against: str, bar: float | None = None) -> Row:
        return cls(work, against, times.ratio(work, against), bar)

    @classmethod
    def counted(cls, work: str, against: str, value: float, bar: float | None = None) -> Row:
        """What is the same in every run."""
        return cls(work, against, Ratio(value, value), bar)


@dataclass(frozen=True)
class Setup:
    """What the benchmarks share.

    Attributes:
        models: of the large shape.
        folder: for files that a benchmark writes.
        rounds: how often each work is timed.
        tell: called when a round is over.
    """

    models: Models
    folder: Path
    rounds: int
    tell: Callable[[], Any]
