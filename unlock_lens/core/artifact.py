"""Artifacts: one safetensors file each, with all that describes it; written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from unlock_lens.errors import ArtifactError

__all__ = ["load"]

FORMAT_VERSION = 1
_KEY = "unlock_lens"


def save(path: str | Path, kind: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write an artifact: to a temporary file beside it, which then takes its place."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "library_version": version("unlock-lens"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "content_hash": content_hash(held),
        "shapes": {name: list(tensor.shape) for name, tensor in held.items()},
        **description,
    }
    content = to_bytes(held, metadata={_KEY: json.dumps(metadata)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: str | Path) -> Generator[Path, None, None]:
    """A temporary file beside `path`, which takes its place when the block ends; an exception leaves the old file as it was.

    Raises:
        ArtifactError: no file can be there.
    """
    path = Path(path)
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise ArtifactError(f"{path.parent} is not a folder; make it first")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, _usual_mode())  # mkstemp's is for its owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str | Path, kind: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of an artifact, of any kind if none is named.

    Raises:
        ArtifactError: no such file, foreign, damaged, or of another kind or format version.

    Source: docs/hub.md.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from unlock_lens import CapabilityDirection
        >>> from unlock_lens.core import artifact
        >>> file = Path(tempfile.mkdtemp(), "direction.safetensors")
        >>> CapabilityDirection(torch.eye(2, 8), layers=(0, 1)).save(file)
        >>> tensors, metadata = artifact.load(file)
        >>> metadata["kind"], tensors["vectors"].shape
        ('direction', torch.Size([2, 8]))
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")
    with reading(path):
        with safe_open(path, framework="pt") as file:
            raw = (file.metadata() or {}).get(_KEY)
            if raw is None:
                raise ArtifactError(
                    f"{path} is a safetensors file, but not one of unlock-lens; expected a saved direction or aligner"
                )
            metadata = json.loads(raw)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        _check(path, kind, tensors, metadata)
    return tensors, metadata


@contextmanager
def reading(path: str | Path) -> Generator[None, None, None]:
    """Turn what a damaged or foreign file provokes into an ArtifactError that names the file."""
    try:
        yield
    except ArtifactError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a readable unlock-lens artifact ({error}); save it again") from error


def _check(path: Path, kind: str | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    if metadata["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {metadata['format_version']}, this library reads {FORMAT_VERSION}; "
            f"it was written by unlock-lens {metadata.get('library_version', '?')}"
        )
    if kind is not None and metadata["kind"] != kind:
        raise ArtifactError(f"{path} holds: {metadata['kind']}; expected: {kind}")
    if metadata["shapes"] != {name: list(tensor.shape) for name, tensor in tensors.items()}:
        raise ArtifactError(f"the shapes in {path} are not those that its metadata tells; save it again")
    if metadata["content_hash"] != content_hash(tensors):
        raise ArtifactError(f"the numbers in {path} are not those that were saved; the file is damaged, save it again")


def _usual_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Of names and numbers."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()[:16]
