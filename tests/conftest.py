from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import settings

import tests.checks  # noqa: F401  # pyright: ignore[reportUnusedImport]  unlock_lens is imported with its checker
from unlock_lens import zoo

# The same examples every time, and no clock: tests are deterministic whatever else the machine does.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

# Several test processes share the cores: one thread each, where scripts/test_numerics.py does not ask for more.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of documents and pages the quick suite runs only what is marked quick."""
    for item in items:
        if item.path.parent.name in ("browser", "docs") and not item.get_closest_marker("quick"):
            item.add_marker("full")


@pytest.fixture(scope="session")
def small() -> Any:
    return zoo.load("small-base")


@pytest.fixture(scope="session")
def large() -> Any:
    return zoo.load("large-base")


@pytest.fixture(scope="session")
def small_nnsight() -> Any:
    return zoo.load("small-base", "nnsight")
