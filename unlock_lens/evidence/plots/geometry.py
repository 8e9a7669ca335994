"""What the alignment looks like from inside: held-out error, singular values, and the direction layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unlock_lens.evidence.plots import style
from unlock_lens.evidence.plots.vocabulary import aligner_label, text_first
from unlock_lens.evidence.results import Results

if TYPE_CHECKING:
    import plotly.graph_objects as go

Entry = Mapping[str, Any]
REMEDY = "let the sweep finish: it measures them at its end"


def transform_error(results: Results) -> go.Figure:
    """Held-out relative error of the map against its rank, mean over layers, one line a number of pairs, one panel an aligner.

    Raises:
        InvalidInput: the maps were not measured.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import plots
        >>> from unlock_lens.evidence.results import Results
        >>> fitted = {"aligner": "text", "n": 32, "layer_map": "proportional", "rank": 4, "error": [0.2, 0.4]}
        >>> drawn = plots.transform_error(Results({}, (), geometry={"maps": [fitted]}))
        >>> drawn.data[0].name, round(drawn.data[0].y[0], 3)
        ('32 pairs', 0.3)
    """
    maps = [each for each in _maps(results) if each["rank"] and each.get("error")]
    if not maps:
        raise style.missing("held-out errors of the maps", REMEDY)
    aligners, pairs = sorted({each["aligner"] for each in maps}, key=text_first), sorted({each["n"] or 0 for each in maps})
    headings = [aligner_label(name) for name in aligners]
    drawn = style.panels("Held-out error of the map, by rank", headings, [150] * len(aligners), shared_x=True)
    for panel, aligner in enumerate(aligners, 1):
        for i, n in enumerate(pairs):
            lines = sorted((m for m in maps if (m["aligner"], m["n"] or 0) == (aligner, n)), key=lambda m: m["rank"])
            if lines:
                drawn.add_trace(_error_curve(n, lines, i / max(1, len(pairs) - 1)), row=panel, col=1)
    traces: list[Any] = list(drawn.select_traces())
    named = {trace.name: trace for trace in traces}
    for trace in named.values():  # one entry a line of the legend, whichever panels have it
        trace.showlegend = True
    drawn.update_yaxes(title="relative error", rangemode="tozero", nticks=5)
    drawn.update_xaxes(**style.log_ticks(each["rank"] for each in maps))
    drawn.update_xaxes(title="rank", row=len(aligners), col=1)
    style.legend_below(drawn, 52)
    return drawn


def spectra(results: Results) -> go.Figure:
    """Singular values of the activations, source above and target below, one line a layer, on a log axis.

    Raises:
        InvalidInput: the spectra were not measured.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import plots
        >>> from unlock_lens.evidence.results import Results
        >>> found = {"aligner": "text", "side": "source", "layer": 0, "values": [3.0, 1.0], "entropy": 0.5}
        >>> found["effective_rank"] = 1.6
        >>> plots.spectra(Results({}, (), geometry={"spectra": [found]})).data[0].name
        'layer 0'
    """
    found: list[Entry] = _of_chosen((results.geometry or {}).get("spectra") or [], results, ("aligner",))
    sides = [side for side in ("source", "target") if any(each["side"] == side for each in found)]
    if not sides:
        raise style.missing("singular values", REMEDY)
    drawn = style.panels("Singular values of the activations", sides, [160] * len(sides), shared_x=True)
    for panel, side in enumerate(sides, 1):
        layers = sorted((each for each in found if each["side"] == side), key=lambda each: each["layer"])
        for i, each in enumerate(layers):
            drawn.add_trace(_spectrum(each, i / max(1, len(layers) - 1)), row=panel, col=1)
        drawn.layout["annotations"][panel - 1].text = f"{side}: {_layer_span(layers)}"
    drawn.update_yaxes(type="log", title="singular value", tickformat="~g", nticks=5)
    drawn.update_xaxes(title="index", row=len(sides), col=1)
    return drawn.update_layout(showlegend=False)


def heat_maps(results: Results) -> go.Figure:
    """Per layer and rank: cosine with the target's own direction, share of the direction's norm that is spanned, effect.

    Raises:
        InvalidInput: none of the three was measured.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence import plots
        >>> from unlock_lens.evidence.results import Results
        >>> fitted = {"aligner": "text", "n": 32, "rank": 4, "layers": [0, 1], "coverage": [0.9, 0.8], "cosine_own": None}
        >>> plots.heat_maps(Results({}, (), geometry={"maps": [fitted]})).data[0].z
        ([0.9, 0.8],)
    """
    maps = _of_chosen(_maps(results), results, ("aligner", "n"))
    effect: list[Entry] = (results.geometry or {}).get("effect") or []
    kinds: list[tuple[str, Sequence[Entry], str, str, dict[str, Any]]] = [
        ("cosine with the target's own direction", maps, "cosine_own", ".2f", {"scale": style.SIGNED, "zmin": -1, "zmax": 1}),
        (
            "share within the calibration span",
            maps,
            "coverage",
            ".0%",
            {"scale": style.SHARES, "zmin": 0, "zmax": 1},
        ),
        ("effect of steering one layer, KL in nats", effect, "kl", ".2f", {"scale": style.SHARES, "zmin": 0}),
    ]
    shown = [kind for kind in kinds if any(each.get(kind[2]) for each in kind[1])]
    if not shown:
        raise style.missing("cosines, coverage or effects of the layers", REMEDY)
    rows = [len({each["rank"] for each in kind[1]}) for kind in shown]
    drawn = style.panels("The direction, layer by layer", [kind[0] for kind in shown], [30 * n + 10 for n in rows])
    for panel, (name, entries, key, form, look) in enumerate(shown, 1):
        drawn.add_trace(_layer_cells(name, entries, key, form, look), row=panel, col=1)
        _scale_beside(drawn, panel, form)
    drawn.update_xaxes(type="category", title="layer of the target").update_yaxes(type="category", title="rank", showgrid=False)
    return drawn


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


def _error_curve(n: int, maps: Sequence[Entry], shade: float) -> go.Scatter:
    import plotly.graph_objects as go

    colour, told = style.depth_colour(shade), f"{n} pairs" if n else "all texts"
    return go.Scatter(
        x=[each["rank"] for each in maps], y=[fmean(each["error"]) for each in maps], name=told, legendgroup=str(n),
        showlegend=False, mode="lines+markers", line={"color": colour, "width": 2}, marker={"size": 7, "symbol": "circle"},
        customdata=[[min(each["error"]), max(each["error"])] for each in maps],
        hovertemplate=f"rank %{{x}}, {told}: <b>%{{y:.3f}}</b><br>layers from %{{customdata[0]:.3f}} to %{{customdata[1]:.3f}}"
        "<extra></extra>",
    )  # fmt: skip


def _spectrum(found: Entry, shade: float) -> go.Scatter:
    import plotly.graph_objects as go

    least = 1e-6 * max(found["values"])  # less is rounding, and would stretch the axis
    told = f"effective rank {found['effective_rank']:.1f}, entropy {found['entropy']:.2f} nats"
    return go.Scatter(
        x=list(range(1, len(found["values"]) + 1)), name=f"layer {found['layer']}", mode="lines",
        y=[value if value > least else None for value in found["values"]],
        line={"color": style.depth_colour(shade), "width": 1.5},
        hovertemplate=f"<b>{found['side']}, layer {found['layer']}</b>, value %{{x}}: %{{y:.3g}}<br>{told}<extra></extra>",
    )  # fmt: skip


def _layer_span(layers: Sequence[Entry]) -> str:
    """Which colour is which layer."""
    named = {0.0: layers[0], 1.0: layers[-1]} if len(layers) > 1 else {0.0: layers[0]}
    return " to ".join(
        f'<span style="color:{style.depth_colour(at)}">\u25a0</span> layer {each["layer"]}' for at, each in named.items()
    )


def _layer_cells(name: str, entries: Sequence[Entry], key: str, form: str, look: Mapping[str, Any]) -> go.Heatmap:
    by_rank = {each["rank"]: each for each in entries if each.get(key)}
    ranks = sorted(by_rank, key=lambda rank: (rank is None, rank))
    layers = sorted({layer for each in by_rank.values() for layer in each["layers"]})
    rows = [dict(zip(by_rank[rank]["layers"], by_rank[rank][key], strict=True)) for rank in ranks]
    return style.cells(
        layers, ["full" if rank is None else rank for rank in ranks], [[row.get(layer) for layer in layers] for row in rows],
        form, hovertemplate=f"layer %{{x}}, rank %{{y}}<br>{name}: <b>%{{z:{form}}}</b><extra></extra>", **look,
    )  # fmt: skip


def _scale_beside(drawn: go.Figure, panel: int, form: str) -> None:
    """A colour scale beside a panel whose cells have no room for numbers."""
    cells: Any = drawn.data[panel - 1]
    axis: Any = drawn.layout[f"yaxis{panel}" if panel > 1 else "yaxis"]
    if cells.texttemplate is None:
        low, high = axis.domain
        look = {"thickness": 10, "outlinewidth": 0, "nticks": 3, "tickfont": {"size": 12}, "tickformat": form}
        cells.update(showscale=True, colorbar={"y": (low + high) / 2, "len": high - low, **look})
