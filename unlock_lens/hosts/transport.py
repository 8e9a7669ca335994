"""Transport: one request to an NDIF server, on nnsight's own submit and poll over HTTP, and collected by any process.

What is added: a watchdog over every call, results of which tensors alone are read, and the library's own errors.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from math import inf
from threading import Thread
from typing import Any

import httpx
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.intervention.backends.remote import RemoteError as Failed
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from unlock_lens.errors import DeadlineExceeded, JobLost, RemoteError, RemoteFailure, RequestRefused, ServerUnreachable
from unlock_lens.hosts.remote import Remote

logger = logging.getLogger(__name__)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0
_UNKNOWN_SECONDS = 30.0
"""A server has said something of a request by then, or never heard of it."""
_CHECK_HOST = "is NDIF_HOST or Remote(host=...) right?"
_SEND_AGAIN = "; the server may have been restarted since: send it again"


class Silent(Exception):
    """A call has not come back in time."""


def watched(call: Callable[..., Any], *args: Any, seconds: float) -> Any:
    """What a blocking call gives, or Silent, its thread left to itself; nnsight's own time out after ten minutes, or never."""
    came: Future[Any] = Future()

    def work() -> None:
        try:
            came.set_result(call(*args))
        except BaseException as error:
            came.set_exception(error)

    Thread(target=work, daemon=True).start()
    if not wait([came], seconds).done:
        raise Silent
    return came.result()


