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
    """How long completions are, unsteered above and transferred below, on one scale.

    Raises:
        InvalidInput: an arm of the two is not there, or has no lengths.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import plots
        >>> from unlock_lens.evidence.results import Results
        >>> line = {"split": "test", "accuracy": 0.9, "lengths": [2, 13, 13, 13]}
        >>> lines = [{**line, "config": {"capability": "think", "control": name}} for name in (None, "unsteered")]
        >>> list(plots.lengths(Results({"capability": {"name": "think"}}, tuple(lines))).data[0].y)
        [0.25, 0.75]
    """
    found: dict[str, list[int]] = {
        name: results.arms().get(name, {}).get("lengths") or [] for name in ("unsteered", TRANSFERRED)
    }
    if not all(found.values()):
        absent = " or ".join(name for name, values in found.items() if not values)
        raise style.missing(f"completion lengths of the {absent} arm", "let the sweep finish: it reports on test last")
    edges = _edges([length for values in found.values() for length in values])
    headings = [f"{arm(name).label}: mean {sum(values) / len(values):.1f} tokens" for name, values in found.items()]
    drawn = style.panels("Completion lengths before and after", headings, [110, 110], shared_x=True)
    for panel, (name, values) in enumerate(found.items(), 1):
        drawn.add_trace(_length_bars(name, values, edges), row=panel, col=1)
    bars: list[Any] = list(drawn.select_traces())
    top = max(max(each.y) for each in bars)
    drawn.update_yaxes(tickformat=".0%", range=[0, 1.08 * top], nticks=4, title="completions")
    drawn.update_xaxes(range=[edges[0] - 0.5, edges[-1] + 0.5]).update_xaxes(title="tokens", row=2)
    return drawn.update_layout(showlegend=False, bargap=0.08)


def specificity(results: Results) -> go.Figure:
    """Which behaviour each transferred capability brings, as shares of the completions; frames mark what was wanted.

    Raises:
        InvalidInput: the task tells no behaviours apart.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import plots
        >>> from unlock_lens.evidence.results import Results
        >>> line = {"config": {"capability": "think", "control": None}, "split": "test", "accuracy": 0.9}
        >>> line["behaviours"] = {"direct": 0.1, "think": 0.9}
        >>> plots.specificity(Results({"capability": {"name": "think"}}, (line,))).data[0].z
        ([0.1, 0.9],)
    """
    rows = specificity_rows(results)
    if not any(name != "unsteered" for name, _ in rows):
        raise style.missing("behaviours of transferred capabilities", "sweep a task that tells behaviours apart")
    columns = list(dict.fromkeys(name for _, shares in rows for name in shares))
    drawn = style.panels("Which behaviour each capability brings", ["share of completions, by transfer"], [36 * len(rows)])
    drawn.add_trace(
        style.cells(
            columns, [name for name, _ in rows], [[shares.get(name, 0.0) for name in columns] for _, shares in rows], ".0%",
            style.SHARES, zmin=0, zmax=1,
            hovertemplate="%{y}: <b>%{z:.1%}</b> of completions show %{x}<extra></extra>",
        ), row=1, col=1,
    )  # fmt: skip
    for row, (name, _) in enumerate(rows):
        if name in columns:
            style.frame_cell(drawn, columns.index(name), row)
    drawn.update_xaxes(type="category", title="behaviour").update_yaxes(type="category", autorange="reversed", showgrid=False)
    return drawn


def sharpening(results: Results) -> go.Figure:
    """Entropy of the first tokens before and after, and the steered greedy accuracy over the unsteered pass@k.

    Raises:
        InvalidInput: sharpening was not measured.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import plots
        >>> from unlock_lens.evidence.results import Results
        >>> line = {"config": {"capability": "think", "control": None}, "split": "test", "accuracy": 0.9}
        >>> line["sharpening"] = {"pass_at_k": {"1": 0.1, "2": 0.2}, "greedy": {"unsteered": 0.1, "steered": 0.9}}
        >>> [trace.name for trace in plots.sharpening(Results({"capability": {"name": "think"}}, (line,))).data]
        ['unsteered, pass@k', 'transferred, greedy']
    """
    found = (results.arms().get(TRANSFERRED) or {}).get("sharpening") or {}
    parts = {
        name: draw
        for name, draw in {"entropy of each first token": _entropy, "right within k samples": _pass_at_k}.items()
        if found.get("entropy" if draw is _entropy else "pass_at_k")
    }
    if not parts:
        raise style.missing("sharpening", "sweep with sampling.samples above 0, and let it finish")
    drawn = style.panels("Entropy and pass@k, before and after", list(parts), [150] * len(parts))
    for panel, draw in enumerate(parts.values(), 1):
        draw(drawn, found, panel)
    style.legend_below(drawn, 52)
    return drawn


