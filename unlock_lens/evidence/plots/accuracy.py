"""Accuracy: against strength, over the grid, of every arm, and which answers changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlock_lens.evidence.plots import style
from unlock_lens.evidence.plots.vocabulary import ACCENT, CONTRARY, aligner_label, arm, in_order, n_seeds, text_first
from unlock_lens.evidence.results import TRANSFERRED, Line, Results

if TYPE_CHECKING:
    import plotly.graph_objects as go

INTERVAL = "%{customdata[0]:.1%} to %{customdata[1]:.1%} (95%), n = %{customdata[2]}"


def strength_curve(results: Results) -> go.Figure:
    """Accuracy on train against strength: the chosen configuration with its 95% band, and each control.

    Raises:
        InvalidInput: no line of the grid was finished.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import plots
        >>> from unlock_lens.evidence.results import Results
        >>> config = {"capability": "think", "control": None, "alpha": 0.5}
        >>> line = {"config": config, "split": "train", "accuracy": 0.9, "low": 0.6, "high": 1.0, "n": 10}
        >>> len(plots.strength_curve(Results({"capability": {"name": "think"}}, (line,))).data)
        2
    """
    chosen = results.chosen()
    curve = _by_strength(
        line for line in results.trained() if chosen and _apart_from_strength(line) == _apart_from_strength(chosen)
    )
    if chosen is None or not curve:
        raise style.missing("line of the train split for the chosen configuration", "let the sweep finish its grid")
    drawn = style.figure("Accuracy against strength (train)", 440)
    drawn.add_traces([_band(curve), *_control_curves(results)])
    drawn.add_trace(_curve(TRANSFERRED, curve, 1))
    drawn.add_vline(x=chosen["config"]["alpha"], line={"color": ACCENT, "width": 1, "dash": "dot"})
    drawn.add_annotation(
        x=chosen["config"]["alpha"], yref="paper", y=1, yanchor="bottom", text=f"chosen: {chosen['config']['alpha']:g}"
    )
    drawn.update_layout(xaxis_title="strength alpha", yaxis={"title": "right answers", **style.percent()}, hovermode="closest")
    style.legend_below(drawn)
    return drawn


def frontier(results: Results) -> go.Figure:
    """Best accuracy on train over strength, for each rank and number of pairs, one panel an aligner.

    Raises:
        InvalidInput: no line of the grid was finished.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import plots
        >>> from unlock_lens.evidence.results import Results
        >>> config = {"capability": "think", "control": None, "alpha": 0.5, "rank": 4, "n": 32, "aligner": "text"}
        >>> line = {"config": config, "split": "train", "accuracy": 0.9, "low": 0.6, "high": 1.0, "n": 10}
        >>> plots.frontier(Results({"capability": {"name": "think"}}, (line,))).data[0].z
        ([0.9],)
    """
    best: dict[tuple[Any, Any, Any], Line] = {}
    for line in results.trained():
        key = (line["config"]["aligner"], line["config"]["n"], line["config"]["rank"])
        best[key] = max(best.get(key, line), line, key=lambda each: each["accuracy"])
    if not best:
        raise style.missing("line of the train split", "let the sweep finish its grid")
    pairs, ranks = (_sorted({key[i] for key in best}) for i in (1, 2))
    aligners = sorted({key[0] for key in best}, key=text_first)
    headings = [aligner_label(name) for name in aligners]
    drawn = style.panels("Best accuracy by rank and pairs", headings, [34 * len(pairs) + 6] * len(aligners))
    chosen = results.chosen()
    for panel, aligner in enumerate(aligners, 1):
        lines = [[best.get((aligner, n, rank)) for rank in ranks] for n in pairs]
        drawn.add_trace(_accuracy_cells([_rank(rank) for rank in ranks], pairs, lines), row=panel, col=1)
        if chosen and chosen["config"]["aligner"] == aligner:
            style.frame_cell(drawn, ranks.index(chosen["config"]["rank"]), pairs.index(chosen["config"]["n"]), panel)
    drawn.update_xaxes(type="category", title="rank").update_yaxes(type="category", title="pairs", showgrid=False)
    return drawn


def arms(results: Results) -> go.Figure:
    """Accuracy of every arm on the test split with its 95% interval; faint marks are other seeds of the same arm.

    Raises:
        InvalidInput: no line of the test split was finished.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import plots
        >>> from unlock_lens.evidence.results import Results
        >>> line = {"split": "test", "accuracy": 0.9, "low": 0.6, "high": 1.0, "n": 10}
        >>> lines = [{**line, "config": {"capability": "think", "control": name}} for name in (None, "random")]
        >>> list(plots.arms(Results({"capability": {"name": "think"}}, tuple(lines))).data[-1].y)
        ['random', '<b>transferred</b>']
    """
    lines = results.arms()
    if not lines:
        raise style.missing("line of the test split", "let the sweep finish: it reports on test last")
    names = in_order(lines)[::-1]
    drawn = style.figure("Accuracy of every arm (test)", 90 + 30 * len(names))
    if "unsteered" in lines:
        drawn.add_vline(x=lines["unsteered"]["accuracy"], line={"color": style.INK, "width": 1, "dash": "dot"})
    drawn.add_traces([_shares_beside(names, lines), _other_seeds(results, names), _forest(names, lines)])
    drawn.update_layout(
        showlegend=False,
        xaxis={"title": "right answers", **style.percent(1.17), "showgrid": True},
        yaxis={"showgrid": False, "range": [-0.6, len(names) - 0.4]},
    )
    return drawn


def flips(results: Results) -> go.Figure:
    """Questions that each arm turned from wrong to right, and from right to wrong, against the unsteered target.

    Raises:
        InvalidInput: no arm was compared with the unsteered target.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import plots
        >>> from unlock_lens.evidence.results import Results
        >>> line = {"config": {"capability": "think", "control": None}, "split": "test", "accuracy": 0.9, "n": 10}
        >>> line["paired"] = {"difference": 0.7, "low": 0.4, "high": 0.9, "gained": 8, "lost": 1, "p": 0.04}
        >>> [list(bars.x) for bars in plots.flips(Results({"capability": {"name": "think"}}, (line,))).data]
        [[8], [-1]]
    """
    lines = {name: line for name, line in results.arms().items() if line.get("paired")}
    if not lines:
        raise style.missing("comparison with the unsteered target", "let the sweep finish: it reports on test last")
    names = in_order(lines)[::-1]
    drawn = style.figure("Answers gained and lost by each arm", 110 + 30 * len(names))
    drawn.add_traces([_flip_bars(names, lines, "gained", 1), _flip_bars(names, lines, "lost", -1)])
    most = max(1, *(max(line["paired"]["gained"], line["paired"]["lost"]) for line in lines.values()))
    lost = max(line["paired"]["lost"] for line in lines.values())
    drawn.update_layout(
        barmode="relative", bargap=0.35,
        xaxis={"title": "questions", "showticklabels": False, "range": [-lost - 0.2 * most, 1.2 * most]},
        yaxis={"showgrid": False},
    )  # fmt: skip
    drawn.add_vline(x=0, line={"color": style.INK, "width": 1})
    style.legend_below(drawn, 40)
    return drawn


def _apart_from_strength(line: Line) -> dict[str, Any]:
    return {key: value for key, value in line["config"].items() if key != "alpha"}


def _by_strength(lines: Iterable[Line]) -> list[Line]:
    """One line a strength: of several (seeds) the most accurate."""
    best: dict[Any, Line] = {}
    for line in lines:
        alpha = line["config"]["alpha"]
        best[alpha] = max(best.get(alpha, line), line, key=lambda each: each["accuracy"])
    return [best[alpha] for alpha in sorted(alpha for alpha in best if alpha is not None)]


def _control_curves(results: Results) -> list[go.Scatter]:
    """Of each control that was run on train at several strengths."""
    names = in_order(line["config"]["control"] for line in results.lines if line["config"]["control"])
    return [
        _curve(name, lines, n_seeds(results.trained(name))) for name in names if (lines := _by_strength(results.trained(name)))
    ]


def _curve(name: str, lines: Sequence[Line], seeds: int) -> go.Scatter:
    import plotly.graph_objects as go

    drawn, main = arm(name), name == TRANSFERRED
    seeds_told = f" (best of {seeds} seeds)" if seeds > 1 else ""
    return go.Scatter(
        x=[line["config"]["alpha"] for line in lines], y=[line["accuracy"] for line in lines], customdata=_intervals(lines),
        name=_bold(name), legendrank=1 if main else 1000, mode="lines+markers",
        line={"color": drawn.colour, "dash": drawn.dash, "width": 3 if main else 1.5},
        marker={"symbol": drawn.symbol, "size": 8 if main else 6},
        hovertemplate=f"<b>{drawn.label}</b>: {drawn.meaning}{seeds_told}<br>alpha %{{x:g}}: <b>%{{y:.1%}}</b> right<br>"
        f"{INTERVAL}<extra></extra>",
    )  # fmt: skip


def _band(lines: list[Line]) -> go.Scatter:
    import plotly.graph_objects as go

    alphas = [line["config"]["alpha"] for line in lines]
    edges = [line["high"] for line in lines] + [line["low"] for line in reversed(lines)]
    return go.Scatter(
        x=alphas + alphas[::-1], y=edges, fill="toself", fillcolor="rgba(27,116,200,0.18)", line={"width": 0},
        hoverinfo="skip", showlegend=False, mode="lines", name="95% interval",
    )  # fmt: skip


def _accuracy_cells(ranks: list[str], pairs: list[Any], lines: list[list[Line | None]]) -> go.Heatmap:
    hover = "rank %{x}, %{y} pairs: <b>%{z:.1%}</b> right<br>at alpha %{customdata:g}<extra></extra>"
    best = [[line["accuracy"] if line else None for line in row] for row in lines]
    alphas = [[line["config"]["alpha"] if line else None for line in row] for row in lines]
    return style.cells(ranks, pairs, best, ".0%", style.SHARES, zmin=0, zmax=1, hovertemplate=hover, customdata=alphas)


def _forest(names: list[str], lines: Mapping[str, Line]) -> go.Scatter:
    import plotly.graph_objects as go

    shown = [lines[name] for name in names]
    return go.Scatter(
        x=[line["accuracy"] for line in shown], y=[_bold(name) for name in names], customdata=_intervals(shown), mode="markers",
        marker={"size": 10, "color": [arm(name).colour for name in names], "symbol": [arm(name).symbol for name in names]},
        error_x={
            "type": "data", "symmetric": False, "thickness": 1.5, "width": 4, "color": style.INK,
            "array": [line["high"] - line["accuracy"] for line in shown],
            "arrayminus": [line["accuracy"] - line["low"] for line in shown],
        },
        text=[arm(name).meaning for name in names], cliponaxis=False,
        hovertemplate=f"<b>%{{x:.1%}}</b> right: %{{text}}<br>{INTERVAL}<extra></extra>",
    )  # fmt: skip


def _shares_beside(names: list[str], lines: Mapping[str, Line]) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[lines[name]["high"] for name in names], y=[_bold(name) for name in names], mode="text", hoverinfo="skip",
        cliponaxis=False, text=[f"\u2002{lines[name]['accuracy']:.1%}" for name in names], textposition="middle right",
        textfont={"size": 12},
    )  # fmt: skip


def _other_seeds(results: Results, names: list[str]) -> go.Scatter:
    import plotly.graph_objects as go

    marks = [
        (line["accuracy"], _bold(name))
        for name in names
        for line in results.tested()[name]
        if n_seeds(results.tested()[name]) > 1
    ]
    return go.Scatter(
        x=[x for x, _ in marks], y=[y for _, y in marks], mode="markers",
        marker={"size": 7, "color": style.INK, "symbol": "circle-open"}, opacity=0.7, cliponaxis=False,
        hovertemplate="%{y}, another seed: %{x:.1%} right<extra></extra>",
    )  # fmt: skip


def _flip_bars(names: list[str], lines: Mapping[str, Line], what: str, sign: int) -> go.Bar:
    import plotly.graph_objects as go

    paired = [lines[name]["paired"] for name in names]
    counts = [pair[what] for pair in paired]
    words = {"gained": "wrong to right", "lost": "right to wrong"}[what]
    return go.Bar(
        x=[sign * count for count in counts], y=[_bold(name) for name in names], orientation="h", name=f"{what} ({words})",
        marker={"color": ACCENT if sign > 0 else CONTRARY, "pattern": {"shape": "" if sign > 0 else "/"}},
        text=[_count(pair, what) for pair in paired], textposition="outside", textfont={"size": 12}, cliponaxis=False,
        customdata=[[pair["difference"], pair["low"], pair["high"], pair["p"], pair[what]] for pair in paired],
        hovertemplate=f"<b>%{{y}}</b>: %{{customdata[4]}} {words}<br>difference %{{customdata[0]:+.1%}} "
        "(95%: %{customdata[1]:+.1%} to %{customdata[2]:+.1%}), p = %{customdata[3]:.2g}<extra></extra>",
    )  # fmt: skip


def _count(paired: Mapping[str, Any], what: str) -> str:
    """A bar's number; where neither bar is there, one nought for both."""
    neither = not paired["gained"] and not paired["lost"]
    return str(paired[what]) if paired[what] or (neither and what == "gained") else ""


def _intervals(lines: Iterable[Line]) -> list[list[Any]]:
    return [[line["low"], line["high"], line["n"]] for line in lines]


def _bold(name: str) -> str:
    return f"<b>{arm(name).label}</b>" if name == TRANSFERRED else arm(name).label


def _rank(rank: int | None) -> str:
    return "full" if rank is None else str(rank)


def _sorted(values: Iterable[Any]) -> list[Any]:
    return sorted(values, key=lambda value: (value is None, value))
