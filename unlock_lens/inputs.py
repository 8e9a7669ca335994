"""Prompts and texts as users keep them: text files, JSONL files, templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from unlock_lens.errors import InvalidInput

FIELDS = ("question", "prompt", "text")
SLOT = "{question}"


def read_texts(path: str | Path, field: str | None = None) -> list[str]:
    """One text a line; of a `.jsonl` file one object a line, the text under `field` (or the first of `FIELDS` it has).

    A literal `\\n` in a text file stands for itself: texts of several lines belong into JSONL.

    Raises:
        InvalidInput: no such file, nothing in it, or a line that is not as expected; it names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text ({error}); convert it") from error
    # Not splitlines: texts may hold other separators, such as U+2028.
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InvalidInput(f"{path} holds no text; give one text a line")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_text_of(line, field, f"{path}, line {number}") for number, line in lines]


def _text_of(line: str, field: str | None, place: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{place} is not JSON ({error}); expected one object a line") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"{place} holds a {type(record).__name__}; expected an object")
    wanted = [field] if field else list(FIELDS)
    found = next((record[name] for name in wanted if name in record), None)
    if not isinstance(found, str):
        raise InvalidInput(
            f"{place} has no text under {' or '.join(wanted)}; it has {', '.join(record) or 'nothing'} (choose with --field)"
        )
    return found


def fill(template: str, questions: Sequence[str]) -> list[str]:
    """The template with each question in the place of `{question}`.

    Raises:
        InvalidInput: the template has no `{question}`.

    Example:
        >>> fill("{question}\\nAnswer:", ["1 + 1?"])
        ['1 + 1?\\nAnswer:']
    """
    if SLOT not in template:
        raise InvalidInput(f"the template {template!r} has no {SLOT}; say where the question goes")
    return [template.replace(SLOT, question) for question in questions]
