"""How a request copes with a misbehaving server: a scripted one, since a real one cannot be made to fail in these ways."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

import pytest
import torch
from nnsight import CONFIG

import unlock_lens as ul
from unlock_lens.errors import JobLost
from unlock_lens.hosts import transport
from unlock_lens.hosts.transport import Job

Reply = tuple[int, bytes, dict[str, str]]


class Scripted(http.server.ThreadingHTTPServer):
    """Answers each path as `replies` says."""

    replies: dict[str, Reply | Callable[[Any], object]]

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
        self.answer(*reply)

    def answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
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
def asked(server: Scripted) -> Callable[..., Job]:
    """A request that was sent before."""

    def make(sent: float | None = None, **settings: Any) -> Job:
        return Job(Model(), ul.Remote(server.url, **settings), "one", sent)

    return make


def says(status: str, **more: Any) -> Reply:
    return 200, json.dumps({"id": "one", "status": status, **more}).encode(), {}


def holding(found: Any) -> bytes:
    content = io.BytesIO()
    torch.save({"found": found}, content)
    return content.getvalue()


def test_a_result_is_read_and_counted_and_no_key_goes_where_it_lies(
    server: Scripted, asked: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    content, keys = holding({"mean": torch.ones(2)}), list[str | None]()

    def blob(handler: Any) -> None:
        keys.append(handler.headers["ndif-api-key"])
        handler.answer(200, content)

    server.replies = {"/response/one": says("COMPLETED", data=f"{server.url}/blob"), "/blob": blob}
    one = asked()
    one.api_key = "sesame"
    assert torch.equal(one.result()["mean"], torch.ones(2))
    assert (one.remote.traffic.requests, one.remote.traffic.down) == (1, len(content))
    assert keys == [None]
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("reply", "error", "keyword"),
    [
        ((200, b"<html>a page</html>", {}), ul.RemoteError, "NDIF_HOST"),
        ((200, b"[1]", {}), ul.RemoteError, "NDIF_HOST"),
        ((200, b'{"id": "one"}', {}), ul.RemoteError, "NDIF_HOST"),
        (says("PONDERING"), ul.RemoteError, "NDIF_HOST"),
        (says("COMPLETED"), ul.RemoteError, "NDIF_HOST"),
        (says("COMPLETED", data=7), ul.RemoteError, "NDIF_HOST"),
        ((405, b"", {}), ul.RemoteError, "NDIF_HOST"),
        ((301, b"", {"Location": "https://elsewhere"}), ul.RequestRefused, "https://elsewhere"),
        ((429, b'{"detail": "slowly"}', {}), ul.ServerUnreachable, "slowly"),
        ((502, b"<html>gateway</html>", {}), ul.ServerUnreachable, "gateway"),
        ((400, b'{"detail": "no such model_key"}', {}), ul.RequestRefused, "model_key"),
        ((400, b'{"detail": "Invalid API key"}', {}), ul.RequestRefused, "NDIF_API_KEY"),
        ((401, b'{"detail": "Missing"}', {}), ul.RequestRefused, "NDIF_API_KEY"),
        (says("ERROR", description="CUDA out of memory"), ul.RemoteFailure, "batch_size"),
        (says("ERROR", description="Please try again later."), ul.RemoteFailure, "again"),
        (says("ERROR", description="Could not deploy.\nTraceback"), ul.RequestRefused, "org/model"),
        (says("ERROR"), ul.RequestRefused, "why"),
    ],
)
def test_what_a_server_says_is_raised_as_what_it_is(
    server: Scripted, asked: Callable[..., Job], reply: Reply, error: type, keyword: str
) -> None:
    server.replies = {"/response/one": reply}
    one = asked()
    one.api_key = ""
    with pytest.raises(error, match=keyword) as caught:
        one.result()
    assert type(caught.value) is error
    assert caught.value.job_id == "one"
    assert (caught.value.server_traceback is not None) == (b'"ERROR"' in reply[1])


def test_a_server_that_is_not_there(asked: Callable[..., Job]) -> None:
    one = asked()
    one.host = "http://127.0.0.1:9"
    with pytest.raises(ul.ServerUnreachable, match="NDIF_HOST") as caught:
        one.result()
    assert caught.value.job_id == "one"


def test_a_request_is_waited_for_until_the_deadline(server: Scripted, asked: Callable[..., Job]) -> None:
    server.replies = {"/response/one": says("QUEUED")}
    assert asked().result(wait=False) is None
    with pytest.raises(ul.DeadlineExceeded, match="deadline"):
        asked(deadline=0.3).result()


@pytest.mark.parametrize(("code", "error"), [(403, JobLost), (404, JobLost), (500, ul.ServerUnreachable)])
def test_a_result_that_cannot_be_fetched(server: Scripted, asked: Callable[..., Job], code: int, error: type) -> None:
    """It lies elsewhere: where it is gone it is lost, and that says nothing of keys."""
    server.replies = {"/response/one": says("COMPLETED", data=f"{server.url}/blob"), "/blob": (code, b"", {})}
    with pytest.raises(error, match=str(code)) as caught:
        asked().result()
    assert type(caught.value) is error


class Harmful:
    """A pickle that would run something."""

    def __reduce__(self) -> Any:
        return print, ("it ran",)


@pytest.mark.parametrize("content", [b"nothing", holding(Harmful())])
def test_a_result_that_is_not_made_of_tensors_is_not_read(
    server: Scripted, asked: Callable[..., Job], content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.replies = {"/response/one": says("COMPLETED", data=f"{server.url}/blob"), "/blob": (200, content, {})}
    with pytest.raises(ul.RemoteError, match="one"):
        asked().result()
    assert not capsys.readouterr().out


def test_a_job_that_a_server_never_heard_of_is_lost_however_often_it_is_asked_for(asked: Callable[..., Job]) -> None:
    """The time of sending counts, not that of asking."""
    assert asked(sent=time.time()).result(wait=False) is None
    with pytest.raises(JobLost, match="one"):
        asked(sent=time.time() - 60).result(wait=False)


@pytest.mark.parametrize(
    ("settings", "keyword"), [({"deadline": 0.3, "patience": 60}, "deadline"), ({"patience": 0.3}, "patience")]
)
def test_a_server_that_is_silent_is_given_up(
    server: Scripted, asked: Callable[..., Job], settings: dict[str, float], keyword: str
) -> None:
    awake = threading.Event()
    server.replies = {"/response/one": lambda handler: awake.wait(60)}
    try:
        with pytest.raises(ul.DeadlineExceeded, match=keyword):
            asked(**settings).result()
    finally:
        awake.set()


@pytest.mark.parametrize("path", ["/response/one", "/blob"])
def test_the_deadline_holds_for_a_server_that_drips(server: Scripted, asked: Callable[..., Job], path: str) -> None:
    """A response whose bytes arrive quickly and never end."""
    given_up = threading.Event()

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not given_up.wait(0.02):
            handler.wfile.write(b" ")

    server.replies = {"/response/one": says("COMPLETED", data=f"{server.url}/blob"), path: drip}
    try:
        with pytest.raises(ul.DeadlineExceeded, match="deadline"):
            asked(deadline=0.3, patience=60).result()
    finally:
        given_up.set()


def test_a_result_may_take_longer_than_an_answer(server: Scripted, asked: Callable[..., Job]) -> None:
    one, content = asked(), holding({"mean": torch.ones(1)})

    def out_of_patience(handler: Any) -> None:
        one.remote = ul.Remote(server.url, patience=1e-9)
        handler.answer(*says("COMPLETED", data=f"{server.url}/blob"))

    server.replies = {"/response/one": out_of_patience, "/blob": (200, content, {})}
    assert torch.equal(one.result()["mean"], torch.ones(1))


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nnsight asks it for the spelling of a model's name, and would wait without end."""
    awake = threading.Event()
    try:
        for asks in (lambda model: awake.wait(60), lambda model: _raise(ConnectionError("refused"))):
            monkeypatch.setattr(Model, "to_model_key", asks)
            with pytest.raises(ul.ServerUnreachable, match="hub.*org/model"):
                Job(Model(), ul.Remote("http://127.0.0.1:9", patience=0.2))
    finally:
        awake.set()


