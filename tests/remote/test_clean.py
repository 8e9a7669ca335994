"""The server has nothing of this library but what requests bring."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import nnsight

import unlock_lens as ul
from tests.remote.asking import Open
from tests.remote.server.rig import BIN, Rig
from unlock_lens.hosts.transport import Job


def test_the_servers_environment_does_not_have_the_library(tmp_path: Path) -> None:
    found = subprocess.run(
        [BIN / "python", "-E", "-c", "import unlock_lens"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert "No module named 'unlock_lens'" in found.stderr


def test_a_model_of_the_server_cannot_import_the_library(remote_model: Open) -> None:
    model = remote_model("small-base")
    job, found = Job(model, ul.Remote()), None
    with model.trace("Q 1 A :", backend=job):
        found = nnsight.save([importlib.util.find_spec(name) is not None for name in ("unlock_lens", "transformers")])
    assert found is None  # it does not run here
    assert job.result() == [False, True]


def test_the_server_runs_apart(rig: Rig) -> None:
    """In a process namespace, which ends with the tests, and a network namespace that has loopback alone."""
    assert Path("/proc/1/cmdline").read_bytes().startswith(b"sh\0-c\0")
    assert [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]] == ["lo"]
    assert rig.folder == Path(os.environ["UNLOCK_LENS_RIG"])
