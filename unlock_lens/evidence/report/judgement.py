"""What a sweep shows, in words that a sceptical reader would sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unlock_lens.evidence.plots.vocabulary import arm
from unlock_lens.evidence.report.comparison import REQUIRED, Rival, better, missing, rivals, worse
from unlock_lens.evidence.report.wording import listed, paragraphs, percent, too_few
from unlock_lens.evidence.results import TRANSFERRED, Line, Results

Status = Literal["arrived", "not from the source", "unchecked", "undecided", "did not arrive", "did harm", "unfinished"]


@dataclass(frozen=True)
class Verdict:
    """The judgement on a sweep.

    Attributes:
        status: the judgement in a word or two.
        headline: the judgement as a sentence.
        paragraphs: what speaks for it and against it.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence.report import Verdict
        >>> print(Verdict("arrived", "It arrived.", ("It beats every control.",)))
        It arrived.
        <BLANKLINE>
        It beats every control.
    """

    status: Status
    headline: str
    paragraphs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join((self.headline, *self.paragraphs))


def verdict(results: Results) -> Verdict:
    """Judge a sweep.

    A capability has arrived when the transferred arm beats the unsteered target and every rival on the same questions: the
    95% interval of the paired difference lies above 0, and McNemar's p is below 0.05. Rivals are random, shuffled, anti-mean
    and unaligned directions, each by its best seed, and a target that never learned it; the first three must have been run.
    That is many comparisons, but all have to be won, so more of them make it harder to arrive, and none is corrected for.
    References (the target's own direction, the prompt, the paper's calibration) put the result in proportion and decide
    nothing. A sweep that lacks anything its config asks for is not judged.

    Source: docs/evidence.md.

    Example:
        >>> from unlock_lens.evidence.report import verdict
        >>> from unlock_lens.evidence.results import Results
        >>> line = {"config": {"capability": "think", "control": None}, "split": "train", "accuracy": 0.9}
        >>> verdict(Results({"capability": {"name": "think"}}, (line,))).status
        'unfinished'
    """
    absent = missing(results)
    if absent:
        return Verdict(
            "unfinished",
            f"The sweep is unfinished: the test split has no result yet of {listed(absent)}.",
            (f"{len(results.lines)} configurations are finished; run `unlock-lens sweep` again, it goes on.",),
        )
    arms = results.arms()
    against = rivals(arms)
    status = _status(arms, against)
    name = f"“{results.capability}”" if results.capability else "The capability"
    return Verdict(status, f"{name} {_headline(status, arms, against)}.", paragraphs(results, arms, against))


def _status(arms: Mapping[str, Line], against: Sequence[Rival]) -> Status:
    main, base = arms[TRANSFERRED], arms["unsteered"]
    if worse(main, base):
        return "did harm"
    if not better(main, base):
        return "undecided" if too_few(base) else "did not arrive"
    unbeaten = [rival for rival in against if not rival.beaten]
    if any(rival.gains for rival in unbeaten):
        return "not from the source"
    if unbeaten:
        return "undecided"
    return "unchecked" if _unchecked(arms) else "arrived"


def _headline(status: Status, arms: Mapping[str, Line], against: Sequence[Rival]) -> str:
    """What is said of the capability's name."""
    change = f"right answers go from {percent(arms['unsteered'])} to {percent(arms[TRANSFERRED])}"
    if status == "arrived":
        return f"arrived: {change}, and {_beats_all(arms, against)}{_doubt(arms)}"
    if status == "not from the source":
        best = _best([rival for rival in against if rival.gains and not rival.beaten])
        return f"cannot be credited to the source: {change}, but {_reaches(best)} as well"
    if status == "unchecked":
        absent = _unchecked(arms)
        were = "was" if len(absent) == 1 else "were"
        return f"is unchecked: {change}, but {listed(absent)} {were} not run, so the source cannot be credited with it"
    if status == "undecided":
        gained = better(arms[TRANSFERRED], arms["unsteered"])
        equals = [arm(rival.name).label for rival in against if not rival.beaten] if gained else ["the unsteered target"]
        return f"is undecided: {change}, which is not told apart from {listed(equals)}"
    if status == "did harm":
        return f"did not arrive, and steering did harm: {change}"
    return f"did not arrive: {change}, no more than chance would change"


def _doubt(arms: Mapping[str, Line]) -> str:
    """What a reader of the headline alone must know all the same."""
    left = arms.get("without_mean")
    if left is None or better(left, arms["unsteered"]):
        return ""
    return "; but it lives by its part along the target's mean state, without which nothing of it is left"


def _unchecked(arms: Mapping[str, Line]) -> list[str]:
    return [arm(name).label for name in REQUIRED if name not in arms]


def _beats_all(arms: Mapping[str, Line], against: Sequence[Rival]) -> str:
    best = _best(against)
    middle = (arms["unsteered"]["accuracy"] + arms[TRANSFERRED]["accuracy"]) / 2
    near = "no control comes near" if best.line["high"] < middle else "it beats every control"
    return f"{near} ({_reaches(best)} at most)"


def _best(against: Sequence[Rival]) -> Rival:
    return max(against, key=lambda rival: rival.line["accuracy"])


def _reaches(rival: Rival) -> str:
    return f"{arm(rival.name).label} reaches {percent(rival.line)}"
