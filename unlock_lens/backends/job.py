"""Job: one request to an NDIF server, sent and waited for with a deadline, its failures told in the library's own errors.

Nnsight captures the trace and serializes it; this is its transport, over HTTP alone, so that a request can be collected by
another process than the one that sent it.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import httpx
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.schema.response import Status

from unlock_lens.errors import DeadlineExceeded, JobLost, RemoteError, RemoteFailure, RequestRefused, ServerUnreachable
from unlock_lens.remote import Remote

logger = logging.getLogger(__name__)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0
_UNKNOWN_SECONDS = 30.0
"""A server has said something of a request by then, or never heard of it."""


class Job(RemoteBackend):
    """A request on its way.

    Args:
        model: the nnsight model whose trace is sent.
        remote: where to, and how long to wait.
        job_id: of a request that was sent before; None where a trace is to be sent.
    """

    def __init__(self, model: Any, remote: Remote, job_id: str | None = None) -> None:
        super().__init__(
            _model_key(model), host=host_of(remote), env=model._remoteable_get_env(), blocking=False, job_id=job_id
        )
        self.model_name = model.repo_id
        self.compress = False  # float32 hardly gets smaller, and what is sent and fetched can be foretold to the byte
        self.remote = remote
        self.started = time.monotonic()

    @property
    def id(self) -> str | None:
        return self.job_id

    def __call__(self, tracer: Any = None) -> None:
        """Nnsight calls it when the trace ends: send it, wait for nothing."""
        blob = self._serialize(tracer)
        envelope = RequestModel(model_key=self.model_key, compress=False, env=self.env)
        sent = self._answer("POST", "/request", data={"data": envelope.metadata()}, files={"blob": ("request", blob)})
        self.job_id = str(json.loads(sent)["id"])
        self.remote.traffic.up += len(blob)
        logger.info("%s: %d bytes sent to %s", self.job_id, len(blob), self.host)

    def result(self, wait: bool = True) -> Any:
        """What the request saved as `found`; None while it is running, unless it is waited for.

        Raises:
            RemoteError: it failed, the server went away, or it takes longer than it may.
        """
        while (content := self._content()) is None and wait:
            if time.monotonic() - self.started > self.remote.deadline:
                raise DeadlineExceeded(
                    f"request {self.job_id} is {self._state} and not done after {self.remote.deadline:g} s; "
                    "give Remote(deadline=...) more time, or collect it later by the same call with the same resume= folder",
                    self.job_id,
                )
            waited = time.monotonic() - self.started
            time.sleep(min(max(waited / 10, _SHORTEST_PAUSE), _LONGEST_PAUSE))  # late by a tenth at most
        return None if content is None else self._read(content)

    @property
    def _state(self) -> str:
        return self.status.value.lower() if self.status else "unknown"

    def _content(self) -> bytes | None:
        """The bytes of the result, once there are any."""
        try:
            told = json.loads(self._answer("GET", f"/response/{self.job_id}"))
        except _NotThere:
            if time.monotonic() - self.started > min(_UNKNOWN_SECONDS, self.remote.deadline):
                raise JobLost(
                    f"{self.host} knows no request {self.job_id}; it may have been restarted since: send it again", self.job_id
                ) from None
            return None
        self.status = Status(told["status"])
        if self.status == Status.ERROR:
            raise _failure(str(told.get("description", "")).strip(), self.job_id, str(self.model_name))
        return self._answer("GET", told["data"]) if self.status == Status.COMPLETED else None

    def _read(self, content: bytes) -> Any:
        seconds, traffic = time.monotonic() - self.started, self.remote.traffic
        traffic.requests, traffic.down, traffic.seconds = (
            traffic.requests + 1,
            traffic.down + len(content),
            traffic.seconds + seconds,
        )
        logger.info("%s: %d bytes came back after %.1f s", self.job_id, len(content), seconds)
        # Tensors alone are read: unlike nnsight's own way, this runs nothing that a server may have put there.
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["found"]

    def _answer(self, verb: str, path: str, **sent: Any) -> bytes:
        """One HTTP call within the server's patience."""
        own = path.startswith("/")  # results may lie elsewhere, where a key is nobody's business
        url, headers = (self.host + path, self._headers) if own else (path, None)
        with self._told(), httpx.Client(timeout=self.remote.patience) as client:
            with client.stream(verb, url, headers=headers, **sent) as answer:
                content = answer.read() if own else self._within_deadline(answer)
        if answer.status_code == 404 and verb == "GET":
            raise _NotThere
        if answer.status_code >= 400:
            raise self._refusal(answer.status_code, content)
        return content

    def _within_deadline(self, answer: httpx.Response) -> bytes:
        parts: list[bytes] = []
        for part in answer.iter_bytes():
            parts.append(part)
            if time.monotonic() - self.started > self.remote.deadline:
                raise DeadlineExceeded(
                    f"the result of {self.job_id} has not come whole after {self.remote.deadline:g} s; "
                    "give Remote(deadline=...) more time",
                    self.job_id,
                )
        return b"".join(parts)

    @property
    def _headers(self) -> dict[str, str]:
        told = {"ndif-timestamp": repr(time.time()), "nnsight-version": version("nnsight"), "python-version": sys.version}
        return {**told, "ndif-api-key": self.api_key} if self.api_key else told

    @contextmanager
    def _told(self) -> Generator[None, None, None]:
        """What a connection provokes, as errors of the library."""
        known = f"; request {self.job_id} may still be running there" if self.job_id else ""
        try:
            yield
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(
                f"{self.host} has been silent for {self.remote.patience:g} s{known}; "
                "is it overloaded? Remote(patience=...) waits longer",
                self.job_id,
            ) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ServerUnreachable(
                f"{self.host} does not answer ({error}){known}; is the server up, and is NDIF_HOST or Remote(host=...) right?",
                self.job_id,
            ) from error

    def _refusal(self, code: int, content: bytes) -> RemoteError:
        try:
            said = json.loads(content)["detail"]
        except (ValueError, KeyError, TypeError):
            said = content.decode(errors="replace")[:500]
        if code in (401, 403) or (code == 400 and "key" in str(said).lower()):
            key = "your key was refused" if self.api_key else "no API key was given"
            return RequestRefused(
                f"{self.host}: {key} ({said}); get one at https://login.ndif.us, and set NDIF_API_KEY before nnsight is "
                "imported, or nnsight.CONFIG.API.APIKEY",
                self.job_id,
            )
        if code >= 500:
            return ServerUnreachable(f"{self.host} cannot serve now ({code}: {said}); try again in a few minutes", self.job_id)
        return RequestRefused(f"{self.host} refuses the request ({code}: {said})", self.job_id)


