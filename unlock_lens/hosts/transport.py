"""Transport: one request to an NDIF server, on nnsight's own submit and poll over HTTP, and collected by any process.

What is added: a watchdog over every call, results of which tensors alone are read, and the library's own errors.
"""

from __future__ import annotations

import io
import ipaddress
import logging
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from math import inf
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.intervention.backends.remote import RemoteError as Failed
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from unlock_lens.errors import (
    DeadlineExceeded,
    InvalidInput,
    JobLost,
    RemoteError,
    RemoteFailure,
    RequestRefused,
    ServerUnreachable,
    plain,
    shown,
)
from unlock_lens.hosts.remote import Remote
from unlock_lens.hosts.watchdog import Silent, watched

logger = logging.getLogger(__name__)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0
_UNKNOWN_SECONDS = 30.0
"""A server has said something of a request by then, or never heard of it."""
_LARGEST_ANSWER, _LARGEST_RESULT = 2**24, 2**33
"""Bytes. A server that sends more is not read to the end."""
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_SET_KEY = "set nnsight.CONFIG.API.APIKEY, or NDIF_API_KEY before it is imported"
_CHECK_HOST = "check NDIF_HOST or Remote(host=...)"
_SEND_AGAIN = "; the server may have been restarted since: send it again"


class Wire:
    """The connections of one call, so that another thread can cut them; httpx calls it as its `trace`."""

    def __init__(self) -> None:
        self.sockets: list[Any] = []
        self.is_cut = False

    def __call__(self, event: str, told: dict[str, Any]) -> None:
        if self.is_cut:
            raise Silent
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.sockets.append(told["return_value"].get_extra_info("socket"))

    def cut(self) -> None:
        self.is_cut = True
        for each in self.sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes a thread that is reading, which closing does not


