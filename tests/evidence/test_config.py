"""A config is checked whole before any model is loaded, and its errors say which key, what was given, and what would do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import unlock_lens as ul
from unlock_lens import recipes
from unlock_lens.evidence.sweep.config import SweepConfig, difference


def told(**changes: Any) -> str:
    """The error of the embedded family's config with some keys changed; dots reach into parts."""
    content = recipes.load("zoo").model_dump(mode="json")
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = content
        for part in parts:
            place = place[part]
        place[last] = value
    with pytest.raises(ul.InvalidInput) as error:
        SweepConfig.parse(content, "mine.yaml")
    assert str(error.value).startswith("mine.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alhpa": 1}, "alhpa"),
        ({"controlls": []}, "'controlls'.*controls[^']"),
        ({"grid__alhpa": [1]}, "grid.*alhpa.*alpha"),
        ({"capability__unlock": "x"}, "capability.*'unlock'.*unlocked"),
        ({"task": {"kind": "jsonl", "paht": "x"}}, "paht.*path"),
        ({"sizes__tset": 3}, "sizes.*tset.*test"),
        ({"grid__rank": [0]}, "grid.rank.0.*given: 0"),
        ({"grid__rank": []}, "grid.rank"),
        ({"grid__rank": [4, 4]}, "rank.*twice"),
        ({"grid__alpha": [0.5, -1]}, "grid.alpha.1.*given: -1"),
        ({"grid__alpha": [float("nan")]}, "grid.alpha.0.*finite"),
        ({"grid__operation": ["multiply"]}, "grid.operation.0.*norm_preserving.*ablate"),
        ({"grid__layers": ["3-1"]}, "layers.*3-1"),
        ({"grid__layer_map": ["0-1"]}, "proportional"),
        ({"grid__n": [500]}, "grid.n.*500.*sizes.extract.*200"),
        ({"controls": ["rnadom"]}, "controls.0.*paper.*own"),
        ({"capability__locked": "no slot"}, "{question}"),
        ({"capability__unlocked": None}, "source_unlocked"),
        ({"calibration": None}, "calibration"),
        ({"others": [{"name": "think", "locked": "{question}", "unlocked": "{question}!"}]}, "one name"),
        ({"task": {"kind": "chess"}}, "task"),
        ({"sampling": {"temperature": 0}}, "sampling.temperature"),
    ],
)
def test_mistakes_are_reported(changes: dict[str, Any], message: str) -> None:
    assert re.search(message, told(**changes))


def test_all_mistakes_are_reported_at_once() -> None:
    both = told(grid__rank=[0], sizes__test=0)
    assert "grid.rank.0" in both
    assert "sizes.test" in both


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a\n", "list"), ("a: [", "YAML"), ("", "NoneType")],
)
def test_files_that_are_not_configs(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ul.InvalidInput, match=message):
        SweepConfig.load(tmp_path / "x.yaml")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ul.InvalidInput, match=r"nothing\.yaml"):
        SweepConfig.load(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("name", ["zoo", "demo", "cot", "cot-zoo", "post-training", "post-training-zoo", "icl"])
def test_recipes_are_read_and_written_without_a_change(name: str) -> None:
    config = recipes.load(name)
    assert SweepConfig.parse(yaml.safe_load(config.to_yaml())) == config
    assert difference(config.to_yaml(), config.to_yaml()) == ""


def test_an_unknown_recipe_is_reported() -> None:
    with pytest.raises(ul.InvalidInput, match="cots.*cot, cot-zoo"):
        recipes.load("cots")


def test_the_difference_is_shown_line_by_line() -> None:
    assert difference("a: 1\nb: 2\n", "a: 1\nb: 3\n") == "-b: 2\n+b: 3"


def test_models_on_a_server_take_nnsight() -> None:
    with pytest.raises(ul.InvalidInput, match="backend"):
        SweepConfig.parse({**recipes.smallest().model_dump(mode="json"), "remote": "http://127.0.0.1:8001"})
    on_ndif = {**recipes.smallest().model_dump(mode="json"), "remote": True, "backend": "nnsight"}
    assert SweepConfig.parse(on_ndif).remote is True
