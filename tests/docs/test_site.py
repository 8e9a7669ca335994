"""The documentation site: it builds strictly, shows every public name, and what is broken stops it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import yaml

import unlock_lens

ROOT = Path(__file__).parents[2]
ROOMS = ("core.contrast", "core.files", "core.plan", "evidence.diagnosis")
PUBLIC = [getattr(unlock_lens, name) for name in unlock_lens.__all__]
MODULES = [f"unlock_lens.{name}" for name in ROOMS] + [one.__name__ for one in PUBLIC if inspect.ismodule(one)]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def build(project: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`make docs`, into another folder."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public(module: str) -> list[str]:
    """What a module offers that `unlock_lens` itself does not: in `__all__`, or the functions and classes that it defines."""
    found = importlib.import_module(module)
    names: list[str] = getattr(found, "__all__", None) or [
        name
        for name, one in vars(found).items()
        if not name.startswith("_") and (inspect.isfunction(one) or inspect.isclass(one)) and one.__module__ == found.__name__
    ]
    there = [name for name in names if getattr(unlock_lens, name, None) is not getattr(found, name)]
    return [f"{module}.{name}" for name in there]


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    shown = {
        anchor
        for file in (site / "reference").rglob("*.html")
        for anchor in re.findall(r'id="(unlock_lens\.[\w.]+)"', file.read_text())
    }
    wanted = [f"unlock_lens.{name}" for name, one in zip(unlock_lens.__all__, PUBLIC, strict=True) if not inspect.ismodule(one)]
    wanted += [name for module in MODULES for name in public(module)]
    wanted += [f"unlock_lens.{name}" for name in ("core.files.Shareable", "method.extract.mean", "method.extract.pca")]
    assert len(wanted) > 100
    assert [name for name in wanted if name not in shown] == []


def test_entries_show_types_errors_and_code_that_is_not_a_quotation(site: Path) -> None:
    page = (site / "reference" / "steering" / "index.html").read_text()
    assert "norm_preserving" in page
    assert 'href="../errors/#unlock_lens.InvalidInput"' in page
    assert 'href="../../method/">docs/method.md</a>, section 3' in page
    assert '<span class="gp">&gt;&gt;&gt; </span>' in page
    assert "<blockquote>" not in page


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_shown_whole(site: Path, notebook: Path) -> None:
    """All headings and pictures that it keeps are on its page."""
    page = (site / "tutorials" / notebook.stem / "index.html").read_text()
    cells: list[Any] = nbformat.read(notebook, as_version=4).cells
    headings = [
        line for cell in cells if cell.cell_type == "markdown" for line in re.findall(r"^#+ ", cell.source, re.MULTILINE)
    ]
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    article = page[page.index("<article") : page.index("</article>")]
    assert len(re.findall(r"<h[1-6][ >]", article)) == len(headings)
    assert len(re.findall(r'<img [^>]*src="[^"]+\.png"', article)) == pictures
    assert len(list((site / "tutorials").glob(f"{notebook.stem}-*.png"))) == pictures


def test_pages_ask_no_other_host_for_anything(site: Path) -> None:
    loading = re.compile(
        r"""<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*//"""
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert [page for page in pages if loading.search(page.read_text())] == []


def test_what_makes_the_site_is_not_in_it(site: Path) -> None:
    assert [file for file in site.rglob("*") if file.suffix in (".py", ".ipynb")] == []
    assert not (site / "configs").exists()


def project_of(folder: Path, nav: list[str], **pages: str) -> Path:
    """A small site with the real one's settings and hooks."""
    (folder / "docs").mkdir()
    (folder / "tutorials").mkdir()
    for name in ("docs/hooks.py", "docs/site.css", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "AGENTS.md").write_text("# Recipes\n")
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    (folder / "mkdocs.yml").write_text(
        yaml.safe_dump({**settings, "nav": [*nav, "agents.md", "changelog.md", "contributing.md"]})
    )
    for name, text in pages.items():
        (folder / "docs" / f"{name}.md").write_text(text)
    return folder