def _raise(error: Exception) -> None:
    raise error


def test_a_deadline_that_passes_while_a_server_answers(server: Scripted, asked: Callable[..., Job]) -> None:
    one = asked(deadline=30)

    def late(handler: Any) -> None:
        one._started -= 60  # pyright: ignore[reportPrivateUsage]
        handler.answer(*says("QUEUED"))

    server.replies = {"/response/one": late}
    with pytest.raises(ul.DeadlineExceeded, match="deadline"):
        one.result()


def test_a_job_is_lost_when_a_server_forgets_it(server: Scripted, asked: Callable[..., Job]) -> None:
    """It may be restarted while the request is waited for; one that has no more time is not waited for as unknown."""
    server.replies = {"/response/one": says("QUEUED")}
    one = asked(sent=time.time() - 60)
    assert one.result(wait=False) is None
    server.replies = {}
    with pytest.raises(JobLost, match="one"):
        one.result(wait=False)
    with pytest.raises(JobLost, match="one"):
        asked(sent=time.time() - 25, deadline=20).result(wait=False)


def test_traffic_adds_up(server: Scripted, asked: Callable[..., Job]) -> None:
    content, one = holding({"mean": torch.ones(2)}), asked()
    server.replies = {"/response/one": says("COMPLETED", data=f"{server.url}/blob"), "/blob": (200, content, {})}
    for _ in range(2):
        Job(Model(), one.remote, "one").result()
    assert (one.remote.traffic.requests, one.remote.traffic.down) == (2, 2 * len(content))


