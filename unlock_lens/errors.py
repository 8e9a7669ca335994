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
    """An argument is unusable: a count, range or shape is wrong, or a value is not finite."""


class UnsupportedModel(UnlockLensError, TypeError):
    """No backend supports this model, or not in the requested way."""


class IncompatibleModel(UnlockLensError, ValueError):
    """A direction, aligner or key was used with a model that it was not made for (width, depth, basis or weights)."""


class ArtifactError(UnlockLensError, ValueError):
    """A file is not a readable unlock-lens artifact of the expected kind."""


class DiskError(UnlockLensError, OSError):
    """A file that the disk does not take or give: it is full or read-only, access is denied, or the folder is gone."""


class MissingPackage(UnlockLensError, ImportError):
    """A package from an extra is needed but not installed; the message has the command that installs it."""


def plain(text: str, limit: int = 2000) -> str:
    """Untrusted text for a message: control characters (which steer terminals) are replaced, and it is cut at the limit."""
    kept = "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:limit])
    return kept + "..." if len(text) > limit else kept


def shown(value: Any) -> str:
    """An untrusted value for a message, in one short line; the contents of containers are never visited."""
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
    """Check that the packages of an extra are installed, by import name, without importing them.

    Raises:
        MissingPackage: one of them is not installed.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise MissingPackage(f"this needs {', '.join(missing)}; install with: pip install 'unlock-lens[{extra}]'")


def caution(message: str) -> None:
    """Warn about something that only the caller can fix, at the line of the program that called this package."""
    frame, level = inspect.currentframe(), 1
    while frame and frame.f_back and frame.f_code.co_filename.startswith((_PACKAGE, _FUNCTOOLS)):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


class RemoteError(UnlockLensError, RuntimeError):
    """A request to a server gave no result.

    Attributes:
        job_id: the server's id for the request, once it has one.
        server_traceback: the server's full report of a failure.
    """

    def __init__(self, message: str, job_id: str | None = None, server_traceback: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.server_traceback = server_traceback


class ServerUnreachable(RemoteError):
    """No server answers at this address, it has gone away, or it is restarting."""


class DeadlineExceeded(RemoteError, TimeoutError):
    """The server stayed silent, or took longer than allowed."""


class RequestRefused(RemoteError):
    """The server refused the request: the key is missing or wrong, the version differs, or it does not have the model."""


class RemoteFailure(RemoteError):
    """The request ran on the server and failed there."""


class JobLost(RemoteFailure):
    """The server does not know the request, perhaps because it has been restarted since."""


class JobsRunning(RemoteError):
    """Requests were submitted and have no result yet; the same call collects them later, even in another process.

    Attributes:
        ids: the server's ids for them.
    """

    def __init__(self, message: str, ids: tuple[str, ...]) -> None:
        super().__init__(message, ids[0] if ids else None)
        self.ids = ids
