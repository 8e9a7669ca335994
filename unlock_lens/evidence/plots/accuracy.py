"""Accuracy: against strength, over the grid, of every arm, and which answers changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlock_lens.evidence.plots import style
from unlock_lens.evidence.plots.vocabulary import ACCENT, CONTRARY, aligner_label, arm, in_order, n_seeds, text_first
from unlock_lens.evidence.results import TRANSFERRED, UNSTEERED, Line, Results

if TYPE_CHECKING:
    import plotly.graph_objects as go

INTERVAL = "%{customdata[0]:.1%} to %{customdata[1]:.1%} (95%), n = %{customdata[2]}"
GROUPS_OF_ARMS = {
    ("transferred", "unsteered"): "",
    ("reference",): "<b>for comparison</b>",
    ("rival",): "<b>controls to beat</b>",
}
GRID_REMEDY = "let the sweep finish its grid"


def strength_curve(results: Results) -> go.Figure:
    """Accuracy on train against strength: the chosen configuration with its 95% band, and each control."""
    chosen = results.chosen()
    curve = _by_strength(
        line for line in results.trained() if chosen and _apart_from_strength(line) == _apart_from_strength(chosen)
    )
    if chosen is None or not curve:
        raise style.missing("line of the train split for the chosen configuration", GRID_REMEDY)
    if len(curve) < 2:
        raise style.missing("second strength for the chosen configuration", "give `alpha` of the grid two values at least")
    drawn = style.figure("Accuracy against strength (train)", 440)
    alphas, edges = [line["config"]["alpha"] for line in curve], [line["high"] for line in curve]
    drawn.add_scatter(**style.band(alphas, [line["low"] for line in curve], edges, ACCENT))
    for name in in_order(line["config"]["control"] for line in results.lines if line["config"]["control"]):
        if lines := _by_strength(results.trained(name)):
            drawn.add_scatter(**_curve(name, lines, n_seeds(results.trained(name))))
    drawn.add_scatter(**_curve(TRANSFERRED, curve))
    alpha = chosen["config"]["alpha"]
    drawn.add_vline(x=alpha, line={"color": ACCENT, "width": 1, "dash": "dot"})
    drawn.add_annotation(x=alpha, yref="paper", y=1, yanchor="bottom", text=f"chosen: {alpha:g}")
    drawn.update_layout(xaxis_title="strength alpha", yaxis={"title": "right answers", **style.percent()}, hovermode="closest")
    style.legend_below(drawn)
    return drawn


def frontier(results: Results) -> go.Figure:
    """Best accuracy on train over strength, for each rank and number of pairs, one panel per aligner."""
    best: dict[tuple[Any, Any, Any], Line] = {}
    for line in results.trained():
        key = (line["config"]["aligner"], line["config"]["n"], line["config"]["rank"])
        best[key] = max(best.get(key, line), line, key=_accuracy)
    if not best:
        raise style.missing("line of the train split", GRID_REMEDY)
    pairs, ranks = (sorted({key[i] for key in best}, key=lambda value: (value is None, value)) for i in (1, 2))
    aligners = sorted({key[0] for key in best}, key=text_first)
    headings = [style.text(aligner_label(name)) for name in aligners]
    drawn = style.panels("Best accuracy by rank and pairs", headings, [34 * len(pairs) + 6] * len(aligners))
    chosen = results.chosen()
    for panel, aligner in enumerate(aligners, 1):
        lines = [[best.get((aligner, n, rank)) for rank in ranks] for n in pairs]
        values = [[line["accuracy"] if line else None for line in row] for row in lines]
        alphas = [[line["config"]["alpha"] if line else None for line in row] for row in lines]
        hover = "rank %{x}, %{y} pairs: <b>%{z:.1%}</b> right<br>at alpha %{customdata:g}"
        names, look = ([style.rank(rank) for rank in ranks], pairs), (style.SHARES, ".0%")
        style.add_cells(drawn, names, values, look, hover, panel, zmin=0, zmax=1, customdata=alphas)
        if chosen and chosen["config"]["aligner"] == aligner:
            style.frame_cell(drawn, ranks.index(chosen["config"]["rank"]), pairs.index(chosen["config"]["n"]), panel)
    return style.categories(drawn, "rank", "pairs")


def arms(results: Results) -> go.Figure:
    """Accuracy of every arm on the test split with its 95% interval: the transfer, what puts it in proportion, its controls.

    Faint marks are other seeds of the same arm, upright lines what the paper reports (`paper_reports` of the config).
    """
    lines = results.arms()
    if not lines:
        raise style.missing("line of the test split", style.TEST_REMEDY)
    rows, headings = _in_groups(lines)
    names = [name for name in rows if name in lines]
    drawn = style.figure("Right answers of every arm (test)", 90 + 28 * len(rows))
    if UNSTEERED in lines:
        drawn.add_vline(x=_accuracy(lines[UNSTEERED]), line={"color": style.INK, "width": 1, "dash": "dot"})
    labels = [_bold(name) for name in names]
    drawn.add_scatter(
        x=[lines[name]["high"] for name in names], y=labels, mode="text", hoverinfo="skip", cliponaxis=False,
        text=[f"\u2002{_accuracy(lines[name]):.1%}" for name in names], textposition="middle right", textfont={"size": 12},
    )  # fmt: skip
    drawn.add_scatter(
        x=[0.0] * len(headings), y=[*headings], text=[*headings.values()], mode="text", textposition="middle right",
        hoverinfo="skip", textfont={"size": 12}, cliponaxis=False,
    )  # fmt: skip
    told = [each for each in results.config.get("paper_reports") or () if each["arm"] in lines and each.get("of") is None]
    if told:
        drawn.add_scatter(
            x=[each["right"] / 100 for each in told], y=[_bold(each["arm"]) for each in told], mode="markers", cliponaxis=False,
            marker={"size": 13, "symbol": "line-ns", "line": {"width": 2, "color": CONTRARY}},
            customdata=["about " if each.get("about") else "" for each in told],
            hovertemplate="%{y}: the paper reports %{customdata}%{x:.1%}<extra></extra>",
        )  # fmt: skip
    of_arm = results.tested()
    marks = [(_accuracy(line), _bold(name)) for name in names if n_seeds(of_arm[name]) > 1 for line in of_arm[name]]
    drawn.add_scatter(
        x=[x for x, _ in marks], y=[y for _, y in marks], mode="markers", opacity=0.7, cliponaxis=False,
        marker={"size": 7, "color": style.INK, "symbol": "circle-open"},
        hovertemplate="%{y}, another seed: %{x:.1%} right<extra></extra>",
    )  # fmt: skip
    drawn.add_scatter(**_forest(names, [lines[name] for name in names]), y=labels)
    order = [_bold(name) if name in lines else name for name in rows]
    drawn.update_layout(
        showlegend=False,
        margin={"r": 60},  # for the numbers
        xaxis={"title": "right answers", **style.percent(), "showgrid": True},
        yaxis={"showgrid": False, "range": [-0.6, len(rows) - 0.4], "categoryorder": "array", "categoryarray": order},
    )
    return drawn


def _in_groups(lines: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The rows from the bottom up, and the headings of those that open a group, whose names are blanks."""
    found: list[str] = []
    headings: dict[str, str] = {}
    for roles, heading in GROUPS_OF_ARMS.items():
        names = [name for name in in_order(lines) if arm(name).role in roles]
        if names and heading:
            blank = " " * (len(headings) + 1)
            headings[blank] = heading
            found.append(blank)
        found += names
    return found[::-1], headings


