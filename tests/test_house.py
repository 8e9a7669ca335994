"""Imports go one way between the rooms, no files import each other in a circle, and only hosts/ imports a framework.

Every import counts: at the top of a file, inside a function, and for type checkers alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import unlock_lens

BELOW = {
    "cli": {"facade", "evidence", "interchange"},
    "facade": {"evidence", "interchange"},
    "evidence": {"core", "zoo"},
    "interchange": {"core"},
    "core": {"hosts"},
    "zoo": {"hosts"},
    "hosts": {"method"},
    "method": {"errors"},
    "errors": set[str](),
}
"""The rooms directly below each room; the facade is `unlock_lens/__init__.py`, with the public names."""
FRAMEWORKS = ("transformer_lens", "nnsight")
Arrows = dict[tuple[str, str], str]
"""Who imports whom, by dotted names, and where: file and line."""


def modules(package: Path) -> dict[str, Path]:
    """The files of a package by dotted name; a folder goes by its own name."""
    found = {file.relative_to(package.parent).with_suffix(""): file for file in sorted(package.rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): file for name, file in found.items()}


def imported(file: Path, name: str) -> Iterator[tuple[int, str]]:
    """The line and the dotted name of everything that a file imports: `from a import b` imports a.b."""
    parents = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def arrows(package: Path) -> Arrows:
    """The imports between the files of a package, and those of the frameworks."""
    files, found = modules(package), Arrows()
    for name, file in files.items():
        for line, wanted in imported(file, name):
            root = wanted.partition(".")[0]
            to = root if root in FRAMEWORKS else wanted if wanted in files else wanted.rpartition(".")[0]
            if to in files or to in FRAMEWORKS:
                found[name, to] = f"{file.relative_to(package)}:{line} -> {to}"
    return found


def reach(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Everything that can be reached from a place by at least one arrow."""
    seen, open_ends = set[str](), [start]
    while open_ends:
        fresh = graph.get(open_ends.pop(), set()) - seen
        seen |= fresh
        open_ends += fresh
    return seen


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "facade"


def upward(found: Arrows) -> list[str]:
    """Arrows from a room to one that is not below it."""
    allowed = {name: reach(BELOW, name) | ({name} if name != "facade" else set()) for name in BELOW}
    return [place for (one, other), place in found.items() if other not in FRAMEWORKS and room(other) not in allowed[room(one)]]


def circular(found: Arrows) -> list[str]:
    """Arrows that close a circle of files: from where they lead, imports come back to where they begin."""
    graph: dict[str, set[str]] = {}
    for one, other in found:
        graph.setdefault(one, set()).add(other)
    return [place for (one, other), place in found.items() if one in reach(graph, other) | {other}]


def outside_hosts(found: Arrows) -> list[str]:
    """Arrows to a framework from anywhere but hosts/."""
    return [place for (one, other), place in found.items() if other in FRAMEWORKS and room(one) != "hosts"]


HERE = arrows(Path(unlock_lens.__path__[0]))


def test_every_room_is_known() -> None:
    assert {room(name) for arrow in HERE for name in arrow if name not in FRAMEWORKS} == set(BELOW)


def test_no_arrow_goes_upwards() -> None:
    assert not (found := upward(HERE)), "\n" + "\n".join(found)


def test_no_files_import_each_other_in_a_circle() -> None:
    assert not (found := circular(HERE)), "\n" + "\n".join(found)


def test_only_hosts_import_the_frameworks() -> None:
    assert any(to in FRAMEWORKS for _, to in HERE)
    assert not (found := outside_hosts(HERE)), "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("code", "up", "circle", "frameworks"),
    [
        ("from unlock_lens.method.align import f", [], False, []),
        ("from unlock_lens.evidence import lens", ["unlock_lens.evidence.lens"], False, []),
        ("def f():\n    import unlock_lens.zoo", ["unlock_lens.zoo"], False, []),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import unlock_lens as ul", ["unlock_lens"], False, []),
        ("from unlock_lens import __version__", ["unlock_lens"], False, []),
        ("from unlock_lens.core import steering", [], True, []),
        ("from .steering import f", [], True, []),
        ("def f():\n    from nnsight.schema import g", [], False, ["nnsight"]),
        ("import transformer_lens.hooks", [], False, ["transformer_lens"]),
    ],
)
def test_an_arrow_is_found(tmp_path: Path, code: str, up: list[str], circle: bool, frameworks: list[str]) -> None:
    """In core/variant.py of a small house, whose core/steering.py imports it."""
    files = {"core/variant.py": code, "core/steering.py": "from unlock_lens.core.variant import f"}
    files |= dict.fromkeys(("__init__.py", "method/align.py", "evidence/__init__.py", "evidence/lens.py", "zoo.py"), "")
    for name, text in files.items():
        file = tmp_path / "unlock_lens" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found, place = arrows(tmp_path / "unlock_lens"), f"core/variant.py:{code.count(chr(10)) + 1} -> "
    around = {f"{place}unlock_lens.core.steering", "core/steering.py:1 -> unlock_lens.core.variant"}
    assert upward(found) == [place + to for to in up]
    assert outside_hosts(found) == [place + to for to in frameworks]
    assert set(circular(found)) == (around if circle else set())