class _NotThere(Exception):
    """The server has no such thing, or not yet."""


def _failure(said: str, job_id: str | None, model: str) -> RemoteError:
    """What an ERROR means, and what to do."""
    if said.startswith("Could not deploy"):  # why, and then a traceback of the server's own, cut short
        return RequestRefused(
            f"the server does not run {model}: {said.partition('Traceback')[0].strip()}\n"
            "(nnsight.status() lists the models that are running)",
            job_id,
            said,
        )
    if "execution timeout" in said or "out of memory" in said:
        return RemoteFailure(
            f"the server stopped request {job_id} ({said.splitlines()[-1]}); "
            "put less into one: Remote(batches=...) or a smaller batch_size",
            job_id,
            said,
        )
    if "Traceback" in said:
        last = said.splitlines()[-1]
        return RemoteFailure(
            f"request {job_id} failed on the server: {last}\n(the server's traceback is in the error's server_traceback)",
            job_id,
            said,
        )
    if "try again later" in said or "cancelled" in said:
        return RemoteFailure(f"request {job_id} was lost on the server ({said}); the same call sends it again", job_id, said)
    return RequestRefused(f"the server refuses request {job_id}: {said or 'it does not say why'}", job_id, said)


def _model_key(model: Any) -> str:
    """By which the server knows the model; nnsight asks the hub for the spelling of its name."""
    try:
        return str(model.to_model_key())
    except Exception as error:  # of whatever client the hub's library brings
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
            raise RequestRefused(f"the hub has no model {model.repo_id}, or not for you: {error}") from error
        raise ServerUnreachable(f"the hub cannot be asked which model {model.repo_id} is: {error}") from error


def host_of(remote: Remote) -> str:
    """Where requests go: nnsight's own setting unless a host is named; a slash at its end would be answered with 403."""
    return (remote.host or str(CONFIG.API.HOST)).rstrip("/")