def notebook(folder: Path) -> None:
    cells = [nbformat.v4.new_markdown_cell("# A tutorial\n\n[method](../docs/index.md#a-part)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "tutorials" / "quickstart.ipynb")


def test_links_lead_where_they_lead_in_the_repository(tmp_path: Path) -> None:
    text = "# Home\n\n## A part\n\n[a](../tutorials/quickstart.ipynb) [b](../CONTRIBUTING.md#tests) [c](../README.md)\n"
    project = project_of(tmp_path, ["index.md", "tutorials/quickstart.md"], index=text)
    notebook(project)
    done = build(project, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    assert all(f'<a href="{to}">' in home for to in ("tutorials/quickstart/", "contributing/#tests", "./"))
    assert '<a href="../../#a-part">method</a>' in (tmp_path / "site" / "tutorials" / "quickstart" / "index.html").read_text()


@pytest.mark.parametrize(
    ("nav", "index", "change", "keyword"),
    [
        (["index.md"], "# Home\n\n[gone](gone.md)\n", None, "gone.md"),
        (["index.md"], "# Home\n\n[gone](index.md#gone)\n", None, "index.md#gone"),
        (["index.md"], "# Home\n\n[gone](../tutorials/gone.ipynb)\n", None, "tutorials/gone.md"),
        (["index.md"], "# Home\n\n[outside](../Makefile)\n", None, "../Makefile"),
        (["index.md", "tutorials/quickstart.md"], "# Home\n", None, "tutorials/quickstart.md"),
        (["index.md"], "# Home\n", notebook, "tutorials/quickstart.md"),
        (["index.md"], "# Home\n\n::: unlock_lens.Gone\n", None, "unlock_lens.Gone"),
    ],
    ids=["link", "anchor", "link to a notebook", "link out of the site", "missing notebook", "notebook in no nav", "name"],
)  # fmt: skip
def test_what_is_broken_stops_the_build(
    tmp_path: Path, nav: list[str], index: str, change: Callable[[Path], None] | None, keyword: str
) -> None:
    project = project_of(tmp_path, nav, index=index)
    (project / "unlock_lens").symlink_to(ROOT / "unlock_lens")
    if change:
        change(project)
    done = build(project, tmp_path / "site")
    assert done.returncode == 1
    assert keyword in done.stderr


@pytest.mark.parametrize(
    ("source", "caption"),
    [
        ('ax.set_title("Right answers")', "Right answers"),
        ("plt.title('One')\nplt.title('Two')", "Two"),
        ("plt.plot([1])", "Figure drawn by the code above"),
    ],
)
def test_a_picture_is_described_by_its_title(hooks: ModuleType, source: str, caption: str) -> None:
    assert hooks.caption(source) == caption


def test_formulas_are_drawn_without_a_script_and_code_is_left(hooks: ModuleType) -> None:
    text = hooks.with_formulas("Let $v[l]$ be `$HOME`.\n\n$$W = V_s^\\top M$$\n")
    assert text.startswith('Let <span class="math"><math')
    assert "<mi>v</mi>" in text
    assert "be `$HOME`." in text
    assert re.search(r'\n<div class="math"><math [^>]*display="block".*<msubsup><mi>V</mi>.*</math></div>\n', text)


def test_llms_txt_is_at_the_root_and_its_links_lead_to_pages(site: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text())
    assert len(links) > 15
    assert [link for link in links if not (site / link / "index.html").exists()] == []


def test_the_gallery_shows_every_notebook(site: Path) -> None:
    page = (site / "gallery" / "index.html").read_text()
    article = page[page.index("<article") : page.index("</article>")]
    assert [file.stem for file in NOTEBOOKS if f'href="../tutorials/{file.stem}/"' not in article] == []
    assert article.count("<img ") == len(NOTEBOOKS)
