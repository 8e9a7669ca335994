"""The tutorial of docs/remote.md runs against the server, and shows what is kept in it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tutorials import TUTORIALS, executed, noise, notebook_of, shown

REMOTE = TUTORIALS / "remote"


@pytest.fixture(scope="module")
def run(rig: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return executed(notebook_of(REMOTE), tmp_path_factory.mktemp("tutorial"))


def test_it_shows_what_is_kept(run: Any) -> None:
    """Numbers, table and completions of a run are those in the notebook; its seconds may differ."""
    kept = shown(notebook_of(REMOTE))
    assert any("transferred  alpha 0.5   100 of 100 right" in line for cell in kept for line in cell)
    assert shown(run) == kept


def test_a_run_makes_no_noise(run: Any) -> None:
    assert noise(run) == []
