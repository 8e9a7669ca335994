"""Importing the package brings torch and little else; what is used later is imported later."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import pytest

import unlock_lens as ul

LATER = ("unlock_lens.evidence.diagnosis", "pandas", "scipy", "plotly", "rich", "pydantic", "huggingface_hub", "gguf")


def test_import_brings_little_besides_torch() -> None:
    code = f"import sys, unlock_lens; print([name for name in {LATER} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert set(ul.__all__) <= set(dir(ul))
    for name in ul.__all__:
        assert getattr(ul, name) is not None
    assert ul.lens.cosines is import_module("unlock_lens.evidence.lens").cosines
    assert ul.__version__ == version("unlock-lens")
    with pytest.raises(AttributeError, match="module 'unlock_lens' has no attribute 'nothing'"):
        ul.nothing  # noqa: B018  # pyright: ignore[reportUnusedExpression]
