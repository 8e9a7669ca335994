"""YAML from anywhere: size, depth and keys are checked before values are made of it, and aliases are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from unlock_lens.errors import InvalidInput, plain

LARGEST, DEEPEST, MOST_OPENED = 1_000_000, 40, 200
"""Bytes of a file, levels in it, and brackets that a line opens, which the scanner's time is quadratic in."""


class _Plain(yaml.SafeLoader):
    """Anchors can expand a few lines to billions of values; they are refused, as are keys that occur twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(None, None, "write the value out instead of *alias", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise ComposerError(None, None, f"more than {DEEPEST} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise ConstructorError(None, None, "a key occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Any:
    """The content of a YAML file, of plain values alone.

    Raises:
        InvalidInput: the file cannot be read, or as `parse_yaml`.
    """
    try:
        with file.open("rb") as source:
            content = source.read(LARGEST + 1)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error
    return parse_yaml(content, file)


def parse_yaml(content: bytes, origin: Any) -> Any:
    """The plain values of some YAML; `origin` names it in messages.

    Raises:
        InvalidInput: the content is too large, or not YAML, or has aliases, repeated keys, or too many levels.
    """
    if len(content) > LARGEST:
        raise InvalidInput(f"{origin} has more than {LARGEST} bytes, which is too large for a config")
    if any(line.count(b"[") + line.count(b"{") > MOST_OPENED for line in content.splitlines()):
        raise InvalidInput(f"{origin} opens more than {MOST_OPENED} brackets in a line; write one item to a line")
    try:
        return yaml.load(content.decode("utf-8-sig"), _Plain)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise InvalidInput(f"{origin} is not YAML: {plain(str(error), 500)}") from error
