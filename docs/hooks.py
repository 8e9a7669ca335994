"""Pages of the site that come from outside docs/: notebooks with outputs, the repository's documents.

They are made while the site is built, so nothing is copied. Links between files work as they do in the repository.
"""

from __future__ import annotations

import base64
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "AGENTS.md": "agents.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md",
}  # fmt: skip
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
CODE = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)
FORMULA = re.compile(r"(?<![\\$])(?P<mark>\$\$?)(?!\s)(?P<formula>[^$]+?)(?<!\s)(?P=mark)(?!\$)")
PICTURE = re.compile(r'<img [^>]*src="(?P<file>[\w-]+\.svg)"[^>]*>')


class Sections(griffe.Extension):
    """Griffe calls "Examples" what our docstrings call "Example", and shows its code only then."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for name in ("AGENTS.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        files.append(File.generated(config, OUTSIDE[name], content=(ROOT / name).read_text()))
    for notebook in sorted((ROOT / "tutorials").glob("*.ipynb")):
        for name, content in pages_of(notebook):
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Draw formulas, and let links lead where they lead in the repository."""
    here = page.file.src_uri
    there = in_repository(here)

    def followed(link: re.Match[str]) -> str:
        target = in_site(posixpath.normpath(posixpath.join(posixpath.dirname(there), link[1])))
        return link[1] if target is None else posixpath.relpath(target, posixpath.dirname(here) or ".")

    text = LINK.sub(followed, markdown)
    return text if here.startswith(("tutorials/", "reference/")) else with_formulas(text)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Set pictures into the page, whose colours they then take, and link the documents that docstrings name as their source."""
    html = PICTURE.sub(lambda picture: (ROOT / "docs" / picture["file"]).read_text(), html)
    if not page.file.src_uri.startswith("reference/"):
        return html
    up = "../" if page.file.name == "index" else "../../"
    return re.sub(r"(?<![\w/\"])docs/(\w+)\.md", rf'<a href="{up}\1/">docs/\1.md</a>', html)


def in_repository(page: str) -> str:
    """The file that a page is made from."""
    if page.startswith("tutorials/"):
        return page.removesuffix(".md") + ".ipynb"
    return {made: name for name, made in OUTSIDE.items() if made != "index.md"}.get(page, f"docs/{page}")


def in_site(file: str) -> str | None:
    """The page, or other file of the site, that is made from a file of the repository; None if there is none."""
    if file.startswith("tutorials/") and file.endswith(".ipynb"):
        return file.removesuffix(".ipynb") + ".md"
    return file.removeprefix("docs/") if file.startswith("docs/") else OUTSIDE.get(file)


def pages_of(notebook: Path) -> Iterator[tuple[str, str | bytes]]:
    """The pictures of a notebook, and then its page."""
    parts: list[str] = []
    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells):  # pyright: ignore[reportUnknownMemberType]
        if cell.cell_type == "markdown":
            parts.append(with_formulas(cell.source))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for shown, output in enumerate(cell.outputs):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{notebook.stem}-{number}-{shown}.png"
                yield f"tutorials/{name}", base64.b64decode(data["image/png"])
                parts.append(f"![{caption(cell.source)}]({name})")
            elif "text/html" in data:
                parts.append(f'<div class="output" markdown="0">\n{"".join(data["text/html"])}\n</div>')
            elif text := output.get("text") or data.get("text/plain"):
                parts.append(f"```text\n{text.rstrip()}\n```")
    yield f"tutorials/{notebook.stem}.md", "\n\n".join(parts) + "\n"


def with_formulas(text: str) -> str:
    """LaTeX, but that within code, as MathML, which browsers draw by themselves."""

    def drawn(found: re.Match[str]) -> str:
        tag, display = ("div", "block") if found["mark"] == "$$" else ("span", "inline")
        return f'<{tag} class="math">{convert(found["formula"], display=display)}</{tag}>'

    parts = CODE.split(text)
    return "".join(part if number % 2 else FORMULA.sub(drawn, part) for number, part in enumerate(parts))


def caption(source: str) -> str:
    """What a picture's title says in the code that draws it."""
    titles = re.findall(r"""title\w*[(=]\s*["']([^"'\]]+)["']""", source)
    return titles[-1] if titles else "Figure drawn by the code above"
