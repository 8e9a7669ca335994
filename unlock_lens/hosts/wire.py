"""HTTP calls to a server, none of them longer than it may; what goes wrong with them is told in the library's own errors."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx

from unlock_lens.errors import DeadlineExceeded, ServerUnreachable
from unlock_lens.hosts.remote import Remote


@dataclass(frozen=True)
class Answer:
    """What came back: status code, bytes, and where a redirect points to."""

    code: int
    content: bytes
    location: str


class Wire:
    """One request's calls.

    Args:
        host: the server.
        remote: how long one answer, and all of them together, may take.
    """

    def __init__(self, host: str, remote: Remote) -> None:
        self.host, self.remote = host, remote
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the request was made here."""
        return time.monotonic() - self.started

    def call(self, verb: str, url: str, headers: dict[str, str] | None, doing: str, **sent: Any) -> Answer:
        """One call; `doing` says in errors what the request is at.

        Raises:
            DeadlineExceeded: the server is silent for longer than the patience, or all takes longer than the deadline.
            ServerUnreachable: nobody answers there.
        """
        left = self.remote.deadline - self.seconds
        self.check(doing)
        try:
            with httpx.Client(timeout=min(self.remote.patience, left)) as client:
                with client.stream(verb, url, headers=headers, **sent) as answer:
                    parts: list[bytes] = []
                    for part in answer.iter_bytes():
                        parts.append(part)
                        self.check(doing)
                    return Answer(answer.status_code, b"".join(parts), answer.headers.get("location", ""))
        except httpx.TimeoutException as error:
            self.check(doing)
            raise DeadlineExceeded(
                f"{self.host} has been silent for {self.remote.patience:g} s; {doing}; "
                "is it overloaded? Remote(patience=...) waits longer"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerUnreachable(
                f"{self.host} does not answer ({error}); {doing}; is the server up, and is NDIF_HOST or Remote(host=...) right?"
            ) from error

    def check(self, doing: str) -> None:
        """Raise DeadlineExceeded once the time for all calls is over."""
        if self.seconds > self.remote.deadline:
            raise DeadlineExceeded(
                f"{doing} and not done after {self.remote.deadline:g} s; "
                "give Remote(deadline=...) more time; with resume=FOLDER the same call collects it later"
            )
