"""The demonstration as people read it: tables, and in words what they show."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from unlock_lens.cli.demo import Arm, Demo, Specificity, Transfer
from unlock_lens.zoo import BEHAVIOURS

ARMS = {
    "locked": "the target as it is, plain prompts",
    "transferred": "the source's direction, aligned on ordinary text",
    "paper": "the source's direction, the paper's calibration",
    "own": "the target's own direction (no transfer)",
    "random": "a random direction of the same norm",
    "anti_mean": "minus the target's mean locked state (no source)",
    "prompted": "the target asked to think, unsteered",
}
CONTROLS = ("random", "anti_mean")


def show(demo: Demo, console: Console) -> None:
    """Print the demonstration."""
    console.print(_legend())
    for transfer in demo.transfers:
        console.print(_arms_table(transfer))
        console.print(Text(verdict(transfer), style="bold green" if arrived(transfer) else "bold yellow"), end="\n\n")
    console.print(_specificity_table(demo))
    console.print(Group(*(Text(line) for line in _reading(demo))))


def arrived(transfer: Transfer) -> bool:
    """Whether the transferred arm is better than the locked one and every control, intervals apart."""
    rivals = ("locked", *CONTROLS)
    return all(transfer.arms["transferred"].outcome.low > transfer.arms[rival].outcome.high for rival in rivals)


def verdict(transfer: Transfer) -> str:
    """In one sentence, what a transfer shows."""
    arms = transfer.arms
    gain = f"right answers go from {_percent(arms['locked'])} to {_percent(arms['transferred'])}"
    controls = " and ".join(f"{_percent(arms[name])} ({name})" for name in CONTROLS)
    if arrived(transfer):
        return (
            f"{transfer.capability} arrived: {gain}, while the controls reach {controls}; "
            f"the paper's calibration {_percent(arms['paper'])}, the prompt that asks for it {_percent(arms['prompted'])}."
        )
    return f"{transfer.capability} did not arrive: {gain}, the controls reach {controls}; the 95% intervals overlap."


def _legend() -> Table:
    table = _titled("The arms: how the target is run")
    table.add_column(style="bold")
    table.add_column()
    for name, meaning in ARMS.items():
        table.add_row(name, meaning)
    table.show_header = False
    return table


def _titled(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)


def _arms_table(transfer: Transfer) -> Table:
    table = _titled(f"{transfer.capability}: {transfer.source} -> {transfer.target} ({transfer.backend})")
    table.add_column("arm")
    table.add_column("right", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_column("behaviour")
    table.add_column("rank", justify="right")
    table.add_column("alpha", justify="right")
    for name, arm in transfer.arms.items():
        outcome = arm.outcome
        table.add_row(
            name,
            _percent(arm),
            f"{outcome.low:.1%} - {outcome.high:.1%}",
            _behaviours(arm),
            str(arm.rank or ""),
            f"{arm.alpha:g}" if arm.alpha else "",
            style="bold" if name == "transferred" else "",
        )
    return table


def _specificity_table(demo: Demo) -> Table:
    table = _titled("Which behaviour arrives")
    table.add_column("direction")
    table.add_column("from")
    table.add_column("to")
    for name in BEHAVIOURS:
        table.add_column(name, justify="right")
    for row in demo.specificity:
        shares = [row.arm.outcome.behaviours[name] for name in BEHAVIOURS]
        cells = [
            Text(f"{share:.0%}", style="bold" if name == row.capability else "dim")
            for name, share in zip(BEHAVIOURS, shares, strict=True)
        ]
        table.add_row(row.capability, row.source.removesuffix("-base"), row.target.removesuffix("-base"), *cells)
    return table


def _reading(demo: Demo) -> Iterator[str]:
    n = demo.transfers[0].arms["locked"].outcome.n
    came = [row for row in demo.specificity if _wanted(row) >= 0.9]
    worst = min(demo.specificity, key=_wanted)
    yield (
        f"{len(came)} of {len(demo.specificity)} directions bring their own behaviour in at least 90% of completions "
        f"(least: {worst.capability}, {_wanted(worst):.0%})."
    )
    yield f"{n} problems a row; chance is 1 in 7. Rank and strength of every arm were chosen on other problems."
    yield "These are models of 0.2 and 0.5 million parameters: a controlled case, no promise for large models."


def _wanted(row: Specificity) -> float:
    return row.arm.outcome.behaviours[row.capability]


def _percent(arm: Arm) -> str:
    return f"{arm.outcome.accuracy:.1%}"


def _behaviours(arm: Arm) -> str:
    shown = sorted(((share, name) for name, share in arm.outcome.behaviours.items() if share), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in shown)
