"""What a disk refuses is the library's own error, which names the path and the way out; the old file stays, whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import interchange
from unlock_lens.core.jobs import Kept
from unlock_lens.core.writing import write_whole
from unlock_lens.evidence import results


def direction() -> ul.CapabilityDirection:
    return ul.CapabilityDirection(torch.ones(2, 8), (1, 2))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "direction": lambda path: direction().save(path),
    "folder": lambda path: direction().save_pretrained(path.parent),
    "gguf": lambda path: interchange.to_gguf(direction(), path, architecture="llama", lossy=True),
    "steering_vectors": lambda path: interchange.to_steering_vectors(direction(), path),
    "text": lambda path: write_whole(path, b"new"),
    "line": lambda path: results.append(path, {"a": 1}),
    "result": lambda path: Kept(path.parent).keep("key", {"mean": torch.ones(1)}),
    "ticket": lambda path: Kept(path.parent).remember("key", "job"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("code", "way_out"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "allow this user"), (errno.EIO, "look at the disk")]
)
def test_what_a_disk_refuses_is_our_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, code: int, way_out: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old\n")

    def refuses(*of: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(ul.DiskError, match=way_out) as raised:
        WRITERS[writer](path)
    assert isinstance(raised.value, OSError)
    assert str(tmp_path) in str(raised.value) or writer == "folder"  # which is made in the system's folder for temporaries
    monkeypatch.undo()
    assert path.read_bytes().startswith(b"old\n")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ul.DiskError, match="gone.*removed meanwhile"):
        results.append(tmp_path / "gone" / "results.jsonl", {})


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes, then its name, then the folder: what a loss of power leaves is the old file or the new one."""
    done: list[str] = []

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *of: (done.append(name), call(*of))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    for write in ("direction", "steering_vectors", "text"):
        done.clear()
        WRITERS[write](tmp_path / "file")
        assert (done[0], done[-2:]) == ("fsync", ["replace", "fsync"])


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(("10", "saves"), id="saves"),
        pytest.param(("2", "kills", "two", "full", "read_only", "removed"), id="sweeps", marks=pytest.mark.full),
    ],
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
def test_what_is_interrupted_is_whole(cases: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.crash", *cases], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == len(cases) - 1