def flips(results: Results) -> go.Figure:
    """Questions that each arm turned from wrong to right, and from right to wrong, compared with the unsteered target."""
    paired = {name: line["paired"] for name, line in results.arms().items() if line.get("paired")}
    if not paired:
        raise style.missing("comparison with the unsteered target", style.TEST_REMEDY)
    names = in_order(paired)[::-1]
    drawn = style.figure("Answers gained and lost by each arm", 110 + 30 * len(names))
    for what in ("gained", "lost"):
        drawn.add_bar(**_flip_bars([paired[name] for name in names], what), y=[_bold(name) for name in names])
    lost = max(pair["lost"] for pair in paired.values())
    most = max(1, lost, *(pair["gained"] for pair in paired.values()))
    drawn.update_layout(
        barmode="relative", bargap=0.35,
        xaxis={"title": "questions", "showticklabels": False, "range": [-lost - 0.2 * most, 1.2 * most]},
        yaxis={"showgrid": False},
    )  # fmt: skip
    drawn.add_vline(x=0, line={"color": style.INK, "width": 1})
    style.legend_below(drawn, 40)
    return drawn


def _accuracy(line: Line) -> float:
    return line["accuracy"]


def _apart_from_strength(line: Line) -> dict[str, Any]:
    return {key: value for key, value in line["config"].items() if key != "alpha"}


