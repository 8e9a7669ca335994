"""The tables of benchmarks/aligners.py, for a terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from aligner_bench import ALPHAS, ARRIVED, CONTROLS
from aligner_cases import CALIBRATIONS, DUO, FAMILIES, METHODS, PAPER, RANKS, USUAL, Line, Transfer
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from scipy.stats import rankdata

from unlock_lens.evidence.statistics import wilson_interval

Row = Mapping[str, Any]
DETAILS = ("arrived", "window", *FAMILIES, "another", "broken", "right (95%)", "cosine", "R2", "R2 on text")
FORECASTS = {"cosine with own": "cosine", "cosine with anti-mean": "mean_cosine", "R2": "r2", "R2 on text": "r2_text"}


@dataclass(frozen=True)
class Table:
    """One table; the first column names its rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> RichTable:
        table = RichTable(*self.header, title=self.title, title_justify="left", box=SIMPLE_HEAD)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        told = [self.header, ["---"] * len(self.header), *self.rows]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in told) + "\n"


@dataclass(frozen=True)
class Found:
    """What was measured: rows of settings and rows of controls, told apart by the key "control"."""

    rows: Sequence[Row]

    def of(self, line: Line) -> list[Row]:
        return [row for row in self.rows if "control" not in row and line_of(row) == line]

    def control(self, name: str) -> list[Row]:
        return [row for row in self.rows if row.get("control") == name and "wanted" in row]

    @property
    def lines(self) -> list[Line]:
        return list(dict.fromkeys(line_of(row) for row in self.rows if "control" not in row))


def line_of(row: Row) -> Line:
    """The setting that a row was measured at."""
    return Line(**{field.name: row[field.name] for field in fields(Line)})


def transfer_of(row: Row) -> Transfer:
    """The transfer that a row was measured on."""
    return Transfer(row["source"], row["target"], row["capability"])


def tables(rows: Sequence[Row]) -> list[Table]:
    """All of them."""
    found = Found(rows)
    return [
        _details("Controls", {name: found.control(name) for name in dict.fromkeys(CONTROLS)}),
        _details("Text, centered, n = 600, and the paper's calibration", {**_maps(found), "paper's": found.of(PAPER)}),
        _calibrations(found),
        _ranks(found),
        _numbers(found),
        _details("Options", {f"{_named(line)}, {line.option}": found.of(line) for line in found.lines if line.option}),
        _seeds(found),
        _details("The ten settings that bring most", {str(line): found.of(line) for line in _best(found)}),
        _transfers(found),
        _forecasts(found),
    ]


def _maps(found: Found) -> dict[str, list[Row]]:
    """Every map on centered ordinary text."""
    usual = [line for line in found.lines if line == Line(line.method, line.rank, ridge=line.ridge)]
    return {line.map: found.of(line) for line in usual}


def _named(line: Line) -> str:
    return "paper's" if line.calibration == PAPER.calibration else line.map


def _details(title: str, groups: Mapping[str, list[Row]]) -> Table:
    return Table(title, ("", "mean", *DETAILS), [[name, *_detail(rows)] for name, rows in groups.items() if rows])


def _detail(rows: list[Row]) -> list[str]:
    clear = [row for row in rows if _clear(row)]
    think = [row for row in clear if transfer_of(row).behaviour == "think"]
    by_family = [[row for row in rows if transfer_of(row).family == family] for family in FAMILIES]
    shares = [
        _share(clear),
        _arrived(clear),
        _window(clear),
        *map(_share, by_family),
        _share(clear, "another"),
        _share(clear, "broken"),
    ]
    return [*shares, _right(think), *(_number(clear, key) for key in ("cosine", "r2", "r2_text"))]


def _calibrations(found: Found) -> Table:
    columns = [(calibration, centered) for calibration in CALIBRATIONS for centered in (True, False)]
    header = ["", *(f"{calibration}{'' if centered else ', uncentered'}" for calibration, centered in columns)]
    maps = [Line(method, rank) for method in METHODS for rank in (16, 48)]

    def cell(line: Line, calibration: str, centered: bool) -> str:
        positions = "last" if calibration == "locked last" else "all"
        return _cell(found.of(Line(line.method, line.rank, calibration, centered, positions=positions)))

    rows = [[line.map, *(cell(line, *column) for column in columns)] for line in maps]
    return Table("Calibration and centering, n = 600: mean (arrived)", header, rows)


def _ranks(found: Found) -> Table:
    header = ["", *("full" if rank is None else f"rank {rank}" for rank in (*RANKS, "cv"))]
    rows = [[method, *(_cell(found.of(Line(method, rank))) for rank in (*RANKS, "cv"))] for method in METHODS]
    return Table("Rank on text, centered, n = 600: mean (arrived)", header, rows)


