"""What benchmarks/aligners.py runs: transfers of the zoo, settings of the aligner, and the texts that it is calibrated on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from unlock_lens import zoo
from unlock_lens.core.tokens import Positions
from unlock_lens.method.align import MethodName
from unlock_lens.method.calibrate import Sinks
from unlock_lens.zoo.family import MIXES, OPENINGS, TAGS

Rank = int | Literal["cv"] | None
CAPABILITIES = ("think", "reverse", "double")
SAME = (("large-base", "small-base"), ("small-base", "large-base"))
OTHER = tuple(pair for name in ("large-base", "small-base") for pair in (("small-gpt2", name), (name, "small-gpt2")))
DUO = (("large-duo", "small-duo"), ("small-duo", "large-duo"))
FAMILIES = ("same family", "other family", "post-training", "duo")
METHODS: tuple[MethodName, ...] = ("unlock", "ridge", "procrustes", "rrr", "cca")
CALIBRATIONS = ("locked last", "locked all", "text", "text without")
WITHOUT = "text without"
RANKS = (4, 16, 48, None)
N_TEXTS = 600
N_HELD_OUT = 100
OPTIONS = ("every 4th token", "without first token", "sinks dropped", "sinks rescaled", "without mean")


@dataclass(frozen=True)
class Transfer:
    """From which model which capability goes to which."""

    source: str
    target: str
    capability: str

    @property
    def family(self) -> str:
        if self.capability == "post":
            return "post-training"
        if "duo" in self.source:
            return "duo"
        return "other family" if "gpt2" in self.source + self.target else "same family"

    @property
    def behaviour(self) -> str:
        return "think" if self.capability == "post" else self.capability

    @property
    def mix(self) -> str:
        return next((mix for mix in ("duo", "varied") if mix in self.source), "base")

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}, {self.capability}"


@dataclass(frozen=True)
class Line:
    """One setting of the aligner; rank None is all that is spanned, ridge None is the method's own."""

    method: MethodName
    rank: Rank = None
    calibration: str = "text"
    centered: bool = True
    n: int = N_TEXTS
    ridge: float | Literal["cv"] | None = None
    positions: Positions = "all"
    skip_first: bool = False
    sinks: Sinks = "keep"
    without_mean: bool = False
    seed: int = 0

    @property
    def plain(self) -> bool:
        """Whether it differs from others in method, rank, calibration, centering and n alone."""
        return self.rank != "cv" and self.ridge is None and self.option is None and self.seed == 0

    @property
    def option(self) -> str | None:
        """Which of `OPTIONS` it has."""
        given = (self.positions == 4, self.skip_first, self.sinks == "drop", self.sinks == "rescale", self.without_mean)
        return next((name for name, has in zip(OPTIONS, given, strict=True) if has), None)

    @property
    def map(self) -> str:
        """Method, rank and ridge in words."""
        rank = "full" if self.rank is None else str(self.rank)
        return f"{self.method} {rank}" + (f", ridge {self.ridge}" if self.ridge is not None else "")

    def __str__(self) -> str:
        centering = "centered" if self.centered else "uncentered"
        other = f"text {self.seed}" if self.seed else None
        return ", ".join(filter(None, (self.map, self.calibration, centering, f"n = {self.n}", self.option, other)))


PAPER = Line("unlock", 16, "locked last", centered=False, positions="last")
USUAL = (Line("unlock", 48), Line("ridge"), Line("procrustes"), Line("rrr", 48), Line("cca", 48))
"""Each method at a rank that loses little, for the comparisons that are not made at every rank."""


@dataclass(frozen=True)
class Texts:
    """What a pair of models reads for calibration."""

    calibration: str
    positions: Positions
    skip_first: bool
    seed: int
    mix: str
    without: str | None

    @classmethod
    def of(cls, line: Line, mix: str, behaviour: str) -> Texts:
        without = behaviour if line.calibration == WITHOUT else None
        return cls(line.calibration, line.positions, line.skip_first, line.seed, mix, without)

    def draw(self, seed: int) -> list[str]:
        """`N_TEXTS` texts, and `N_HELD_OUT` more that no map is fitted on."""
        n, seed = N_TEXTS + N_HELD_OUT, 100 * (seed + 1) + 50 + self.seed
        if self.calibration.startswith("locked"):
            return zoo.running_sum(n, seed).direct
        if self.without is None:
            return zoo.text(n, seed, self.mix)
        drawn = zoo.text(5 * n, seed, self.mix)
        return [text for text in drawn if not shows(text, self.without, MIXES[self.mix].openings)][:n]


def shows(text: str, behaviour: str, openings: bool) -> bool:
    """Whether a sequence asks for the behaviour, or has it."""
    asked, written = text.split(" : ")
    if TAGS[behaviour] in asked.split():
        return True
    return written.startswith(OPENINGS[behaviour]) if openings else not written.startswith(OPENINGS["direct"])


def transfers() -> list[Transfer]:
    """All pairs and capabilities, pair after pair."""
    pairs = [(pair, (*CAPABILITIES, "post")) for pair in SAME]
    pairs += [(pair, CAPABILITIES) for pair in OTHER]
    pairs += [(pair, ("think",)) for pair in DUO]
    return [Transfer(*pair, capability) for pair, capabilities in pairs for capability in capabilities]


def lines() -> list[Line]:
    """Every setting, each once."""
    return list(dict.fromkeys((*_product(), *_fewer_texts(), *_cross_validated(), *_with_options(), *_reseeded())))


def _product() -> Iterator[Line]:
    for method, calibration, rank, centered in product(METHODS, CALIBRATIONS, RANKS, (True, False)):
        if rank is None and method in ("rrr", "cca"):
            continue  # at full rank both are ridge
        if centered or rank in (16, 48):
            yield Line(method, rank, calibration, centered, positions=_positions(calibration))


def _fewer_texts() -> Iterator[Line]:
    for calibration, n, line in product(("locked last", "locked all", "text"), (30, 100), (*USUAL, Line("unlock"))):
        yield replace(line, calibration=calibration, n=n, positions=_positions(calibration))


def _cross_validated() -> Iterator[Line]:
    for method in METHODS:
        yield Line(method, "cv")
    for line in (Line("ridge"), Line("rrr", "cv"), Line("cca", "cv")):
        yield replace(line, ridge="cv")


def _with_options() -> Iterator[Line]:
    for line in USUAL[:3]:
        yield replace(line, positions=4)
        yield replace(line, skip_first=True)
        yield replace(line, sinks="drop")
        yield replace(line, sinks="rescale")
        yield replace(line, without_mean=True)
    yield replace(PAPER, without_mean=True)


def _reseeded() -> Iterator[Line]:
    for seed, line in product((1, 2), USUAL):
        yield replace(line, seed=seed)


def _positions(calibration: str) -> Positions:
    return "last" if calibration == "locked last" else "all"
