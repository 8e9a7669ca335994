"""A sweep's arms as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd


def show(summary: pd.DataFrame, console: Console) -> None:
    """Print what `unlock_lens.evidence.report.summary` gives, in 80 columns; parts that were not measured stay empty."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True)
    for title in ("right", "95%", "+/-", "p", "KL", "len", "tried", "alpha"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in summary.iterrows():
        table.add_row(
            str(row["label"]),
            f"{row['accuracy']:.1%}",
            f"{100 * row['low']:.0f}-{100 * row['high']:.0f}",
            _told(row["gained"], "{:.0f}/") + _told(row["lost"], "{:.0f}"),
            _p(row["p"]),
            _told(row["kl"], "{:.3f}"),
            _told(row["tokens"], "{:.1f}"),
            _told(row["tried"], "{:.0f}"),
            _told(row["alpha"], "{:g}"),
            style="bold" if name == "transferred" else "",
        )
    console.print(table)


def show_paper(rows: Iterable[Mapping[str, str]], console: Console) -> None:
    """Print what `beside_the_paper` gives, if it gives anything."""
    table = Table("test set", "arm", "the paper", "here (95%)", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(row["of"], row["label"], row["paper"], row["here"])
    if table.row_count:
        console.print(table)


def _p(value: Any) -> str:
    return "<.001" if value is not None and value < 0.001 else _told(value, "{:.3f}")


def _told(value: Any, form: str) -> str:
    return "" if value is None or value != value else form.format(value)
