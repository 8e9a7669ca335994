"""A request's calls on a server that misbehaves in ways that a real one cannot be made to; it answers as it is told."""

from __future__ import annotations

import http.server
import io
import json
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens.errors import JobLost
from unlock_lens.hosts import job
from unlock_lens.hosts.job import Job

Reply = tuple[int, bytes, dict[str, str]]


class Scripted(http.server.ThreadingHTTPServer):
    """Answers each path as `replies` says."""

    replies: dict[str, Reply | Callable[[Any], None]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Scripted  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        reply = self.server.replies.get(self.path, (404, b"{}", {}))
        if callable(reply):
            reply(self)
            return
        code, content, headers = reply
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Generator[Scripted, None, None]:
    made = Scripted(("127.0.0.1", 0), Handler)
    made.replies = {}
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


class Model:
    repo_id = "org/model"

    def to_model_key(self) -> str:
        return "a.Class:org/model"

    def _remoteable_get_env(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def asked(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """A request that was sent before."""
    monkeypatch.setattr(job, "_asked_hub", {"org/model"})

    def make(sent: float | None = None, **settings: Any) -> Job:
        return Job(Model(), ul.Remote(server.url, **settings), "one", sent)

    return make


def told(**said: Any) -> Reply:
    return 200, json.dumps(said).encode(), {}


def test_a_result_is_read_and_counted(server: Scripted, asked: Callable[..., Job]) -> None:
    content = io.BytesIO()
    torch.save({"found": {"mean": torch.ones(2)}}, content)
    server.replies = {
        "/response/one": told(status="COMPLETED", data=f"{server.url}/blob"),
        "/blob": (200, content.getvalue(), {}),
    }
    one = asked()
    assert torch.equal(one.result()["mean"], torch.ones(2))
    assert (one.remote.traffic.requests, one.remote.traffic.down) == (1, len(content.getvalue()))


@pytest.mark.parametrize(
    ("reply", "error", "match"),
    [
        ((200, b"<html>a page</html>", {}), ul.RemoteError, "does not answer like an NDIF server .'<html>a page</html>'"),
        ((200, b"[1]", {}), ul.RemoteError, "does not answer like an NDIF server"),
        (told(id="one"), ul.RemoteError, "does not answer like an NDIF server"),
        (told(status="COMPLETED"), ul.RemoteError, "does not answer like an NDIF server"),
        (
            (301, b"", {"Location": "https://elsewhere"}),
            ul.RequestRefused,
            "points to https://elsewhere .301.; give",
        ),
        ((429, b'{"detail": "slowly"}', {}), ul.ServerUnreachable, "cannot serve now .429: slowly.; try again"),
        ((400, b'{"detail": "no such model_key"}', {}), ul.RequestRefused, "refuses the request .400: no such model_key"),
        ((401, b'{"detail": "Missing"}', {}), ul.RequestRefused, "no API key was given"),
        (told(status="ERROR", description="CUDA out of memory"), ul.RemoteFailure, "put less into one: Remote.batches="),
        (told(status="ERROR", description="Please try again later."), ul.RemoteFailure, "was lost on the server"),
        (
            told(status="ERROR", description="Could not deploy.\nTraceback"),
            ul.RequestRefused,
            "does not run org/model: Could",
        ),
        (told(status="ERROR"), ul.RequestRefused, "it does not say why"),
    ],
)
def test_what_a_server_says_is_told_as_what_it_is(
    server: Scripted, asked: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, reply: Reply, error: type, match: str
) -> None:
    server.replies = {"/response/one": reply}
    one = asked()
    monkeypatch.setattr(one, "api_key", "")
    with pytest.raises(error, match=match) as caught:
        one.result()
    assert type(caught.value) is error
    assert caught.value.job_id == "one"


def test_a_status_that_is_not_known_is_waited_on(server: Scripted, asked: Callable[..., Job]) -> None:
    server.replies = {"/response/one": told(status="PONDERING")}
    with pytest.raises(ul.DeadlineExceeded, match=r"request one is pondering and not done after 0\.3 s"):
        asked(deadline=0.3).result()


@pytest.mark.parametrize("code", [403, 404])
def test_a_result_that_is_gone_is_a_lost_job(server: Scripted, asked: Callable[..., Job], code: int) -> None:
    """And no matter of keys: it lies elsewhere."""
    server.replies = {"/response/one": told(status="COMPLETED", data=f"{server.url}/blob"), "/blob": (code, b"", {})}
    with pytest.raises(JobLost, match=f"the result of request one is not there any more .{code}.; .* send it again"):
        asked().result()


def test_a_result_that_is_none_is_said(server: Scripted, asked: Callable[..., Job]) -> None:
    server.replies = {"/response/one": told(status="COMPLETED", data=f"{server.url}/blob"), "/blob": (200, b"nothing", {})}
    with pytest.raises(ul.RemoteError, match="the result of request one cannot be read"):
        asked().result()


def test_a_job_that_a_server_never_heard_of_is_lost_however_often_it_is_asked_for(asked: Callable[..., Job]) -> None:
    """The time of sending counts, not that of asking."""
    assert asked(sent=time.time()).result(wait=False) is None
    with pytest.raises(JobLost, match="knows no request one"):
        asked(sent=time.time() - 60).result(wait=False)


def test_the_deadline_holds_for_a_server_that_is_silent(server: Scripted, asked: Callable[..., Job]) -> None:
    """Though its patience is longer."""
    server.replies = {"/response/one": lambda handler: time.sleep(1.5)}
    started = time.monotonic()
    with pytest.raises(ul.DeadlineExceeded, match=r"not done after 0\.4 s"):
        asked(deadline=0.4, patience=60).result()
    assert time.monotonic() - started < 1.4


def test_the_deadline_holds_for_a_server_that_drips(server: Scripted, asked: Callable[..., Job]) -> None:
    """Each byte comes within the patience."""

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "40")
        handler.end_headers()
        for _ in range(40):
            try:
                handler.wfile.write(b" ")
            except OSError:  # the client is gone
                return
            time.sleep(0.05)

    server.replies = {"/response/one": drip}
    started = time.monotonic()
    with pytest.raises(ul.DeadlineExceeded, match=r"not done after 0\.3 s"):
        asked(deadline=0.3, patience=60).result()
    assert time.monotonic() - started < 1.5


def test_a_silent_hub_is_given_up(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nnsight asks the hub for a model's name, and would wait without end."""
    monkeypatch.setattr(job, "_asked_hub", set())
    monkeypatch.setattr(job, "HfApi", lambda: _Hub())
    with pytest.raises(ul.ServerUnreachable, match="the hub cannot be asked which model org/model is: after 0.2 s"):
        Job(Model(), ul.Remote(server.url, patience=0.2))


class _Hub:
    def model_info(self, name: str, timeout: float) -> None:
        raise TimeoutError(f"after {timeout} s")
