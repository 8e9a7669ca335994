"""What is wrong with a config is said in this library's words: pydantic's own stay inside."""

from __future__ import annotations

from typing import Any

import pytest

import unlock_lens as ul
from unlock_lens import recipes
from unlock_lens.evidence.sweep.config import SweepConfig

LEAKS = ("Input", "valid ", "discriminator", "tag", "Tuple", "Field", "validation", "literal[", "parse", "'kind'")
GRID = recipes.smallest().model_dump(mode="json")["grid"]


@pytest.mark.parametrize(
    ("change", "place", "expected"),
    [
        ({"task": {"kind": "gsm8"}}, "task", "did you mean gsm8k"),
        ({"task": {"kind": "x"}}, "task", "there are running_sum"),
        ({"task": {}}, "task", "kind"),
        ({"grid": {"alpha": [0.1]}}, "grid.n", "is missing"),
        ({"grid": {**GRID, "alpha": ["x"]}}, "grid.alpha.0", "a number"),
        ({"grid": {**GRID, "alpha": []}}, "grid.alpha", "at least 1"),
        ({"grid": {**GRID, "alpha": 0.1}}, "grid.alpha", "a list"),
        ({"grid": {**GRID, "alpha": [-1]}}, "grid.alpha.0", "more than 0"),
        ({"grid": {**GRID, "n": [1.5]}}, "grid.n.0", "a whole number"),
        ({"dtype": "float8"}, "dtype", "'float32'"),
        ({"remote": 3}, "remote", "true or false"),
        ({"controls": ["radom"]}, "controls.0", "did you mean random"),
        ({"source": None}, "source", "expected text"),
        ({"special_tokens": "maybe"}, "special_tokens", "true or false"),
        ({"stop": [""]}, "stop.0", "not empty"),
        ({"sampling": {"temperature": float("inf")}}, "sampling.temperature", "finite"),
        ({"calibration": {"kind": "self", "by": "both"}}, "calibration.self.by", "'source' or 'target'"),
        ({"aligner": {"positions": "first"}}, "aligner.positions", "'last' or 'all'"),
        ({"aligner": {"rigde": 1}}, "aligner", "did you mean ridge"),
    ],
)
def test_the_place_and_what_is_expected(change: dict[str, Any], place: str, expected: str) -> None:
    with pytest.raises(ul.InvalidInput) as told:
        SweepConfig.parse({**recipes.smallest().model_dump(mode="json"), **change})
    lines = str(told.value).splitlines()[1:]
    assert lines[0].startswith(f"  {place}: ")
    assert expected in lines[0]
    assert not [leak for leak in LEAKS if any(leak in line for line in lines)], lines
    assert not [line for line in lines[1:] if "at least 1" in line]
