"""What a user sees when something goes wrong: every fault is made on a real server, by killing, stopping or misusing it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import nnsight
import pytest
import torch

import unlock_lens as ul
from tests.remote import broken
from tests.remote.asking import (
    HOST,
    Open,
    extract,
    extract_slowly,
    finished,
    status,
    tickets,
    wait_until,
)
from tests.remote.server.rig import Rig
from unlock_lens.core import read
from unlock_lens.core.jobs import Kept
from unlock_lens.core.tokens import one_token
from unlock_lens.hosts.transport import model_key

nnsight.register(broken)


@pytest.fixture(scope="module")
def expected(remote_model: Open) -> torch.Tensor:
    """What `extract` gives where nothing goes wrong."""
    return extract(remote_model("small-base"), ul.Remote(batches=1))


@pytest.fixture(scope="module")
def written(remote_model: Open) -> list[str]:
    """What `generate_slowly` gives where nothing goes wrong."""
    return generate_slowly(remote_model("slow"), None, ul.Remote())


def generate_slowly(model: Any, folder: Path | None, remote: ul.Remote, tokens: int = 100) -> list[str]:
    return ul.generate(model, ["Q 1 A :"], max_new_tokens=tokens, resume=folder, remote=remote, progress=False)


def start_slowly(model: Any, folder: Path) -> str:
    """Send the request that `generate_slowly` collects; return its name when it runs."""
    ids = ul.submit(ul.generate, model, ["Q 1 A :"], max_new_tokens=100, remote=ul.Remote(), progress=False, resume=folder)
    wait_until(lambda: status(ids[0]) == "RUNNING")
    return ids[0]


def test_a_killed_server_is_unreachable_and_the_same_call_works_when_it_is_back(
    rig: Rig, remote_model: Open, expected: torch.Tensor, tmp_path: Path
) -> None:
    rig.kill_api()
    try:
        with pytest.raises(ul.ServerUnreachable, match=HOST) as told:
            extract(remote_model("small-base"), ul.Remote(batches=1), resume=tmp_path)
    finally:
        rig.start_api()
    assert (told.value.job_id, told.value.server_traceback) == (None, None)
    assert not list(tmp_path.iterdir())
    assert torch.equal(extract(remote_model("small-base"), ul.Remote(batches=1), resume=tmp_path), expected)


def test_a_host_that_is_not_there_is_unreachable(remote_model: Open) -> None:
    with pytest.raises(ul.ServerUnreachable, match="http://127.0.0.1:9 "):
        extract(remote_model("small-base"), ul.Remote("http://127.0.0.1:9"))


@pytest.mark.parametrize("said_by", ["Remote", "nnsight"])
def test_a_slash_after_the_host_is_not_a_fault(
    remote_model: Open, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch, said_by: str
) -> None:
    """The server itself answers 403 to a path with two slashes."""
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", f"{HOST}/")
    remote = ul.Remote(f"{HOST}/", batches=1) if said_by == "Remote" else ul.Remote(batches=1)
    assert torch.equal(extract(remote_model("small-base"), remote), expected)


def test_a_silent_server_is_given_up_after_the_patience(
    rig: Rig, remote_model: Open, expected: torch.Tensor, tmp_path: Path
) -> None:
    """Its processes are stopped: it accepts connections and answers nothing."""
    started = time.monotonic()
    with rig.silent_api():
        with pytest.raises(ul.DeadlineExceeded, match="patience"):
            extract(remote_model("small-base"), ul.Remote(batches=1, patience=1), resume=tmp_path)
    assert time.monotonic() - started < 5
    assert not finished(tmp_path)
    assert torch.equal(extract(remote_model("small-base"), ul.Remote(batches=1), resume=tmp_path), expected)


def test_a_silent_model_is_given_up_at_the_deadline_and_its_request_collected_later(
    rig: Rig, remote_model: Open, written: list[str], tmp_path: Path
) -> None:
    model = remote_model("slow")
    job_id = start_slowly(model, tmp_path)
    with rig.silent_actors("slow"):
        started = time.monotonic()
        with pytest.raises(ul.DeadlineExceeded, match="running.*deadline") as told:
            generate_slowly(model, tmp_path, ul.Remote(deadline=2))
        assert time.monotonic() - started < 6
    assert told.value.job_id == job_id
    assert (finished(tmp_path), tickets(tmp_path)) == ([], [job_id])
    later = ul.Remote()
    assert generate_slowly(model, tmp_path, later) == written
    assert (later.traffic.requests, later.traffic.up) == (1, 0)


def test_a_server_killed_while_a_request_runs_keeps_what_was_finished(rig: Rig, remote_model: Open, tmp_path: Path) -> None:
    """The request that ran is collected, and the last one sent; the result is bitwise that of a run without a fault."""
    model, undisturbed, folder = remote_model("slow"), ul.Remote(batches=1), tmp_path / "resumed"
    (tmp_path / "undisturbed").mkdir()
    whole = extract_slowly(model, undisturbed, resume=tmp_path / "undisturbed")

    def kill() -> None:
        wait_until(lambda: len(list(folder.glob("*.safetensors"))) == 1 and any(map(runs, folder.glob("*.job.json"))))
        rig.kill_api()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(ul.ServerUnreachable, match="NDIF_HOST") as told:
            extract_slowly(model, ul.Remote(batches=1), resume=folder)
        killer.join()
        assert len(finished(folder)) == 1
        assert tickets(folder) == [told.value.job_id]
    finally:
        killer.join()
        rig.start_api()
    again = ul.Remote(batches=1)
    assert torch.equal(extract_slowly(model, again, resume=folder), whole)
    assert again.traffic.requests == 2
    assert 0 < again.traffic.up < undisturbed.traffic.up / 2
    assert finished(folder) == finished(tmp_path / "undisturbed")
    assert not tickets(folder)


def runs(ticket: Path) -> bool:
    try:
        return status(json.loads(ticket.read_text())["id"]) == "RUNNING"
    except (FileNotFoundError, json.JSONDecodeError):  # finished, or being written
        return False


def test_a_server_restarted_between_two_requests_is_not_noticed(
    rig: Rig, remote_model: Open, expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, kept = Kept.keep, list[str]()

    def keep_and_restart(self: Kept, key: str, found: dict[str, torch.Tensor]) -> None:
        keep(self, key, found)
        kept.append(key)
        if len(kept) == 2:
            rig.restart_api()

    monkeypatch.setattr(Kept, "keep", keep_and_restart)
    remote = ul.Remote(batches=1)
    assert torch.equal(extract(remote_model("small-base"), remote, resume=tmp_path), expected)
    assert (remote.traffic.requests, len(finished(tmp_path))) == (4, 4)


def test_a_model_killed_while_a_request_runs_fails_it_and_the_same_call_sends_it_again(
    rig: Rig, remote_model: Open, written: list[str], tmp_path: Path
) -> None:
    """The server gives the request up, and loads the model again for the next one."""
    model = remote_model("slow")
    job_id = start_slowly(model, tmp_path)
    rig.kill_actors("slow")
    with pytest.raises(ul.RemoteFailure, match="again") as told:
        generate_slowly(model, tmp_path, ul.Remote(deadline=60))
    assert told.value.job_id == job_id
    assert not list(tmp_path.iterdir())
    assert generate_slowly(model, tmp_path, ul.Remote()) == written


def test_a_request_that_runs_too_long_for_the_server_should_be_made_smaller(remote_model: Open, tmp_path: Path) -> None:
    with pytest.raises(ul.RemoteFailure, match="batches") as told:
        generate_slowly(remote_model("slow"), tmp_path, ul.Remote(), tokens=20_000)
    assert told.value.job_id is not None
    assert "execution timeout" in str(told.value.server_traceback)
    assert not list(tmp_path.iterdir())
    assert len(generate_slowly(remote_model("slow"), None, ul.Remote(), tokens=4)) == 1


def test_a_model_that_the_server_does_not_have_is_refused(rig: Rig, remote_model: Open, tmp_path: Path) -> None:
    rig.add_model("gone", "small-base")
    model = remote_model("gone")
    model_key(model, ul.Remote())  # the hub is asked once what the server calls it
    rig.remove_model("gone")
    with pytest.raises(ul.RequestRefused, match="local/gone") as told:
        extract(model, ul.Remote(), resume=tmp_path)
    assert told.value.job_id is not None
    assert "Could not deploy" in str(told.value.server_traceback)
    assert not list(tmp_path.iterdir())


def test_a_model_that_the_hub_does_not_have_is_reported(rig: Rig, remote_model: Open, tmp_path: Path) -> None:
    rig.add_model("forgotten", "small-base")
    model = remote_model("forgotten")
    rig.remove_model("forgotten")
    with pytest.raises(ul.RequestRefused, match="hub.*local/forgotten"):
        extract(model, ul.Remote(), resume=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def locked_door(rig: Rig) -> str:
    """The same server behind an API that demands keys; the database that knows them is not there."""
    return rig.start_api(8002, NDIF_POSTGRES_URL="postgresql://nobody:nothing@127.0.0.1:5432/keys")


def test_no_key_is_refused(remote_model: Open, locked_door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    with pytest.raises(ul.RequestRefused, match="no API key.*NDIF_API_KEY"):
        extract(remote_model("small-base"), ul.Remote(locked_door))


def test_a_key_that_is_none_is_refused(remote_model: Open, locked_door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "sesame")
    with pytest.raises(ul.RequestRefused, match="NDIF_API_KEY") as caught:
        extract(remote_model("small-base"), ul.Remote(locked_door))
    assert "sesame" not in str(caught.value)


def test_a_key_that_cannot_be_looked_up_means_to_try_again(
    remote_model: Open, locked_door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", str(uuid4()))
    with pytest.raises(ul.ServerUnreachable, match="503"):
        extract(remote_model("small-base"), ul.Remote(locked_door))


@contextmanager
def answering(code: int, detail: str) -> Generator[str, None, None]:
    """A server that answers every request so."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"detail": detail}).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_wrong_key_is_refused(remote_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real server says so with its database alone, which is not here: a stand-in answers as its auth.py does."""
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", str(uuid4()))
    with answering(403, "Invalid API key.") as host:
        with pytest.raises(ul.RequestRefused, match="key.*NDIF_API_KEY"):
            extract(remote_model("small-base"), ul.Remote(host))


