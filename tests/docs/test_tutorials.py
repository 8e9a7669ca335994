"""The tutorials are whole, and each runs here in every host that it is for (remote.ipynb: beside its server, tests/remote; on
real models: `make real`).

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
    GALLERY,
    IN_NNSIGHT,
    TUTORIALS,
    YOURS,
    TextNotFoundError,
    executed,
    noise,
    notebook_of,
    picture_of,
    pictures,
    replaced,
    script_of,
    shown,
    sources,
)

NAMES = sorted(file.stem for file in TUTORIALS.glob("*.py"))
REMOTE = "remote"
HERE = [name for name in NAMES if name != REMOTE]
LONGEST = 150
"""Lines of a script, beyond which it has more than one idea."""


def quick(names: Iterable[str], chosen: str) -> list[Any]:
    """The names, of which one belongs to the quick suite: a notebook for each host."""
    return [pytest.param(name, marks=pytest.mark.quick) if name == chosen else name for name in names]


def test_every_tutorial_is_there() -> None:
    assert NAMES == ["analysis", "evidence", "method", "quickstart", "remote"]


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


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_has_one_idea_and_one_picture_which_the_gallery_shows(name: str) -> None:
    assert len((TUTORIALS / f"{name}.py").read_text(encoding="utf-8").splitlines()) < LONGEST
    kept = (GALLERY / f"{name}.png").read_bytes()
    assert kept == picture_of(notebook_of(TUTORIALS / name))
    assert len(kept) < 60_000
    page = GALLERY.with_suffix(".md").read_text(encoding="utf-8")
    assert f"(../tutorials/{name}.ipynb)" in page
    assert f"(gallery/{name}.png)" in page


@pytest.mark.parametrize("name", NAMES)
def test_one_cell_is_to_change_with_models_of_ones_own(name: str) -> None:
    """It alone opens the models and makes prompts, text and checks; only the warning in evidence has a pair of its own."""
    cells = notebook_of(TUTORIALS / name).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    (yours,) = [cell for cell in code if YOURS in cell.metadata.get("tags", ())]
    assert "SOURCE, TARGET =" in yours.source or "source, target =" in yours.source
    others = [cell.source for cell in code if cell is not yours and "duo" not in cell.source]
    assert not [source for source in others if "zoo." in source]
    assert "**With your own models** this is the one cell to change" in cells[cells.index(yours) - 1].source


@pytest.mark.parametrize("name", quick(HERE, "quickstart"))
def test_a_run_shows_what_is_kept(name: str, tmp_path: Path) -> None:
    kept = notebook_of(TUTORIALS / name)
    run = executed(kept, tmp_path)
    assert shown(run) == shown(kept)
    assert noise(run) == []


@pytest.mark.parametrize("name", quick(IN_NNSIGHT, "quickstart"))
def test_nnsight_shows_the_same(name: str, tmp_path: Path) -> None:
    """The notebook that was written in TransformerLens, in the other host: the same numbers, completions and tables."""
    kept = notebook_of(TUTORIALS / name)
    run = executed(kept, tmp_path, IN_NNSIGHT[name])
    assert shown(run) == shown(kept)
    assert noise(run) == []


def test_a_text_that_is_gone_is_reported() -> None:
    with pytest.raises(TextNotFoundError, match="no such text"):
        replaced(notebook_of(TUTORIALS / REMOTE), {"no such text": "x"})


def test_replacing_leaves_the_notebook_as_it_was() -> None:
    kept = notebook_of(TUTORIALS / REMOTE)
    before = sources(kept)
    assert sources(replaced(kept, {"ul.Remote()": "1"})) != before
    assert sources(kept) == before
