"""Writing files so that a crash, or a loss of power, leaves the old file or the new one, whole."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.part")
_OLD = 3600.0
"""Seconds; a younger temporary may belong to a process that is writing now."""


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, on disk when this returns, or leave the old one; OSError where that cannot be."""
    temporary = temporary_of(file)
    try:
        write_new(temporary, content)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def temporary_of(file: Path) -> Path:
    """A new name beside a file; what interrupted writes of that file left is removed."""
    clear_leftovers(file)
    return file.with_name(f".{file.name}.{uuid4().hex}.part")


def write_new(file: Path, content: bytes) -> None:
    """Write a file that is not there yet, on disk when this returns; a link that is there is not written through."""
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk; Windows does that by itself, and refuses to open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_leftovers(file: Path) -> None:
    """Remove temporaries that interrupted writes of this file left."""
    for other in file.parent.glob(f".{file.name}.*.part"):
        found = _LEFTOVER.fullmatch(other.name)
        with suppress(OSError):
            if found and found["name"] == file.name and time.time() - other.lstat().st_mtime > _OLD:
                other.unlink()
