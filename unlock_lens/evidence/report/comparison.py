"""The transferred arm against what it has to beat, question by question, and what a sweep has not run yet or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unlock_lens.evidence.plots.vocabulary import arm, in_order
from unlock_lens.evidence.results import SEEDED, TRANSFERRED, Line, Results

REQUIRED = ("random", "anti_mean", "shuffled")
"""Without any one of these nothing can be credited to the source."""
Paired = Mapping[str, Any]


@dataclass(frozen=True)
class Rival:
    """A control that the transfer has to beat.

    Attributes:
        name: of its arm.
        line: of its best seed.
        paired: the transfer compared with it on the same questions; None where the answers were not kept.
        beaten: whether the transfer beats it.
        gains: whether it gains on the unsteered target itself. Never of the naive target, whose gain is the source's too.
    """

    name: str
    line: Line
    paired: Paired | None
    beaten: bool
    gains: bool


def rivals(arms: Mapping[str, Line]) -> list[Rival]:
    """Every control that the transfer has to beat, and whether it does.

    The naive target is another model, but answers the same questions, so it is paired as the others are.
    """
    main, base = arms[TRANSFERRED], arms["unsteered"]
    found: list[Rival] = []
    for name in in_order(arms):
        if arm(name).role == "rival":
            line, paired = arms[name], _compared(main, arms[name])
            found.append(Rival(name, line, paired, _above(main, line, paired), name != "naive" and better(line, base)))
    return found


def gain(line: Line, base: Line) -> Paired | None:
    """An arm against the same model unsteered: what the sweep recorded, or what the answers give."""
    return line.get("paired") or _compared(line, base)


def better(line: Line, base: Line) -> bool:
    """Whether an arm gained on the same model unsteered."""
    return _above(line, base, gain(line, base))


def worse(line: Line, base: Line) -> bool:
    """Whether an arm lost against the same model unsteered."""
    paired = gain(line, base)
    return paired["high"] < 0 and paired["p"] < 0.05 if paired else line["high"] < base["low"]


def left_out(results: Results) -> Mapping[str, str]:
    """Controls that a finished sweep could not run, and why."""
    return (results.provenance or {}).get("controls_left_out") or {}


def missing(results: Results) -> list[str]:
    """What the config asks for and the test split lacks, in words.

    A config that lists no controls (results that were made by hand) asks for no more than there is. Which controls could not
    be had is known from the provenance alone.
    """
    tested, without = results.tested(), left_out(results)
    found = [name for name in (TRANSFERRED, "unsteered") if name not in tested]
    for name in results.config.get("controls") or ():
        absent = _seeds(results, name) - {line["config"].get("seed", 0) for line in tested.get(name, ())}
        if absent and name not in without:
            seeds = ", ".join(str(seed) for seed in sorted(absent))
            some = f" (seed{'s' if len(absent) > 1 else ''} {seeds})" if name in tested else ""
            found.append(arm(name).label + some)
    moved = {line["config"].get("capability") for line in results.lines if line["split"] == "test"}
    others = [other["name"] for other in results.config.get("others") or ()]
    return found + [f"the capability “{name}”" for name in others if name not in moved]


def _seeds(results: Results, control: str) -> set[int]:
    return set(range(results.config.get("control_seeds", 1) if control in SEEDED else 1))


def _compared(line: Line, other: Line) -> Paired | None:
    from unlock_lens.evidence.evaluation import compare

    after, before = ([bool(right) for right in each.get("right") or ()] for each in (line, other))
    return asdict(compare(after, before)) if after and before else None


def _above(line: Line, other: Line, paired: Paired | None) -> bool:
    """By the paired comparison; where there is none, by intervals that do not meet, which asks for more."""
    return paired["low"] > 0 and paired["p"] < 0.05 if paired else line["low"] > other["high"]
