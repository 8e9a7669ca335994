from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import settings

import tests.checks  # noqa: F401  # pyright: ignore[reportUnusedImport]  unlock_lens is imported with its checker
from unlock_lens import zoo

# The same examples every time, and no clock: tests are deterministic whatever else the machine does.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

# Several test processes share the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small() -> Any:
    return zoo.load("small-base")


@pytest.fixture(scope="session")
def large() -> Any:
    return zoo.load("large-base")


@pytest.fixture(scope="session")
def small_nnsight() -> Any:
    return zoo.load("small-base", "nnsight")
