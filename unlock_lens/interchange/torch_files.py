"""`.pt` files that hold dictionaries of tensors and nothing that runs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from unlock_lens.core.files import replacing
from unlock_lens.errors import ArtifactError


def write(path: str | Path, content: dict[Any, Any]) -> None:
    """Save a dictionary; an interrupted write leaves the old file as it was.

    Raises:
        ArtifactError: the file cannot be there.
    """
    with replacing(path) as temporary:
        torch.save(content, temporary)


def read(path: str | Path, instead: str) -> dict[Any, Any]:
    """The dictionary in a file; pickled objects are never run.

    Args:
        path: the file.
        instead: what to save in place of whole objects.

    Raises:
        ArtifactError: no such file, damaged, pickled objects in it, or no dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path} is no file of tensors alone: a whole pickled object, which could run anything when it is read, or "
            f"damaged. It is not read; where it was made, save {instead}"
        ) from error
    except Exception as error:  # what foreign bytes provoke in the parser has no one class
        reason = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"{path} is not a readable file of torch.save ({reason}); save it again: {instead}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds a {type(content).__name__}; expected a dictionary: save {instead}")
    return content
