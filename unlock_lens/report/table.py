"""A sweep's arms as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd


def show(summary: pd.DataFrame, console: Console) -> None:
    """Print what `unlock_lens.report.summary` gives; parts that were not measured stay empty."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("arm")
    for title in ("right", "95% interval", "gained", "lost", "p", "KL", "tokens", "rank", "alpha"):
        table.add_column(title, justify="right")
    for name, row in summary.iterrows():
        table.add_row(
            str(row["label"]),
            f"{row['accuracy']:.1%}",
            f"{row['low']:.1%} - {row['high']:.1%}",
            _told(row["gained"], "{:.0f}"),
            _told(row["lost"], "{:.0f}"),
            _told(row["p"], "{:.2g}"),
            _told(row["kl"], "{:.2f}"),
            _told(row["tokens"], "{:.0f}"),
            _told(row["rank"], "{:.0f}"),
            _told(row["alpha"], "{:g}"),
            style="bold" if name == "transferred" else "",
        )
    console.print(table)


def _told(value: Any, form: str) -> str:
    return "" if value is None or value != value else form.format(value)