def _by_strength(lines: Iterable[Line]) -> list[Line]:
    """One line for each strength: of several (seeds) the most accurate."""
    best: dict[Any, Line] = {}
    for line in lines:
        alpha = line["config"]["alpha"]
        best[alpha] = max(best.get(alpha, line), line, key=_accuracy)
    return [best[alpha] for alpha in sorted(alpha for alpha in best if alpha is not None)]


def _curve(name: str, lines: Sequence[Line], seeds: int = 1) -> dict[str, Any]:
    drawn, main = arm(name), name == TRANSFERRED
    of_seeds = f" (best of {seeds} seeds)" if seeds > 1 else ""
    hover = (
        f"<b>{style.text(drawn.label)}</b>: {drawn.meaning}{of_seeds}<br>alpha %{{x:g}}: <b>%{{y:.1%}}</b> right<br>{INTERVAL}"
    )
    return style.line(
        [line["config"]["alpha"] for line in lines], map(_accuracy, lines), _bold(name), drawn.colour, hover,
        customdata=_intervals(lines), legendrank=1 if main else 1000, mode="lines+markers",
        line={"color": drawn.colour, "dash": drawn.dash, "width": 3 if main else 1.5},
        marker={"symbol": drawn.symbol, "size": 8 if main else 6},
    )  # fmt: skip


def _forest(names: list[str], lines: list[Line]) -> dict[str, Any]:
    known = [arm(name) for name in names]
    interval = {
        "array": [line["high"] - _accuracy(line) for line in lines],
        "arrayminus": [_accuracy(line) - line["low"] for line in lines],
    }
    return {
        "x": [_accuracy(line) for line in lines], "customdata": _intervals(lines), "mode": "markers", "cliponaxis": False,
        "marker": {"size": 10, "color": [each.colour for each in known], "symbol": [each.symbol for each in known]},
        "error_x": {"type": "data", "symmetric": False, "thickness": 1.5, "width": 4, "color": style.INK, **interval},
        "text": [each.meaning for each in known],
        "hovertemplate": f"<b>%{{x:.1%}}</b> right: %{{text}}<br>{INTERVAL}<extra></extra>",
    }  # fmt: skip


def _flip_bars(paired: Sequence[Mapping[str, Any]], what: str) -> dict[str, Any]:
    gained = what == "gained"
    words = "wrong to right" if gained else "right to wrong"
    return {
        "x": [pair[what] if gained else -pair[what] for pair in paired], "orientation": "h", "name": f"{what} ({words})",
        "marker": {"color": ACCENT if gained else CONTRARY, "pattern": {"shape": "" if gained else "/"}},
        "text": [str(pair[what]) if pair[what] or (gained and not pair["lost"]) else "" for pair in paired],
        "textposition": "outside", "textfont": {"size": 12}, "cliponaxis": False,
        "customdata": [[pair[key] for key in ("difference", "low", "high", "p", what)] for pair in paired],
        "hovertemplate": f"<b>%{{y}}</b>: %{{customdata[4]}} {words}<br>difference %{{customdata[0]:+.1%}} "
        "(95%: %{customdata[1]:+.1%} to %{customdata[2]:+.1%}), p = %{customdata[3]:.2g}<extra></extra>",
    }  # fmt: skip


def _intervals(lines: Iterable[Line]) -> list[list[Any]]:
    return [[line["low"], line["high"], line["n"]] for line in lines]


def _bold(name: str) -> str:
    label = style.text(arm(name).label)
    return f"<b>{label}</b>" if name == TRANSFERRED else label
