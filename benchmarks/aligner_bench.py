"""How benchmarks/aligners.py measures one setting: states read once, a map, steered completions, cosines, held-out R2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from itertools import product
from typing import Any

import torch
from aligner_cases import CAPABILITIES, N_HELD_OUT, N_TEXTS, USUAL, Line, Texts, Transfer
from torch import Tensor

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.core import read
from unlock_lens.core.contrast import Contrast
from unlock_lens.core.differences import mean_state
from unlock_lens.core.tokens import paired_tokens
from unlock_lens.evidence.evaluation import Outcome

ALPHAS = (0.5, 0.6, 0.4, 0.7, 0.3)
"""Of strengths that bring as much the first is taken."""
ARRIVED = 0.9
"""A share of wanted completions from which a transfer counts as arrived."""
SIZES = {"extract": 200, "choose": 40, "report": 100}
CONTROLS = ("unsteered", "own", "anti-mean", *10 * ("random",), *10 * ("shuffled",))
"""Those that chance has a part in are drawn ten times."""
BATCH = 200
FULL = 10_000  # more than any model here has dimensions
States = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Job:
    """Settings and transfers that share a pair of models and the texts they read; no texts for controls alone."""

    transfers: tuple[Transfer, ...]
    lines: tuple[Line, ...]
    texts: Texts | None

    @property
    def measurements(self) -> int:
        return len(self.transfers) * (len(self.lines) if self.texts else len(CONTROLS))


def jobs(transfers: Sequence[Transfer], lines: Sequence[Line]) -> list[Job]:
    """Everything that is to be measured: pair after pair, text after text, and of these what shares maps together."""
    grouped: dict[tuple[str, str], dict[Texts, dict[str, tuple[dict[Transfer, None], dict[Line, None]]]]] = {}
    for transfer in transfers:
        of_pair = grouped.setdefault((transfer.source, transfer.target), {})
        for line in lines:
            of_texts = of_pair.setdefault(Texts.of(line, transfer.mix, transfer.behaviour), {})
            of_method = of_texts.setdefault(line.method, ({}, {}))
            of_method[0][transfer], of_method[1][line] = None, None
    return [Job((transfer,), (), None) for transfer in transfers] + [
        Job(tuple(of), tuple(settings), texts)
        for of_pair in grouped.values()
        for texts, of_texts in of_pair.items()
        for of, settings in of_texts.values()
    ]


@cache
def model(name: str) -> Any:
    """A zoo model, opened once."""
    return zoo.load(name)


class Bench:
    """Keeps what several settings need; all problems and texts are drawn with `seed`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tasks = {name: zoo.running_sum(n, seed=100 * (seed + 1) + i) for i, (name, n) in enumerate(SIZES.items())}
        self.direction = cache(self._direction)
        self.away_from_mean = cache(self._away_from_mean)
        self.states = lru_cache(maxsize=6)(self._states)

    def run(self, job: Job) -> list[dict[str, Any]]:
        """One row for each setting and transfer of a job."""
        if job.texts is None:
            every = product(job.transfers, enumerate(CONTROLS))
            return [self._control(name, transfer, seed) for transfer, (seed, name) in every]
        fitted: dict[Line, ul.SubspaceAligner] = {}
        rows: list[dict[str, Any]] = []
        for line in job.lines:
            key = line if line.rank == "cv" else replace(line, rank=None)
            if key not in fitted:
                fitted[key] = self._fit(key, job)
            aligner = fitted[key]
            if isinstance(line.rank, int):
                aligner = aligner.at_rank(min(line.rank, aligner.maps.rank))
            told = {"rank_used": aligner.maps.rank, "ridge_used": aligner.ridge_, **self._r2(aligner, job)}
            rows += [self._arrival(aligner, line, transfer) | told for transfer in job.transfers]
        return rows

    def _fit(self, line: Line, job: Job) -> ul.SubspaceAligner:
        assert job.texts
        aligner = ul.SubspaceAligner(
            line.rank or FULL,
            line.centered,
            line.positions,
            line.skip_first,
            method=line.method,
            ridge=line.ridge,
            sinks=line.sinks,
            without_mean=line.without_mean,
        )
        pair = job.transfers[0]
        source, target = (ul.Variant(model(name), ["Q"]).backend.identity for name in (pair.source, pair.target))
        return aligner.fit_activations(*self.states(pair.source, pair.target, job.texts, line.n), source, target)

    def _states(self, source: str, target: str, texts: Texts, n: int) -> States:
        """States of both models at tokens that belong together, of the first n texts, or (0) of those held out."""
        drawn = texts.draw(self.seed)
        chosen = drawn[:n] if n else drawn[N_TEXTS : N_TEXTS + N_HELD_OUT]
        variants = ul.Variant(model(source), chosen), ul.Variant(model(target), chosen)
        tokens = paired_tokens(*variants, texts.positions, texts.skip_first)
        found = [read.states(read.Picked(v, t), how=read.How(BATCH)) for v, t in zip(variants, tokens, strict=True)]
        return found[0], found[1]

    def _r2(self, aligner: ul.SubspaceAligner, job: Job) -> dict[str, float]:
        """On held-out texts like those of the calibration, and on held-out ordinary text, whatever the calibration was."""
        assert job.texts
        pair, ordinary = job.transfers[0], Texts("text", "all", False, 0, job.transfers[0].mix, None)
        alike, plain = (self.states(pair.source, pair.target, texts, 0) for texts in (job.texts, ordinary))
        return {"r2": r2(aligner, alike), "r2_text": r2(aligner, plain)}

    def _arrival(self, aligner: ul.SubspaceAligner, line: Line, transfer: Transfer) -> dict[str, Any]:
        moved = aligner.transport(self.direction(transfer.source, transfer.capability))
        own = None if _unpaired(transfer) else self.direction(transfer.target, transfer.capability)
        told = {
            "cosine": cosine(moved, own) if own else None,
            "mean_cosine": cosine(moved, self.away_from_mean(transfer.target)),
        }
        return {**asdict(transfer), **asdict(line), **told, **self.steered(moved, transfer)}

    def _control(self, name: str, transfer: Transfer, seed: int) -> dict[str, Any]:
        told = {**asdict(transfer), "control": name}
        if name == "unsteered":
            return told | self.judged("report", transfer, None)
        if name == "own" and _unpaired(transfer):
            return told
        return told | self.steered(self._directed(name, transfer, seed), transfer)

    def _directed(self, name: str, transfer: Transfer, seed: int) -> ul.CapabilityDirection:
        if name == "own":
            return self.direction(transfer.target, transfer.capability)
        if name == "shuffled":  # a map whose tokens are paired at random
            texts = Texts.of(USUAL[0], transfer.mix, transfer.behaviour)
            source, target = self.states(transfer.source, transfer.target, texts, N_TEXTS)
            aligner = ul.SubspaceAligner(USUAL[0].rank)
            return aligner.fit_activations(controls.shuffled(source, seed), target).transport(
                self.direction(transfer.source, transfer.capability)
            )
        anti_mean = self.away_from_mean(transfer.target)
        return anti_mean if name == "anti-mean" else controls.random_like(anti_mean, seed)

    def steered(self, direction: ul.CapabilityDirection, transfer: Transfer) -> dict[str, Any]:
        """At the strength that brings most of the wanted behaviour on other problems; and at how many strengths it arrives."""
        hooks = [ul.SteeringHook(direction, alpha) for alpha in ALPHAS]
        shares = [self.judged("choose", transfer, hook)["wanted"] for hook in hooks]
        best = hooks[shares.index(max(shares))]
        told = {"alpha": best.alpha, "window": sum(share >= ARRIVED for share in shares)}
        return self.judged("report", transfer, best) | told

    def judged(self, task: str, transfer: Transfer, steer: ul.SteeringHook | None) -> dict[str, Any]:
        problems, target = self.tasks[task], model(transfer.target)
        completions = ul.generate(target, problems.direct, steer, max_new_tokens=12, batch_size=BATCH, progress=False)
        found = Outcome.of(problems, completions)
        wanted, broken, direct = (found.behaviours[name] for name in (transfer.behaviour, "other", "direct"))
        another = sum(found.behaviours[name] for name in CAPABILITIES if name != transfer.behaviour)
        told = {"wanted": wanted, "another": another, "broken": broken, "direct": direct}
        return told | {"right": round(found.accuracy * found.n), "problems": found.n}

    def _direction(self, name: str, capability: str) -> ul.CapabilityDirection:
        problems = self.tasks["extract"]
        post = capability == "post"
        unlocked = model(name.replace("base", "post") if post else name)
        prompts = problems.direct if post else problems.prompts(capability)
        variants = ul.Variant(model(name), problems.direct), ul.Variant(unlocked, prompts)
        return Contrast.capture(*variants, batch_size=BATCH, progress=False).direction()

    def _away_from_mean(self, name: str) -> ul.CapabilityDirection:
        locked = ul.Variant(model(name), self.tasks["extract"].direct)
        mean = mean_state(locked, how=read.How(BATCH)).float()
        identity = locked.backend.identity
        return ul.CapabilityDirection(-mean, tuple(range(len(mean))), identity.basis, identity)


def cosine(a: ul.CapabilityDirection, b: ul.CapabilityDirection) -> float:
    """Mean over layers."""
    return float(torch.cosine_similarity(a.vectors, b.vectors, dim=1).mean())


def r2(aligner: ul.SubspaceAligner, states: States) -> float:
    """Share of the target's variance about the training mean that the map predicts, mean over layers."""
    maps, found = aligner.maps, list[float]()
    for i, (b, a) in enumerate(maps.layer_map.items()):
        source, target = states[0][a].double(), states[1][b].double()
        mean_s, mean_t = maps.source_mean[i].double(), maps.target_mean[i].double()
        predicted = (source - mean_s) @ maps.dense(b).double() + mean_t if aligner.centered else source @ maps.dense(b).double()
        found.append(1 - float((target - predicted).square().sum() / (target - mean_t).square().sum()))
    return sum(found) / len(found)


def _unpaired(transfer: Transfer) -> bool:
    """Whether the target has no unlocked partner of its own."""
    return transfer.capability == "post" and "base" not in transfer.target
