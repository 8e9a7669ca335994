"""How every figure looks: one template, axes that say their units, and panels that stack so that phones can show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.plots.vocabulary import ACCENT, CONTRARY, OCHRE

if TYPE_CHECKING:
    import plotly.graph_objects as go

INK = "#757575"  # 4.5:1 on white and on black alike; a drawing takes the ink of its page
GRID = "rgba(128,128,128,0.22)"
CLEAR = "rgba(0,0,0,0)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SHARES = [[0, "#eef3f9"], [1, "#6fa8dc"]]
SIGNED = [[0, "#e9a26f"], [0.5, "#f3f3f1"], [1, "#6fa8dc"]]
CELL_INK = "#14202b"
DEPTHS = (OCHRE, "#7b7a86", ACCENT)
TEST_REMEDY = "let the sweep finish: it reports on test last"
MOST_TEXT = 8  # more columns of cells than this have no room for numbers on a phone


def template() -> go.layout.Template:
    """The look of every figure, on light and dark pages."""
    import plotly.graph_objects as go

    axis = {"showgrid": False, "zeroline": False, "automargin": True, "ticks": "", "gridcolor": GRID, "linecolor": GRID}
    axis |= {"title": {"standoff": 8, "font": {"size": 13}}, "tickfont": {"size": 12}}
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": INK},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "colorway": [ACCENT, CONTRARY],
            "title": {"font": {"size": 15}, "x": 0, "xref": "container", "y": 1, "yanchor": "top", "pad": {"l": 8, "t": 10}},
            "margin": {"l": 8, "r": 16, "t": 48, "b": 8},
            "hoverlabel": {"font": {"family": FONT, "size": 13}, "align": "left"},
            "xaxis": axis,
            "yaxis": {**axis, "showgrid": True},
            "annotationdefaults": {"showarrow": False, "font": {"size": 12}},
        }
    )


def figure(title: str, height: int = 380) -> go.Figure:
    """An empty figure of one panel."""
    import plotly.graph_objects as go

    return go.Figure(layout={"template": template(), "title": {"text": title}, "height": height})


def panels(title: str, headings: Sequence[str], heights: Sequence[int], shared_x: bool = False) -> go.Figure:
    """An empty figure of panels, one above the other, each with a heading; `heights` in pixels."""
    from plotly.subplots import make_subplots

    gap, over, under = (44 if shared_x else 84), 72, 56
    inner = sum(heights) + gap * (len(heights) - 1)
    made = make_subplots(
        rows=len(headings), cols=1, subplot_titles=list(headings), row_heights=list(heights), shared_xaxes=shared_x,
        vertical_spacing=gap / inner if len(heights) > 1 else 0,
    )  # fmt: skip
    made.update_layout(template=template(), title={"text": title}, height=inner + over + under, margin={"t": over})
    made.update_annotations(x=0, xanchor="left", font={"size": 13}, yshift=4)
    return made


def legend_below(drawn: go.Figure, pixels: int = 58) -> None:
    """A legend under the x axis and its title; it makes room for itself however often it wraps."""
    inner = int(drawn.layout["height"]) - 48 - pixels - 24
    drawn.update_layout(
        legend={"orientation": "h", "x": 0, "y": -pixels / inner, "yanchor": "top", "font": {"size": 12}, "itemwidth": 30}
    )


def percent(top: float = 1.04) -> dict[str, Any]:
    """An axis from 0 to 100%."""
    return {"tickformat": ".0%", "range": [-0.03, top], "tickvals": [0, 0.25, 0.5, 0.75, 1]}


def log_ticks(values: Iterable[float]) -> dict[str, Any]:
    """A log axis with ticks where values are, leaving out those that would touch."""
    ticks: list[float] = []
    for value in sorted({value for value in values if value > 0}):
        if not ticks or value / ticks[-1] >= 1.6:
            ticks.append(value)
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def line(
    x: Iterable[Any], y: Iterable[Any], name: str, colour: str, hover: str, symbol: str = "", width: float = 2, **more: Any
) -> dict[str, Any]:
    """What `add_scatter` draws as a line, with markers where a symbol is given."""
    look = {"line": {"color": colour, "width": width}, "hovertemplate": f"{hover}<extra></extra>"}
    marks = {"mode": "lines+markers", "marker": {"size": 7, "symbol": symbol}} if symbol else {"mode": "lines"}
    return {"x": [*x], "y": [*y], "name": name, **look, **marks, **more}


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> dict[str, Any]:
    """What `add_scatter` draws as an interval around a curve."""
    pale = "rgba({},{},{},0.18)".format(*bytes.fromhex(colour.removeprefix("#")))
    return {
        "x": [*x, *reversed(x)], "y": [*high, *reversed(low)], "fill": "toself", "fillcolor": pale, "mode": "lines",
        "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "name": "95% interval",
    }  # fmt: skip


def add_cells(
    drawn: go.Figure,
    names: tuple[Sequence[Any], Sequence[Any]],
    values: Sequence[Sequence[float | None]],
    look: tuple[Sequence[Any], str],
    hover: str,
    panel: int = 1,
    **more: Any,
) -> None:
    """A heat map in a figure of panels: names along x and y, rows of values, a colour scale, and the format of a value.

    Cells carry their numbers where there is room.
    """
    x, y = ([text(str(each)) for each in along] for along in names)
    scale, form = look
    shown = {"texttemplate": f"%{{z:{form}}}", "textfont": {"size": 12, "color": CELL_INK}}
    drawn.add_heatmap(
        x=x, y=y, z=[list(row) for row in values], row=panel, col=1, showscale=False, xgap=2, ygap=2, hoverongaps=False,
        colorscale=scale,
        hovertemplate=f"{hover}<extra></extra>", **(shown if len(x) <= MOST_TEXT else {}), **more,
    )  # fmt: skip


def categories(drawn: go.Figure, x: str, y: str = "", **more: Any) -> go.Figure:
    """Axes of a heat map."""
    drawn.update_xaxes(type="category", title=x)
    return drawn.update_yaxes(type="category", title=y or None, showgrid=False, **more)


def frame_cell(drawn: go.Figure, column: int, row: int, panel: int = 1) -> None:
    """A frame around one cell of a heat map in a figure of panels."""
    box = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
    drawn.add_shape(type="rect", line={"color": CONTRARY, "width": 2.5}, row=panel, col=1, **box)


def depth_colours(n: int) -> list[str]:
    """Colours from the first layer's (or least value's) to the last's."""
    mixed: list[str] = []
    for i in range(n):
        share = i / max(1, n - 1)
        first = int(share > 0.5)
        part = 2 * share - first
        ends = (bytes.fromhex(colour.removeprefix("#")) for colour in DEPTHS[first : first + 2])
        mixed.append("rgb({},{},{})".format(*(round((1 - part) * a + part * b) for a, b in zip(*ends, strict=True))))
    return mixed


def rank(value: int | None) -> str:
    """A rank in words."""
    return "full" if value is None else str(value)


def text(name: str) -> str:
    """A name from a file, for a label: whatever it holds is shown and not read as markup."""
    return escape(name, quote=False)


def missing(what: str, remedy: str) -> InvalidInput:
    """The error of a figure that has nothing to draw."""
    return InvalidInput(f"these results hold no {what}; {remedy}")
