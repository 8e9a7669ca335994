"""The embedded model family: tiny, real, trained models in which a transfer can be seen end to end within seconds."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import open_model
from unlock_lens.hosts.remote import Where
from unlock_lens.zoo.task import BEHAVIOURS, Task, running_sum, text

MODELS = (
    *("small-base", "large-base", "small-base-2", "large-base-2", "small-post", "large-post", "small-naive"),
    *("small-duo", "large-duo", "small-varied", "large-varied", "small-shared", "large-shared", "small-gpt2"),
    *("small-mamba", "small-mamba-post"),
)

__all__ = ["BEHAVIOURS", "MODELS", "Task", "load", "named", "path", "resolved", "running_sum", "text"]

_PREFIX = "zoo:"


def path() -> Path:
    """The folder of the model folders, each a Hugging Face folder (config, safetensors, tokenizer)."""
    return Path(__file__).parent / "models"


def load(name: str, backend: str = "transformer_lens", dtype: str = "float32", device: str | None = None) -> Any:
    """Open one of `MODELS`, in TransformerLens (a TransformerBridge) or in nnsight (a TransformersModel).

    Raises:
        InvalidInput: there is no such model, backend, dtype or device.
    """
    folder = resolved(_PREFIX + name)
    with _no_loading_bars():
        return open_model(folder, backend, dtype, device=device)


def named(name: str, backend: str, dtype: str, remote: Where = False, device: str | None = None) -> Any:
    """Open a model as configs and the command line name it: zoo:NAME, a folder, or a hub id.

    Raises:
        InvalidInput: as `load` and `open_model`.
    """
    if name.startswith(_PREFIX):
        return load(name.removeprefix(_PREFIX), backend, dtype, device)
    return open_model(name, backend, dtype, remote, device)


def resolved(name: str) -> str:
    """The folder that zoo:NAME stands for; any other name unchanged.

    Raises:
        InvalidInput: there is no such model in the zoo.
    """
    if not name.startswith(_PREFIX):
        return name
    if (bare := name.removeprefix(_PREFIX)) not in MODELS:
        raise InvalidInput(f"there is no zoo model {bare!r}; take one of {', '.join(MODELS)}")
    return str(path() / bare)


@contextmanager
def _no_loading_bars() -> Generator[None, None, None]:
    """Transformers shows a bar even for weights that load in a hundredth of a second."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
