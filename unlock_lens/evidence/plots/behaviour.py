"""What the completions are like: their lengths, which behaviour arrives, and how sharp the distribution becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from unlock_lens.evidence.plots import style
from unlock_lens.evidence.plots.vocabulary import ACCENT, GREY, arm
from unlock_lens.evidence.results import TRANSFERRED, Line, Results

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_BARS = 30


def lengths(results: Results) -> go.Figure:
    """How long completions are, unsteered above and transferred below, on one scale."""
    arms = results.arms()
    found: dict[str, list[int]] = {name: arms.get(name, {}).get("lengths") or [] for name in ("unsteered", TRANSFERRED)}
    if absent := [name for name, values in found.items() if not values]:
        raise style.missing(f"completion lengths of the {' or '.join(absent)} arm", style.TEST_REMEDY)
    edges = _edges([length for values in found.values() for length in values])
    headings = [f"{arm(name).label}: mean {sum(values) / len(values):.1f} tokens" for name, values in found.items()]
    drawn = style.panels("Completion lengths before and after", headings, [110, 110], shared_x=True)
    for panel, (name, values) in enumerate(found.items(), 1):
        drawn.add_bar(**_length_bars(name, values, edges), row=panel, col=1)
    bars: list[Any] = list(drawn.select_traces())
    top = max(max(each.y) for each in bars)
    drawn.update_yaxes(tickformat=".0%", range=[0, 1.08 * top], nticks=4, title="completions")
    drawn.update_xaxes(range=[edges[0] - 0.5, edges[-1] + 0.5]).update_xaxes(title="tokens", row=2)
    return drawn.update_layout(showlegend=False, bargap=0.08)


def specificity(results: Results) -> go.Figure:
    """Which behaviour each transferred capability brings, as shares of the completions; frames mark what was wanted."""
    rows = specificity_rows(results)
    if not any(name != "unsteered" for name, _ in rows):
        raise style.missing("behaviours of transferred capabilities", "sweep a task that tells behaviours apart")
    columns = list(dict.fromkeys(name for _, shares in rows for name in shares))
    drawn = style.panels("Which behaviour each capability brings", ["share of completions, by transfer"], [36 * len(rows)])
    shares = [[shares.get(name, 0.0) for name in columns] for _, shares in rows]
    hover = "%{y}: <b>%{z:.1%}</b> of completions show %{x}"
    style.add_cells(drawn, (columns, [name for name, _ in rows]), shares, (style.SHARES, ".0%"), hover, zmin=0, zmax=1)
    for row, (name, _) in enumerate(rows):
        if name in columns:
            style.frame_cell(drawn, columns.index(name), row)
    return style.categories(drawn, "behaviour", autorange="reversed")


def sharpening(results: Results) -> go.Figure:
    """Entropy of the first tokens before and after, and the steered greedy accuracy over the unsteered pass@k."""
    found = (results.arms().get(TRANSFERRED) or {}).get("sharpening") or {}
    kinds = {"entropy": ("entropy of each first token", _entropy), "pass_at_k": ("right within k samples", _pass_at_k)}
    parts = [part for key, part in kinds.items() if found.get(key)]
    if not parts:
        raise style.missing("sharpening", "sweep with sampling.samples above 0, and let it finish")
    drawn = style.panels("Entropy and pass@k, before and after", [heading for heading, _ in parts], [150] * len(parts))
    for panel, (_, draw) in enumerate(parts, 1):
        draw(drawn, found, panel)
    style.legend_below(drawn, 52)
    return drawn


def specificity_rows(results: Results) -> list[tuple[str, Mapping[str, float]]]:
    """Each transferred capability with the shares of behaviours it brought; the unsteered target comes first."""
    arms, own = results.arms(), results.capability
    rows: list[tuple[Any, Line]] = [("unsteered", arms.get("unsteered", {})), (own, arms.get(TRANSFERRED, {}))]
    rows += [
        (line["config"].get("capability"), line)
        for line in results.lines
        if line["split"] == "test" and line["config"].get("control") is None and line["config"].get("capability") != own
    ]
    return [(str(name), line["behaviours"]) for name, line in rows if line.get("behaviours")]


def _edges(values: Sequence[int]) -> list[float]:
    """Bins of one width that hold whole tokens, at most `MOST_BARS` of them."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // MOST_BARS))
    return [low - 0.5 + width * i for i in range((high - low) // width + 2)]


def _length_bars(name: str, values: Sequence[int], edges: Sequence[float]) -> dict[str, Any]:
    width = edges[1] - edges[0]
    counted = [(a, b, sum(a < value < b for value in values)) for a, b in pairwise(edges)]
    bins = [(a, b, count) for a, b, count in counted if count]
    return {
        "x": [(a + b) / 2 for a, b, _ in bins], "y": [count / len(values) for _, _, count in bins],
        "width": [0.9 * width] * len(bins), "marker": {"color": arm(name).colour},
        "customdata": [[f"{a + 0.5:g}" if width == 1 else f"{a + 0.5:g} to {b - 0.5:g}", count] for a, b, count in bins],
        "hovertemplate": "%{customdata[0]} tokens: <b>%{y:.1%}</b> of completions (%{customdata[1]})<extra></extra>",
    }  # fmt: skip


def _entropy(drawn: go.Figure, found: Mapping[str, Any], panel: int) -> None:
    for side, name, symbol in (("unsteered", "unsteered", "square"), ("steered", TRANSFERRED, "circle")):
        values, label = found["entropy"][side], arm(name).label
        hover = f"token %{{x}}, {label}: <b>%{{y:.2f}}</b> nats"
        line = style.line(range(1, len(values) + 1), values, label, arm(name).colour, hover, symbol=symbol)
        drawn.add_scatter(**line, row=panel, col=1)
    drawn.update_yaxes(title="nats", rangemode="tozero", row=panel, col=1)
    drawn.update_xaxes(title="token of the completion", dtick=max(1, len(found["entropy"]["steered"]) // 8), row=panel, col=1)


def _pass_at_k(drawn: go.Figure, found: Mapping[str, Any], panel: int) -> None:
    curve = {int(k): share for k, share in sorted(found["pass_at_k"].items(), key=lambda item: int(item[0]))}
    hover = "unsteered, %{x} samples: <b>%{y:.1%}</b>"
    line = style.line(curve, curve.values(), "unsteered, pass@k", GREY, hover, symbol="square")
    drawn.add_scatter(**line, row=panel, col=1)
    steered = (found.get("greedy") or {}).get("steered")
    if steered is not None:
        name, ends = "transferred, greedy", (min(curve), max(curve))
        line = style.line(ends, [steered] * 2, name, ACCENT, f"{name}: <b>%{{y:.1%}}</b>", width=2.5)
        drawn.add_scatter(**line, line_dash="dash", row=panel, col=1)
    drawn.update_yaxes(title="right", row=panel, col=1, **style.percent(1.06))
    drawn.update_xaxes(title="samples k", row=panel, col=1, **style.log_ticks(curve))