def test_a_model_that_cannot_run_remotely_is_refused_before_anything_runs(local_model: Open) -> None:
    """Nnsight would run it here and say nothing."""
    opened = local_model("small-base")
    wrapped: Any = nnsight.NNsight(opened._module)
    wrapped.tokenizer = opened.tokenizer
    ran: list[str] = []
    handle = opened._module.register_forward_hook(lambda *_: ran.append("here"))
    remote = ul.Remote()
    try:
        with pytest.raises(ul.UnsupportedModel, match="TransformersModel"):
            extract(wrapped, remote)
    finally:
        handle.remove()
    assert not ran
    assert remote.traffic == ul.Traffic()


@pytest.mark.filterwarnings("ignore:the locked prompts end in:UserWarning")  # what is asked does not matter here
def test_a_model_that_fails_tells_the_line_where_it_did(remote_model: Open, tmp_path: Path) -> None:
    """A prompt with more tokens than the model has positions."""
    prompts = [" ".join(["1"] * 80 + [end]) for end in ("A", "=")]
    locked, unlocked = (ul.Variant(remote_model("random-gpt2"), [prompt], remote=ul.Remote()) for prompt in prompts)
    with pytest.raises(ul.RemoteFailure, match="IndexError") as told:
        ul.CapabilityDirection.extract(locked, unlocked, progress=False, resume=tmp_path)
    assert told.value.job_id is not None
    assert "position_embeds = self.wpe(position_ids)" in str(told.value.server_traceback)
    assert not list(tmp_path.iterdir())