def _numbers(found: Found) -> Table:
    rows: list[list[str]] = []
    for calibration in CALIBRATIONS[:3]:
        positions = "last" if calibration == "locked last" else "all"
        for line in (*USUAL, Line("unlock")):
            asked = [Line(line.method, line.rank, calibration, n=n, positions=positions) for n in (30, 100, 600)]
            rows.append([f"{line.map}, {calibration}", *(_cell(found.of(each)) for each in asked)])
    return Table("Number of texts, centered: mean (arrived)", ["", "n = 30", "n = 100", "n = 600"], rows)


def _seeds(found: Found) -> Table:
    rows = [[line.map, *(_cell(found.of(Line(line.method, line.rank, seed=seed))) for seed in (0, 1, 2))] for line in USUAL]
    return Table("Other texts, n = 600, centered: mean (arrived)", ["", "text 0", "text 1", "text 2"], rows)


def _best(found: Found) -> list[Line]:
    """By transfers that arrived, then by the strengths at which they do."""

    def rank(line: Line) -> tuple[int, int]:
        clear = [row for row in found.of(line) if _clear(row)]
        return sum(row["wanted"] >= ARRIVED for row in clear), sum(row["window"] for row in clear)

    return sorted(found.lines, key=rank, reverse=True)[:10]


def _transfers(found: Found) -> Table:
    """The wanted share, and the strength, of each transfer."""
    columns = {**{line.map: found.of(line) for line in USUAL}, "paper's": found.of(PAPER)}
    columns |= {name: found.control(name) for name in ("anti-mean", "own")}

    def cell(rows: list[Row], transfer: Transfer) -> str:
        return next((f"{row['wanted']:.0%} ({row['alpha']:g})" for row in rows if transfer_of(row) == transfer), "")

    every = dict.fromkeys(transfer_of(row) for row in found.rows)
    rows = [[str(transfer), *(cell(of, transfer) for of in columns.values())] for transfer in every]
    return Table("Each transfer, text, centered, n = 600: wanted (alpha)", ["", *columns], rows)


def _forecasts(found: Found) -> Table:
    """Spearman's rho of what is known beforehand with the share of wanted behaviour, over settings and transfers."""
    parts: Mapping[str, Callable[[Row], bool]] = {
        "all": _clear,
        **{family: (lambda row, family=family: transfer_of(row).family == family) for family in FAMILIES[:3]},
        "text alone": lambda row: _clear(row) and row["calibration"] == "text",
        "other calibrations": lambda row: _clear(row) and row["calibration"] != "text",
    }

    def cell(key: str, chosen: Callable[[Row], bool]) -> str:
        rows = [row for row in found.rows if row.get(key) is not None and chosen(row)]
        if len({row["wanted"] for row in rows}) < 2:
            return ""
        ranks = [rankdata([row[name] for row in rows]) for name in (key, "wanted")]
        return f"{np.corrcoef(*ranks)[0, 1]:.2f}"

    rows = [[name, *(cell(key, chosen) for chosen in parts.values())] for name, key in FORECASTS.items()]
    return Table("What foretells arrival: Spearman's rho with the wanted share", ["", *parts], rows)


def _clear(row: Row) -> bool:
    """The duo models are left out of means: there anti-mean does what a transfer does."""
    return (row["source"], row["target"]) not in DUO


def _cell(rows: list[Row]) -> str:
    clear = [row for row in rows if _clear(row)]
    return f"{_share(clear)} ({_arrived(clear)})" if clear else ""


def _share(rows: list[Row], key: str = "wanted") -> str:
    return f"{np.mean([row[key] for row in rows]):.0%}" if rows else ""


def _arrived(rows: list[Row]) -> str:
    return f"{sum(row['wanted'] >= ARRIVED for row in rows)}/{len(rows)}"


def _window(rows: list[Row]) -> str:
    """How many of the strengths that were tried bring the behaviour, on average."""
    windows = [row["window"] for row in rows if "window" in row]
    return f"{np.mean(windows):.1f}/{len(ALPHAS)}" if windows else ""


def _right(rows: list[Row]) -> str:
    """Right final answers, all transfers together."""
    if not rows:
        return ""
    right, problems = (sum(row[key] for row in rows) for key in ("right", "problems"))
    low, high = wilson_interval(right, problems)
    return f"{right / problems:.0%} ({100 * low:.0f}-{100 * high:.0f})"


def _number(rows: list[Row], key: str) -> str:
    known = [row[key] for row in rows if row.get(key) is not None]
    return f"{np.mean(known):.2f}" if known else ""