def specificity_rows(results: Results) -> list[tuple[str, Mapping[str, float]]]:
    """Each capability that was transferred and the shares of behaviours it brought, after those of the target as it is."""
    lines: dict[str, Line] = {name: line for name, line in results.arms().items() if name in ("unsteered", TRANSFERRED)}
    rows = [(results.capability if name == TRANSFERRED else name, line) for name, line in sorted(lines.items(), reverse=True)]
    rows += [
        (line["config"]["capability"], line)
        for line in results.lines
        if line["split"] == "test"
        and line["config"].get("control") is None
        and line["config"].get("capability") != results.capability
    ]
    return [(str(name), line["behaviours"]) for name, line in rows if line.get("behaviours")]


def _edges(values: Sequence[int]) -> list[float]:
    """Bins of one width that hold whole tokens, at most `MOST_BARS` of them."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // MOST_BARS))
    return [low - 0.5 + width * i for i in range((high - low) // width + 2)]


def _length_bars(name: str, values: Sequence[int], edges: Sequence[float]) -> go.Bar:
    import plotly.graph_objects as go

    bins = [(a, b, sum(a < value < b for value in values)) for a, b in pairwise(edges)]
    bins = [each for each in bins if each[2]]
    width = edges[1] - edges[0]
    told = [f"{a + 0.5:g}" if width == 1 else f"{a + 0.5:g} to {b - 0.5:g}" for a, b, _ in bins]
    return go.Bar(
        x=[(a + b) / 2 for a, b, _ in bins], y=[count / len(values) for _, _, count in bins], width=[0.9 * width] * len(bins),
        marker={"color": arm(name).colour}, customdata=[[text, count] for text, (_, _, count) in zip(told, bins, strict=True)],
        hovertemplate="%{customdata[0]} tokens: <b>%{y:.1%}</b> of completions (%{customdata[1]})<extra></extra>",
    )  # fmt: skip


def _entropy(drawn: go.Figure, found: Mapping[str, Any], panel: int) -> None:
    for side, name in (("unsteered", "unsteered"), ("steered", TRANSFERRED)):
        values = found["entropy"][side]
        hover = f"token %{{x}}, {arm(name).label}: <b>%{{y:.2f}}</b> nats<extra></extra>"
        drawn.add_scatter(
            x=list(range(1, len(values) + 1)), y=values, mode="lines+markers", name=arm(name).label, hovertemplate=hover,
            line={"color": arm(name).colour, "width": 2}, row=panel, col=1,
            marker={"size": 7, "symbol": "circle" if name == TRANSFERRED else "square"},
        )  # fmt: skip
    drawn.update_yaxes(title="nats", rangemode="tozero", row=panel, col=1)
    drawn.update_xaxes(title="token of the completion", dtick=max(1, len(found["entropy"]["steered"]) // 8), row=panel, col=1)


def _pass_at_k(drawn: go.Figure, found: Mapping[str, Any], panel: int) -> None:
    curve = sorted((int(k), share) for k, share in found["pass_at_k"].items())
    ks = [k for k, _ in curve]
    drawn.add_scatter(
        x=ks, y=[share for _, share in curve], mode="lines+markers", name="unsteered, pass@k", line={"color": GREY, "width": 2},
        marker={"size": 7, "symbol": "square"}, hovertemplate="unsteered, %{x} samples: <b>%{y:.1%}</b><extra></extra>",
        row=panel, col=1,
    )  # fmt: skip
    steered = (found.get("greedy") or {}).get("steered")
    if steered is not None:
        drawn.add_scatter(
            x=[ks[0], ks[-1]], y=[steered] * 2, mode="lines", name="transferred, greedy",
            line={"color": ACCENT, "width": 2.5, "dash": "dash"}, row=panel, col=1,
            hovertemplate="transferred, greedy: <b>%{y:.1%}</b><extra></extra>",
        )  # fmt: skip
    drawn.update_yaxes(title="right", row=panel, col=1, **style.percent(1.06))
    drawn.update_xaxes(title="samples k", row=panel, col=1, **style.log_ticks(ks))
