"""Jobs: requests to servers whose results are stored, and can be collected later by any process (docs/remote.md)."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor

from unlock_lens.core import files
from unlock_lens.core.progress import shown
from unlock_lens.core.writing import using, write_whole
from unlock_lens.errors import ArtifactError, InvalidInput, JobLost, JobsRunning, RemoteError
from unlock_lens.hosts import Pending, Server
from unlock_lens.hosts.remote import Remote

logger = logging.getLogger(__name__)
T = TypeVar("T")
_KIND = "finished request"
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_KEPT_BATCHES = 8
"""Batches in one request if finished requests are stored."""
Found = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Request:
    """A request to a server.

    Attributes:
        server: the server.
        send: submits it.
        key: hash of everything that it asks.
        fault: what is wrong with a result, or None; may raise InvalidInput if the request itself is at fault.
    """

    server: Server
    send: Callable[[], Pending]
    key: str
    fault: Callable[[Any], str | None]

    def verify(self, found: Any, job_id: str | None = None) -> Any:
        """The result, unchanged; RemoteError or InvalidInput if it does not fit the request."""
        if told := self.fault(found):
            raise RemoteError(f"the result does not fit the request: {told}; repeat the call to request it again", job_id)
        return found


def batches_in_request(where: Remote | Literal["local"] | None, resumes: bool) -> int | None:
    """None: all of them."""
    return (where.batches if isinstance(where, Remote) else None) or (_KEPT_BATCHES if resumes else None)


def in_requests(batches: Sequence[T], where: Remote | Literal["local"] | None, resumes: bool) -> list[Sequence[T]]:
    """The batches, grouped by request."""
    size = batches_in_request(where, resumes) or len(batches)
    return [batches[i : i + size] for i in range(0, len(batches), size)]


def check_resumable(on_server: bool, resume: str | Path | None, wait: bool) -> None:
    """Raise InvalidInput if the model runs here, where there is nothing to resume or to wait for."""
    if not on_server and (resume is not None or not wait):
        raise InvalidInput("resume= and wait= are for models on a server; give remote=True, or omit them")


def key_of(told: Mapping[str, Any], tensors: Iterable[Tensor]) -> str:
    """Hash of what a request asks, and of the library version, which may ask differently."""
    digest = hashlib.sha256(json.dumps([version("unlock-lens"), told], sort_keys=True, default=str).encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


@dataclass(frozen=True)
class Kept:
    """The folder of one call: results of its requests, and the ids of those in progress."""

    folder: Path

    @classmethod
    def at(cls, resume: str | Path) -> Kept:
        """Create the folder if it does not exist.

        Raises:
            InvalidInput: it cannot be created.
        """
        folder = Path(resume)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"resume={str(resume)!r} was given, but this folder cannot be created: {error}") from error
        return cls(folder)

    def result(self, key: str) -> Found | None:
        """What the job folder has under this key; None, with a warning, if its file cannot be read."""
        file = self.folder / f"{key}.safetensors"
        try:
            return files.load(file, _KIND)[0] if file.exists() else None
        except ArtifactError as error:
            logger.warning("%s; its result is requested again", error)
            return None

    def keep(self, key: str, found: Found) -> None:
        files.save(self.folder / f"{key}.safetensors", _KIND, found, {"key": key})
        self.forget(key)

    def ticket(self, key: str) -> tuple[str, float] | None:
        """Id of a request that was sent and not yet collected, and when it was sent."""
        file = self._ticket(key)
        try:
            with using(file, "read"):
                content = file.read_bytes() if file.exists() else b""
            told = json.loads(content)
            job_id, sent = told["id"], float(told["sent"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None  # what an interrupted write left names no request
        return (job_id, sent) if isinstance(job_id, str) and _ID.fullmatch(job_id) and math.isfinite(sent) else None

    def remember(self, key: str, job_id: str) -> None:
        write_whole(self._ticket(key), json.dumps({"id": job_id, "sent": time.time()}).encode())

    def forget(self, key: str) -> None:
        with using(self._ticket(key), "removed"):
            self._ticket(key).unlink(missing_ok=True)

    def _ticket(self, key: str) -> Path:
        return self.folder / f"{key}.job.json"


def collect(
    requests: Sequence[Request], resume: str | Path | None, wait: bool = True, progress: bool = False, doing: str = ""
) -> list[Found]:
    """The result of each request, one after the other; results in the folder `resume` are not requested again.

    Args:
        requests: in order.
        resume: folder with results, and the ids of requests in progress.
        wait: if False, all requests are sent without waiting.
        progress: whether to show a progress bar.
        doing: its label.

    Raises:
        JobsRunning: requests have no result yet, and wait is False.
        RemoteError: a request failed. Finished requests are stored, and those in progress can be found again.
    """
    if resume is None:
        if not wait:
            raise InvalidInput("wait=False was given without resume=; give a folder that records what was submitted")
        return [request.verify(request.send().result()) for request in shown(requests, doing, progress, "request")]
    kept = Kept.at(resume)
    found: list[Found] = []
    running: list[str] = []
    for request in shown(requests, doing, progress, "request"):
        result = _held(request, kept)
        if result is None:
            result = _collected(request, kept, wait)
        if result is None:
            ticket = kept.ticket(request.key)
            running.append(ticket[0] if ticket else request.key)
        else:
            found.append(result)
    if running:
        raise JobsRunning(
            f"{len(running)} of {len(requests)} requests are on their way ({', '.join(running[:3])}"
            f"{', ...' if len(running) > 3 else ''}); the same call with resume={str(resume)!r} collects them",
            tuple(running),
        )
    return found


def _held(request: Request, kept: Kept) -> Found | None:
    """The stored result, if it fits the request; an older or damaged one may not."""
    found = kept.result(request.key)
    try:
        return None if found is None else request.verify(found)
    except (RemoteError, InvalidInput) as error:
        logger.warning("%s.safetensors in %s is not used: %s", request.key, kept.folder, error)
        return None


def _collected(request: Request, kept: Kept, wait: bool) -> Found | None:
    """The result of a request that is in progress, or is sent now."""
    ticket = kept.ticket(request.key)
    try:
        try:
            pending = request.server.reattach(*ticket) if ticket else _sent(request, kept)
            result = pending.result(wait)
        except JobLost:
            kept.forget(request.key)
            if not ticket:
                raise
            pending = _sent(request, kept)
            result = pending.result(wait)  # the server that knew it is gone
    except RemoteError as error:
        if error.server_traceback is not None:  # it ended there; whatever else was said, it may still be running
            kept.forget(request.key)
        raise
    if result is not None:
        try:
            request.verify(result, pending.id)
        except (RemoteError, InvalidInput):
            kept.forget(request.key)
            raise
        kept.keep(request.key, result)
    return result


def _sent(request: Request, kept: Kept) -> Pending:
    pending = request.send()
    if pending.id:
        kept.remember(request.key, pending.id)
    return pending


def submit(call: Callable[..., Any], *args: Any, resume: str | Path, **kwargs: Any) -> tuple[str, ...]:
    """Send all requests of a call without waiting; the same call, without `submit`, collects the results.

    Args:
        call: `CapabilityDirection.extract`, an aligner's `fit`, or `generate`.
        args: its arguments.
        resume: folder that records what was submitted.
        kwargs: its other arguments.

    Returns:
        The server's ids of the requests that have no result yet.

    Raises:
        RemoteError: a request could not be sent.

    Source: docs/remote.md.

    Example:
        >>> import tempfile
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> model, task = zoo.load("small-base", "nnsight"), zoo.running_sum(n=4)
        >>> pair = [ul.Variant(model, prompts, remote="local") for prompts in (task.direct, task.think)]
        >>> with tempfile.TemporaryDirectory() as folder:  # "local" has finished when it is submitted
        ...     ul.submit(ul.CapabilityDirection.extract, *pair, resume=folder)
        ...     ul.CapabilityDirection.extract(*pair, resume=folder).layers
        ()
        (0, 1, 2)
    """
    try:
        call(*args, resume=resume, wait=False, **kwargs)
    except JobsRunning as running:
        return running.ids
    return ()
