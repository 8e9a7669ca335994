"""Help texts as terminals show them: the examples of a docstring on lines of their own, to be copied."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import cleandoc
from typing import Any, TypeVar

C = TypeVar("C", bound=Callable[..., Any])
SETTINGS = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}
"""Plain text as wide as the terminal, up to 110 columns: a table of options would cut words."""
_WIDTH = 72
_UNWRAPPED = "\b\n"
"""Click leaves the lines of such a paragraph alone."""


def first_sentence(command: Callable[..., Any]) -> str:
    """What the list of commands says of one, whole."""
    return (command.__doc__ or "").partition("\n")[0]


def with_examples(command: C) -> C:
    """The command with its examples, `in backticks` in the docstring's last paragraph, one below the other."""
    told, begin, rest = cleandoc(command.__doc__ or "").partition("Example: ")
    if begin:
        blocks = "\n".join(_broken(" ".join(each.split())) for each in re.findall(r"`([^`]+)`", rest))
        command.__doc__ = f"{told.rstrip()}\n\n{_UNWRAPPED}Example:\n{blocks}\n"
    return command


def _broken(line: str) -> str:
    """A command in lines of a terminal's width, broken before options, as a shell reads it."""
    lines = [""]
    for part in re.split(r" (?=--?[a-z])", line):
        if lines[-1] and len(lines[-1]) + len(part) > _WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else f"  {part}"
    return "\n".join(lines)
