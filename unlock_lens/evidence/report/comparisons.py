"""What a verdict weighs: the transfer against its controls on the same questions, and among sources without a capability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unlock_lens.evidence.evaluation import compare
from unlock_lens.evidence.plots.vocabulary import arm, in_order
from unlock_lens.evidence.results import NAIVE, POST_TRAINED, PROMPTED, TRANSFERRED, UNSTEERED, Line, Results
from unlock_lens.evidence.statistics import sample_size_in_words

Paired = Mapping[str, Any]

Arms = Mapping[str, Line]

REQUIRED = ("random", "anti_mean", "shuffled")
"""Without any one of these nothing can be credited to the source."""

SIGNIFICANT = 0.05

MARGIN = 0.5
"""The gain must be at least this share of what asking gives, and no null source may reach this share of the gain."""

COMES = 0.2
"""A behaviour has come, and correctness with it, when its share grows by more than this."""


@dataclass(frozen=True)
class Rival:
    """A control that the transfer has to beat, with the line of its best seed."""

    name: str
    line: Line
    paired: Paired | None
    """The transfer compared with it on the same questions; None if the answers were not kept."""
    beaten: bool
    gains: bool
    """Whether it gains on the unsteered target. Never of the naive target, whose gain is the source's too."""


@dataclass(frozen=True)
class NullTest:
    """The transfer among sources without a capability, moved by the same maps, with the same settings to choose from.

    They are noise, noise with the covariance of the source's states, and halves of the locked prompts against each other.

    Attributes:
        p: (1 + as_good) / (1 + n): the chance that a source without a capability does as well.
        n: number of null sources.
        as_good: how many of them do at least as well as the transfer: they arrive at no greater strength; where neither
            arrives, they gain no less. Arriving is gaining `needed`, on train.
        needed: the gain that counts as arriving: half of what asking gives, or 20 points where nothing asks.
        arrive: how many of them arrive at any setting.
        best: the highest accuracy of a null source at the transfer's own setting.
    """

    p: float
    n: int
    as_good: int
    needed: float
    arrive: int
    best: float

    @property
    def is_rare(self) -> bool:
        """Whether p is at most 0.05."""
        return self.p <= SIGNIFICANT


def null_test(results: Results) -> NullTest | None:
    """The randomisation test at the level of directions, on the train split; None where no null source was run."""
    nulls, arms = results.nulls(), results.arms()
    if not nulls:
        return None
    base, asked = arms[UNSTEERED]["accuracy"], asked_of(arms)
    needed = max(MARGIN * (asked["accuracy"] - base), 0.1) if asked else COMES
    own = _score(results.trained(), base + needed)
    as_good = sum(_score(lines, base + needed) >= own for lines in nulls)
    arrive = sum(max(line["accuracy"] for line in lines) >= base + needed for lines in nulls)
    chosen = _apart_from_source(arms[TRANSFERRED])
    same = [line["accuracy"] for lines in nulls for line in lines if _apart_from_source(line) == chosen]
    return NullTest((1 + as_good) / (1 + len(nulls)), len(nulls), as_good, needed, arrive, max(same, default=0.0))


def _score(lines: Sequence[Line], arriving: float) -> tuple[float, float]:
    """The least strength that arrives, the smaller the better; of those that do not, the highest accuracy."""
    strengths = [line["config"]["alpha"] for line in lines if line["accuracy"] >= arriving]
    return (-min(strengths), 0.0) if strengths else (-float("inf"), max(line["accuracy"] for line in lines))


def _apart_from_source(line: Line) -> Mapping[str, Any]:
    return {key: value for key, value in line["config"].items() if key not in ("control", "seed")}


def asked_of(arms: Arms) -> Line | None:
    """The target when it is asked for the capability, or its own post-trained model."""
    return arms.get(PROMPTED) or arms.get(POST_TRAINED)


def left_out_of(results: Results) -> Mapping[str, str]:
    """Controls that a finished sweep could not run, and why."""
    return (results.provenance or {}).get("controls_left_out") or {}


def rivals_of(arms: Arms) -> list[Rival]:
    """Every control that the transfer has to beat; the naive target answers the same questions, so it is paired too."""
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    found: list[Rival] = []
    for name in in_order(arms):
        if arm(name).role == "rival":
            line, paired = arms[name], compared(main, arms[name])
            found.append(Rival(name, line, paired, is_above(main, line, paired), name != NAIVE and gains_on(line, base)))
    return found


def gain(line: Line, base: Line) -> Paired | None:
    """An arm compared with the same model unsteered: what the sweep recorded, or what the answers give."""
    return line.get("paired") or compared(line, base)


def compared(line: Line, other: Line) -> Paired | None:
    """Two arms on the same questions; None where the answers were not kept."""
    after, before = ([bool(right) for right in each.get("right") or ()] for each in (line, other))
    return asdict(compare(after, before)) if after and before else None


def is_above(line: Line, other: Line, paired: Paired | None) -> bool:
    """By the paired comparison; without one, by intervals that do not meet, which is stricter."""
    return paired["low"] > 0 and paired["p"] < SIGNIFICANT if paired else line["low"] > other["high"]


def gains_on(line: Line, base: Line) -> bool:
    """Whether an arm gained on the same model unsteered."""
    return is_above(line, base, gain(line, base))


def too_few(base: Line) -> str | None:
    """What the sample is too small for, in words; None if it is large enough."""
    return sample_size_in_words(base["n"], base["accuracy"])
