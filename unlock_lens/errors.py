"""The library's exceptions: each message says what was given, what was expected and what to do."""

from __future__ import annotations

import functools
import inspect
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).parent)
_FUNCTOOLS = functools.__file__  # cached properties
_LONGEST_SHOWN, _WIDEST_NUMBER = 120, 200


class UnlockLensError(Exception):
    """Base class of all errors that unlock-lens raises on purpose."""


class InvalidInput(UnlockLensError, ValueError):
    """An argument that cannot be worked with: counts, ranges, shapes, values that are not finite."""


class UnsupportedModel(UnlockLensError, TypeError):
    """A model that no backend can serve, or not in the way that was asked for."""


class IncompatibleModel(UnlockLensError, ValueError):
    """A direction or an aligner met a model that it was not made for (width, depth, basis or weights)."""


class ArtifactError(UnlockLensError, ValueError):
    """A file that is not a readable unlock-lens artifact of the wanted kind."""


class DiskError(UnlockLensError, OSError):
    """A file that the disk does not take or give: it is full or read-only, access is denied, or the folder is gone."""


class MissingPackage(UnlockLensError, ImportError):
    """A package of an extra is needed and not installed; the message has the line that installs it."""


def plain(text: str, limit: int = 2000) -> str:
    """Foreign text for a message: control characters replaced (they steer terminals), lines kept, cut at the limit."""
    kept = "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:limit])
    return kept + "..." if len(text) > limit else kept


def shown(value: Any) -> str:
    """A foreign value for a message, in one short line; what a container holds is never visited."""
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() < _WIDEST_NUMBER else "a huge integer"
    if isinstance(value, str):
        cut = repr(value[:_LONGEST_SHOWN])
        return cut + "..." if len(value) > _LONGEST_SHOWN else cut
    kind = type(value).__name__
    if isinstance(value, list | tuple | dict | set | bytes):
        return f"a {kind} of length {len(value)}"
    return f"a {kind}"


def require(extra: str, *packages: str) -> None:
    """Ask for the packages of an extra by the names that they are imported by, without importing them.

    Raises:
        MissingPackage: one is not installed.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise MissingPackage(f"this needs {', '.join(missing)}; install what is missing: pip install 'unlock-lens[{extra}]'")


def caution(message: str) -> None:
    """Warn of what only the caller can mend, at the line of the program that called this package."""
    frame, level = inspect.currentframe(), 1
    while frame and frame.f_back and frame.f_code.co_filename.startswith((_PACKAGE, _FUNCTOOLS)):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


class RemoteError(UnlockLensError, RuntimeError):
    """A request to a server that gave no result.

    Attributes:
        job_id: the server's name of the request, once it has one.
        server_traceback: what the server said of a failure, whole.
    """

    def __init__(self, message: str, job_id: str | None = None, server_traceback: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.server_traceback = server_traceback


class ServerUnreachable(RemoteError):
    """No server answers there, it went away, or it is restarting."""


class DeadlineExceeded(RemoteError, TimeoutError):
    """A server that stays silent, or takes longer than it may."""


class RequestRefused(RemoteError):
    """The server takes no such request: a key that is missing or wrong, a version, a model that it does not have."""


class RemoteFailure(RemoteError):
    """The request ran on the server and failed there."""


class JobLost(RemoteFailure):
    """The server knows nothing of a request, having been restarted since perhaps."""


class JobsRunning(RemoteError):
    """Requests were submitted and have no result yet; the same call collects them later, in another process too.

    Attributes:
        ids: the server's names of them.
    """

    def __init__(self, message: str, ids: tuple[str, ...]) -> None:
        super().__init__(message, ids[0] if ids else None)
        self.ids = ids
