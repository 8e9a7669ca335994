"""The command line's second half: `unlock-lens diagnose | sweep | report | reproduce`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from unlock_lens.errors import InvalidInput

if TYPE_CHECKING:
    from unlock_lens.evidence.diagnosis import Diagnosis
    from unlock_lens.evidence.results import Results
    from unlock_lens.evidence.sweep.config import SweepConfig

console = Console()

Folder = Annotated[Path, typer.Option(help="Folder for the results; one that holds part of this sweep is gone on with.")]
Config = Annotated[Path | None, typer.Argument(help="YAML file of a sweep.", show_default=False)]
Zoo = Annotated[bool, typer.Option("--zoo", help="The embedded family's sweep, instead of a config.")]


def diagnose(
    config: Config = None,
    zoo: Zoo = False,
    rank: Annotated[int | None, typer.Option(help="Rank of the map; by default the config's largest.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Forecast, before a sweep, whether its transfer will work with each of its calibrations, and say why.

    Nothing is generated but what tells whether the target can do the task at all. For directions and aligners of your own, from
    Python: `unlock_lens.diagnose(direction, aligner, ...)`.

    Example: `unlock-lens diagnose --zoo`
    """
    from unlock_lens.evidence.diagnosis import table

    found = _forecasts(_chosen(config, zoo), rank)
    if as_json:
        typer.echo(json.dumps({name: diagnosis.to_json() for name, diagnosis in found.items()}, indent=2))
        return
    for name, diagnosis in found.items():
        console.rule(f"calibration: {name}, rank {diagnosis.rank}", align="left")
        table.show(diagnosis, console)


def sweep(out: Folder, config: Config = None, zoo: Zoo = False) -> None:
    """Try every setting of a grid on train problems, and report the best, with its controls, on test problems.

    Each finished setting is a line of OUT/results.jsonl. Stop it when you like: run again, it goes on and repeats none.

    Example: `unlock-lens sweep --zoo --out zoo-sweep`, `unlock-lens sweep mine.yaml --out mine` (to write a config of your own,
    begin with zoo-sweep/config.yaml, or with `unlock-lens reproduce cot --show`).
    """
    _run(_chosen(config, zoo), out)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep, finished or not.")],
    html: Annotated[Path | None, typer.Option(help="HTML file to write: one page that needs no network.")] = None,
) -> None:
    """Write a sweep's report: verdict in words, table, figures, completions before and after, provenance.

    Without --html verdict and table are printed.

    Example: `unlock-lens report zoo-sweep --html zoo-sweep.html`
    """
    from unlock_lens.evidence import report as reports
    from unlock_lens.evidence.results import Results

    found = Results.load(folder)
    if html is None:
        _tell(found)
        return
    reports.write(found, html)
    console.print(f"wrote {html}")


def reproduce(
    experiment: Annotated[Literal["cot", "post-training"], typer.Argument(help="Which of the paper's two experiments.")],
    out: Annotated[Path | None, typer.Option(help="Folder for results and report.")] = None,
    zoo: Annotated[bool, typer.Option("--zoo", help="On the embedded family: any machine, a minute.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the config, to copy and change, and run nothing.")] = False,
) -> None:
    """Run one of the paper's experiments as it is (a GPU and the hub), or on the embedded family, and write its report.

    cot: Chain-of-Thought from Qwen1.5-14B to 7B on MATH. post-training: from Qwen3-4B to 14B on AGIEval Math.

    Example: `unlock-lens reproduce cot --zoo --out cot-zoo`
    """
    from unlock_lens.evidence import recipes

    name = f"{experiment}-zoo" if zoo else experiment
    if show:
        typer.echo(recipes.path(name).read_text(encoding="utf-8"), nl=False)
        return
    if out is None:
        raise InvalidInput("give --out, a folder for the results (or --show, to see the config alone)")
    _run(recipes.load(name), out)
    report(out, out / "report.html")


def _chosen(config: Path | None, zoo: bool) -> SweepConfig:
    from unlock_lens.evidence import recipes
    from unlock_lens.evidence.sweep.config import SweepConfig

    if zoo == (config is not None):
        raise InvalidInput("give a config file, or --zoo for the embedded family's sweep (one of the two)")
    return recipes.load("zoo") if config is None else SweepConfig.load(config)


def _forecasts(config: SweepConfig, rank: int | None) -> dict[str, Diagnosis]:
    from unlock_lens.evidence.sweep import grid
    from unlock_lens.evidence.sweep.description import forecast
    from unlock_lens.evidence.sweep.material import Material

    ranks = (rank or max(config.grid.rank),)
    config = config.model_copy(update={"grid": config.grid.model_copy(update={"rank": ranks})})
    material = Material(config)
    widest = replace(grid(config, config.capability.name)[0], n=max(config.grid.n))
    return {name: forecast(material, replace(widest, aligner=name)) for name in config.grid.aligner}


def _run(config: SweepConfig, out: Path) -> None:
    from unlock_lens.evidence import sweep

    try:
        found = sweep.run(config, out)
    except KeyboardInterrupt:
        console.print(f"stopped; what is finished is in {out}, and the same command goes on from there")
        raise typer.Exit(130) from None
    _tell(found)
    console.print(f"{len(found.lines)} runs are in {out}; figures and completions: unlock-lens report {out} --html FILE")


def _tell(found: Results) -> None:
    from unlock_lens.evidence import report
    from unlock_lens.evidence.report.table import show

    show(report.summary(found), console)
    console.print(str(report.verdict(found)))
