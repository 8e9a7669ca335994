"""What each strength brings, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unlock_lens.evidence.plots import style
from unlock_lens.evidence.plots.vocabulary import ARMS, CONTRARY
from unlock_lens.evidence.results import TRANSFERRED

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from unlock_lens.evidence.response import Response


def dose_response(found: Response) -> go.Figure:
    """The share of completions that show the behaviour over strength, with its 95% interval and EC50, and the price below."""
    priced = "kl" in found.table
    headings = ["completions that show the behaviour", "price on unrelated text"][: 1 + priced]
    drawn = style.panels("Behaviour and price by strength", headings, [220, 150][: 1 + priced])
    for name, one in ((TRANSFERRED, found), ("own", found.own)):
        if one is not None:
            _draw(drawn, one, name, priced)
    drawn.update_yaxes(title="completions", row=1, **style.percent(1.06))
    tried: Sequence[float] = [*found.table.index, *(found.own.table.index if found.own else ())]
    drawn.update_xaxes(title="strength alpha", **style.log_ticks(tried))
    if priced:
        drawn.update_yaxes(title="nats per token", row=2, rangemode="tozero")
    style.legend_below(drawn, 52)
    return drawn


def _draw(drawn: go.Figure, one: Response, name: str, priced: bool) -> None:
    table, look = one.table.iloc[1:], ARMS[name]
    label = look.label if name == "own" else "this direction"
    drawn.add_scatter(**style.band([*table.index], [*table["low"]], [*table["high"]], look.colour), row=1, col=1)
    hover = f"{label}, alpha %{{x:.3g}}: <b>%{{y:.0%}}</b>"
    curve = style.line(table.index, table["share"], label, look.colour, hover, symbol=look.symbol)
    drawn.add_scatter(**curve, row=1, col=1)
    if one.ec50 is not None and one.ec50_interval is not None:
        low, high = one.ec50_interval
        told = f"{label}: EC50 <b>{one.ec50:.3g}</b> ({low:.3g} to {high:.3g})<extra></extra>"
        drawn.add_scatter(
            x=[one.ec50], y=[0.5], mode="markers", marker={"symbol": "x", "size": 9, "color": CONTRARY}, showlegend=False,
            error_x={"type": "data", "symmetric": False, "array": [high - one.ec50], "arrayminus": [one.ec50 - low]},
            hovertemplate=told, name="EC50", row=1, col=1,
        )  # fmt: skip
    if priced:
        hover = f"{label}, alpha %{{x:.3g}}: <b>%{{y:.2g}}</b> nats"
        cost = style.line(table.index, table["kl"], label, look.colour, hover, symbol=look.symbol, showlegend=False)
        drawn.add_scatter(**cost, row=2, col=1)
