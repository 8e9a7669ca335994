"""The command line's evidence: `unlock-lens diagnose | sweep | report | reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from typer import Argument, Option

import unlock_lens as ul
import unlock_lens.cli.options as opt
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts.checkpoint import instead

COMPARED = ("unsteered", "prompted", "transferred", "random", "anti_mean")
"""The arms that stand beside each other where several sweeps are compared."""


def diagnose(
    config: opt.Config = None,
    zoo: opt.Zoo = False,
    rank: Annotated[int | None, Option(help="Rank of the map; by default the config's largest.", min=1)] = None,
    as_json: opt.Json = False,
) -> None:
    """Forecast, before a sweep, whether its transfer will work with each of its calibrations, and say why.

    Nothing is generated except what shows whether the target can do the task at all. For your own directions and aligners, use
    `unlock_lens.diagnose(direction, aligner, ...)` in Python.

    Example: `unlock-lens diagnose --zoo`
    """
    from unlock_lens.evidence.diagnosis import show

    found = _forecasts(_chosen(config, zoo), rank)
    if as_json:
        opt.told(True, {name: diagnosis.to_json() for name, diagnosis in found.items()})
        return
    for name, diagnosis in found.items():
        opt.console.rule(f"calibration: {name}, rank {diagnosis.rank}", align="left")
        show(diagnosis, opt.console)


def sweep(
    out: Annotated[Path | None, Option(help="Results folder. An unfinished sweep in it is resumed.")] = None,
    config: opt.Config = None,
    zoo: opt.Zoo = False,
    example: Annotated[bool, Option("--example", help="Print a config to begin with, and run nothing.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Try every setting of a grid on train problems, and report the best, with its controls, on test problems.

    Each finished setting is a line of OUT/results.jsonl. Stop a sweep at any time; run again, it repeats none.

    Example: `unlock-lens sweep --zoo --out zoo-sweep`, `unlock-lens sweep --example > own.yaml`,
    `unlock-lens sweep own.yaml --out runs/own`
    """
    if example:
        typer.echo(ul.recipes.path("own").read_text(encoding="utf-8"), nl=False)
        return
    chosen = _chosen(config, zoo)
    if out is None:
        raise InvalidInput("give --out, a folder for the results (or --example, to see a config)")
    _run(chosen, out, as_json)