def test_a_reduction_that_fails_tells_the_line_where_it_did(remote_model: Open) -> None:
    variant = ul.Variant(remote_model("small-base"), ["Q 1 A :"], remote=ul.Remote())
    tokens = read.Picked(variant, one_token(variant, -1))
    how = read.How(batch_size=8, resume=None, wait=True, progress=False)
    reading = read.Reading([tokens], [0], lambda held, n: broken.Broken(), [torch.tensor([-1])], how)
    with pytest.raises(ul.RemoteFailure, match="ArithmeticError") as told:
        read.read([reading])
    assert 'raise ArithmeticError(f"these' in str(told.value.server_traceback)
    assert "in add" in str(told.value.server_traceback)


def test_a_request_that_the_server_does_not_know_is_sent_again(
    rig: Rig, remote_model: Open, expected: torch.Tensor, tmp_path: Path
) -> None:
    """As after a restart that lost what the server had stored; the three that it knows are collected."""
    model, submitted, remote = remote_model("small-base"), ul.Remote(batches=1), ul.Remote(batches=1)
    with rig.silent_actors("small-base"), pytest.raises(ul.JobsRunning):
        extract(model, submitted, resume=tmp_path, wait=False)
    lost = sorted(tmp_path.glob("*.job.json"))[1]
    lost.write_text(json.dumps({"id": uuid4().hex, "sent": time.time() - 60}))
    assert torch.equal(extract(model, remote, resume=tmp_path), expected)
    assert (remote.traffic.requests, len(finished(tmp_path)), tickets(tmp_path)) == (4, 4, [])
    assert 0 < remote.traffic.up < submitted.traffic.up / 2
