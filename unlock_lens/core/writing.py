"""Writing files so that a crash, or a loss of power, leaves the old file or the new one, whole."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from unlock_lens.errors import DiskError

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.part")
_OLD = 3600.0
"""Seconds; a younger temporary may belong to a process that is writing now."""
_WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, or name a file elsewhere"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "allow this user to use it, or name a file elsewhere"),
    **dict.fromkeys((errno.ENOENT, errno.ESTALE, errno.ENOTDIR), "a folder on its way is missing, or was removed meanwhile"),
}


@contextmanager
def using(path: Path, doing: str = "written") -> Generator[None, None, None]:
    """Turn what the disk refuses into the library's own error, with the path and the way out.

    Raises:
        DiskError: in place of any other OSError of the block.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        way_out = _WAYS_OUT.get(error.errno or 0, "look at the disk, or name a file elsewhere")
        raise DiskError(f"{path} cannot be {doing} ({error.strerror or error}): {way_out}") from error


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, on disk when this returns, or leave the old one.

    Raises:
        DiskError: it cannot be written.
    """
    with using(file):
        temporary = temporary_of(file)
        try:
            write_new(temporary, content)
            os.replace(temporary, file)
        except BaseException:
            discard(temporary)
            raise
        sync_folder(file.parent)


def discard(temporary: Path) -> None:
    """Remove what an interrupted write left, if the disk still lets it be removed; the first error matters more."""
    with suppress(OSError):
        temporary.unlink()


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


def sync_file(file: Path) -> None:
    """Put what somebody else wrote on disk."""
    with file.open("rb+") as written:
        os.fsync(written.fileno())


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
