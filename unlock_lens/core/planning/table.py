"""A plan as people read it."""

from __future__ import annotations

from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unlock_lens.core.planning.steps import Plan, Step

_WIDTH = 110
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def show(plan: Plan, console: Console) -> None:
    """Print which model does what, the steps, and what was assumed."""
    for model in dict.fromkeys(step.model for step in plan.steps):
        console.print(Text(f"{model}: {', '.join(step.name for step in plan.steps if step.model == model)}"))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
    titles = ("step", "requests", "tokens", "padded", "up", "down", "memory", "FLOPs")
    for i, (title, total) in enumerate(zip(titles, _cells(plan.total), strict=True)):
        table.add_column(title, total, no_wrap=True, justify="right" if i else "left")
    for step in plan.steps:
        table.add_row(*map(Text, _cells(step)))
    console.print(table)
    for assumption in plan.assumptions:
        console.print(Text(f"- {assumption}"))


def text(plan: Plan) -> str:
    """The same, without colours."""
    console = Console(file=StringIO(), width=_WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    with console.capture() as captured:
        show(plan, console)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _cells(step: Step) -> list[str]:
    counts = [f"{count:,}" for count in (step.requests, step.tokens, step.padded_tokens)]
    sizes = [human(size, "B") for size in (step.bytes_up, step.bytes_down, step.server_bytes)]
    return [step.name, *counts, *sizes, human(step.flops)]


def human(number: float, unit: str = "") -> str:
    """With a decimal prefix and two or three digits.

    Example:
        >>> human(17_179_869_184, "B"), human(950), human(999_999, "B")
        ('17 GB', '950', '1.0 MB')
    """
    places = 0
    while float(f"{number:.3g}") >= 1000 and places < len(_PREFIXES) - 1:
        number, places = number / 1000, places + 1
    shown = f"{number:.0f}" if number >= 9.95 or not places else f"{number:.1f}"
    return f"{shown} {_PREFIXES[places]}{unit}".strip()
