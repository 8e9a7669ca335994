"""A forecast as people read it: the verdict, the reasons, and a table of layers."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unlock_lens.evidence.diagnosis.forecast import Diagnosis

_COLUMNS = {
    "coverage": "cover",
    "agreement": "agree",
    "full_agreement": "any",
    "r2": "R2",
    "error": "error",
    "own_cosine": "own",
    "stability": "stable",
    "principal_cosine": "angles",
    "source_rank": "dim s",
    "target_rank": "dim t",
}
_LEGEND = (
    "layer: source>target; cover: share of the direction inside the calibration span; agree: held-out correlation of source "
    "and target on it, at this rank and at any; R2, error: of the map, held out; own: cosine with the target's own; stable: "
    "cosine of bootstrap directions; angles: mean cosine between the spans; dim: effective ranks of source and target."
)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the forecast; columns of what was not looked at are left out."""
    console.print(Text(diagnosis.verdict, style="bold"))
    for reason in diagnosis.reasons:
        console.print(Text(f"- {reason}"))
    told = {name: title for name, title in _COLUMNS.items() if any(getattr(x, name) is not None for x in diagnosis.layers)}
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("layer", *told.values()):
        table.add_column(title, no_wrap=True)
    for layer in diagnosis.layers:
        values = [getattr(layer, name) for name in told]
        shown = ["" if value is None else f"{value:.2f}" for value in values]
        table.add_row(f"{layer.source_layer}>{layer.target_layer}", *shown)
    console.print(table)
    console.print(Text(_LEGEND, style="dim"))
