"""The verdict on a sweep, in words that a sceptical reader would sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unlock_lens.evidence.plots.vocabulary import arm
from unlock_lens.evidence.report import paragraphs
from unlock_lens.evidence.report.comparisons import (
    COMES,
    MARGIN,
    REQUIRED,
    SIGNIFICANT,
    Arms,
    NullTest,
    Rival,
    asked_of,
    compared,
    gain,
    gains_on,
    is_above,
    left_out_of,
    null_test,
    rivals_of,
    too_few,
)
from unlock_lens.evidence.report.numbers import listed, percent_of, points
from unlock_lens.evidence.results import (
    AT_PRICE,
    GROUPS,
    NAIVE,
    NAIVE_UNSTEERED,
    SEEDED,
    TRANSFERRED,
    UNSTEERED,
    Line,
    Results,
)
from unlock_lens.evidence.statistics import detectable_difference

Status = Literal[
    "arrived", "a small gain", "not from the source", "unchecked", "undecided", "did not arrive", "did harm", "unfinished"
]  # fmt: skip

ENOUGH = 100
"""Test problems below which nothing is said to have arrived."""


@dataclass(frozen=True)
class Verdict:
    """The judgement on a sweep: in a word or two, as a sentence, and what speaks for it and against it, with every number."""

    status: Status
    headline: str
    paragraphs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join((self.headline, *self.paragraphs))


def verdict(results: Results) -> Verdict:
    """Judge a sweep.

    A capability has arrived when, on at least 100 questions, three things hold. (1) The transferred arm beats the unsteered
    target and every rival on the same questions: the 95% interval of the paired difference lies above 0, and McNemar's p is
    below 0.05. Rivals are random, shuffled, anti-mean and unaligned directions, each by its best seed, minus the direction, a
    placebo contrast, other capabilities, and a target that never learned it; the first three must have been run. (2) Sources
    without a capability that went through the same maps, settings and choice seldom do as well: p is at most 0.05
    (`null_test`). (3) The margins are kept: the gain is at least half of what asking gives, no null source reaches half of it
    at the same setting, the naive target gains nothing, and the behaviour that comes is the wanted one. References (the
    target's own direction, the prompt, the paper's calibration) put the result in proportion and decide nothing. A sweep that
    lacks anything its config asks for is not judged.

    Source: Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9 (2010), for p = (1 + b) / (1 + K).
    """
    if absent := _missing(results):
        return Verdict(
            "unfinished",
            f"The sweep is unfinished: the test split has no result yet of {listed(absent)}.",
            (f"{len(results.lines)} configurations are finished; run `unlock-lens sweep` again to resume it.",),
        )
    arms = results.arms()
    against = rivals_of(arms)
    nulls = null_test(results)
    status = _status(results, arms, against, nulls)
    name = f"“{results.capability}”" if results.capability else "The capability"
    found = paragraphs.of(results, arms, against, nulls)
    return Verdict(status, f"{name} {_headline(status, results, arms, against, nulls)}.", found)


def _missing(results: Results) -> list[str]:
    """What the config asks for and the test split lacks, in words; only the provenance says which controls cannot be run."""
    tested, without = results.tested(), left_out_of(results)
    found = [name for name in (TRANSFERRED, UNSTEERED) if name not in tested]
    for name in results.config.get("controls") or ():
        for each in GROUPS.get(name, (name,)) if name not in without else ():
            absent = set(range(_seeds(results, each))) - {line["config"].get("seed", 0) for line in tested.get(each, ())}
            if absent:
                seeds = ", ".join(str(seed) for seed in sorted(absent))
                some = f" (seed{'s' if len(absent) > 1 else ''} {seeds})" if each in tested else ""
                found.append(arm(each).label + some)
    moved = {line["config"].get("capability") for line in results.lines if line["split"] == "test"}
    others = [other["name"] for other in results.config.get("others") or ()]
    found += [f"the capability “{name}”" for name in others if name not in moved]
    if (lacking := results.config.get("nulls", 0) - len(results.nulls())) > 0:
        found.append(f"{lacking} null sources")
    return found


def _seeds(results: Results, name: str) -> int:
    if name == "wrong":
        return len(results.config.get("others") or ())
    return results.config.get("control_seeds", 1) if AT_PRICE.get(name, name) in SEEDED else 1


def _status(results: Results, arms: Arms, against: Sequence[Rival], nulls: NullTest | None) -> Status:
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    paired = gain(main, base)
    if paired["high"] < 0 and paired["p"] < SIGNIFICANT if paired else main["high"] < base["low"]:
        return "did harm"
    if not gains_on(main, base):
        return "undecided" if too_few(base) else "did not arrive"
    unbeaten = [rival for rival in against if not rival.beaten]
    if any(rival.gains for rival in unbeaten):
        return "not from the source"
    if nulls and not nulls.is_rare:
        return "not from the source" if nulls.as_good else "undecided"
    if unbeaten or _doubts(results, arms, nulls):
        return "undecided"
    if _unchecked(arms, nulls):
        return "unchecked"
    return "a small gain" if _is_small(arms) else "arrived"


def _unchecked(arms: Arms, nulls: NullTest | None) -> list[str]:
    return [arm(name).label for name in REQUIRED if name not in arms] + ([] if nulls else ["null sources"])


def _is_small(arms: Arms) -> bool:
    """Whether the gain is less than half of what asking gives."""
    asked, base = asked_of(arms), arms[UNSTEERED]["accuracy"]
    return asked is not None and arms[TRANSFERRED]["accuracy"] - base < MARGIN * (asked["accuracy"] - base)


def _doubts(results: Results, arms: Arms, nulls: NullTest | None) -> list[str]:
    """What stands between a gain and an arrival, in words."""
    main, base, name = arms[TRANSFERRED], arms[UNSTEERED], results.capability or ""
    found: list[str] = []
    if main["n"] < ENOUGH:
        found.append(f"{main['n']} test questions are too few ({ENOUGH} are needed)")
    if nulls and nulls.best - base["accuracy"] > MARGIN * (main["accuracy"] - base["accuracy"]):
        found.append(f"a source without a capability reaches {nulls.best:.1%} at the same setting")
    if NAIVE in arms and gains_on(arms[NAIVE], arms.get(NAIVE_UNSTEERED, base)):
        found.append("the naive target, which never learned it, gains too")
    shares, before = (line.get("behaviours") or {} for line in (main, base))
    grown = {behaviour: share - before.get(behaviour, 0.0) for behaviour, share in shares.items()}
    if name in grown and (other := max(grown, key=lambda behaviour: grown[behaviour])) != name and grown[other] > COMES:
        found.append(f"the behaviour that comes is “{other}”")
    return found


def _headline(status: Status, results: Results, arms: Arms, against: Sequence[Rival], nulls: NullTest | None) -> str:
    """What is said of the capability's name."""
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    change = f"right answers go from {percent_of(base)} to {percent_of(main)}"
    better = _asks_better(arms)
    if status == "a small gain":
        return f"gained a little: {change}, less than half of what asking gives ({percent_of(asked_of(arms) or base)})"
    if status == "arrived":
        best = _best(against)
        near = best.line["high"] < (base["accuracy"] + main["accuracy"]) / 2
        beats, left = "no control comes near" if near else "it beats every control", arms.get("without_mean")
        gone = left is not None and not gains_on(left, base)
        doubt = "; but nothing of it is left without the direction's part along the target's mean state" if gone else ""
        rare = f", and {_as_good(nulls)} (p = {nulls.p:.2g})" if nulls else ""
        return f"arrived: {change}, {'' if rare else 'and '}{beats} ({_reaches(best)} at most){rare}{better}{doubt}"
    if status == "not from the source" and nulls and not nulls.is_rare:
        return f"cannot be credited to the source: {change}, but {_as_good(nulls)} (p = {nulls.p:.2g})"
    if status == "not from the source":
        best = _best([rival for rival in against if rival.gains and not rival.beaten])
        return f"cannot be credited to the source: {change}, but {_reaches(best)} as well"
    if status == "unchecked":
        absent = _unchecked(arms, nulls)
        were = "was" if len(absent) == 1 else "were"
        return f"is unchecked: {change}, but {listed(absent)} {were} not run, so the source cannot be credited with it"
    if status == "undecided" and gains_on(main, base) and (doubts := _doubts(results, arms, nulls)):
        return f"is undecided: {change}, but {listed(doubts)}"
    if status == "undecided":
        unbeaten = [arm(rival.name).label for rival in against if not rival.beaten]
        equals = unbeaten if gains_on(main, base) else ["the unsteered target"]
        return f"is undecided: {change}, which cannot be told apart from {listed(equals)}"
    if status == "did harm":
        return f"did not arrive, and steering did harm: {change}"
    return f"did not arrive: {change}, no more than chance would change; {_could_show(base)}"


def _asks_better(arms: Arms) -> str:
    """Said where asking does better, question by question."""
    asked = asked_of(arms)
    if asked is None or not is_above(asked, arms[TRANSFERRED], compared(asked, arms[TRANSFERRED])):
        return ""
    return f"; asking does better ({percent_of(asked)})"


def _could_show(base: Line) -> str:
    """What a sample of this size would have shown, so that absence of evidence is not read as evidence of absence."""
    least = detectable_difference(base["n"], base["accuracy"])
    return (
        f"{base['n']} questions show a gain of {points(least)} points 4 times in 5"
        if least
        else "no gain could have been shown"
    )


def _as_good(nulls: NullTest) -> str:
    does = "do" if nulls.as_good > 1 else "does"
    return f"{nulls.as_good or 'none'} of {nulls.n} sources without a capability {does} as well"


def _best(against: Sequence[Rival]) -> Rival:
    return max(against, key=lambda rival: rival.line["accuracy"])


def _reaches(rival: Rival) -> str:
    return f"{arm(rival.name).label} reaches {percent_of(rival.line)}"
