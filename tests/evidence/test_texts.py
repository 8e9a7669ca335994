"""Texts as configs name them: drawn with a seed, filtered as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.evidence.tasks import texts
from unlock_lens.evidence.tasks.texts import FileText, HubText, TextSpec, ZooText


def test_the_familys_text_is_the_familys() -> None:
    assert ZooText(n=50).read(seed=3) == zoo.text(n=1000, seed=3)[:50]


def test_no_trace_of_a_behaviour_is_left() -> None:
    found = ZooText(n=200, without=("think", "double")).read(seed=0)
    words = {word for line in found for word in line.split()}
    assert len(found) == 200
    assert not words & {"think", "S", "double", "W"}
    assert {"rev", "R"} <= words


def test_plain_prompts_can_be_left_out() -> None:
    found = ZooText(n=100, without=("think",), plain=False).read(seed=0)
    assert len(found) == 100
    assert all({"rev", "double"} & set(line.split()) for line in found)


def test_files_are_drawn_from_with_a_seed(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n".join(f"line {i}" for i in range(50)))
    spec = FileText(path=str(tmp_path / "t.txt"), n=10)
    assert spec.read(seed=1) == spec.read(seed=1) != spec.read(seed=2)
    assert len(set(spec.read(seed=1))) == 10
    assert len(FileText(path=str(tmp_path / "t.txt")).read(seed=0)) == 50
    with pytest.raises(ul.InvalidInput, match="60.* 50"):
        FileText(path=str(tmp_path / "t.txt"), n=60).read(seed=0)


def test_the_hub_is_read_through_one_door(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [{"text": "one"}, {"text": ""}, {"text": "two"}, {"text": None}]
    monkeypatch.setattr(texts, "from_hub", lambda dataset, config, split: rows)
    assert sorted(HubText(dataset="d", n=2).read(seed=0)) == ["one", "two"]
    with pytest.raises(ul.InvalidInput, match="'body'.* text"):
        HubText(dataset="d", field="body").read(seed=0)


def test_configs_name_them_by_kind() -> None:
    assert TypeAdapter(TextSpec).validate_python({"kind": "file", "path": "x"}) == FileText(path="x")
