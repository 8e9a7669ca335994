"""Requests that are sent and not waited for: the same call collects them later, in another process too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.remote.asking import Open, finished, status, tickets, wait_until
from tests.remote.calls import KINDS, call, content
from tests.remote.server.rig import Rig

ROOT = Path(__file__).parents[2]
REQUESTS = {"extract": 2, "fit": 4, "generate": 2}


def test_what_one_process_submits_another_collects(rig: Rig, remote_model: Open, tmp_path: Path) -> None:
    """It sends nothing, and gets bitwise what the calls give where they wait."""
    expected = {kind: _asked(kind, remote_model) for kind in KINDS}
    for kind in KINDS:
        function, args, kwargs = call(kind, remote_model, ul.Remote(batches=1))
        with rig.silent_actors("small-base"), rig.silent_actors("random-gpt2"):  # nothing can be finished yet
            ids = ul.submit(function, *args, resume=tmp_path / kind, **kwargs)
            assert sorted(ids) == sorted(tickets(tmp_path / kind))
            assert (len(ids), finished(tmp_path / kind)) == (REQUESTS[kind], [])
    command = [sys.executable, "-m", "tests.remote.calls", ",".join(KINDS), str(tmp_path), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    for kind in KINDS:
        found = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        same = [a == b if isinstance(a, str) else torch.equal(a, b) for a, b in zip(found, expected[kind], strict=True)]
        assert same
        assert all(same), kind
        assert json.loads((tmp_path / f"{kind}.json").read_text()) == {"requests": REQUESTS[kind], "up": 0}
        assert (len(finished(tmp_path / kind)), tickets(tmp_path / kind)) == (REQUESTS[kind], [])


def _asked(kind: str, remote_model: Open) -> list[Any]:
    function, args, kwargs = call(kind, remote_model, ul.Remote(batches=1))
    return content(function(*args, **kwargs))


def test_a_call_that_does_not_wait_says_what_is_running_and_gives_the_result_afterwards(
    rig: Rig, remote_model: Open, tmp_path: Path
) -> None:
    remote = ul.Remote(batches=1)
    function, args, kwargs = call("extract", remote_model, remote)
    with rig.silent_actors("small-base"):
        ids = ul.submit(function, *args, resume=tmp_path, **kwargs)
        sent = remote.traffic.up
        with pytest.raises(ul.JobsRunning, match=ids[0]) as told:
            function(*args, resume=tmp_path, wait=False, **kwargs)
    assert (told.value.ids, told.value.job_id) == (ids, ids[0])
    wait_until(lambda: all(status(one) == "COMPLETED" for one in ids))
    found = function(*args, resume=tmp_path, wait=False, **kwargs)
    assert torch.equal(found.vectors, _asked("extract", remote_model)[0])
    assert (remote.traffic.requests, remote.traffic.up) == (2, sent)


def test_there_is_nothing_to_collect_without_a_folder(remote_model: Open) -> None:
    function, args, kwargs = call("extract", remote_model, ul.Remote())
    with pytest.raises(ul.InvalidInput, match="resume"):
        function(*args, wait=False, **kwargs)
