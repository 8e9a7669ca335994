"""Every function and class that the reference shows has a sentence, types, and the errors that it raises."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unlock_lens import errors
from unlock_lens.errors import ArtifactError, InvalidInput

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
ERRORS = {name for name, one in vars(errors).items() if inspect.isclass(one)}
ENTRY = re.compile(r"^::: (?P<name>[\w.]+)\n(?P<options>(?: {4}.*\n)*)", re.MULTILINE)
MEMBERS = re.compile(r"members: \[(.*?)\]")


def found_at(name: str) -> Any:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(found_at(module), attribute)


def is_entry(one: Any) -> bool:
    """Functions and classes; exceptions are explained by their sentence, constants by theirs."""
    return inspect.isfunction(one) or (inspect.isclass(one) and not issubclass(one, Exception))


def members(module: ModuleType, options: str) -> Iterator[tuple[str, Any]]:
    """What the entry of a module shows: the members that it names, or all public ones that the module defines."""
    named = MEMBERS.search(options)
    wanted = named[1].split(", ") if named else [name for name in vars(module) if not name.startswith("_")]
    for name in wanted:
        one = getattr(module, name)
        if is_entry(one) and one.__module__ == module.__name__:
            yield f"{module.__name__}.{name}", one


def shown() -> Iterator[tuple[str, Any]]:
    """All functions and classes of the reference, by name."""
    for page in sorted(REFERENCE.glob("*.md")):
        for entry in ENTRY.finditer(page.read_text()):
            one = found_at(entry["name"])
            if isinstance(one, ModuleType):
                yield from members(one, entry["options"])
            elif is_entry(one):
                yield entry["name"], one


SHOWN = dict(shown())


def functions(one: Any) -> Iterator[tuple[str, Any]]:
    """A function; of a class, what its own code runs when it is made, and its public methods and properties."""
    if inspect.isfunction(one):
        yield one.__name__, inspect.unwrap(one)
        return
    for name, member in vars(one).items():
        plain: Any = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        method = inspect.unwrap(plain)
        written = inspect.isfunction(method) and method.__code__.co_filename == inspect.getfile(one)
        if written and (name in ("__init__", "__post_init__") or not name.startswith("_")):
            yield name, method


def section(docstring: str, name: str) -> str | None:
    """What a section of a Google docstring holds; None if there is none."""
    found = re.search(rf"^{name}:(.*?)(?=^\w[\w ]*:|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else None


def raised(function: Any) -> set[str]:
    """The library's exceptions that are raised by name in a function's own body."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.func.id for call in calls if isinstance(call.func, ast.Name)} & ERRORS


def unannotated(function: Any) -> list[str]:
    """Parameters, and the return, that have no type."""
    signature = inspect.signature(function)
    open_ones = [name for name, told in signature.parameters.items() if told.annotation is inspect.Parameter.empty]
    without_return = signature.return_annotation is inspect.Signature.empty
    return [name for name in open_ones if name not in ("self", "cls")] + ["return"] * without_return


def gaps(one: Any) -> list[str]:
    """What the docstring and the annotations of a function or class leave out."""
    told = inspect.cleandoc(one.__doc__ or "")
    missing = [] if told else ["a sentence"]
    for name, function in functions(one):
        own = "" if inspect.isfunction(one) else inspect.cleandoc(function.__doc__ or "")
        named = f"{section(told, 'Raises')} {section(own, 'Raises')}"
        missing += [f"{name} raises {error}" for error in sorted(raised(function)) if not re.search(rf"\b{error}:", named)]
        missing += [f"{name}: no type of {untyped}" for untyped in unannotated(function)]
    return missing


@pytest.mark.parametrize("name", SHOWN)
def test_an_entry_of_the_reference_is_whole(name: str) -> None:
    assert gaps(SHOWN[name]) == []


def test_the_reference_shows_functions_and_classes_of_entries_and_modules() -> None:
    """What a module imports, constants and exceptions are none of them."""
    assert len(SHOWN) > 90
    assert {"unlock_lens.SteeringHook", "unlock_lens.evidence.controls.anti_mean", "unlock_lens.method.extract.pca"} <= set(
        SHOWN
    )
    assert not {"unlock_lens.InvalidInput", "unlock_lens.evidence.controls.Variant", "unlock_lens.evidence.tasks.CHECKS"} & set(
        SHOWN
    )


def test_methods_are_looked_at_behind_the_checks_of_types() -> None:
    """Tests run with every function wrapped, and dataclasses with one more `__init__`."""
    found = dict(functions(SHOWN["unlock_lens.SteeringHook"]))
    assert {"__post_init__", "at_layers", "fwd_hooks"} <= set(found)
    assert "_in_basis_of" not in found
    assert raised(found["at_layers"]) == {"InvalidInput"}


def half(number: int, by=2):  # type: ignore[no-untyped-def]
    """Half of an even number.

    Raises:
        ArtifactError: never.
    """
    if number % by:
        raise InvalidInput(f"{number} was given; an even number is needed")
    return number // by


class Even:
    """An even number.

    Raises:
        InvalidInput: it is odd.
    """

    def __init__(self, number: int) -> None:
        if number % 2:
            raise InvalidInput(f"{number} was given; an even number is needed")
        self.number = number

    def half(self) -> int:
        """Half of it."""
        if not self.number:
            raise ArtifactError("0 was given; it has no half here")
        return self.number // 2


def silent() -> None:
    pass


def test_what_an_entry_leaves_out_is_found() -> None:
    """A sentence, the name of an error that is raised, types; a class names its errors, or the method that raises them does."""
    assert gaps(half) == ["half raises InvalidInput", "half: no type of by", "half: no type of return"]
    assert gaps(Even) == ["half raises ArtifactError"]
    assert gaps(silent) == ["a sentence"]
