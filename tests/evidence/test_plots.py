"""Figures show what the results say, look alike, and name what is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.sweeps import ALPHAS, BASELINES, CHOSEN_ALPHA, CHOSEN_RANK, PAIRS, RANKS, SEEDS, SHARE_RIGHT, sweep
from unlock_lens import plots as figures
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.plots import FIGURES, Entry, style
from unlock_lens.evidence.plots.drawing import DEEPEST, PALEST
from unlock_lens.evidence.plots.vocabulary import ACCENT, ARMS, CONTRARY, arm
from unlock_lens.evidence.results import TRANSFERRED, Results
from unlock_lens.method.crossval import CrossValidation

plots: Any = figures  # plotly is not annotated
RESULTS = sweep()
LIGHT_PAGE, DARK_PAGE = "#ffffff", "#191f26"  # the cards of page.css
LIGHT_INK, DARK_INK = "#1b2430", "#e6e9ee"
ROLES = ("reference", "rival")
EVERY = pytest.mark.parametrize("entry", FIGURES, ids=[entry.name for entry in FIGURES])


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


@EVERY
def test_every_figure_says_what_it_shows_and_looks_like_the_others(entry: Entry) -> None:
    figure = entry.draw(RESULTS)
    assert 15 < len(figure.layout.title.text) < 42  # a phone is 360 pixels wide
    assert figure.layout.template.layout == style.template().layout
    assert figure.layout.template.layout.paper_bgcolor == style.CLEAR
    titled = [axis.title.text for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
    assert any(titled)
    assert all(trace.hovertemplate or trace.hoverinfo == "skip" for trace in figure.data)
    assert entry.caption.endswith(".")
    assert len(entry.caption) < 130


@EVERY
def test_every_figure_is_drawn_from_results_of_many_layers(entry: Entry) -> None:
    assert entry.draw(sweep(layers=28)).data


@EVERY
def test_no_figure_changes_the_results(entry: Entry) -> None:
    results = sweep(n=12)
    entry.draw(results)
    assert results.lines == sweep(n=12).lines
    assert results.geometry == sweep(n=12).geometry


def test_the_strength_curve_follows_the_chosen_configuration_and_each_control() -> None:
    drawn = plots.strength_curve(RESULTS)
    chosen = [
        line
        for line in RESULTS.trained()
        if [line["config"][k] for k in ("aligner", "n", "rank")] == ["text", 200, CHOSEN_RANK]
    ]
    curve = traces(drawn)["<b>transferred</b>"]
    assert list(curve.x) == list(ALPHAS)
    assert list(curve.y) == [line["accuracy"] for line in chosen]
    band = traces(drawn)["95% interval"]
    assert list(band.y) == [line["high"] for line in chosen] + [line["low"] for line in chosen][::-1]
    assert {arm(name).label for name in SHARE_RIGHT if name not in BASELINES} <= set(traces(drawn))


def test_of_several_seeds_the_best_control_is_on_the_curve() -> None:
    best = {
        alpha: max(line["accuracy"] for line in RESULTS.trained("random") if line["config"]["alpha"] == alpha)
        for alpha in ALPHAS
    }
    drawn = traces(plots.strength_curve(RESULTS))["random"]
    assert list(drawn.y) == list(best.values())
    assert "best of 3 seeds" in drawn.hovertemplate


def test_the_frontier_is_the_best_over_strength_and_frames_what_was_chosen() -> None:
    drawn = plots.frontier(RESULTS)
    text = drawn.data[0]
    assert (list(text.x), list(text.y)) == ([str(rank) for rank in RANKS], [str(n) for n in PAIRS])
    best = max(
        line["accuracy"]
        for line in RESULTS.trained()
        if [line["config"][k] for k in ("aligner", "n", "rank")] == ["text", 200, 64]
    )
    assert text.z[-1][-1] == best
    assert text.customdata[-1][-1] == 0.5
    assert [(frame.x0, frame.y0, frame.xref) for frame in drawn.layout.shapes] == [(2.5, 1.5, "x")]
    assert drawn.layout.annotations[0].text == "calibrated on ordinary text"


def test_a_control_of_several_seeds_shows_all_of_them_and_is_recognised_by_the_best() -> None:
    drawn = plots.arms(RESULTS)
    other, forest = drawn.data[-2], drawn.data[-1]
    by_arm = dict(zip(forest.y, forest.x, strict=True))
    labels = {role: [arm(name).label for name in ARMS if name in SHARE_RIGHT and arm(name).role == role] for role in ROLES}
    assert list(forest.y)[::-1] == ["<b>transferred</b>", "unsteered", *labels["reference"], *labels["rival"]]
    for name, seeds in SEEDS.items():
        shown = [x for x, y in zip(other.x, other.y, strict=True) if y == arm(name).label]
        assert len(shown) == seeds
        assert by_arm[arm(name).label] == max(shown)
    low = forest.x[-1] - forest.error_x.arrayminus[-1]
    assert low == pytest.approx(RESULTS.arms()[TRANSFERRED]["low"])
    assert forest.marker.color[-1] == ARMS[TRANSFERRED].colour


def test_flips_show_gains_to_the_right_and_losses_to_the_left() -> None:
    gained, lost = plots.flips(RESULTS).data
    paired = RESULTS.arms()[TRANSFERRED]["paired"]
    assert (gained.x[-1], lost.x[-1]) == (paired["gained"], -paired["lost"])
    assert "unsteered" not in gained.y


def test_the_error_is_the_mean_over_layers() -> None:
    drawn = plots.transform_error(RESULTS)
    assert RESULTS.geometry
    first = next(each for each in RESULTS.geometry["maps"] if (each["aligner"], each["n"], each["rank"]) == ("text", 32, 4))
    assert drawn.data[0].y[0] == pytest.approx(sum(first["error"]) / 3)
    assert [trace.name for trace in drawn.data if trace.showlegend] == ["32 pairs", "100 pairs", "200 pairs"]


def test_lengths_are_shares_on_one_scale() -> None:
    drawn = plots.lengths(RESULTS)
    before, after = drawn.data
    assert {axis.range for axis in drawn.select_yaxes()} == {(0, 1.08)}
    assert sum(before.y) == pytest.approx(1)
    assert sum(after.y) == pytest.approx(1)
    assert (list(before.x), list(after.x)) == ([2], [2, 13])


def test_long_completions_are_binned() -> None:
    lines = [{**line, "lengths": list(range(10, 510, 5))} if line.get("lengths") else line for line in RESULTS.lines]
    before = plots.lengths(Results(RESULTS.config, tuple(lines))).data[0]
    assert len(before.x) <= 30
    assert list(before.customdata[0]) == ["10 to 26", 4]


def test_spectra_have_a_line_a_layer_on_a_log_axis() -> None:
    drawn = plots.spectra(RESULTS)
    of_source, of_target = ["first layer", "layer 1", "layer 2", "last layer"], ["first layer", "layer 1", "last layer"]
    assert [trace.name for trace in drawn.data] == [*of_source, *of_target]
    assert [trace.name for trace in drawn.data if trace.showlegend] == ["first layer", "last layer"]
    assert {axis.type for axis in drawn.select_yaxes()} == {"log"}


def test_heat_maps_show_what_was_measured() -> None:
    assert len(plots.heat_maps(RESULTS).data) == 3
    assert RESULTS.geometry
    maps = [{**each, "cosine_own": None} for each in RESULTS.geometry["maps"]]
    drawn = plots.heat_maps(Results(RESULTS.config, RESULTS.lines, geometry={"maps": maps, "effect": []}))
    assert [note.text for note in drawn.layout.annotations] == ["share within the calibration span"]
    assert list(drawn.data[0].y) == [str(rank) for rank in RANKS]


def test_cells_carry_numbers_only_where_there_is_room() -> None:
    few, many = plots.heat_maps(RESULTS).data[0], plots.heat_maps(sweep(layers=28)).data[0]
    assert (few.texttemplate, few.showscale) == ("%{z:.2f}", False)
    assert (many.texttemplate, many.showscale) == (None, True)


def test_specificity_has_the_unsteered_target_and_every_transferred_capability() -> None:
    drawn = plots.specificity(RESULTS)
    assert list(drawn.data[0].y) == ["unsteered", "think", "reverse", "double"]
    assert len(drawn.layout.shapes) == 3
    assert drawn.data[0].z[2][2] == pytest.approx(0.96)


def test_sharpening_is_drawn_from_what_there_is() -> None:
    both = traces(plots.sharpening(RESULTS))
    assert list(both["unsteered, pass@k"].x) == [1, 2, 4, 8]
    assert list(both["transferred, greedy"].y) == [0.98, 0.98]
    lines = [
        {**line, "sharpening": {"entropy": line["sharpening"]["entropy"]}} if "sharpening" in line else line
        for line in RESULTS.lines
    ]
    assert set(traces(plots.sharpening(Results(RESULTS.config, tuple(lines))))) == {"unsteered", "transferred"}


@pytest.mark.parametrize(
    ("draw", "without", "named"),
    [
        (plots.arms, {"test"}, "test split"),
        (plots.flips, {"paired"}, "comparison"),
        (plots.lengths, {"test"}, "lengths.*unsteered or transferred"),
        (plots.lengths, {"unsteered"}, "lengths.*unsteered"),
        (plots.specificity, {"behaviours"}, "behaviours"),
        (plots.sharpening, {"sharpening"}, "sharpening"),
        (plots.transform_error, {"geometry"}, "errors"),
        (plots.spectra, {"geometry"}, "singular values"),
        (plots.heat_maps, {"geometry"}, "cosines"),
    ],
)
def test_a_figure_without_data_says_what_is_missing_and_how_to_get_it(
    draw: Callable[[Results], Any], without: set[str], named: str
) -> None:
    with pytest.raises(InvalidInput, match=f"{named}.*; .*sweep"):
        draw(sweep(n=12, without=without))


@pytest.mark.parametrize("draw", [plots.strength_curve, plots.frontier])
def test_figures_of_the_grid_need_its_lines(draw: Callable[[Results], Any]) -> None:
    tested = tuple(line for line in RESULTS.lines if line["split"] == "test")
    with pytest.raises(InvalidInput, match="train split"):
        draw(Results(RESULTS.config, tested))


def test_grid_figures_are_drawn_before_the_test_split_is() -> None:
    unfinished = sweep(n=12, without={"test"})
    assert plots.strength_curve(unfinished).data
    assert plots.frontier(unfinished).data


def test_every_arm_can_be_distinguished_without_colour() -> None:
    looks = [(known.dash, known.symbol) for known in ARMS.values()]
    assert len(set(looks)) == len(looks)
    assert len({known.label for known in ARMS.values()}) == len(ARMS)


@pytest.mark.parametrize("page", [LIGHT_PAGE, DARK_PAGE])
def test_every_colour_of_data_stands_out_on_the_page(page: str) -> None:
    assert all(contrast(known.colour, page) >= 3 for known in ARMS.values())


@pytest.mark.parametrize("scale", [style.SHARES, style.SIGNED])
def test_numbers_in_cells_are_legible_all_along_the_scale(scale: list[Any]) -> None:
    assert all(contrast(style.CELL_INK, colour) >= 4.5 for _, colour in scale)


@pytest.mark.parametrize(("page", "ink"), [(LIGHT_PAGE, LIGHT_INK), (DARK_PAGE, DARK_INK)])
@pytest.mark.parametrize("colour", [ACCENT, CONTRARY])
def test_numbers_in_cells_that_are_drawn_on_a_page_are_legible(page: str, ink: str, colour: str) -> None:
    for opacity in (PALEST, PALEST + DEEPEST):
        mixed = (
            opacity * a + (1 - opacity) * b for a, b in zip(bytes.fromhex(colour[1:]), bytes.fromhex(page[1:]), strict=True)
        )
        assert contrast(ink, "#" + "".join(f"{round(channel):02x}" for channel in mixed)) >= 4.5


def test_one_strength_is_not_a_curve() -> None:
    only = tuple(line for line in RESULTS.lines if line["split"] == "test" or line["config"]["alpha"] == CHOSEN_ALPHA)
    with pytest.raises(InvalidInput, match="second strength"):
        plots.strength_curve(Results(RESULTS.config, only))


def test_a_notebook_without_a_theme_can_read_the_ink() -> None:
    assert contrast(style.INK, "#ffffff") >= 4.5
    assert contrast(style.INK, "#000000") >= 4.5


def test_the_choice_of_cross_validation_is_ringed() -> None:
    r2 = torch.tensor([[[0.1, 0.5, 0.4], [0.2, 0.7, 0.6]], [[0.1, 0.5, 0.4], [0.2, 0.9, 0.6]]], dtype=torch.float64)
    drawn = plots.cross_validation(CrossValidation((0, 1), (1, 2, 4), (0.0, 0.1), r2))
    assert list(traces(drawn)) == ["ridge 0", "ridge 0.1", "chosen"]
    assert traces(drawn)["ridge 0.1"].y == pytest.approx((0.2, 0.8, 0.6))
    assert (traces(drawn)["chosen"].x, traces(drawn)["chosen"].y) == ((2,), (pytest.approx(0.8),))


def test_plotly_is_imported_only_to_draw() -> None:
    code = (
        "import sys, unlock_lens.evidence.plots, unlock_lens.evidence.report; "
        "print([m for m in ('plotly', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [byte / 255 for byte in bytes.fromhex(colour.removeprefix("#"))]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