class Job(RemoteBackend):
    """A request on its way; one that was sent before has its `job_id`, and the time of that, in seconds since the epoch."""

    def __init__(self, model: Any, remote: Remote, job_id: str | None = None, sent: float | None = None) -> None:
        key, env = model_key(model, remote), model._remoteable_get_env()
        super().__init__(key, host=host_of(remote), env=env, blocking=False, job_id=job_id)
        self.api_key = key_for(self.host, remote)
        self.display.enabled = False
        self.compress = False  # float32 hardly gets smaller, and what is sent and fetched can be foretold
        self.model_name, self.remote = str(model.repo_id), remote
        self.sent, self._started = sent or time.time(), time.monotonic()
        self._known, self._wire = False, Wire()

    @property
    def id(self) -> str | None:
        return self.job_id

    def result(self, wait: bool = True) -> Any:
        """What the request saved as `found`; None while it is running, unless it is waited for."""
        while (done := self._done()) is None and wait:
            if self._left <= 0:
                raise self._overdue()
            pause = min(max(self._seconds / 10, _SHORTEST_PAUSE), _LONGEST_PAUSE)  # late by a tenth at most
            time.sleep(min(pause, self._left))
        return None if done is None else self._fetched(done.data)

    def finalize(self, content: bytes) -> Any:
        """Tensors alone are read: unlike nnsight's own way, this runs nothing that a server may have put there."""
        try:
            return len(content), torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["found"]
        except Exception as error:  # whatever a reader of foreign bytes meets
            told = f"the result of request {self.job_id} cannot be read ({type(error).__name__}); send it again"
            raise self._error(RemoteError, told) from self._cause(error)

    def handle(self, response: ResponseModel) -> Any:
        """The response once there is a result, which nnsight's own method would fetch at once; that may take long."""
        self._known = True
        return response if self.note(response) else None

    def _post(self, request: RequestModel, blob: bytes) -> ResponseModel:
        told = {"ndif-timestamp": repr(time.time()), "nnsight-version": version("nnsight"), "python-version": sys.version}
        response: ResponseModel = self._asked(
            lambda: self._told(
                self._answer(
                    "POST",
                    f"{self.host}/request",
                    headers={**told, **self._key},
                    data={"data": request.metadata()},
                    files={"blob": ("request", blob, "application/octet-stream")},
                )
            ),
            patience=self.remote.patience,
        )
        if not _ID.fullmatch(response.id) or (self.api_key and self.api_key in response.id):
            raise self._foreign(f"it names the request {shown(response.id)}")
        self.remote.traffic.up += len(blob)
        logger.info("%s: %d bytes sent to %s", response.id, len(blob), self.host)
        return response

    def poll(self, tracer: Any = None) -> Any:
        """The response once the request is done; None before."""
        answer = self._answer("GET", f"{self.host}/response/{self.job_id}", headers=self._key)
        if answer.status_code == 404:  # nothing was said of it yet
            return None
        response = self._told(answer)
        self.status = response.status
        return self.handle(response)

    def download_result(self, url: Any) -> Any:
        """Results may be hosted elsewhere, so the API key is not sent with this request."""
        answer = self._answer("GET", url, _LARGEST_RESULT)
        answer.raise_for_status()
        return self.finalize(answer.content)

    def _answer(self, method: str, url: str, at_most: int | None = None, **asked: Any) -> httpx.Response:
        """One exchange, read in bounded pieces and as it was sent: what is compressed may never end, or never begin."""
        at_most = at_most or _LARGEST_ANSWER
        asked["headers"] = {**asked.get("headers", {}), "Accept-Encoding": "identity"}
        with (
            httpx.Client(timeout=max(self._left, 0.01), follow_redirects=False) as client,
            client.stream(method, url, extensions={"trace": self._wire}, **asked) as response,
        ):
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ValueError("it sends compressed answers, which it was asked not to")
            content = bytearray()
            for piece in response.iter_raw():
                content += piece
                if len(content) > at_most:
                    raise ValueError(f"an answer of more than {at_most} bytes")
                if self._wire.is_cut:
                    raise Silent
        headers = {name: value for name, value in response.headers.items() if name == "location"}
        return httpx.Response(response.status_code, headers=headers, content=bytes(content), request=response.request)

    def _told(self, answer: httpx.Response) -> ResponseModel:
        answer.raise_for_status()
        return ResponseModel.model_validate_json(answer.content)

    @property
    def _key(self) -> dict[str, str]:
        return {"ndif-api-key": self.api_key} if self.api_key else {}

    def _done(self) -> ResponseModel | None:
        self._known = False
        done = self._asked(self.poll, patience=self.remote.patience)
        if not self._known and time.time() - self.sent > min(_UNKNOWN_SECONDS, self.remote.deadline):
            raise self._error(JobLost, f"{self.host} knows no request {self.job_id}{_SEND_AGAIN}")
        return done

    def _fetched(self, url: Any) -> Any:
        """The result; it may be hosted elsewhere, so the API key is not sent."""
        if not isinstance(url, str) or not url:
            raise self._foreign(repr(url))
        size, found = self._asked(self.download_result, url)
        traffic = self.remote.traffic
        traffic.requests += 1
        traffic.down += size
        traffic.seconds += self._seconds
        logger.info("%s: %d bytes came back after %.1f s", self.job_id, size, self._seconds)
        return found

    def _asked(self, call: Callable[..., Any], *args: Any, patience: float = inf) -> Any:
        """One call under one clock; what goes wrong with it is raised as the library's own error."""
        left, self._wire = self._left, Wire()
        try:
            return watched(call, *args, seconds=min(patience, left))
        except Silent:
            self._wire.cut()  # so that its thread ends too
            if left <= patience:
                raise self._overdue() from None
            told = f"{self.host} has been silent for {patience:g} s ({self._doing}); it may be overloaded; "
            raise self._error(DeadlineExceeded, f"{told}wait longer with Remote(patience=...)") from None
        except Failed as error:
            raise self._failure(str(error).strip()) from self._cause(error)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, UnicodeError, RecursionError) as error:
            raise self._fault(error) from self._cause(error)

    def _cause(self, error: BaseException) -> BaseException | None:
        """The error itself, unless its traceback would show the key."""
        return None if self.api_key and self.api_key in "".join(traceback.format_exception(error)) else error

    def _fault(self, error: BaseException) -> RemoteError:
        """What went wrong with a call: no server, another program's answer, or a status code of 300 and above."""
        if isinstance(error, httpx.HTTPStatusError):
            code = error.response.status_code
            if self.status is not Status.COMPLETED:
                return self._refusal(code, error.response)
            if code in (403, 404):
                return self._error(JobLost, f"the result of request {self.job_id} no longer exists ({code}){_SEND_AGAIN}")
            return self._error(ServerUnreachable, f"the result of request {self.job_id} cannot be fetched ({code}); try again")
        if not isinstance(error, httpx.HTTPError | httpx.InvalidURL):
            return self._foreign(str(error))
        told = f"{self.host} does not answer ({error}; {self._doing}); check that the server is running, and {_CHECK_HOST}"
        return self._error(ServerUnreachable, told)

    def _refusal(self, code: int, answer: httpx.Response) -> RemoteError:
        try:
            said = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError, RecursionError):
            said = answer.text
        said = plain(said, 500)
        if code in (404, 405, 501):
            return self._foreign(said)
        if code >= 500 or code in (408, 429):
            return self._error(ServerUnreachable, f"{self.host} cannot serve now ({code}: {said}); try again in a few minutes")
        told = f"refuses the request ({code}: {said})"
        if code < 400:
            told = f"points to {plain(answer.headers.get('location', 'nowhere'), 200)} ({code}); give that as the host"
        elif code in (401, 403) or (code == 400 and "api key" in said.lower()):
            told = f"refuses your key ({said})" if self.api_key else f"was given no API key ({said})"
            told += f"; get one at https://login.ndif.us; {_SET_KEY}"
        return self._error(RequestRefused, f"{self.host} {told}")

    def _failure(self, said: str) -> RemoteError:
        """What it means that the request failed, and what to do."""
        request, whole, said = f"request {self.job_id}", said, plain(said, 100_000)
        last = plain(said.rpartition("\n")[2], 500)
        if said.startswith("Could not deploy"):  # why, and then a traceback of the server's own, cut short
            why = said.partition("Traceback")[0].strip()
            told = f"the server does not run {self.model_name}: {why}\n(nnsight.status() lists the models that are running)"
            return self._error(RequestRefused, told, whole)
        if "execution timeout" in said or "out of memory" in said:
            told = f"the server stopped {request} ({last}); put less into one: Remote(batches=...) or a smaller batch_size"
        elif "Traceback" in said:
            told = f"{request} failed on the server: {last}\n(the server's traceback is in the error's server_traceback)"
        elif "try again later" in said or "cancelled" in said:
            told = f"{request} was lost on the server ({said}); the same call sends it again"
        else:
            return self._error(RequestRefused, f"the server refuses {request}: {plain(said) or 'it does not say why'}", whole)
        return self._error(RemoteFailure, told, whole)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def _left(self) -> float:
        return self.remote.deadline - self._seconds

    @property
    def _doing(self) -> str:
        state = self.status.value.lower() if self.status else "unknown"
        return f"request {self.job_id} is {state}" if self.job_id else "the request is being sent"

    def _overdue(self) -> RemoteError:
        told = f"{self._doing} and not done after {self.remote.deadline:g} s; allow more time with Remote(deadline=...); "
        return self._error(DeadlineExceeded, f"{told}with resume=FOLDER, the same call collects it later")

    def _foreign(self, said: str) -> RemoteError:
        return self._error(RemoteError, f"{self.host} does not answer like an NDIF server ({plain(said, 200)}); {_CHECK_HOST}")

    def _error(self, kind: type[RemoteError], told: str, server_traceback: str | None = None) -> RemoteError:
        return kind(self._without_key(told), self.job_id, server_traceback and self._without_key(server_traceback))

    def _without_key(self, told: str) -> str:
        return told.replace(self.api_key, "***") if self.api_key else told


