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
from importlib.metadata import version
from typing import Any

import torch
from huggingface_hub import HfApi
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel

from unlock_lens.errors import JobLost, RemoteError, RemoteFailure, RequestRefused, ServerUnreachable
from unlock_lens.hosts.remote import Remote
from unlock_lens.hosts.wire import Answer, Wire

logger = logging.getLogger(__name__)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0
_UNKNOWN_SECONDS = 30.0
"""A server has said something of a request by then, or never heard of it."""
_asked_hub: set[str] = set()


class Job(RemoteBackend):
    """A request on its way.

    Args:
        model: the nnsight model whose trace is sent.
        remote: where to, and how long to wait.
        job_id: of a request that was sent before; None where a trace is to be sent.
        sent: when that was, in seconds since the epoch.
    """

    def __init__(self, model: Any, remote: Remote, job_id: str | None = None, sent: float | None = None) -> None:
        key, env = model_key(model, remote), model._remoteable_get_env()
        super().__init__(key, host=host_of(remote), env=env, blocking=False, job_id=job_id)
        self.model_name = str(model.repo_id)
        self.compress = False  # float32 hardly gets smaller, and what is sent and fetched can be foretold
        self.remote = remote
        self.sent = sent or time.time()
        self._wire = Wire(self.host, remote)
        self._state = "unknown"

    @property
    def id(self) -> str | None:
        return self.job_id

    def __call__(self, tracer: Any = None) -> None:
        """Nnsight calls it when the trace ends: send it, wait for nothing."""
        blob = self._serialize(tracer)
        envelope = RequestModel(model_key=self.model_key, compress=False, env=self.env)
        told = self._asked("POST", "/request", data={"data": envelope.metadata()}, files={"blob": ("request", blob)})
        self.job_id = self._part(told, "id")
        self.remote.traffic.up += len(blob)
        logger.info("%s: %d bytes sent to %s", self.job_id, len(blob), self.host)

    def result(self, wait: bool = True) -> Any:
        """What the request saved as `found`; None while it is running, unless it is waited for.

        Raises:
            RemoteError: it failed, the server went away, or it takes longer than it may.
        """
        while (content := self._content()) is None and wait:
            self._wire.check(self._doing)
            time.sleep(min(max(self._wire.seconds / 10, _SHORTEST_PAUSE), _LONGEST_PAUSE))  # late by a tenth at most
        return None if content is None else self._read(content)

    @property
    def _doing(self) -> str:
        return f"request {self.job_id} is {self._state}" if self.job_id else "the request is being sent"

    def _content(self) -> bytes | None:
        """The bytes of the result, once there are any."""
        told = self._asked("GET", f"/response/{self.job_id}", absent=True)
        if told is None:
            if time.time() - self.sent > min(_UNKNOWN_SECONDS, self.remote.deadline):
                raise self._lost(f"{self.host} knows no request {self.job_id}")
            return None
        self._state = self._part(told, "status").lower()
        if self._state == "error":
            raise _failure(str(told.get("description", "")).strip(), self.job_id, self.model_name)
        return self._fetched(self._part(told, "data")) if self._state == "completed" else None

    def _fetched(self, url: str) -> bytes:
        """The result, which may lie elsewhere: there a key is nobody's business."""
        answer = self._call("GET", url, None)
        if answer.code in (403, 404):
            raise self._lost(f"the result of request {self.job_id} is not there any more ({answer.code})")
        if answer.code != 200:
            raise ServerUnreachable(f"the result of request {self.job_id} cannot be fetched ({answer.code}); try again")
        return answer.content

    def _lost(self, what: str) -> JobLost:
        return JobLost(f"{what}; the server may have been restarted since: send it again", self.job_id)

    def _read(self, content: bytes) -> Any:
        traffic = self.remote.traffic
        traffic.requests += 1
        traffic.down += len(content)
        traffic.seconds += self._wire.seconds
        logger.info("%s: %d bytes came back after %.1f s", self.job_id, len(content), self._wire.seconds)
        try:
            # Tensors alone are read: unlike nnsight's own way, this runs nothing that a server may have put there.
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["found"]
        except Exception as error:  # whatever a reader of foreign bytes meets
            raise RemoteError(f"the result of request {self.job_id} cannot be read: {error}", self.job_id) from error

    def _asked(self, verb: str, path: str, absent: bool = False, **sent: Any) -> Any:
        """What the server says, as JSON; None where it has no such thing, if it may be absent."""
        answer = self._call(verb, self.host + path, self._headers, **sent)
        if answer.code == 404 and absent:
            return None
        if answer.code >= 300:
            raise self._refusal(answer)
        try:
            return json.loads(answer.content)
        except ValueError:
            raise self._foreign(answer.content) from None

    def _part(self, told: Any, name: str) -> str:
        if isinstance(told, dict) and isinstance(told.get(name), str):
            return told[name]
        raise self._foreign(json.dumps(told).encode())

    def _foreign(self, content: bytes) -> RemoteError:
        said = content[:80].decode(errors="replace")
        return RemoteError(
            f"{self.host} does not answer like an NDIF server ({said!r}); is NDIF_HOST or Remote(host=...) right?", self.job_id
        )

    def _call(self, verb: str, url: str, headers: dict[str, str] | None, **sent: Any) -> Answer:
        try:
            return self._wire.call(verb, url, headers, self._doing, **sent)
        except RemoteError as error:
            error.job_id = self.job_id
            raise

    @property
    def _headers(self) -> dict[str, str]:
        told = {"ndif-timestamp": repr(time.time()), "nnsight-version": version("nnsight"), "python-version": sys.version}
        return {**told, "ndif-api-key": self.api_key} if self.api_key else told

    def _refusal(self, answer: Answer) -> RemoteError:
        """What a status code of 300 and above means."""
        code = answer.code
        try:
            said = json.loads(answer.content)["detail"]
        except (ValueError, KeyError, TypeError):
            said = answer.content.decode(errors="replace")[:100]
        if code in (404, 405, 501):
            return self._foreign(answer.content)
        if code < 400:
            return RequestRefused(f"{self.host} points to {answer.location} ({code}); give that as the host", self.job_id)
        if code in (401, 403) or (code == 400 and "api key" in str(said).lower()):
            key = "your key was refused" if self.api_key else "no API key was given"
            return RequestRefused(
                f"{self.host}: {key} ({said}); get one at https://login.ndif.us, and set NDIF_API_KEY before nnsight is "
                "imported, or nnsight.CONFIG.API.APIKEY",
                self.job_id,
            )
        if code >= 500 or code in (408, 429):
            return ServerUnreachable(f"{self.host} cannot serve now ({code}: {said}); try again in a few minutes", self.job_id)
        return RequestRefused(f"{self.host} refuses the request ({code}: {said})", self.job_id)


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


def model_key(model: Any, remote: Remote) -> str:
    """By which the server knows the model; nnsight asks the hub for the spelling of its name, and would wait without end.

    Raises:
        RequestRefused: the hub has no such model.
        ServerUnreachable: the hub does not answer.
    """
    name = str(model.repo_id)
    try:
        if name not in _asked_hub:
            HfApi().model_info(name, timeout=min(remote.patience, remote.deadline))
            _asked_hub.add(name)
        return str(model.to_model_key())
    except Exception as error:  # of whatever client the hub's library brings
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
            raise RequestRefused(f"the hub has no model {name}, or not for you: {error}") from error
        raise ServerUnreachable(f"the hub cannot be asked which model {name} is: {error}") from error


def host_of(remote: Remote) -> str:
    """Where requests go: nnsight's own setting unless a host is named; a slash at its end would be answered with 403."""
    return (remote.host or str(CONFIG.API.HOST)).rstrip("/")
