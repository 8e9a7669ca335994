"""The demonstration: capabilities transferred within the embedded family, both ways between its sizes, with controls.

Rank and strength of every arm, controls included, are chosen on other problems than those that are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from tqdm.auto import tqdm

from unlock_lens import zoo
from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.generation import generate
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant
from unlock_lens.evidence import controls
from unlock_lens.evidence.evaluation import Outcome

PAIRS = (("large", "small"), ("small", "large"))
BEHAVIOURS_TO_TRANSFER = ("think", "reverse", "double")
ALPHAS = (0.4, 0.5, 0.6, 0.7)
RANKS = (16, 32, 48, 64)
PAPER_RANKS = (1, 4, 16, 64)
_BATCH = 200
_LONGEST_ANSWER = 12


@dataclass(frozen=True)
class Arm:
    """One way of running the target, and what came of it."""

    outcome: Outcome
    rank: int | None = None
    alpha: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.outcome), "rank": self.rank, "alpha": self.alpha}


@dataclass(frozen=True)
class Transfer:
    """A capability moved from one model into another, with its controls."""

    capability: str
    source: str
    target: str
    backend: str
    arms: Mapping[str, Arm]

    def to_json(self) -> dict[str, Any]:
        chosen = self.arms["transferred"]
        told = {"capability": self.capability, "source": self.source, "target": self.target, "backend": self.backend}
        return {
            **told,
            "rank": chosen.rank,
            "alpha": chosen.alpha,
            "arms": {name: arm.to_json() for name, arm in self.arms.items()},
        }


@dataclass(frozen=True)
class Specificity:
    """Which behaviours a transferred direction brings."""

    capability: str
    source: str
    target: str
    arm: Arm

    def to_json(self) -> dict[str, Any]:
        told = {"capability": self.capability, "source": self.source, "target": self.target}
        return {**told, "behaviours": dict(self.arm.outcome.behaviours), "rank": self.arm.rank, "alpha": self.arm.alpha}


@dataclass(frozen=True)
class Demo:
    """All that the demonstration found."""

    transfers: tuple[Transfer, ...]
    specificity: tuple[Specificity, ...]

    def to_json(self) -> dict[str, Any]:
        return {"transfers": [t.to_json() for t in self.transfers], "specificity": [s.to_json() for s in self.specificity]}


Candidates = Iterable[tuple[int | None, CapabilityDirection]]
"""Ranks, and the direction that each gives."""


@dataclass(frozen=True)
class _Bench:
    """A target model, with problems to choose on and problems to report on."""

    target: Any
    choosing: zoo.Task
    reported: zoo.Task

    def run(self, task: zoo.Task, prompts: list[str], steer: SteeringHook | None = None) -> Outcome:
        completions = generate(
            self.target, prompts, steer=steer, max_new_tokens=_LONGEST_ANSWER, batch_size=_BATCH, progress=False
        )
        return Outcome.of(task, completions)

    def unsteered(self, behaviour: str) -> Arm:
        return Arm(self.run(self.reported, self.reported.prompts(behaviour)))

    def best(self, candidates: Candidates, score: Callable[[Outcome], float]) -> Arm:
        """The rank and strength that score best on the problems to choose on, reported on the others.

        Of equals the middle one: both ends of a plateau are close to its edge.
        """
        tried = [
            (score(self.run(self.choosing, self.choosing.direct, SteeringHook(direction, alpha))), alpha, rank, direction)
            for alpha, (rank, direction) in product(ALPHAS, list(candidates))
        ]
        best_score = max(trial[0] for trial in tried)
        equals = [trial for trial in tried if trial[0] == best_score]
        _, alpha, rank, direction = equals[len(equals) // 2]
        return Arm(self.run(self.reported, self.reported.direct, SteeringHook(direction, alpha)), rank, alpha)


def run(backend: str = "transformer_lens", n: int = 200, seed: int = 0, progress: bool = False) -> Demo:
    """Run every transfer of the demonstration.

    Args:
        backend: "transformer_lens" or "nnsight".
        n: number of problems that are reported; half as many others choose rank and strength.
        seed: of all problems and texts.
        progress: whether to show a progress bar.

    Example:
        >>> from unlock_lens.cli import demo
        >>> found = demo.run(n=20)
        >>> found.transfers[0].arms["transferred"].outcome.accuracy > 0.9
        True
    """
    models = {name: zoo.load(name, backend) for name in zoo.MODELS if name.endswith(("base", "post"))}
    calibrating, extracting, choosing, reported = (
        zoo.running_sum(n=k, seed=4 * seed + i) for i, k in enumerate((512, 200, max(n // 2, 1), n))
    )
    text = zoo.text(n=600, seed=seed)
    transfers: list[Transfer] = []
    specificity: list[Specificity] = []
    with tqdm(total=len(PAIRS) * (2 + len(BEHAVIOURS_TO_TRANSFER)), desc="transfers", disable=not progress) as bar:
        for source, target in PAIRS:
            pair = _Pair(models, source, target, backend, text, calibrating, extracting)
            bench = _Bench(models[f"{target}-base"], choosing, reported)
            for capability in ("think", "post-training"):
                transfers.append(pair.transfer(capability, bench))
                bar.update()
            for behaviour in BEHAVIOURS_TO_TRANSFER:
                specificity.append(pair.specificity(behaviour, bench))
                bar.update()
    return Demo(tuple(transfers), tuple(specificity))


class _Pair:
    """Two sizes of the family, aligned on ordinary text and, for comparison, as the paper does."""

    def __init__(
        self,
        models: Mapping[str, Any],
        source: str,
        target: str,
        backend: str,
        text: list[str],
        calibrating: zoo.Task,
        extracting: zoo.Task,
    ) -> None:
        self.models, self.source, self.target, self.backend = models, source, target, backend
        self.extracting = extracting
        self.locked_target = self._variant(target, "base", calibrating.direct)
        self.on_text = SubspaceAligner(rank=max(RANKS), centered=True, positions="all").fit(
            source=self._variant(source, "base", text),
            target=self._variant(target, "base", text),
            batch_size=_BATCH,
            progress=False,
        )
        self.papers = SubspaceAligner(rank=max(PAPER_RANKS)).fit(
            source=self._variant(source, "base", calibrating.direct),
            target=self.locked_target,
            batch_size=_BATCH,
            progress=False,
        )

    def transfer(self, capability: str, bench: _Bench) -> Transfer:
        direction, own = (self._direction(size, capability) for size in (self.source, self.target))
        on_text = self._candidates(self.on_text, RANKS, direction)
        candidates: dict[str, Candidates] = {
            "transferred": on_text,
            "paper": self._candidates(self.papers, PAPER_RANKS, direction),
            "own": [(None, own)],
            "random": [(None, controls.random_like(own))],
            "anti_mean": [(None, controls.anti_mean(self.locked_target, own, batch_size=_BATCH))],
        }
        steered = {name: bench.best(of_arm, lambda outcome: outcome.accuracy) for name, of_arm in candidates.items()}
        arms = {"locked": bench.unsteered("direct"), **steered, "prompted": bench.unsteered("think")}
        return Transfer(capability, f"{self.source}-base", f"{self.target}-base", self.backend, arms)

    def specificity(self, behaviour: str, bench: _Bench) -> Specificity:
        candidates = self._candidates(self.on_text, RANKS, self._direction(self.source, behaviour))
        arm = bench.best(candidates, lambda outcome: outcome.behaviours[behaviour])
        return Specificity(behaviour, f"{self.source}-base", f"{self.target}-base", arm)

    def _direction(self, size: str, capability: str) -> CapabilityDirection:
        locked = self._variant(size, "base", self.extracting.direct)
        if capability == "post-training":
            unlocked = self._variant(size, "post", self.extracting.direct)
        else:
            unlocked = self._variant(size, "base", self.extracting.prompts(capability))
        return CapabilityDirection.extract(locked, unlocked, batch_size=_BATCH, progress=False)

    def _candidates(
        self, aligner: SubspaceAligner, ranks: Iterable[int], direction: CapabilityDirection
    ) -> list[tuple[int | None, CapabilityDirection]]:
        return [(rank, aligner.at_rank(rank).transport(direction)) for rank in ranks if rank <= aligner.maps.rank]

    def _variant(self, size: str, training: str, prompts: list[str]) -> Variant:
        return Variant(self.models[f"{size}-{training}"], prompts)
