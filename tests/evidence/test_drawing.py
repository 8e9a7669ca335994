"""Drawings show what their figures hold, where it lies, and nothing that a page would run."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import plotly.graph_objects as go
import pytest

from tests.sweeps import SCRIPT, sweep
from unlock_lens.evidence.plots import FIGURES, Entry, style
from unlock_lens.evidence.plots.axes import axis_of
from unlock_lens.evidence.plots.drawing import svg
from unlock_lens.evidence.plots.symbols import outline
from unlock_lens.evidence.plots.vocabulary import ARMS
from unlock_lens.evidence.results import Results

RESULTS = sweep(layers=4)
SVG = "{http://www.w3.org/2000/svg}"
EVERY = pytest.mark.parametrize("entry", FIGURES, ids=[entry.name for entry in FIGURES])
WIDTHS = pytest.mark.parametrize("width", [300, 500])


@EVERY
@WIDTHS
def test_a_figure_is_drawn_within_its_box_and_without_what_a_policy_forbids(entry: Entry, width: int) -> None:
    drawn = ElementTree.fromstring(svg(entry.draw(RESULTS), width))
    height = float(drawn.attrib["height"])
    assert drawn.attrib["viewBox"] == f"0 0 {width} {height:.0f}"
    assert {each.tag for each in drawn.iter()} <= {f"{SVG}{name}" for name in ("svg", "path", "circle", "rect", "text")}
    assert not [name for each in drawn.iter() for name in each.attrib if name == "style" or name.startswith("on")]
    for mark in drawn.iter(f"{SVG}circle"):
        assert -1 <= float(mark.attrib["cx"]) <= width + 1
        assert -1 <= float(mark.attrib["cy"]) <= height + 1


@EVERY
def test_every_mark_says_its_value(entry: Entry) -> None:
    tips = [
        each.attrib["data-tip"]
        for each in ElementTree.fromstring(svg(entry.draw(RESULTS), 500)).iter()
        if "data-tip" in each.attrib
    ]
    assert len(tips) >= 3
    assert all(tip and "%{" not in tip and "<" not in tip for tip in tips)


def test_bars_are_as_long_as_their_values() -> None:
    figure = style.figure("Bars")
    figure.add_bar(x=[4, 1], y=["a", "b"], orientation="h", marker={"color": "#111111"}, hovertemplate="%{y}: %{x}")
    bars = list(ElementTree.fromstring(svg(figure, 500)).iter(f"{SVG}rect"))
    assert [each.attrib["data-tip"] for each in bars] == ["a: 4", "b: 1"]
    assert float(bars[0].attrib["width"]) == pytest.approx(4 * float(bars[1].attrib["width"]), rel=0.01)


def test_points_lie_where_their_values_are() -> None:
    figure = style.figure("Points").update_layout(xaxis={"range": [0, 10]}, yaxis={"range": [0, 1]})
    figure.add_scatter(x=[0, 5, 10], y=[0, 0.5, 1], mode="markers", marker={"color": "#111111"}, hovertemplate="%{x}")
    at = [
        (float(each.attrib["cx"]), float(each.attrib["cy"]))
        for each in ElementTree.fromstring(svg(figure, 500)).iter(f"{SVG}circle")
    ]
    (x0, y0), middle, (x1, y1) = at
    assert middle == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.11)
    assert x1 > x0
    assert y1 < y0


@pytest.mark.parametrize(
    ("spec", "values", "ticks"),
    [
        ({}, [0.1, 0.9], [0.2, 0.4, 0.6, 0.8]),
        ({"type": "log"}, [0.5, 200], [1, 10, 100]),
        ({"rangemode": "tozero"}, [3, 8], [0, 2, 4, 6, 8]),
        ({"tickvals": [1, 4], "ticktext": ["one", "four"], "type": "log"}, [1, 4], [1, 4]),
        ({}, [0.3], [0.2, 0.3, 0.4]),
    ],
)  # fmt: skip
def test_ticks_are_round_numbers_within_the_axis(spec: dict[str, Any], values: list[float], ticks: list[float]) -> None:
    axis = axis_of(spec, values)
    assert [tick for tick, _ in axis.ticks] == pytest.approx(ticks)
    assert all(min(axis.start, axis.end) <= axis.at(tick) <= max(axis.start, axis.end) for tick, _ in axis.ticks)


def test_every_arm_has_a_mark() -> None:
    assert all(outline(known.symbol, 5, 5, 8) or known.symbol.startswith("circle") for known in ARMS.values())
    with pytest.raises(KeyError):
        outline("banana", 0, 0, 1)


def test_a_kind_of_trace_that_is_not_drawn_is_an_error() -> None:
    with pytest.raises(KeyError, match="pie"):
        svg(go.Figure(go.Pie(values=[1]), layout={"height": 300}), 300)


@EVERY
@pytest.mark.parametrize("name", [SCRIPT, "<b>bold</b>", "&lt;b&gt;", "<a href='//x'>", "%{x}", "a\ud800b"])
def test_names_from_files_are_shown_as_they_are(entry: Entry, name: str) -> None:
    """Wherever a figure shows the name of a behaviour, an arm or an aligner."""
    figure = entry.draw(named(sweep(n=12), name))
    drawn = ElementTree.fromstring(svg(figure, 500).encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    texts = [each.text for each in drawn.iter(f"{SVG}text")]
    if entry.name in ("arms", "flips", "specificity"):
        assert name.replace("\ud800", "\ufffd") in texts


def named(results: Results, name: str) -> Results:
    """The same sweep, in which a control, a behaviour and an aligner have this name."""

    def renamed(line: Any) -> Any:
        config = {**line["config"]}
        config = {key: name if value in ("random", "prompts") else value for key, value in config.items()}
        shares = {name if key == "think" else key: value for key, value in (line.get("behaviours") or {}).items()}
        return {**line, "config": config, "behaviours": shares}

    return Results(results.config, tuple(map(renamed, results.lines)), results.problems, results.geometry)
