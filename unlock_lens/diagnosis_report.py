"""A forecast as people read it: the verdict, the reasons, and a table of layers."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unlock_lens.diagnostics import Diagnosis

_COLUMNS = {
    "coverage": "coverage",
    "agreement": "agreement",
    "full_agreement": "at any rank",
    "r2": "R2",
    "error": "error",
    "own_cosine": "cosine, own",
    "stability": "stability",
    "principal_cosine": "principal cosine",
    "source_rank": "rank, source",
    "target_rank": "rank, target",
}


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the forecast; columns of what was not looked at are left out."""
    console.print(Text(diagnosis.verdict, style="bold"))
    for reason in diagnosis.reasons:
        console.print(Text(f"- {reason}"))
    told = {name: title for name, title in _COLUMNS.items() if any(getattr(x, name) is not None for x in diagnosis.layers)}
    table = Table("layer", *told.values(), box=SIMPLE_HEAD)
    for layer in diagnosis.layers:
        values = [getattr(layer, name) for name in told]
        shown = ["" if value is None else f"{value:.2f}" for value in values]
        table.add_row(f"{layer.source_layer} to {layer.target_layer}", *shown)
    console.print(table)
