"""What a sweep has read from its models, kept in its folder until it ends, so that a resumed one does not read it again."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlock_lens.core.files import replacing
from unlock_lens.core.writing import discard, write_whole

logger = logging.getLogger(__name__)
FOLDER = "captures"
_SPARE = 2
"""A file is kept where the disk has this many times its size."""


class Captures:
    """Tensors and texts by key, on disk; kept ones are used only for the inputs that they were made from.

    Attributes:
        folder: where the files are.
        inputs: everything that they depend on, as text: config, models, problems, texts.
    """

    def __init__(self, folder: Path, inputs: str) -> None:
        self.folder, self._made_from = folder, _short(inputs)
        if folder.is_dir():
            for stale in (file for file in folder.iterdir() if not file.name.startswith(self._made_from)):
                discard(stale)

    def tensor(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        """The kept tensor of a key, or what `make` returns, which is kept from then on."""
        file = self._file(key, "safetensors")
        if file.is_file():
            try:
                return load_file(file)["kept"]
            except (SafetensorError, OSError, KeyError) as error:
                logger.warning("%s is not used, and made again: %s", file, error)
        made = make()

        def write() -> None:
            with replacing(file) as temporary:
                save_file({"kept": made.contiguous()}, temporary)

        self._keep(file, made.numel() * made.element_size(), write)
        return made

    def texts(self, key: object, make: Callable[[], list[str]]) -> list[str]:
        """The same of texts."""
        file = self._file(key, "json")
        if file.is_file():
            try:
                return json.loads(file.read_bytes())["kept"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("%s is not used, and made again: %s", file, error)
        made = make()
        content = json.dumps({"kept": made}).encode()
        self._keep(file, len(content), lambda: write_whole(file, content))
        return made

    def clear(self) -> None:
        """Remove everything: the sweep is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, key: object, kind: str) -> Path:
        return self.folder / f"{self._made_from}-{_short(repr(key))}.{kind}"

    def _keep(self, file: Path, size: int, write: Callable[[], None]) -> None:
        """Write a file if the disk has room. A disk that refuses costs the next resumption its time, and this run nothing."""
        try:
            self.folder.mkdir(exist_ok=True)
            if shutil.disk_usage(self.folder).free <= _SPARE * size:
                raise OSError(f"there is no room for {size / 1e9:.1f} GB")
            write()
        except (OSError, SafetensorError) as error:
            logger.warning("%s is not kept, so a resumed sweep will read its models again: %s", file, error)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