def model_key(model: Any, remote: Remote) -> str:
    """By which the server knows the model; nnsight asks the hub, once, for the spelling of its name."""
    seconds = min(remote.patience, remote.deadline)
    try:
        return str(watched(model.to_model_key, seconds=seconds))
    except Silent:
        raise ServerUnreachable(f"the hub, asked which model {model.repo_id} is, has been silent for {seconds:g} s") from None
    except Exception as error:  # of whatever client the hub's library brings
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
            raise RequestRefused(f"the hub has no model {model.repo_id}, or you do not have access to it: {error}") from error
        raise ServerUnreachable(f"the hub cannot be asked which model {model.repo_id} is: {error}") from error


def host_of(remote: Remote) -> str:
    """Where requests go: nnsight's own setting unless a host is named; a slash at its end would be answered with 403."""
    return (remote.host or str(CONFIG.API.HOST)).rstrip("/")


def key_for(host: str, remote: Remote) -> str:
    """The API key, where it may be sent: in clear text to this machine alone, and only to hosts that the user chose.

    Raises:
        InvalidInput: a key that HTTP refuses with a message that would show it.
    """
    key = str(CONFIG.API.APIKEY or "")
    if key != key.strip() or not key.isascii() or not key.isprintable():
        raise InvalidInput(f"the API key contains a blank, a line break or another invalid character; {_SET_KEY}")
    if not key:
        return ""
    if not remote.trusted and host != str(CONFIG.API.HOST).rstrip("/") and not _is_here(host):
        logger.warning("the API key is not sent to %s, which a config names; set NDIF_HOST to it if you trust it", host)
        return ""
    if not host.startswith("https://") and not _is_here(host):
        logger.warning("the API key is not sent to %s, which is not encrypted; use https:// where a key is needed", host)
        return ""
    return key


def _is_here(host: str) -> bool:
    """Whether this is the machine itself."""
    name = urlsplit(host).hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
