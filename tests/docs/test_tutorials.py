"""The tutorials are whole, and each runs here in every host that it is for (remote.ipynb: beside its server, tests/remote;
real.ipynb: where its models are, `make real`).

A run must show, line by line, what is kept in the notebook: in the host that it was written for, and in the other, for which
texts of its code are replaced. A text that is not found any more is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.tutorials import (
    IN_NNSIGHT,
    LINE_TO_CHANGE,
    NATIVE_IN_NNSIGHT,
    TUTORIALS,
    TextNotFoundError,
    executed,
    noise,
    notebook_of,
    pictures,
    replaced,
    script_of,
    shown,
    sources,
)

NAMES = sorted(file.stem for file in TUTORIALS.glob("*.py"))
REMOTE, REAL = "remote", "real"
HERE = [name for name in NAMES if name not in (REMOTE, REAL)]
IN_BOTH = ("evidence", "method", "own", "quickstart")
"""The others show what is native to one host."""


def quick(names: Iterable[str], chosen: str) -> list[Any]:
    """The names, of which one belongs to the quick suite: a notebook for each host."""
    return [pytest.param(name, marks=pytest.mark.quick) if name == chosen else name for name in names]


def test_every_tutorial_is_there() -> None:
    assert NAMES == ["analysis", "evidence", "method", "own", "quickstart", "real", "remote", "tracing"]


@pytest.mark.parametrize("name", NAMES)
def test_no_tutorial_hides_a_package(name: str) -> None:
    """A script's folder is where Python looks first: tutorials/nnsight.py would be what `import nnsight` finds there."""
    assert find_spec(name) is None


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_clean_and_has_a_picture(name: str) -> None:
    kept = notebook_of(TUTORIALS / name)
    assert noise(kept) == []
    assert pictures(kept) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_script(name: str) -> None:
    assert sources(notebook_of(TUTORIALS / name)) == sources(script_of(TUTORIALS / name))


@pytest.mark.parametrize("name", [*HERE, REMOTE])
def test_one_line_names_the_models(name: str) -> None:
    """It can be changed, and no other line names the models that it names."""
    line = LINE_TO_CHANGE[name == REMOTE]
    hub = {line: 'SOURCE, TARGET = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"'}
    changed = replaced(notebook_of(TUTORIALS / name), hub)
    code = "\n".join(cell.source for cell in changed.cells if cell.cell_type == "code")
    assert code.count("SOURCE, TARGET =") == 1
    assert line not in code


@pytest.mark.parametrize("name", quick(HERE, "quickstart"))
def test_a_run_shows_what_is_kept(name: str, tmp_path: Path) -> None:
    kept = notebook_of(TUTORIALS / name)
    run = executed(kept, tmp_path)
    assert shown(run) == shown(kept)
    assert noise(run) == []


@pytest.mark.parametrize("name", quick(IN_BOTH, "quickstart"))
def test_nnsight_shows_the_same(name: str, tmp_path: Path) -> None:
    """The notebook that was written in TransformerLens, in the other host: the same numbers, completions and tables."""
    kept = notebook_of(TUTORIALS / name)
    run = executed(kept, tmp_path, IN_NNSIGHT | (NATIVE_IN_NNSIGHT if name == "quickstart" else {}))
    assert shown(run) == shown(kept)
    assert noise(run) == []


def test_a_text_that_is_gone_is_reported() -> None:
    with pytest.raises(TextNotFoundError, match="no such text"):
        replaced(notebook_of(TUTORIALS / REMOTE), {"no such text": "x"})


def test_replacing_leaves_the_notebook_as_it_was() -> None:
    kept = notebook_of(TUTORIALS / REMOTE)
    before = sources(kept)
    assert sources(replaced(kept, {LINE_TO_CHANGE[1]: "1"})) != before
    assert sources(kept) == before
