"""What a foreign file claims, compared with its size before a reader makes anything of it."""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from unlock_lens.errors import InvalidInput, shown

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of GGUF's scalars, by the number of their type."""
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_MOST_KEYS, _MOST_VALUES, _MOST_TENSORS = 10_000, 10_000, 100_000
_LARGEST_PICKLE, _MOST_STEPS = 2**20, 200_000


class _Header:
    """The header of a GGUF file, read in steps that its size allows."""

    def __init__(self, source: IO[bytes], size: int) -> None:
        self.source, self.size, self.order, self.values = source, size, "<", 0

    def number(self, form: str) -> int:
        content = self.source.read(struct.calcsize(form))
        return int(struct.unpack(self.order + form, content)[0])  # struct.error where the file ends

    def skip(self, count: int) -> None:
        if not 0 <= count <= self.size - self.source.tell():
            raise InvalidInput(f"its header claims {count} bytes, and the file has {self.size}")
        self.source.seek(count, 1)

    def text(self) -> bytes:
        count = self.number("Q")
        if count > self.size - self.source.tell():
            raise InvalidInput(f"its header claims a text of {count} bytes, and the file has {self.size}")
        return self.source.read(count)

    def value(self, kind: int, in_array: bool = False) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY and not in_array:
            kind, count = self.number("I"), self.number("Q")
            self.values += count
            if self.values > _MOST_VALUES:
                raise InvalidInput(f"its header holds arrays of {self.values} values; it may be a model, not a control vector")
            for _ in range(count):
                self.value(kind, in_array=True)
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise InvalidInput(f"its header holds a value of type {kind}, or arrays of arrays")


def check_gguf(path: Path) -> None:
    """Raise InvalidInput where the header of a GGUF file claims what the file cannot hold, or what no control vector has."""
    size = path.stat().st_size
    with path.open("rb") as source:
        header = _Header(source, size)
        if source.read(4) != b"GGUF":
            raise InvalidInput("it does not begin as GGUF files do")
        if header.number("I") & 0xFFFF == 0:  # version 3 in the other byte order
            header.order = ">"
        tensors, keys = header.number("Q"), header.number("Q")
        if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
            raise InvalidInput(f"its header claims {tensors} tensors and {keys} keys")
        for _ in range(keys):
            name, kind = header.text(), header.number("I")
            if name == b"general.alignment":
                at = source.tell()
                alignment = header.number("I") if kind == _UINT32 else 0
                if alignment not in {2**i for i in range(17)}:
                    raise InvalidInput("its alignment is not a small power of two")
                source.seek(at)
            header.value(kind)
        for _ in range(tensors):
            header.text()
            dims = header.number("I")
            if dims > 4:
                raise InvalidInput(f"a tensor has {dims} dimensions")
            numbers = math.prod(header.number("Q") for _ in range(dims))
            header.number("I")  # its type; no type takes less than a bit
            if numbers > 8 * size or header.number("Q") > size:
                raise InvalidInput(f"a tensor claims {numbers} numbers, or lies beyond the end of a file of {size} bytes")


def check_pickle(content: bytes) -> None:
    """Check the content of a `.pt` file.

    Raises:
        InvalidInput: it claims what it cannot hold (compressed parts, huge numbers), or would take long: tuples that are used
            again and again grow exponentially when they become the key of a dictionary.
    """
    size, source = len(content), io.BytesIO(content)
    if not zipfile.is_zipfile(source):
        source.seek(0)
        for _ in range(5):  # magic number, protocol, system, content, keys of what follows
            _check_steps(pickletools.genops(source), size)
        return
    with zipfile.ZipFile(source) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > size:
            raise InvalidInput("its parts are larger than the file; save it again with torch.save")
        for part in parts:
            if part.filename.endswith(".pkl"):
                if part.file_size > _LARGEST_PICKLE:
                    raise InvalidInput(f"its description has {part.file_size} bytes; tensors alone belong into it")
                _check_steps(pickletools.genops(archive.read(part)), size)


def _check_steps(steps: Iterator[tuple[Any, Any, Any]], size: int) -> None:
    tuples: set[int] = set()
    kept, last, number = 0, "", 0
    for i, (step, given, _) in enumerate(steps):
        if i > _MOST_STEPS:
            raise InvalidInput("it holds far more than tensors")
        name = step.name
        if name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            if last.startswith("TUPLE"):
                tuples.add(kept if name == "MEMOIZE" else int(given))
            kept += 1
        elif name in ("BINGET", "LONG_BINGET", "GET") and int(given) in tuples:
            raise InvalidInput("it holds a tuple that is used more than once")
        elif name in ("DUP", "EXT1", "EXT2", "EXT4"):
            raise InvalidInput("it holds steps that no tensor needs")
        elif name == "BINPERSID" and not 0 <= number <= size:  # the last number in front of it is a storage's length
            raise InvalidInput(f"it claims {shown(number)} numbers, and has {size} bytes")
        elif isinstance(given, int):
            number = given
        last = name
