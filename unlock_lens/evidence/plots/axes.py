"""The axes of a drawing: where a value lies, and which values are marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

STEPS = (1, 2, 2.5, 5, 10)
ALONE = 0.5
"""The room on either side of a value that is the only one, where it is 0."""


@dataclass(frozen=True)
class Axis:
    """One side of a panel.

    Attributes:
        names: of its categories, in order; empty on an axis of numbers.
        is_log: whether `low` and `high` are decimal logarithms.
        low, high: the values at its ends.
        ticks: the values that are marked, and their labels.
        start, end: the pixels of `low` and `high`.
    """

    names: tuple[str, ...]
    is_log: bool
    low: float
    high: float
    ticks: tuple[tuple[Any, str], ...]
    start: float = 0.0
    end: float = 1.0

    def at(self, value: Any) -> float:
        """The pixel of a value, or of a category's name or place."""
        place = self.names.index(value) if isinstance(value, str) else math.log10(value) if self.is_log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def between(self, start: float, end: float) -> Axis:
        """The same axis, laid out from one pixel to another."""
        return replace(self, start=start, end=end)


def axis_of(spec: Mapping[str, Any], values: Iterable[Any], most: int = 6) -> Axis:
    """The axis that a figure's layout asks for; `most` is how many ticks there is room for."""
    known = [value for value in values if value is not None]
    if spec.get("type") == "category" or any(isinstance(value, str) for value in known):
        return _categories(spec, [str(value) for value in known])
    is_log = spec.get("type") == "log"
    low, high = _span(spec, [math.log10(value) for value in known if value > 0] if is_log else known)
    if is_log and not spec.get("tickvals"):
        ticks = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    else:
        ticks = [*(spec.get("tickvals") or _ticks(low, high, min(most, spec.get("nticks") or most), spec.get("dtick")))]
    form = str(spec.get("tickformat") or "g").removeprefix("~")
    labels = spec.get("ticktext") or [format(tick, form).replace("-", "\u2212") for tick in ticks]
    return Axis((), is_log, low, high, tuple(zip(ticks, labels, strict=True)))


def _categories(spec: Mapping[str, Any], values: Sequence[str]) -> Axis:
    names = tuple(spec.get("categoryarray") or dict.fromkeys(values))
    low, high = spec.get("range") or (-0.5, len(names) - 0.5)
    if spec.get("autorange") == "reversed":
        low, high = high, low
    return Axis(names, False, low, high, tuple((i, name) for i, name in enumerate(names)))


def _span(spec: Mapping[str, Any], values: Sequence[float]) -> tuple[float, float]:
    if spec.get("range"):
        low, high = spec["range"]
        return float(low), float(high)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if spec.get("rangemode") == "tozero":
        low, high = min(0.0, low), max(0.0, high)
        return low, high + 0.06 * (high - low) if high > low else 1.0
    if low == high:
        return low - (abs(low) / 2 or ALONE), high + (abs(high) / 2 or ALONE)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _ticks(low: float, high: float, most: int, step: float | None) -> list[float]:
    """Round numbers in a span, at most so many."""
    if not step:
        rough = (high - low) / max(most - 1, 1)
        size = 10.0 ** math.floor(math.log10(rough))
        step = size * next(each for each in STEPS if each * size >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
