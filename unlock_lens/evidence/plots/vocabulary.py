"""The arms of a sweep: what each is called, what it is for, and how it is drawn, the same in every figure and table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from unlock_lens.evidence.results import POST_TRAINED, PROMPTED, TRANSFERRED, Line

Role = Literal["transferred", "unsteered", "reference", "rival"]


@dataclass(frozen=True)
class Arm:
    """One way to run the target.

    Attributes:
        label: a few characters, for axes.
        meaning: a sentence, for tables and hover texts.
        role: a transfer must beat "unsteered" and every "rival"; a "reference" only puts it in proportion.
        colour, dash, symbol: any one of the three tells lines apart.
    """

    label: str
    meaning: str
    role: Role
    colour: str
    dash: str = "solid"
    symbol: str = "circle"


ACCENT, CONTRARY, GREEN, PURPLE, OCHRE, GREY = "#1b74c8", "#c8560e", "#0c8a66", "#a8589a", "#96700a", "#7a7f87"
"""At least 3:1 against white and against the dark page, and apart for colour-blind readers (from Okabe and Ito's)."""

ARMS: Mapping[str, Arm] = {
    TRANSFERRED: Arm("transferred", "the source's direction, aligned to the target", "transferred", ACCENT),
    "unsteered": Arm("unsteered", "the target with locked prompts, unsteered", "unsteered", GREY, "solid", "diamond-open"),
    PROMPTED: Arm("prompted", "the target asked for it in the prompt, unsteered", "reference", OCHRE, "dot", "diamond"),
    POST_TRAINED: Arm("post-trained", "the target's own unlocked model", "reference", OCHRE, "dot", "diamond-wide"),
    "own": Arm("own direction", "the target's own direction, no transfer", "reference", GREEN, "dash", "square"),
    "paper": Arm("paper's way", "the source's direction, the paper's calibration", "reference", PURPLE, "dashdot", "star"),
    "without_mean": Arm(
        "without mean", "the transferred direction without its part along the target's mean state",
        "reference", ACCENT, "dot", "circle-open",
    ),
    "forced_1": Arm(
        "first token", "the unsteered target after the steered run's first token", "reference", GREY, "dot", "circle-dot"
    ),
    "forced_3": Arm("first 3 tokens", "the same with the first 3 tokens", "reference", GREY, "dot", "square-dot"),
    "forced_8": Arm("first 8 tokens", "the same with the first 8 tokens", "reference", GREY, "dot", "diamond-dot"),
    "same_end": Arm(
        "same last token", "a contrast of prompts that end on one token", "reference", GREEN, "dot", "square-open"
    ),
    "placebo": Arm(
        "placebo", "a contrast that ends as the unlocked prompts do, and asks nothing", "rival", PURPLE, "dot", "star-open"
    ),
    "wrong": Arm("wrong capability", "another capability's direction through the same map", "rival", GREY, "dash", "hexagram"),
    "minus": Arm("minus direction", "the transferred direction, sign reversed", "rival", CONTRARY, "dot", "triangle-down-open"),
    "null": Arm("null source", "noise or halves of the locked prompts, through the map", "rival", GREY, "dot", "cross-thin"),
    "random": Arm("random", "a random direction of the same norm", "rival", GREY, "dot", "x"),
    "shuffled": Arm("shuffled", "the same, through a map of tokens paired at random", "rival", GREY, "dash", "cross"),
    "anti_mean": Arm(
        "anti-mean", "away from the target's mean locked state, no source at all", "rival", CONTRARY, "dash", "triangle-down"
    ),
    "own_at_price": Arm(
        "own, same KL", "the target's own direction at the strength that costs as much",
        "reference", GREEN, "dash", "square-dot",
    ),
    "random_at_price": Arm(
        "random, same KL", "a random direction at the strength that costs as much", "rival", GREY, "dot", "x-open"
    ),
    "anti_mean_at_price": Arm(
        "anti-mean, same KL", "anti-mean at the strength that costs as much", "rival", CONTRARY, "dash", "triangle-down-dot"
    ),
    "unaligned": Arm("unaligned", "the source's direction with no fitted map", "rival", GREY, "longdash", "triangle-up"),
    "naive": Arm(
        "naive target", "the same transfer into a target that never learned it, where it must fail",
        "rival", OCHRE, "longdash", "hourglass",
    ),
    "naive_unsteered": Arm("naive, unsteered", "the naive target, unsteered", "reference", OCHRE, "dot", "hourglass-open"),
}  # fmt: skip

ALIGNERS: Mapping[str, str] = {
    "text": "calibrated on ordinary text",
    "paper": "the paper's calibration",
    "prompts": "calibrated on the prompts",
}


def arm(name: str) -> Arm:
    """What is known of an arm; an unknown one counts as a rival, which is the strict reading."""
    return ARMS.get(name) or Arm(name.replace("_", " "), "a control of this sweep", "rival", GREY, "longdashdot", "pentagon")


def in_order(names: Iterable[str]) -> list[str]:
    """Arms as they are always listed: the transfer, the unsteered target, references, rivals."""
    known = list(ARMS)
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def aligner_label(name: str | None) -> str:
    """An aligner in words."""
    return ALIGNERS.get(name or "", f"aligner {name}")


def text_first(aligner: str | None) -> tuple[bool, str]:
    """The order in which aligners are listed."""
    return aligner != "text", aligner or ""


def n_seeds(lines: Iterable[Line]) -> int:
    """How many different seeds the lines were run with."""
    return len({line["config"].get("seed") for line in lines})
