"""Prompts, texts and layers as users write them: text files, JSONL files, templates, `4,5,8-10`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlock_lens.errors import InvalidInput, plain

FIELDS = ("question", "prompt", "text")
SLOT = "{question}"


def read_texts(path: str | Path, field: str | None = None) -> list[str]:
    """The lines of a text file, or the texts of a `.jsonl` file, one object per line: under `field`, or the first of `FIELDS`.

    A literal `\\n` in a text file is not a line break, so texts of several lines belong in JSONL.

    Raises:
        InvalidInput: the file is missing or empty, or a line (whose number is given) is not as expected.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        return [line for _, line in _lines(path)]
    wanted = (field,) if field else FIELDS
    texts: list[str] = []
    for record, place in read_records(path):
        text = next((record[name] for name in wanted if name in record), None)
        if not isinstance(text, str):
            keys = plain(", ".join(record), 200) or "nothing"
            raise InvalidInput(f"{place} has no text under {' or '.join(wanted)}; it has {keys} (choose one with --field)")
        texts.append(text)
    return texts


def read_pairs(path: str | Path) -> tuple[list[str], list[str]]:
    """The locked and the unlocked prompts of a JSONL file whose lines have both, under these names.

    Raises:
        InvalidInput: the file is missing or empty, or a line (whose number is given) lacks one of the two.
    """
    pairs: list[tuple[str, str]] = []
    for record, place in read_records(path):
        pair = record.get("locked"), record.get("unlocked")
        if not all(isinstance(prompt, str) and prompt.strip() for prompt in pair):
            raise InvalidInput(
                f"{place} needs a text under locked and one under unlocked; it has {plain(', '.join(record), 200) or 'nothing'}"
            )
        pairs.append((str(pair[0]), str(pair[1])))
    return [locked for locked, _ in pairs], [unlocked for _, unlocked in pairs]


def read_records(path: str | Path) -> list[tuple[Mapping[str, Any], str]]:
    """The objects of a JSONL file, each with its file and line for error messages.

    Raises:
        InvalidInput: the file is missing or empty, or a line (whose number is given) is not an object.
    """
    records: list[tuple[Mapping[str, Any], str]] = []
    for place, line in _lines(Path(path)):
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode("utf-8")  # half a character can be escaped, and no tokenizer takes it
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{place} is not JSON ({plain(str(error), 200)}); expected one object per line") from error
        if not isinstance(record, dict):
            raise InvalidInput(f"{place} holds a {type(record).__name__}; expected an object")
        records.append((record, place))
    return records


def _lines(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}")
    try:
        content = path.read_text(encoding="utf-8-sig")  # Windows programs put a mark in front
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text ({error}); convert the file") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from error
    # Not splitlines: texts may hold other separators, such as U+2028.
    numbered = enumerate(content.split("\n"), start=1)
    lines = [(f"{path}, line {number}", line.removesuffix("\r")) for number, line in numbered if line.strip()]
    if not lines:
        raise InvalidInput(f"{path} contains no text; give one text per line")
    return lines


def fill(template: str, questions: Sequence[str]) -> list[str]:
    """The template with `{question}` replaced by each question.

    Raises:
        InvalidInput: the template has no `{question}`, or has a backslash and an n instead of a line break.
    """
    if "\\n" in template and "\n" not in template:
        raise InvalidInput(
            f"the template {template!r} has a backslash and an n, not a line break; in a shell write $'...\\n...', or press "
            "Enter inside the quotes"
        )
    if SLOT not in template:
        raise InvalidInput(f"the template {template!r} has no {SLOT}; add it where the question goes")
    return [template.replace(SLOT, question) for question in questions]


def parse_layers(spec: str | None) -> list[int] | None:
    """Layers written as `4,5,8-10`; None for all.

    Raises:
        InvalidInput: anything else.
    """
    if spec is None:
        return None
    layers: list[int] = []
    for part in spec.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InvalidInput(f"layers {spec!r} were given; write them as 4,5,6 or 4-12")
        chosen = range(int(first), int(last or first) + 1)
        if not chosen:
            raise InvalidInput(f"layers {spec!r} contain the empty range {part!r}; write the smaller number first, as in 4-12")
        layers.extend(chosen)
    return layers


def parse_layer_map(spec: str) -> dict[int, int] | None:
    """Target layer -> source layer, written as `0:0 1:1 2:3`; None for `proportional`.

    Raises:
        InvalidInput: anything else, or a repeated target layer.
    """
    if spec == "proportional":
        return None
    pairs = [pair.partition(":") for pair in spec.split()]
    found = {int(b): int(a) for b, _, a in pairs if b.isdecimal() and a.isdecimal()}
    if not pairs or len(found) < len(pairs):
        raise InvalidInput(f'layer map {spec!r} was given; write "proportional" or target:source pairs such as "0:0 1:1 2:3"')
    return found
