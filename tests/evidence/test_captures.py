"""What a sweep has read from its models stays in its folder until it is finished, and is used only by the same sweep."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from unlock_lens import recipes, sweep
from unlock_lens.core import read
from unlock_lens.evidence import results
from unlock_lens.evidence.sweep import captures, material
from unlock_lens.evidence.sweep.captures import Captures
from unlock_lens.evidence.sweep.config import SweepConfig


def config(**changes: Any) -> SweepConfig:
    content = recipes.smallest().model_dump(mode="json")
    content |= {"controls": ["anti_mean", "shuffled"], "nulls": 1, "control_seeds": 1, "sampling": {"samples": 0}}
    content |= {"sizes": {"extract": 40, "train": 8, "test": 8}, "grid": {"aligner": ["text"], "n": [40], "alpha": [0.5]}}
    content |= {"calibration": {"kind": "self", "n": 20, "max_new_tokens": 12}, "unrelated": None}
    return SweepConfig.parse({**content, **changes})


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that a model is read, or writes calibration text, for a sweep's material."""
    made: list[str] = []
    for owner, name in ((read, "states"), (material, "mean_state"), (material, "calibration_texts")):
        own = getattr(owner, name)

        def counting(*args: Any, _own: Any = own, _name: str = name, **how: Any) -> Any:
            made.append(_name)
            return _own(*args, **how)

        monkeypatch.setattr(owner, name, counting)
    return made


def test_a_resumed_sweep_reads_nothing_again(readings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep.run(config(), tmp_path / "whole", progress=False)
    once, append = list(readings), results.append
    assert {"states", "mean_state", "calibration_texts"} == set(once)
    readings.clear()

    def preempted(file: Path, line: Any) -> None:
        append(file, line)
        if len(file.read_text().splitlines()) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(results, "append", preempted)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(config(), tmp_path / "part", progress=False)
    monkeypatch.setattr(results, "append", append)
    before = list(readings)
    readings.clear()
    resumed = sweep.run(config(batch_size=7), tmp_path / "part", progress=False)
    assert sorted([*before, *readings]) == sorted(once)
    assert "calibration_texts" not in readings
    for a, b in zip(whole.lines, resumed.lines, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert not (tmp_path / "part" / captures.FOLDER).exists()


def test_other_inputs_find_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Captures(tmp_path / "kept", "these")
    assert torch.equal(first.tensor("a", lambda: torch.ones(2)), torch.ones(2))
    assert first.texts("b", lambda: ["x"]) == ["x"]
    again = Captures(tmp_path / "kept", "these")
    assert torch.equal(again.tensor("a", lambda: torch.zeros(2)), torch.ones(2))
    assert again.texts("b", lambda: ["y"]) == ["x"]
    assert torch.equal(again.tensor("c", lambda: torch.zeros(3)), torch.zeros(3))
    for file in (tmp_path / "kept").iterdir():
        file.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(again.tensor("a", lambda: torch.zeros(2)), torch.zeros(2))
        assert again.texts("b", lambda: ["y"]) == ["y"]
    assert caplog.text.count("made again") == 2
    other = Captures(tmp_path / "kept", "others")
    assert list((tmp_path / "kept").iterdir()) == []
    other.clear()
    assert not (tmp_path / "kept").exists()


def test_a_full_disk_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(captures, "_SPARE", 1e18)
    kept = Captures(tmp_path / "kept", "these")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(kept.tensor("a", lambda: torch.ones(2)), torch.ones(2))
    assert "no room" in caplog.text
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_thinned_corpus_is_told_with_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = material.Material(config(), progress=False).splits
    texts = [*asked.extract.questions[:5], asked.test.questions[0], f"{asked.train.questions[0]} and more"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with caplog.at_level(logging.WARNING):
        kept = material.Material(config(calibration={"kind": "file", "path": str(tmp_path / "t.jsonl")}), progress=False).texts
    assert kept == texts[:5]
    assert "2 of 7 calibration texts" in caplog.text
