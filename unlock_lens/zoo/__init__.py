"""The embedded model family: tiny, real, trained models in which a transfer can be seen end to end within seconds."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import open_model
from unlock_lens.zoo.task import BEHAVIOURS, Task, running_sum, text

MODELS = (
    *("small-base", "large-base", "small-base-2", "large-base-2", "small-post", "large-post", "small-naive"),
    *("small-duo", "large-duo", "small-varied", "large-varied", "small-shared", "large-shared", "small-gpt2"),
    *("small-mamba", "small-mamba-post"),
)

__all__ = ["BEHAVIOURS", "MODELS", "Task", "load", "path", "running_sum", "text"]


def path() -> Path:
    """The folder of the model folders, each a Hugging Face folder (config, safetensors, tokenizer)."""
    return Path(__file__).parent / "models"


def load(name: str, backend: str = "transformer_lens", dtype: str = "float32") -> Any:
    """Open one of `MODELS`, in TransformerLens (a TransformerBridge) or in nnsight (a TransformersModel).

    Raises:
        InvalidInput: the model or backend is unknown.
    """
    if name not in MODELS:
        raise InvalidInput(f"there is no zoo model {name!r}; use one of {', '.join(MODELS)}")
    with _no_loading_bars():
        return open_model(str(path() / name), backend, dtype)


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
