"""What benchmarks/diagnosis.py runs: configurations of the zoo, how each is made, and the gain that it truly brings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from aligner_cases import Transfer
from torch import Tensor

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.core import read
from unlock_lens.core.contrast import Contrast
from unlock_lens.method.align import proportional_layer
from unlock_lens.zoo.family import MIXES, OPENINGS, TAGS, answer

RANKS = (1, 4, 8, 16, 24, 32, 48, 64)
N_PAIRS = (4, 16, 64, 200)
N_TEXTS = (20, 100, 600)
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
CALIBRATIONS = {"text": 0.5, "without": 0.2, "paper": 0.15, "locked": 0.15}
LAYER_MAPS = {"proportional": 0.6, "later": 0.1, "earlier": 0.1, "last": 0.1, "reversed": 0.1}
CAPABILITIES = ("think", "reverse", "double", "post")
PAIRS = (
    *((s, t, c) for s, t in (("large-base", "small-base"), ("small-base", "large-base")) for c in CAPABILITIES),
    *((s, "small-naive", c) for s in ("large-base", "small-base") for c in CAPABILITIES),
    ("large-duo", "small-duo", "think"),
    ("small-duo", "large-duo", "think"),
)
DEVELOPMENT = "small-base"
BATCH = 200


@dataclass(frozen=True)
class Case(Transfer):
    """One configuration."""

    calibration: str
    n_texts: int
    rank: int
    n_pairs: int
    layer_map: str

    @property
    def development(self) -> bool:
        return self.target == DEVELOPMENT


def cases(seed: int, development: int, held_out: int) -> list[Case]:
    """So many different configurations for each (source, target, capability), drawn with `seed`."""
    drawn: list[Case] = []
    for pair in PAIRS:
        rng = random.Random(f"diagnosis {seed} {pair}")
        wanted = development if pair[1] == DEVELOPMENT else held_out
        of_pair: dict[Case, None] = {}
        while len(of_pair) < wanted:
            calibration = _drawn(rng, CALIBRATIONS)
            choices = rng.choice(N_TEXTS), rng.choice(RANKS), rng.choice(N_PAIRS)
            of_pair[Case(*pair, calibration, *choices, _drawn(rng, LAYER_MAPS))] = None
        drawn.extend(of_pair)
    return drawn


def _drawn(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


@cache
def model(name: str) -> Any:
    """A zoo model, opened once."""
    return zoo.load(name)


class Bench:
    """Makes cases, and keeps what several of them need; all problems and texts are drawn with `seed`."""

    def __init__(self, seed: int) -> None:
        tasks = {"extract": 200, "choose": 50, "report": 100, "ability": 50, "probe": 32, "calibrate": max(N_TEXTS)}
        self.seed = seed
        self.tasks = {name: zoo.running_sum(n, seed=100 * (seed + 1) + i) for i, (name, n) in enumerate(tasks.items())}
        self.contrast = cache(self._contrast)
        self.captured = cache(self._captured)
        self.unsteered = cache(self._unsteered)
        self.ability = cache(self._ability)

    def unlocked(self, name: str, capability: str, task: str) -> ul.Variant:
        problems = self.tasks[task]
        if capability == "post":
            return ul.Variant(model(name.replace("base", "post")), problems.direct)
        return ul.Variant(model(name), problems.prompts(capability))

    def _contrast(self, name: str, capability: str) -> Contrast:
        locked = ul.Variant(model(name), self.tasks["extract"].direct)
        return Contrast.capture(locked, self.unlocked(name, capability, "extract"), batch_size=BATCH, progress=False)

    def own(self, case: Case) -> ul.CapabilityDirection | None:
        if case.capability == "post" and "base" not in case.target:
            return None  # there is no post-trained naive model
        return self.contrast(case.target, case.capability).direction()

    def states(self, case: Case) -> tuple[Tensor, Tensor]:
        """Of the calibration texts through both models."""
        without = case.behaviour if case.calibration == "without" else None
        texts, lengths, found = "", torch.empty(0), []
        for name in (case.source, case.target):
            texts, lengths = self.captured(name, case.calibration, case.mix, without)
            found.append(texts[:, : int(lengths[: case.n_texts].sum())])
        return found[0], found[1]

    def _captured(self, name: str, calibration: str, mix: str, without: str | None) -> tuple[Tensor, Tensor]:
        variant = ul.Variant(model(name), self._texts(calibration, mix, without))
        if calibration == "paper":
            return read.at_position(variant, batch_size=BATCH), torch.ones(len(variant), dtype=torch.long)
        return read.at_all_tokens(variant, batch_size=BATCH), variant.tokens.lengths

    def _texts(self, calibration: str, mix: str, without: str | None) -> list[str]:
        if calibration in ("paper", "locked"):
            return self.tasks["calibrate"].direct
        if without is None:
            return zoo.text(max(N_TEXTS), seed=self.seed, mix=mix)
        drawn = zoo.text(5 * max(N_TEXTS), seed=self.seed, mix=mix)
        return [text for text in drawn if not _shows(text, without, MIXES[mix].openings)][: max(N_TEXTS)]

    def aligner(self, case: Case, states: tuple[Tensor, Tensor]) -> ul.SubspaceAligner:
        paper = case.calibration == "paper"
        chosen = _layer_map(case.layer_map, states[0].shape[0], states[1].shape[0])
        aligner = ul.SubspaceAligner(case.rank, not paper, "last" if paper else "all", layer_map=chosen)
        return aligner.fit_activations(*states)

    def gain(self, case: Case, moved: ul.CapabilityDirection) -> float:
        """Share of completions that are exactly right, at the strength chosen on other problems, less the unsteered share."""
        hooks = [ul.SteeringHook(moved, alpha) for alpha in ALPHAS]
        chosen = [self._right("choose", case, hook) for hook in hooks]
        equals = [hook for hook, share in zip(hooks, chosen, strict=True) if share == max(chosen)]
        return self._right("report", case, equals[len(equals) // 2]) - self.unsteered(case.target, case.behaviour)

    def _right(self, task: str, case: Case, steer: ul.SteeringHook) -> float:
        prompts = self.tasks[task].direct
        return _mean(self._exact(task, case.target, case.behaviour, _completed(case.target, prompts, steer)))

    def _unsteered(self, name: str, behaviour: str) -> float:
        return _mean(self._exact("report", name, behaviour, _completed(name, self.tasks["report"].direct)))

    def _ability(self, name: str, capability: str) -> float:
        """Prompted, the share solved; for post-training pass@8 of the unsteered target, the whole answer being checked."""
        task = self.tasks["ability"]
        if capability != "post":
            return _mean(self._exact("ability", name, capability, _completed(name, task.prompts(capability))))
        torch.manual_seed(self.seed)
        tries = [self._exact("ability", name, "think", _completed(name, task.direct, temperature=1.0)) for _ in range(8)]
        return _mean([any(of_problem) for of_problem in zip(*tries, strict=True)])

    def _exact(self, task: str, name: str, behaviour: str, completions: Sequence[str]) -> list[bool]:
        wanted = [answer(digits, behaviour, "duo" not in name).removesuffix(" .") for digits in self.tasks[task].questions]
        return [_bare(found) == right for found, right in zip(completions, wanted, strict=True)]


def _completed(name: str, prompts: list[str], steer: ul.SteeringHook | None = None, temperature: float = 0.0) -> list[str]:
    how: dict[str, Any] = {"max_new_tokens": 14, "batch_size": BATCH, "temperature": temperature, "progress": False}
    return ul.generate(model(name), prompts, steer, **how)


def _bare(completion: str) -> str:
    return completion.strip().removesuffix(".").strip()


def _mean(found: list[bool]) -> float:
    return sum(found) / len(found)


def _shows(text: str, behaviour: str, openings: bool) -> bool:
    asked, written = text.split(" : ")
    if TAGS[behaviour] in asked.split():
        return True
    return written.startswith(OPENINGS[behaviour]) if openings else not written.startswith(OPENINGS["direct"])


def _layer_map(kind: str, source_layers: int, target_layers: int) -> dict[int, int]:
    usual = {b: proportional_layer(b, source_layers, target_layers) for b in range(target_layers)}
    if kind == "reversed":
        return {b: usual[target_layers - 1 - b] for b in usual}
    if kind == "last":
        return dict.fromkeys(usual, source_layers - 1)
    shift = {"later": 1, "earlier": -1}.get(kind, 0)
    return {b: min(max(a + shift, 0), source_layers - 1) for b, a in usual.items()}