def drip_sizes(handler: Any) -> None:
    """The size of a chunk, digit after digit, without end: an HTTP library waits for more and gives nothing."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    _drip(handler, b"0")


def drip_headers(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    _drip(handler, b"x")


def drip_gzip(handler: Any) -> None:
    """A gzip member that holds nothing, again and again."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
    _drip(handler, gzip.compress(b""))


def drip_plain(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    _drip(handler, b" ")


def _drip(handler: Any, piece: bytes) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        handler.wfile.write(piece)
        time.sleep(0.01)


@pytest.mark.parametrize("drip", [drip_sizes, drip_headers, drip_gzip, drip_plain])
@pytest.mark.parametrize("path", ["/response/one", "/blob"])
def test_what_never_ends_is_given_up_and_leaves_no_thread(
    server: Scripted, asked: Callable[..., Job], path: str, drip: Callable[[Any], None]
) -> None:
    before, ended = set(threading.enumerate()), threading.Event()

    def told(handler: Any) -> None:
        with suppress(OSError):
            drip(handler)
        ended.set()

    server.replies = {"/response/one": says("COMPLETED", data=f"{server.url}/blob"), path: told}
    started = time.monotonic()
    with pytest.raises(ul.RemoteError):
        asked(deadline=0.4).result()
    assert time.monotonic() - started < 5
    assert ended.wait(10)  # the connection was cut
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before


def test_an_answer_that_is_too_large_is_not_read_to_the_end(
    server: Scripted, asked: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_LARGEST_ANSWER", 1000)
    server.replies = {"/response/one": says("QUEUED", description="x" * 2000)}
    with pytest.raises(ul.RemoteError, match="more than 1000 bytes"):
        asked(deadline=5).result()


@pytest.mark.parametrize("key", ["sesame\n", " sesame", "sesame\t", "ses\x1bame", "sésame", "sesame\r\nX: y"])
def test_a_key_that_http_would_refuse_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(CONFIG.API, "APIKEY", key)
    with pytest.raises(ul.InvalidInput, match="API key") as caught:
        Job(Model(), ul.Remote("https://ndif.example"))
    assert "ame" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("remote", "sent"),
    [
        (ul.Remote("https://ndif.example"), True),
        (ul.Remote("https://ndif.example", trusted=False), False),
        (ul.Remote("https://configured.example", trusted=False), True),
        (ul.Remote("http://ndif.example"), False),
        (ul.Remote("http://localhost.ndif.example"), False),
        (ul.Remote("http://127.0.0.1@ndif.example"), False),
        (ul.Remote("http://127.0.0.1:5001", trusted=False), True),
        (ul.Remote("http://[::1]:5001"), True),
        (ul.Remote("http://localhost:5001"), True),
    ],
)
def test_a_key_goes_only_where_it_may(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, remote: ul.Remote, sent: bool
) -> None:
    monkeypatch.setattr(CONFIG.API, "APIKEY", "sesame")
    monkeypatch.setattr(CONFIG.API, "HOST", "https://configured.example/")
    assert Job(Model(), remote).api_key == ("sesame" if sent else "")
    assert ("not sent" in caplog.text) == (not sent)
    assert "sesame" not in caplog.text


@pytest.mark.parametrize(
    "reply",
    [
        (401, b'{"detail": "sesame is wrong"}', {}),
        (200, b"sesame", {}),
        (301, b"", {"Location": "https://elsewhere/sesame"}),
        (200, json.dumps({"id": "one", "status": "ERROR", "description": "Traceback\nsesame"}).encode(), {}),
        (200, json.dumps({"id": "one", "status": "sesame"}).encode(), {}),
        (200, json.dumps({"id": "one", "status": "COMPLETED", "data": "sesame://x"}).encode(), {}),
    ],
)
def test_a_server_that_repeats_the_key_does_not_get_it_shown(
    server: Scripted, asked: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reply: Reply
) -> None:
    monkeypatch.setattr(CONFIG.API, "APIKEY", "sesame")
    server.replies = {"/response/one": reply}
    with caplog.at_level(logging.DEBUG, "unlock_lens"), pytest.raises(ul.RemoteError) as caught:
        asked(deadline=5).result()
    told = "".join(traceback.format_exception(caught.value)) + str(caught.value.server_traceback) + caplog.text
    assert "sesame" not in told


def test_a_server_cannot_steer_the_terminal(server: Scripted, asked: Callable[..., Job]) -> None:
    server.replies = {"/response/one": (503, b'{"detail": "\\u001b[2J\\u202e"}', {})}
    with pytest.raises(ul.ServerUnreachable) as caught:
        asked().result()
    assert str(caught.value).isprintable()