def report(
    folders: Annotated[list[Path], Argument(metavar="FOLDER...", help="Folder of a sweep, finished or not; or several.")],
    html: Annotated[Path | None, Option(help="HTML file to write: one page that needs no network.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Write a sweep's report: verdict in words, table, figures, completions before and after, provenance.

    Without --html, the verdict and the table are printed; of several sweeps, one line each.

    Example: `unlock-lens report zoo-sweep --html zoo-sweep.html`, `unlock-lens report runs/cot runs/icl`
    """
    if html is not None and len(folders) > 1:
        raise InvalidInput("--html writes the page of one sweep; give one folder, or leave --html out to compare several")
    for folder in folders:
        if not folder.is_dir():
            raise InvalidInput(f"there is no folder {folder}{instead(folder)}")
    found = [ul.results.Results.load(folder) for folder in folders]
    if html is not None:
        ul.report.write(found[0], html)
    if len(found) > 1:
        _compare(folders, found, as_json)
    elif as_json or html is None:
        _show(found[0], as_json)
    else:
        opt.told(False, {}, f"wrote {html}")


def _compare(folders: Sequence[Path], found: Sequence[ul.results.Results], as_json: bool) -> None:
    """One line for each sweep: what arrived, and what it is compared with."""
    if as_json:
        opt.told(True, {"sweeps": [{"folder": str(folder), **_facts(of)} for folder, of in zip(folders, found, strict=True)]})
        return
    numbers = [Column(name.replace("_", "-"), justify="right", no_wrap=True) for name in COMPARED]
    table = Table(
        Column("sweep", overflow="fold"), Column("verdict", no_wrap=True), *numbers, box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for folder, results in zip(folders, found, strict=True):
        arms = results.arms()
        right = (f"{arms[name]['accuracy']:.1%}" if name in arms else "" for name in COMPARED)
        table.add_row(str(folder), ul.report.verdict(results).status, *right)
    opt.console.print(table)


def reproduce(
    experiment: Annotated[Literal["cot", "post-training", "icl"], Argument(help="Which of the paper's three experiments.")],
    out: Annotated[Path | None, Option(help="Folder for results and report.")] = None,
    zoo: opt.Zoo = False,
    show: Annotated[bool, Option("--show", help="Print the config, to copy and change, and run nothing.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Run one of the paper's experiments unchanged (a GPU and the hub), or on the embedded family, and write its report.

    cot: Chain-of-Thought from Qwen1.5-14B to 7B on MATH. post-training: from Qwen3-4B to 14B on AGIEval Math. icl: in-context
    learning from Qwen1.5-14B to 7B on GSM8K; the embedded family learns nothing from demonstrations, so it has no --zoo.

    Example: `unlock-lens reproduce cot --zoo --out cot-zoo`
    """
    if zoo and experiment == "icl":
        raise InvalidInput("the embedded family learns nothing from demonstrations; run icl without --zoo (a GPU and the hub)")
    name = f"{experiment}-zoo" if zoo else experiment
    if show:
        typer.echo(ul.recipes.path(name).read_text(encoding="utf-8"), nl=False)
        return
    if out is None:
        raise InvalidInput("give --out, a folder for the results (or --show, to see the config alone)")
    _run(ul.recipes.load(name), out, as_json)
    ul.report.write(ul.results.Results.load(out), page := out / "report.html")
    if not as_json:
        typer.echo(f"wrote {page}")


def _chosen(config: Path | None, zoo: bool) -> ul.sweep.SweepConfig:
    if zoo == (config is not None):
        raise InvalidInput("give a config file, or --zoo for the embedded family's sweep (one of the two)")
    return ul.recipes.load("zoo") if config is None else ul.sweep.SweepConfig.load(config)


def _forecasts(config: ul.sweep.SweepConfig, rank: int | None) -> dict[str, ul.Diagnosis]:
    from unlock_lens.evidence.sweep.description import forecast
    from unlock_lens.evidence.sweep.material import Material

    ranks = (rank or max(config.grid.rank),)
    config = config.model_copy(update={"grid": config.grid.model_copy(update={"rank": ranks})})
    material = Material(config)
    widest = replace(ul.sweep.grid(config, config.capability.name)[0], n=max(config.grid.n))
    return {name: forecast(material, replace(widest, aligner=name)) for name in config.grid.aligner}


def _run(config: ul.sweep.SweepConfig, out: Path, as_json: bool) -> None:
    try:
        found = ul.sweep.run(config, out)
    except KeyboardInterrupt:
        typer.echo(f"stopped; what is finished is in {out}, and the same command resumes from there", err=True)
        raise typer.Exit(130) from None
    _show(found, as_json)
    if not as_json:
        typer.echo(f"{len(found.lines)} runs are in {out}; figures and completions: unlock-lens report {out} --html FILE")


def _show(found: ul.results.Results, as_json: bool) -> None:
    from unlock_lens.evidence.report.paper import beside_the_paper
    from unlock_lens.evidence.report.table import show, show_paper

    if as_json:
        opt.told(True, _facts(found))
        return
    show(ul.report.summary(found), opt.console)
    show_paper(beside_the_paper(found), opt.console)
    typer.echo(ul.report.verdict(found))


def _facts(found: ul.results.Results) -> dict[str, Any]:
    """What --json says of a sweep."""
    rows = ul.report.summary(found).astype(object).to_dict(orient="index")
    arms = [{"arm": name, **row} for name, row in rows.items()]
    return {"name": found.config["name"], "verdict": asdict(ul.report.verdict(found)), "arms": arms}
