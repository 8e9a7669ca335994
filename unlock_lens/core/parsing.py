"""Descriptions as files have them: JSON that cannot surprise, and the words of older versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

DEEPEST = 20
"""Levels of lists and dictionaries in a description."""


def parsed(text: bytes | str) -> dict[str, Any]:
    """A JSON object whose keys are unique.

    Raises:
        ValueError: anything else.
    """
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} stands where an object belongs")
    _check_depth(found)
    return found


def in_todays_words(told: Any) -> Any:
    """The words of today for those that changed their meaning or name, wherever they stand."""
    if isinstance(told, list):
        return [in_todays_words(each) for each in told]
    if not isinstance(told, dict):
        return told
    renamed = {("basis", "centered"): "zero_mean", ("sinks", "whiten"): "rescale"}
    return {
        key: renamed.get((key, value), value) if isinstance(value, str) else in_todays_words(value)
        for key, value in told.items()
    }


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
    ]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
