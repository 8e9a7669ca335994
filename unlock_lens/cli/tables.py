"""Tables of the command line, and an artifact's metadata as rows of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

import unlock_lens.cli.options as opt
from unlock_lens.hosts.identity import ModelIdentity


def table(rows: Sequence[Mapping[str, str]], lines: bool = True) -> Table:
    """Rows of texts under the keys of the first one; what a text holds is never taken for markup.

    With `lines`, there is one above each row whose first cell holds something.
    """
    columns = [Column(name, overflow="fold") for name in rows[0]]
    made = Table(*columns) if lines else Table(*columns, box=SIMPLE_HEAD)
    first = next(iter(rows[0]))
    for row, after in zip(rows, (*rows[1:], {first: "end"}), strict=True):
        cells = (opt.console.render_str(value, markup=False) for value in row.values())
        made.add_row(*cells, end_section=lines and bool(after[first]))
    return made


def facts(told: Mapping[str, Any], under: str = "") -> Iterator[dict[str, str]]:
    """A nested mapping as rows of a table, without what is empty; a model is one row."""
    for key, value in told.items():
        name = f"{under}{key}"
        if isinstance(value, Mapping) and "d_model" in value and "n_layers" in value:
            yield {"what": name, "value": str(ModelIdentity(**value))}
        elif isinstance(value, Mapping):
            yield from facts(value, f"{name}: ")
        elif value not in (None, "", []):
            yield {"what": name, "value": _in_words(value)}


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, list):
        return str(value)
    if len(value) > 2 and all(type(each) is int for each in value) and value == [*range(value[0], value[-1] + 1)]:
        return f"{value[0]} to {value[-1]}"
    return ("\n" if any(isinstance(each, str) and len(each) > 20 for each in value) else ", ").join(
        " ".join(map(str, each)) if isinstance(each, list) else str(each) for each in value
    )
