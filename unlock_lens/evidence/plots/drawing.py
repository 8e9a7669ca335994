"""A figure of this package as SVG, which needs no script and takes its text colours from the page that it stands in.

The figures are plotly's, for notebooks. A page that had to draw them with plotly.js would be 5 MB, would allow inline styles,
and would show nothing without scripts; so the few kinds of marks that they are made of are drawn here: scatter, bar and heat
map, in panels one above the other. Every mark carries its hover text as `data-tip`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, SubElement, tostring

from unlock_lens.evidence.plots.axes import Axis, axis_of
from unlock_lens.evidence.plots.style import INK
from unlock_lens.evidence.plots.symbols import THIN, outline
from unlock_lens.evidence.plots.vocabulary import ACCENT, CONTRARY

if TYPE_CHECKING:
    import plotly.graph_objects as go

CHAR, LINE = 7.4, 18
"""How wide a character of 12 pixels is taken to be, and how high a line, in pixels."""
DASHES = {"dot": "2 3", "dash": "6 4", "longdash": "10 4", "dashdot": "6 3 2 3", "longdashdot": "10 3 2 3"}
PALEST, DEEPEST = 0.05, 0.45
"""How opaque a cell of value 0 is, and how much more the greatest one."""
MOST_TIPS = 30
"""Points of a line without marks that tell their value."""
MOST_BESIDE = 7
"""Characters beside the greatest value that a panel leaves room for."""
FIELD = re.compile(r"%\{(\w+)(?:\[(\d+)\])?(?::([^}]+))?\}")
Trace = Mapping[str, Any]


@dataclass
class _Panel:
    """Traces that share their axes, and what the layout says of them."""

    traces: list[Trace]
    x: Axis
    y: Axis
    titles: tuple[str, str]
    grid: tuple[bool, bool]
    labels: bool
    height: float
    heading: str
    shapes: list[Mapping[str, Any]]
    notes: list[Mapping[str, Any]]
    relative: bool


def svg(drawn: go.Figure, width: int) -> str:
    """A figure of `unlock_lens.evidence.plots` as an `<svg>` element, so many pixels wide.

    Classes "text", "strong", "grid" and "ink" are left to the page's style sheet.
    """
    spec: dict[str, Any] = drawn.to_plotly_json()
    panels = list(_panels(spec["data"], spec["layout"], width))
    made = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "width": str(width)})
    widest = max((len(_plain(label)) for panel in panels for _, label in panel.y.ticks), default=0)
    beside = max((len(text) for trace in spec["data"] if trace.get("mode") == "text" for text in trace["text"]), default=0)
    sides = min(14 + CHAR * widest, 0.5 * width), width - max(10.0, CHAR * min(beside, MOST_BESIDE))
    bottom = 2.0
    for panel in panels:
        bottom = _draw(made, panel, sides, bottom)
    bottom = _legend(made, spec, width, bottom)
    made.set("height", f"{bottom:.0f}")
    made.set("viewBox", f"0 0 {width} {bottom:.0f}")
    return tostring(made, encoding="unicode")


def _panels(traces: Sequence[Trace], layout: Mapping[str, Any], width: int) -> Iterator[_Panel]:
    pairs = dict.fromkeys((trace.get("xaxis") or "x", trace.get("yaxis") or "y") for trace in traces)
    specs = {name: layout.get(f"{name[0]}axis{name[1:]}") or {} for pair in pairs for name in pair}
    notes = layout.get("annotations") or ()
    headings = [note["text"] for note in notes if note.get("xref") == "paper"]
    inner = layout["height"] - (128 if len(pairs) > 1 or headings else 90)
    order = sorted(pairs, key=lambda pair: -(specs[pair[1]].get("domain") or (0, 1))[1])
    for i, (x, y) in enumerate(order):
        mine = [trace for trace in traces if (trace.get("xaxis") or "x", trace.get("yaxis") or "y") == (x, y)]
        shares = any("matches" in specs[pair[0]] for pair in pairs)
        extent = specs[y].get("domain") or (0, 1)
        yield _Panel(
            traces=mine,
            x=axis_of(specs[x], _along("x", traces if shares else mine), max(3, width // 75)),
            y=axis_of(specs[y], _along("y", mine), 6),
            titles=(_title(specs[x]), _title(specs[y])),
            grid=(bool(specs[x].get("showgrid")), specs[y].get("showgrid") is not False),
            labels=specs[x].get("showticklabels") is not False,
            height=inner * (extent[1] - extent[0]),
            heading=headings[i] if i < len(headings) else "",
            shapes=[each for each in layout.get("shapes") or () if (each.get("xref") or "x") == x],
            notes=[note for note in notes if note.get("xref") == x],
            relative=layout.get("barmode") == "relative",
        )  # fmt: skip


def _title(spec: Mapping[str, Any]) -> str:
    return (spec.get("title") or {}).get("text") or ""


def _along(side: str, traces: Iterable[Trace]) -> Iterator[Any]:
    for trace in traces:
        values = trace.get(side) or ()
        yield from values
        error = trace.get(f"error_{side}") or {}
        for sign, name in ((1, "array"), (-1, "arrayminus")):
            yield from (value + sign * wide for value, wide in zip(values, error.get(name) or (), strict=False))


def _draw(made: Element, panel: _Panel, sides: tuple[float, float], top: float) -> float:
    """One panel with its axes, from `top` down; where it ends."""
    if panel.heading:
        _text(made, 0, top + 15, panel.heading, strong=True)
        top += LINE + 4
    if panel.titles[1]:
        _text(made, 0, top + 12, panel.titles[1])
        top += LINE
    top += 14 if panel.notes else 4
    bottom = top + panel.height
    x, y = panel.x.between(*sides), panel.y.between(bottom, top)
    foot = _axes(made, panel, x, y)
    for trace in panel.traces:
        {"scatter": _scatter, "bar": _bars, "heatmap": _cells}[trace["type"]](made, trace, x, y)
    for shape in panel.shapes:
        _shape(made, shape, x, y)
    for note in panel.notes:
        _text(made, min(max(x.at(note["x"]), sides[0] + 40), sides[1] - 40), top - 4, note["text"], "middle")
    return foot + 8


def _axes(made: Element, panel: _Panel, x: Axis, y: Axis) -> float:
    """Grid, ticks and the title of the x axis; where they end."""
    for value, label in y.ticks:
        if panel.grid[1] and not y.names:
            _add(made, "path", d=f"M{x.start:.1f} {y.at(value):.1f}H{x.end:.1f}", class_="grid")
        _text(made, x.start - 6, y.at(value) + 4, label, "end")
    foot = y.start
    if panel.labels and x.ticks:
        widest = CHAR * max(len(_plain(label)) for _, label in x.ticks)
        tilted = bool(x.names) and widest > abs(x.end - x.start) / len(x.ticks)
        free = -CHAR
        for value, label in x.ticks:
            at, half = x.at(value), CHAR * len(_plain(label)) / 2
            if panel.grid[0]:
                _add(made, "path", d=f"M{at:.1f} {y.start:.1f}V{y.end:.1f}", class_="grid")
            if tilted or at - half > free:
                _text(made, at, y.start + 16, label, "end" if tilted else "middle", turn=-40 if tilted else 0)
                free = at + half + CHAR / 2
        foot += 0.65 * widest + 12 if tilted else LINE
    if panel.titles[0]:
        _text(made, (x.start + x.end) / 2, foot + 15, panel.titles[0], "middle")
        foot += LINE
    return foot


def _scatter(made: Element, trace: Trace, x: Axis, y: Axis) -> None:
    places = [
        None if at is None or value is None else (x.at(at), y.at(value))
        for at, value in zip(trace["x"], trace["y"], strict=True)
    ]
    mode = trace.get("mode") or "lines"
    if "lines" in mode:
        _add(made, "path", d=_path(places), **_stroke(trace))
    if trace.get("error_x"):
        _errors(made, trace, x, y)
    for i, place in enumerate(places):
        if place and "text" in mode:
            _text(made, place[0] + 2, place[1] + 4, trace["text"][i])
        if place and "markers" in mode:
            _mark(made, trace, i, place)
    if mode == "lines" and trace.get("hovertemplate"):
        for i in range(0, len(places), -(-len(places) // MOST_TIPS)):
            if place := places[i]:
                _add(made, "circle", cx=place[0], cy=place[1], r=7, fill="transparent", data_tip=_tip(trace, i))


def _path(places: Sequence[tuple[float, float] | None]) -> str:
    """A line through places, broken where one is missing; of those that fall on one pixel the first."""
    parts: list[str] = []
    last: tuple[float, float] | None = None
    for place in places:
        if place is None:
            last = None
        elif last is None or abs(place[0] - last[0]) >= 1 or abs(place[1] - last[1]) >= 12:
            parts.append(f"{'L' if last else 'M'}{place[0]:.1f} {place[1]:.1f}")
            last = place
    return "".join(parts)


def _stroke(trace: Trace) -> dict[str, Any]:
    look = trace.get("line") or {}
    if trace.get("fill") == "toself":
        return {"fill": trace["fillcolor"]}
    dash = {"stroke_dasharray": DASHES[look["dash"]]} if look.get("dash", "solid") != "solid" else {}
    return {
        "fill": "none",
        "stroke_width": look.get("width", 2),
        "stroke_linejoin": "round",
        **_ink("stroke", look["color"]),
        **dash,
    }


def _errors(made: Element, trace: Trace, x: Axis, y: Axis) -> None:
    error = trace["error_x"]
    for at, value, over, under in zip(trace["x"], trace["y"], error["array"], error["arrayminus"], strict=True):
        low, high, middle = x.at(at - under), x.at(at + over), y.at(value)
        caps = "".join(f"M{end:.1f} {middle - 4:.1f}v8" for end in (low, high))
        _add(made, "path", d=f"M{low:.1f} {middle:.1f}H{high:.1f}{caps}", fill="none", stroke_width=1.5, class_="ink")


def _mark(made: Element, trace: Trace, i: int, place: tuple[float, float]) -> None:
    look = trace.get("marker") or {}
    symbol, size = _each(look.get("symbol") or "circle", i), look.get("size", 7)
    colour = _each(look.get("color") or (look.get("line") or trace.get("line") or {}).get("color") or INK, i)
    tip = {} if trace.get("hoverinfo") == "skip" else {"data_tip": _tip(trace, i)}
    _glyph(made, symbol, place, size, colour, opacity=trace.get("opacity"), **tip)


def _glyph(made: Element, symbol: str, place: tuple[float, float], size: float, colour: str, **more: Any) -> None:
    hollow = symbol.endswith(("-open", "-dot")) or symbol in THIN
    look = {"fill": "transparent", "stroke_width": 2, **_ink("stroke", colour)} if hollow else _ink("fill", colour)
    path = outline(symbol, *place, size)
    if path:
        _add(made, "path", d=path, **look, **more)
    else:
        _add(made, "circle", cx=place[0], cy=place[1], r=size / 2, **look, **more)
    if symbol.endswith("-dot"):
        _add(made, "circle", cx=place[0], cy=place[1], r=1.5, **_ink("fill", colour))


def _bars(made: Element, trace: Trace, x: Axis, y: Axis) -> None:
    flat = trace.get("orientation") == "h"
    along, across = (y, x) if flat else (x, y)
    for i, (at, value) in enumerate(zip(trace["y" if flat else "x"], trace["x" if flat else "y"], strict=True)):
        wide = abs(along.at(1) - along.at(0)) * _each(trace.get("width") or 0.65, i)
        low, high = sorted((across.at(0), across.at(value)))
        box = {"x": low, "y": along.at(at) - wide / 2, "width": high - low, "height": wide}
        if not flat:
            box = {"x": along.at(at) - wide / 2, "y": low, "width": wide, "height": high - low}
        _add(made, "rect", **box, **_ink("fill", trace["marker"]["color"]), data_tip=_tip(trace, i))
        if trace.get("text"):
            end, anchor = (high + 4, "start") if value >= 0 else (low - 4, "end")
            _text(made, end, along.at(at) + 4, trace["text"][i], anchor)


def _cells(made: Element, trace: Trace, x: Axis, y: Axis) -> None:
    values = [value for row in trace["z"] for value in row if value is not None]
    low = trace["zmin"] if trace.get("zmin") is not None else min(values)
    high = trace["zmax"] if trace.get("zmax") is not None else max(values)
    wide, tall = abs(x.at(1) - x.at(0)) - 2, abs(y.at(1) - y.at(0)) - 2
    for j, row in enumerate(trace["z"]):
        for i, value in enumerate(row):
            if value is None:
                continue
            share = min(max((value - low) / ((high - low) or 1), 0), 1)
            signed = 2 * share - 1 if len(trace["colorscale"]) > 2 else share
            colour = {"fill": ACCENT if signed >= 0 else CONTRARY, "fill_opacity": f"{PALEST + DEEPEST * abs(signed):.2f}"}
            fields = {"x": trace["x"][i], "y": trace["y"][j], "z": value, "customdata": _cell_of(trace, j, i)}
            box = {"x": x.at(i) - wide / 2, "y": y.at(j) - tall / 2, "width": wide, "height": tall}
            _add(made, "rect", **box, **colour, data_tip=_filled(trace["hovertemplate"], fields))
            if trace.get("texttemplate") and wide > 5 * CHAR:
                _text(made, x.at(i), y.at(j) + 4, _filled(trace["texttemplate"], fields), "middle", strong=True, quiet=True)


def _cell_of(trace: Trace, row: int, column: int) -> Any:
    return trace["customdata"][row][column] if trace.get("customdata") else None


def _shape(made: Element, shape: Mapping[str, Any], x: Axis, y: Axis) -> None:
    look = shape["line"]
    dash = {"stroke_dasharray": DASHES[look["dash"]]} if look.get("dash") else {}
    style = {"fill": "none", "stroke_width": look["width"], "pointer_events": "none", **_ink("stroke", look["color"]), **dash}
    if shape["type"] == "rect":
        left, right = sorted((x.at(shape["x0"]), x.at(shape["x1"])))
        top, bottom = sorted((y.at(shape["y0"]), y.at(shape["y1"])))
        _add(made, "rect", x=left, y=top, width=right - left, height=bottom - top, **style)
    else:
        _add(made, "path", d=f"M{x.at(shape['x0']):.1f} {y.start:.1f}V{y.end:.1f}", **style)


def _legend(made: Element, spec: Mapping[str, Any], width: int, top: float) -> float:
    """Names of the traces that are to have one, in lines as wide as the figure."""
    named = [t for t in spec["data"] if t.get("name") and t.get("showlegend") is not False and t["type"] != "heatmap"]
    if spec["layout"].get("showlegend") is False or len(named) < 2:
        return top
    x, y = 0.0, top + 12
    for trace in sorted(named, key=lambda trace: trace.get("legendrank") or 1000):
        room = 34 + CHAR * len(_plain(trace["name"])) + 14
        if x and x + room > width:
            x, y = 0.0, y + LINE
        if trace["type"] == "bar":
            _add(made, "rect", x=x + 8, y=y - 5, width=12, height=10, **_ink("fill", trace["marker"]["color"]))
        else:
            if "lines" in (trace.get("mode") or "lines"):
                _add(made, "path", d=f"M{x:.1f} {y:.1f}h28", **_stroke(trace))
            if "markers" in (trace.get("mode") or ""):
                _mark(made, {**trace, "hoverinfo": "skip"}, 0, (x + 14, y))
        _text(made, x + 34, y + 4, trace["name"])
        x += room
    return y + 12


def _tip(trace: Trace, i: int) -> str:
    fields = {"x": trace["x"][i], "y": trace["y"][i]}
    fields |= {name: _each(trace[name], i) for name in ("text", "customdata") if trace.get(name) is not None}
    return _filled(trace["hovertemplate"], fields)


def _filled(template: str, fields: Mapping[str, Any]) -> str:
    """A hover text with its values, as plain lines."""

    def value_of(found: re.Match[str]) -> str:
        value = fields[found[1]] if found[2] is None else fields[found[1]][int(found[2])]
        if value is None:
            return "\u2013"
        return format(value, found[3] or ("g" if isinstance(value, float) else ""))

    return _plain(FIELD.sub(value_of, template.removesuffix("<extra></extra>")))


def _plain(text: Any) -> str:
    """What a text of plotly's says, without its marks."""
    return html.unescape(re.sub(r"</?b>", "", str(text).replace("<br>", "\n")))


def _each(value: Any, i: int) -> Any:
    return value if isinstance(value, str | int | float) else value[i]


def _ink(what: str, colour: str) -> dict[str, str]:
    """A colour; the figures' ink is the page's."""
    return {"class_": f"ink-{what}"} if colour == INK else {what: colour}


def _text(
    made: Element,
    x: float,
    y: Any,
    text: Any,
    anchor: str = "start",
    *,
    strong: bool = False,
    quiet: bool = False,
    turn: float = 0,
) -> None:
    bold = strong or str(text).startswith("<b>")
    look = {"class_": "strong" if bold else "text", "text_anchor": anchor}
    look |= {"pointer_events": "none"} if quiet else {}
    look |= {"transform": f"rotate({turn} {x:.1f} {y:.1f})"} if turn else {}
    _add(made, "text", x=x, y=y, **look).text = _plain(text)


def _add(parent: Element, tag: str, **attributes: Any) -> Element:
    written = {
        name.rstrip("_").replace("_", "-"): f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
        for name, value in attributes.items()
        if value is not None
    }
    return SubElement(parent, tag, written)
