"""The tutorials are whole: scripts and notebooks in step, outputs kept and clean. What runs them stands beside their hosts."""

from __future__ import annotations

import pytest

from tests.tutorials import TUTORIALS, TextNotFoundError, noise, notebook_of, pictures, replaced, script_of, sources

NAMES = sorted(file.stem for file in TUTORIALS.glob("*.py"))
LINE_TO_CHANGE = 'SOURCE, TARGET = "local/large-base", "local/small-base"'


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_clean_and_has_a_picture(name: str) -> None:
    kept = notebook_of(TUTORIALS / name)
    assert noise(kept) == []
    assert pictures(kept) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_script(name: str) -> None:
    assert sources(notebook_of(TUTORIALS / name)) == sources(script_of(TUTORIALS / name))


def test_one_line_names_the_models() -> None:
    """It can be changed, and no other line names a model of the local server."""
    hub = {LINE_TO_CHANGE: 'SOURCE, TARGET = "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-8B"'}
    changed = replaced(notebook_of(TUTORIALS / "remote"), hub)
    assert not any("local/" in cell.source for cell in changed.cells if cell.cell_type == "code")


def test_a_text_that_is_gone_is_told() -> None:
    with pytest.raises(TextNotFoundError, match="no code cell holds 'no such text', which was to become 'x'"):
        replaced(notebook_of(TUTORIALS / "remote"), {"no such text": "x"})


def test_replacing_leaves_the_notebook_as_it_was() -> None:
    kept = notebook_of(TUTORIALS / "remote")
    before = sources(kept)
    assert sources(replaced(kept, {LINE_TO_CHANGE: "1"})) != before
    assert sources(kept) == before
