"""Numbers as people write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlock_lens.evidence.results import Line


def difference_of(paired: Mapping[str, Any]) -> str:
    """A paired difference in percentage points, with its interval."""
    return f"{points(paired['difference'])} points [{points(paired['low'])} to {points(paired['high'])}]"


def share_of(line: Line) -> str:
    """The share of right answers, with its interval."""
    return f"{percent_of(line)} [{line['low']:.1%} to {line['high']:.1%}]"


def percent_of(line: Line) -> str:
    """The share of right answers."""
    return f"{line['accuracy']:.1%}"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return signed(100 * share, "+.1f")


def signed(value: float, form: str) -> str:
    """A number with a true minus sign."""
    return format(value, form).replace("-", "\u2212")


def p_value(p: float) -> str:
    """A p value as people write it."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def nats(kl: float) -> str:
    """A divergence, which is never below 0."""
    return "<0.001" if 0 < kl < 0.001 else f"{kl:.3g}"


def listed(words: list[str]) -> str:
    """Words with an "and" before the last."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