class Job(RemoteBackend):
    """A request on its way; one that was sent before has its `job_id`, and the time of that, in seconds since the epoch."""

    def __init__(self, model: Any, remote: Remote, job_id: str | None = None, sent: float | None = None) -> None:
        key, env = model_key(model, remote), model._remoteable_get_env()
        super().__init__(key, host=host_of(remote), env=env, blocking=False, job_id=job_id)
        self.display.enabled = False
        self.compress = False  # float32 hardly gets smaller, and what is sent and fetched can be foretold
        self.model_name, self.remote = str(model.repo_id), remote
        self.sent, self._started = sent or time.time(), time.monotonic()
        self._known = False

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
            raise self._error(RemoteError, f"the result of request {self.job_id} cannot be read: {error}") from error

    def handle(self, response: ResponseModel) -> Any:
        """The response once there is a result, which nnsight's own method would fetch at once; that may take long."""
        self._known = True
        return response if self.note(response) else None

    def _post(self, request: RequestModel, blob: bytes) -> ResponseModel:
        response = self._asked(super()._post, request, blob, patience=self.remote.patience)
        self.remote.traffic.up += len(blob)
        logger.info("%s: %d bytes sent to %s", response.id, len(blob), self.host)
        return response

    def _done(self) -> ResponseModel | None:
        self._known = False
        done = self._asked(self.poll, patience=self.remote.patience)
        if not self._known and time.time() - self.sent > min(_UNKNOWN_SECONDS, self.remote.deadline):
            raise self._error(JobLost, f"{self.host} knows no request {self.job_id}{_SEND_AGAIN}")
        return done

    def _fetched(self, url: Any) -> Any:
        """The result, which may lie elsewhere: the key is not sent there."""
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
        """One call; what goes wrong with it is raised as the library's own error."""
        left = self._left
        try:
            return watched(call, *args, seconds=min(patience, left))
        except Silent:
            if left <= patience:
                raise self._overdue() from None
            told = f"{self.host} has been silent for {patience:g} s; {self._doing}; is it overloaded? "
            raise self._error(DeadlineExceeded, f"{told}Remote(patience=...) waits longer") from None
        except Failed as error:  # the request failed, or nnsight wraps what went wrong with sending it
            raise self._failure(str(error).strip()) if error.__cause__ is None else self._fault(error.__cause__) from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._fault(error) from error

    def _fault(self, error: BaseException) -> RemoteError:
        """What went wrong with a call: no server, another program's answer, or a status code of 300 and above."""
        if isinstance(error, httpx.HTTPStatusError):
            code = error.response.status_code
            if self.status is not Status.COMPLETED:
                return self._refusal(code, error.response)
            if code in (403, 404):
                return self._error(JobLost, f"the result of request {self.job_id} is not there any more ({code}){_SEND_AGAIN}")
            return self._error(ServerUnreachable, f"the result of request {self.job_id} cannot be fetched ({code}); try again")
        if not isinstance(error, httpx.HTTPError | httpx.InvalidURL):
            return self._foreign(str(error))
        told = f"{self.host} does not answer ({error}); {self._doing}; is the server up, and {_CHECK_HOST}"
        return self._error(ServerUnreachable, told)

    def _refusal(self, code: int, answer: httpx.Response) -> RemoteError:
        try:
            said = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            said = answer.text
        if code in (404, 405, 501):
            return self._foreign(said)
        if code >= 500 or code in (408, 429):
            return self._error(ServerUnreachable, f"{self.host} cannot serve now ({code}: {said}); try again in a few minutes")
        told = f"refuses the request ({code}: {said})"
        if code < 400:
            told = f"points to {answer.headers.get('location')} ({code}); give that as the host"
        elif code in (401, 403) or (code == 400 and "api key" in said.lower()):
            told = f"refuses your key ({said})" if self.api_key else f"was given no API key ({said})"
            told += "; get one at https://login.ndif.us; set nnsight.CONFIG.API.APIKEY, or NDIF_API_KEY before it is imported"
        return self._error(RequestRefused, f"{self.host} {told}")

    def _failure(self, said: str) -> RemoteError:
        """What it means that the request failed, and what to do."""
        request, last = f"request {self.job_id}", said.rpartition("\n")[2]
        if said.startswith("Could not deploy"):  # why, and then a traceback of the server's own, cut short
            why = said.partition("Traceback")[0].strip()
            told = f"the server does not run {self.model_name}: {why}\n(nnsight.status() lists the models that are running)"
            return RequestRefused(told, self.job_id, said)
        if "execution timeout" in said or "out of memory" in said:
            told = f"the server stopped {request} ({last}); put less into one: Remote(batches=...) or a smaller batch_size"
        elif "Traceback" in said:
            told = f"{request} failed on the server: {last}\n(the server's traceback is in the error's server_traceback)"
        elif "try again later" in said or "cancelled" in said:
            told = f"{request} was lost on the server ({said}); the same call sends it again"
        else:
            return RequestRefused(f"the server refuses {request}: {said or 'it does not say why'}", self.job_id, said)
        return RemoteFailure(told, self.job_id, said)

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
        told = f"{self._doing} and not done after {self.remote.deadline:g} s; give Remote(deadline=...) more time; "
        return self._error(DeadlineExceeded, f"{told}with resume=FOLDER the same call collects it later")

    def _foreign(self, said: str) -> RemoteError:
        return self._error(RemoteError, f"{self.host} does not answer like an NDIF server ({said[:200]}); {_CHECK_HOST}")

    def _error(self, kind: type[RemoteError], told: str) -> RemoteError:
        return kind(told, self.job_id)


def model_key(model: Any, remote: Remote) -> str:
    """By which the server knows the model; nnsight asks the hub, once, for the spelling of its name."""
    seconds = min(remote.patience, remote.deadline)
    try:
        return str(watched(model.to_model_key, seconds=seconds))
    except Silent:
        raise ServerUnreachable(f"the hub, asked which model {model.repo_id} is, has been silent for {seconds:g} s") from None
    except Exception as error:  # of whatever client the hub's library brings
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
            raise RequestRefused(f"the hub has no model {model.repo_id}, or not for you: {error}") from error
        raise ServerUnreachable(f"the hub cannot be asked which model {model.repo_id} is: {error}") from error


def host_of(remote: Remote) -> str:
    """Where requests go: nnsight's own setting unless a host is named; a slash at its end would be answered with 403."""
    return (remote.host or str(CONFIG.API.HOST)).rstrip("/")
