"""What pydantic finds wrong, in this library's words."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from unlock_lens.errors import plain

_KINDS = {
    "int": "a whole number", "float": "a number", "string": "text", "bool": "true or false", "tuple": "a list",
    "list": "a list", "dict": "keys with values", "model": "keys with values", "mapping": "keys with values",
}  # fmt: skip
_LIMITS = {
    "greater_than": "expected more than {gt:g}",
    "greater_than_equal": "expected {ge:g} or more",
    "less_than": "expected less than {lt:g}",
    "less_than_equal": "expected {le:g} or less",
    "finite_number": "expected a finite number",
    "too_short": "expected at least {min_length}",
    "too_long": "expected at most {max_length}",
    "string_too_short": "expected text that is not empty",
    "missing": "is missing",
    "extra_forbidden": "is not a known key",
    "union_tag_not_found": "{discriminator} says which, and is missing",
    "union_tag_invalid": "there is no {discriminator} {tag!r}",
    "literal_error": "expected {expected}",
    "int_from_float": "expected a whole number",
    "model_type": "expected keys with values",
    "model_attributes_type": "expected keys with values",
}
_CHOICES = ("union_tag_invalid", "literal_error")


def expectation(problem: Mapping[str, Any]) -> str:
    """What is expected where pydantic found a problem (one of `ValidationError.errors()`), without its place."""
    kind, told = problem["type"], problem.get("ctx") or {}
    if kind in _LIMITS:
        told = {**told, "discriminator": str(told.get("discriminator", "")).strip("'")}
        return plain(_LIMITS[kind].format(**told), 500) + (_choice(problem) if kind in _CHOICES else "")
    expected, _, how = kind.rpartition("_")
    if how in ("type", "parsing") and expected in _KINDS:
        return f"expected {_KINDS[expected]}"
    return plain(str(problem["msg"]), 500).removeprefix("Value error, ")


def _choice(problem: Mapping[str, Any]) -> str:
    """The nearest of the values that are allowed, or all of them where the message has not named them."""
    told = problem["ctx"]
    tags, given = told.get("expected_tags"), told.get("tag", problem["input"])
    allowed = [each.strip(" '") for each in (tags or told["expected"]).replace(" or ", ", ").split(",")]
    if near := get_close_matches(str(given)[:80], allowed, n=1):
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(allowed)}" if tags else ""
