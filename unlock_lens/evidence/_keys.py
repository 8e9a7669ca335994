"""Hooks as programs name them: by a key's file, folder or hub id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unlock_lens.core.steering import SteeringHook, as_hooks

Key = SteeringHook | Sequence[SteeringHook] | str | Path | None


def hooks_of(key: Key) -> list[SteeringHook]:
    """The hook of a saved key, or hooks as they are.

    Raises:
        ArtifactError: it is not a key.
        InvalidInput: it is neither a name nor a hook.
    """
    if not isinstance(key, str | Path):
        return as_hooks(key)
    is_file = str(key).endswith(".safetensors") or Path(key).is_file()
    return [SteeringHook.load(key) if is_file else SteeringHook.from_pretrained(str(key))]
