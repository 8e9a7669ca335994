"""A results file survives what happens to files: cut-off lines are set aside, told, and nothing finished is lost."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
from pathlib import Path

import pytest

import unlock_lens as ul
from unlock_lens import results
from unlock_lens.evidence.results import DESCRIPTIONS, Results
from unlock_lens.evidence.sweep.config import Setting


def line(alpha: float, split: str = "train", **more: object) -> dict[str, object]:
    told = {"accuracy": 0.5, "low": 0.1, "high": 0.9, "n": 2, "right": [0, 1], "tokens": 2.0, "seconds": 0.1}
    config = dataclasses.asdict(Setting("think", n=7, alpha=alpha))
    return {"config": config, "split": split, **told, **more}


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
def test_a_cut_off_line_is_set_aside_and_reported(file: Path, rest: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Even a line that reads as whole is not, without its newline: it may be the beginning of a longer one."""
    with file.open("ab") as out:
        out.write(rest)
    with caplog.at_level(logging.WARNING):
        assert results.mend(file) == [line(0.1), line(0.2)]
    assert re.search("results.jsonl.* 2 .*results.damaged.jsonl", caplog.text)
    assert (file.parent / results.DAMAGED).read_bytes() == rest + b"\n"
    results.append(file, line(0.3))
    assert results.mend(file) == [line(0.1), line(0.2), line(0.3)]


CONFIG = dataclasses.asdict(Setting("think", alpha=0.3))
BAD: list[bytes] = [
    b"5", b"{}", b"[]", b"null", b"{", b"\xff", b"NaN", b"[" * 100_000, b'{"config": ' * 300, b"1" * 5000,
    *(json.dumps({k: v for k, v in line(0.3).items() if k != key}).encode() for key in line(0.3)),
    *(json.dumps(line(0.3, config={k: v for k, v in CONFIG.items() if k != key})).encode() for key in [*CONFIG][:-1]),
    *(
        json.dumps(line(0.3) | change).encode()
        for change in (
            {"accuracy": 0.9}, {"accuracy": "0.5"}, {"accuracy": True}, {"accuracy": math.nan}, {"n": 3}, {"right": [0, 2]},
            {"right": [False, True]}, {"low": 0.6}, {"split": "dev"}, {"config": None}, {"config": {"alpha": "x"}},
            {"config": {"alpha": None}}, {"completions": ["a"]}, {"completions": ["a", "\ud800"]}, {"tokens": math.inf},
            {"price": {"kl": "x"}}, {"paired": {}}, {"behaviours": {"think": 2}}, {"sharpening": {"pass_at_k": {"x": 0.5}}},
            {"n": 1, "right": [1], "accuracy": 1.0, "high": 1.0},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad[-40:].decode("latin1"))
def test_a_bad_line_is_set_aside_by_its_number_and_the_rest_is_kept(
    file: Path, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = file.read_bytes().splitlines()
    content = b"\n".join([first, bad, second]) + b"\n"
    file.write_bytes(content)
    assert list(Results.load(file.parent).lines) == [line(0.1), line(0.2)]
    assert "line 2" in caplog.text
    assert file.read_bytes() == content  # a reader changes nothing
    assert results.mend(file) == [line(0.1), line(0.2)]
    assert file.read_bytes() == first + b"\n" + second + b"\n"
    assert (file.parent / results.DAMAGED).read_bytes() == bad + b"\n"


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize(
    "content", [b"", b"5", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"maps": 5, "controls_left_out": 5, "test": 5}']
)
def test_a_description_that_cannot_be_trusted_counts_as_missing(
    file: Path, name: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (file.parent / f"{name}.json").write_bytes(content)
    assert getattr(Results.load(file.parent), name) is None
    assert f"{name}.json is left out" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["", "5", "a: [", "controls: 5\ncapability: {name: think}", "others: [5]\ncapability: {name: think}", "[" * 5000,
     "d: 2024-99-99", "name: !!python/object/apply:os.system ['x']", "a: &a [1]\nb: *a", "capability: {name: a, name: b}"],
)  # fmt: skip
def test_a_config_that_is_not_a_sweeps_is_refused(file: Path, content: str) -> None:
    (file.parent / results.CONFIG).write_text(content)
    with pytest.raises(ul.InvalidInput, match=results.CONFIG):
        Results.load(file.parent)


def test_what_is_written_whole_leaves_nothing_else_and_follows_no_planted_link(tmp_path: Path) -> None:
    outside, file = tmp_path / "outside", tmp_path / "kept.json"
    outside.write_text("mine")
    (tmp_path / ".kept.json.part").symlink_to(outside)
    old = tmp_path / f".kept.json.{'0' * 32}.part"
    old.write_text("left")
    os.utime(old, (0, 0))
    results.write_whole(file, "new")
    assert (file.read_text(), outside.read_text(), old.exists()) == ("new", "mine", False)


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert results.mend(tmp_path / results.LINES) == []


def test_frames_spread_the_config_and_keep_both_counts(file: Path) -> None:
    frame = Results.load(file.parent).frame()
    assert frame["alpha"].tolist() == [0.1, 0.2]
    assert frame["n_pairs"].tolist() == [7, 7]
    assert frame["split"].tolist() == ["train", "train"]


def test_a_repeated_configuration_counts_once_and_the_first_line_stays(file: Path) -> None:
    turned = line(0.1, right=[1, 0], config=dict(reversed(dataclasses.asdict(Setting("think", n=7, alpha=0.1)).items())))
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
    (tmp_path / results.CONFIG).write_text("capability: {name: x}\n")
    with pytest.raises(ul.InvalidInput, match="unlock-lens sweep"):
        Results.load(tmp_path)


def test_descriptions_are_read_where_they_are(file: Path) -> None:
    assert Results.load(file.parent).geometry is None
    results.write_whole(file.parent / "geometry.json", json.dumps({"maps": []}))
    assert Results.load(file.parent).geometry == {"maps": []}
    assert not list(file.parent.glob(".*"))
