"""A results file survives what happens to files: cut-off lines are set aside, told, and nothing finished is lost."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

import unlock_lens as ul
from unlock_lens import results
from unlock_lens.evidence.results import Results


def line(alpha: float, split: str = "train", **more: object) -> dict[str, object]:
    return {"config": {"capability": "think", "control": None, "n": 7, "alpha": alpha}, "split": split, "accuracy": 0.5, **more}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / results.CONFIG).write_text("capability: {name: think}\n")
    for alpha in (0.1, 0.2):
        results.append(tmp_path / results.LINES, line(alpha))
    return tmp_path / results.LINES


def test_lines_come_back_as_they_were(file: Path) -> None:
    assert results.mend(file) == [line(0.1), line(0.2)]
    assert list(Results.load(file.parent).lines) == [line(0.1), line(0.2)]


@pytest.mark.parametrize("rest", [b'{"config": {"alpha": 0.', b"\x00\x00", b'{"whole": 1}'])
def test_a_cut_off_line_is_set_aside_and_told(file: Path, rest: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Even a line that reads as whole is not, without its newline: it may be the beginning of a longer one."""
    with file.open("ab") as out:
        out.write(rest)
    with caplog.at_level(logging.WARNING):
        assert results.mend(file) == [line(0.1), line(0.2)]
    assert re.search("results.jsonl.* 2 .*results.damaged.jsonl", caplog.text)
    assert (file.parent / results.DAMAGED).read_bytes() == rest + b"\n"
    results.append(file, line(0.3))
    assert results.mend(file) == [line(0.1), line(0.2), line(0.3)]


def test_damage_before_the_end_is_an_error_that_touches_nothing(file: Path) -> None:
    content = file.read_bytes().replace(b'"split"', b"split", 1)
    file.write_bytes(content)
    with pytest.raises(ul.InvalidInput, match="damaged"):
        results.mend(file)
    assert file.read_bytes() == content


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert results.mend(tmp_path / results.LINES) == []


def test_frames_spread_the_config_and_keep_both_counts(file: Path) -> None:
    frame = Results.load(file.parent).frame()
    assert frame["alpha"].tolist() == [0.1, 0.2]
    assert frame["n_pairs"].tolist() == [7, 7]
    assert frame["split"].tolist() == ["train", "train"]


def test_a_repeated_configuration_counts_once_and_the_first_line_stays(file: Path) -> None:
    turned = {"accuracy": 0.9, "split": "train", "config": {"alpha": 0.1, "n": 7, "control": None, "capability": "think"}}
    results.append(file, turned)
    results.append(file, line(0.1, "test"))
    assert list(Results.load(file.parent).lines) == [line(0.1), line(0.2), line(0.1, "test")]


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ({"unlocked": "Q think"}, "prompted"),
        ({"target_unlocked": None}, "prompted"),
        ({"target_unlocked": "m"}, "post_trained"),
    ],
)
def test_in_a_model_contrast_the_unlocked_model_is_not_called_prompted(capability: dict[str, str], name: str) -> None:
    tested = {"config": {"capability": "think", "control": "prompted"}, "split": "test", "accuracy": 0.5}
    assert list(Results({"capability": {"name": "think", **capability}}, (tested,)).arms()) == [name]


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ul.InvalidInput, match="config.yaml"):
        Results.load(tmp_path)
    (tmp_path / results.CONFIG).write_text("name: x\n")
    with pytest.raises(ul.InvalidInput, match="unlock-lens sweep"):
        Results.load(tmp_path)


def test_descriptions_are_read_where_they_are(file: Path) -> None:
    assert Results.load(file.parent).geometry is None
    results.write_whole(file.parent / "geometry.json", json.dumps({"maps": []}))
    assert Results.load(file.parent).geometry == {"maps": []}
    assert not list(file.parent.glob(".*"))
