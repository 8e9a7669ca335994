"""Prompts and texts as users keep them: text files, JSONL files, templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
    if path.suffix == ".jsonl":
        return [_text_of(record, field, place) for record, place in read_records(path)]
    return [line for _, line in _lines(path)]


def read_records(path: str | Path) -> list[tuple[Mapping[str, Any], str]]:
    """The objects of a JSONL file, each with its place, as errors tell it.

    Raises:
        InvalidInput: no such file, nothing in it, or a line that is no object; it names the line.
    """
    path = Path(path)
    return [(_record(line, place), place) for place, line in _lines(path)]


def _lines(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text ({error}); convert it") from error
    # Not splitlines: texts may hold other separators, such as U+2028.
    numbered = [(f"{path}, line {number}", line.removesuffix("\r")) for number, line in enumerate(content.split("\n"), start=1)]
    lines = [(place, line) for place, line in numbered if line.strip()]
    if not lines:
        raise InvalidInput(f"{path} holds no text; give one text a line")
    return lines


def _record(line: str, place: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{place} is not JSON ({error}); expected one object a line") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"{place} holds a {type(record).__name__}; expected an object")
    return record


def _text_of(record: Mapping[str, Any], field: str | None, place: str) -> str:
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


def parse_layers(spec: str | None) -> list[int] | None:
    """Layers written as 4,5,8-10; None for all."""
    if spec is None:
        return None
    layers: list[int] = []
    for part in spec.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InvalidInput(f"layers {spec!r} were given; write them as 4,5,6 or 4-12")
        layers.extend(range(int(first), int(last or first) + 1))
    if not layers:
        raise InvalidInput(f"layers {spec!r} hold none; write the smaller number first, as in 4-12")
    return layers


def parse_layer_map(spec: str) -> dict[int, int] | None:
    """Target layer -> source layer, written as 0:0 1:1 2:3; None for "proportional".

    Raises:
        InvalidInput: anything else, or a target layer twice.
    """
    if spec == "proportional":
        return None
    pairs = [pair.partition(":") for pair in spec.split()]
    found = {int(b): int(a) for b, _, a in pairs if b.isdecimal() and a.isdecimal()}
    if not pairs or len(found) < len(pairs):
        raise InvalidInput(
            f'the layer map {spec!r} was given; write "proportional" or target:source pairs such as "0:0 1:1 2:3"'
        )
    return found


def parse_positions(spec: str) -> Literal["last", "all"] | int:
    """Calibration tokens, written as last, all, or a stride.

    Raises:
        InvalidInput: anything else.
    """
    if spec == "last" or spec == "all":
        return spec
    if not spec.isdecimal() or int(spec) < 1:
        raise InvalidInput(f"positions {spec!r} were given; write last, all, or a stride such as 4 (every fourth token)")
    return int(spec)


def parse_rank(spec: str | None) -> int | Literal["cv"] | None:
    """A rank written as a number, or cv.

    Raises:
        InvalidInput: anything else.
    """
    if spec is None or spec == "cv":
        return spec
    if not spec.isdecimal():
        raise InvalidInput(f"rank {spec!r} was given; write a number of at least 1, or cv")
    return int(spec)


def parse_remote(spec: str | None) -> bool | str:
    """Where models run, written as ndif, local, or a server's URL; False for None.

    Raises:
        InvalidInput: anything else.
    """
    if spec is None:
        return False
    if spec not in ("ndif", "local") and not spec.startswith(("http://", "https://")):
        raise InvalidInput(f"--remote {spec} was given; write ndif, local, or a server's URL such as http://127.0.0.1:8001")
    return spec if spec != "ndif" else True


def parse_ridge(spec: str | None) -> float | Literal["cv"] | None:
    """A ridge strength written as a number, or cv.

    Raises:
        InvalidInput: anything else.
    """
    if spec is None or spec == "cv":
        return spec
    try:
        return float(spec)
    except ValueError:
        raise InvalidInput(f"ridge {spec!r} was given; write a number of at least 0, or cv") from None


def read_direction(name: str) -> Any:
    """A CapabilityDirection from a file, a folder or the hub.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    from unlock_lens.core.direction import CapabilityDirection

    is_file = name.endswith(".safetensors") or Path(name).is_file()
    return CapabilityDirection.load(name) if is_file else CapabilityDirection.from_pretrained(name)
