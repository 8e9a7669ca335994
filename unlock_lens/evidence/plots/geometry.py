"""What the alignment looks like from inside: how its rank was chosen, held-out error, spectra, the direction by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unlock_lens.evidence.plots import style
from unlock_lens.evidence.plots.vocabulary import CONTRARY, aligner_label, text_first
from unlock_lens.evidence.results import Results
from unlock_lens.method.crossval import CrossValidation

if TYPE_CHECKING:
    import plotly.graph_objects as go

Entry = Mapping[str, Any]
REMEDY = "let the sweep finish: it measures them at its end"


def cross_validation(found: CrossValidation) -> go.Figure:
    """Held-out R2 against rank, mean over layers, one line for each ridge strength; the choice is ringed."""
    drawn = style.figure("Held-out R2 of the map, by rank")
    mean = found.r2.mean(dim=0)
    for r2, ridge, colour in zip(mean.tolist(), found.ridges, style.depth_colours(len(found.ridges)), strict=True):
        hover = f"rank %{{x}}, ridge {ridge:g}: R2 %{{y:.3f}}"
        drawn.add_scatter(**style.line(found.ranks, r2, f"ridge {ridge:g}", colour, hover, symbol="circle"))
    (rank, ridge), best = found.best, float(mean.max())
    ring = {"symbol": "circle-open", "size": 15, "color": CONTRARY, "line": {"width": 2.5}}
    hover = f"chosen: rank {rank}, ridge {ridge:g}, R2 {best:.3f}<extra></extra>"
    drawn.add_scatter(x=[rank], y=[best], name="chosen", mode="markers", marker=ring, hovertemplate=hover)
    drawn.update_xaxes(title="rank", **style.log_ticks(found.ranks)).update_yaxes(title="held-out R2")
    style.legend_below(drawn)
    return drawn


def transform_error(results: Results) -> go.Figure:
    """Held-out relative error of the map against its rank, mean over layers, by number of pairs; one panel per aligner."""
    maps = [each for each in _maps(results) if each["rank"] and each.get("error")]
    if not maps:
        raise style.missing("held-out errors of the maps", REMEDY)
    aligners, pairs = sorted({each["aligner"] for each in maps}, key=text_first), sorted({each["n"] or 0 for each in maps})
    headings, colours = [style.text(aligner_label(name)) for name in aligners], style.depth_colours(len(pairs))
    drawn = style.panels("Held-out error of the map, by rank", headings, [150] * len(aligners), shared_x=True)
    named: set[int] = set()
    for panel, aligner in enumerate(aligners, 1):
        for n, colour in zip(pairs, colours, strict=True):
            curve = sorted((m for m in maps if (m["aligner"], m["n"] or 0) == (aligner, n)), key=lambda m: m["rank"])
            if curve:
                drawn.add_scatter(**_error_curve(n, curve, colour), showlegend=n not in named, row=panel, col=1)
                named.add(n)
    drawn.update_yaxes(title="relative error", rangemode="tozero", nticks=5)
    drawn.update_xaxes(**style.log_ticks(each["rank"] for each in maps))
    drawn.update_xaxes(title="rank", row=len(aligners), col=1)
    style.legend_below(drawn, 52)
    return drawn


def spectra(results: Results) -> go.Figure:
    """Singular values of the activations on a log axis, source above and target below, one line for each layer."""
    found = _of_chosen((results.geometry or {}).get("spectra") or [], results, ("aligner",))
    sides = [side for side in ("source", "target") if any(each["side"] == side for each in found)]
    if not sides:
        raise style.missing("singular values", REMEDY)
    drawn = style.panels("Singular values of the activations", sides, [160] * len(sides), shared_x=True)
    for panel, side in enumerate(sides, 1):
        layers = sorted((each for each in found if each["side"] == side), key=lambda each: each["layer"])
        colours = style.depth_colours(len(layers))
        for each, colour in zip(layers, colours, strict=True):
            drawn.add_scatter(**_spectrum(each, colour), row=panel, col=1)
        for end, trace in (("first layer", drawn.data[-len(layers)]), ("last layer", drawn.data[-1])):
            trace.update(name=end, showlegend=panel == 1)
    drawn.update_yaxes(type="log", title="singular value", tickformat="~g", nticks=5)
    drawn.update_xaxes(title="index", row=len(sides), col=1)
    style.legend_below(drawn, 52)
    return drawn


def heat_maps(results: Results) -> go.Figure:
    """Per layer and rank: cosine with the target's own direction, share of the direction's norm that is spanned, effect."""
    maps = _of_chosen(_maps(results), results, ("aligner", "n"))
    effect: list[Entry] = (results.geometry or {}).get("effect") or []
    kinds: list[tuple[str, Sequence[Entry], str, tuple[Sequence[Any], str], dict[str, float]]] = [
        ("cosine with the target's own direction", maps, "cosine_own", (style.SIGNED, ".2f"), {"zmin": -1, "zmax": 1}),
        ("share within the calibration span", maps, "coverage", (style.SHARES, ".0%"), {"zmin": 0, "zmax": 1}),
        ("effect of steering one layer, KL in nats", effect, "kl", (style.SHARES, ".2f"), {"zmin": 0}),
    ]
    shown = [kind for kind in kinds if any(each.get(kind[2]) for each in kind[1])]
    if not shown:
        raise style.missing("cosines, coverage or effects of the layers", REMEDY)
    rows = [len({each["rank"] for each in kind[1]}) for kind in shown]
    drawn = style.panels("The direction, layer by layer", [kind[0] for kind in shown], [30 * n + 10 for n in rows])
    for panel, (name, entries, key, look, span) in enumerate(shown, 1):
        _add_layer_cells(drawn, panel, name, {each["rank"]: each for each in entries if each.get(key)}, key, look, **span)
    return style.categories(drawn, "layer of the target", "rank")


def _maps(results: Results) -> list[Entry]:
    """The fitted maps, of the chosen layer map where there are several."""
    return _of_chosen((results.geometry or {}).get("maps") or [], results, ("layer_map",))


def _of_chosen(entries: Sequence[Entry], results: Results, keys: Sequence[str]) -> list[Entry]:
    """Entries that agree with the chosen configuration; with the last entry where none does."""
    config = (results.chosen() or {}).get("config", {})
    for wanted in (config, entries[-1] if entries else {}):
        agreeing = [each for each in entries if all(each.get(key) == wanted.get(key) for key in keys)]
        if agreeing:
            return agreeing
    return []


def _error_curve(n: int, maps: Sequence[Entry], colour: str) -> dict[str, Any]:
    name = f"{n} pairs" if n else "all texts"
    hover = f"rank %{{x}}, {name}: <b>%{{y:.3f}}</b><br>layers from %{{customdata[0]:.3f}} to %{{customdata[1]:.3f}}"
    ranges = [[min(each["error"]), max(each["error"])] for each in maps]
    ranks, errors = [each["rank"] for each in maps], [fmean(each["error"]) for each in maps]
    return style.line(ranks, errors, name, colour, hover, symbol="circle", customdata=ranges, legendgroup=str(n))


def _spectrum(found: Entry, colour: str) -> dict[str, Any]:
    least = 1e-6 * max(found["values"])  # less is rounding, and would stretch the axis
    summary = f"effective rank {found['effective_rank']:.1f}, entropy {found['entropy']:.2f} nats"
    hover = f"<b>{found['side']}, layer {found['layer']}</b>, value %{{x}}: %{{y:.3g}}<br>{summary}"
    values = [value if value > least else None for value in found["values"]]
    name = f"layer {found['layer']}"
    return style.line(range(1, len(values) + 1), values, name, colour, hover, width=1.5, showlegend=False)


def _add_layer_cells(
    drawn: go.Figure, panel: int, name: str, by_rank: Mapping[Any, Entry], key: str, look: tuple[Any, str], **span: float
) -> None:
    ranks = sorted(by_rank, key=lambda rank: (rank is None, rank))
    layers = sorted({layer for each in by_rank.values() for layer in each["layers"]})
    rows = [dict(zip(by_rank[rank]["layers"], by_rank[rank][key], strict=True)) for rank in ranks]
    values, form = [[row.get(layer) for layer in layers] for row in rows], look[1]
    hover = f"layer %{{x}}, rank %{{y}}<br>{name}: <b>%{{z:{form}}}</b>"
    style.add_cells(drawn, (layers, [style.rank(rank) for rank in ranks]), values, look, hover, panel, **span)
    if len(layers) > style.MOST_TEXT:  # no room for numbers in the cells: a colour scale beside them
        low, high = drawn.layout[f"yaxis{panel}" if panel > 1 else "yaxis"].domain
        bar = {"thickness": 10, "outlinewidth": 0, "nticks": 3, "tickfont": {"size": 12}, "tickformat": form}
        drawn.data[panel - 1].update(showscale=True, colorbar={"y": (low + high) / 2, "len": high - low, **bar})
