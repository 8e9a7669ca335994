"""What benchmarks/diagnosis.py runs: configurations of the zoo, how each is made, and the gain that it truly brings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from aligner_cases import Transfer, shows
from torch import Tensor

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.core import read
from unlock_lens.core.contrast import Contrast
from unlock_lens.core.tokens import paired_tokens
from unlock_lens.method.align import proportional_layer
from unlock_lens.zoo.family import MIXES, answer

RANKS = (1, 4, 8, 16, 24, 32, 48, 64)
N_PAIRS = (4, 16, 64, 200)
N_TEXTS = (20, 100, 600)
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
CALIBRATIONS = {"text": 0.3, "prompts": 0.2, "without": 0.2, "paper": 0.15, "locked": 0.15}
LAYER_MAPS = {"proportional": 0.6, "later": 0.1, "earlier": 0.1, "last": 0.1, "reversed": 0.1}
CAPABILITIES = ("think", "reverse", "double", "post")
BOTH_WAYS = (("large", "small"), ("small", "large"))
PAIRS = (
    *((s, t, c) for s, t in (("large-base", "small-base"), ("small-base", "large-base")) for c in CAPABILITIES),
    *((s, "small-naive", c) for s in ("large-base", "small-base") for c in CAPABILITIES),
    ("large-duo", "small-duo", "think"),
    ("small-duo", "large-duo", "think"),
    *((f"{s}-{m}", f"{t}-{m}", c) for m in ("base-2", "varied") for s, t in BOTH_WAYS for c in CAPABILITIES[:3]),
    *((s, t, c) for s, t in (("small-gpt2", "large-base"), ("small-base", "small-gpt2")) for c in CAPABILITIES[:3]),
)
FAKES = ("minus", "noise", "states", "halves", "wrong", "shuffled")
"""What takes the place of a true source direction, or of a true map."""
FAKE_PAIRS = tuple((f"{s}-{m}", f"{t}-{m}") for m in ("base", "varied") for s, t in BOTH_WAYS)
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
    fake: str = ""

    @property
    def development(self) -> bool:
        return self.target == DEVELOPMENT and not self.fake


def adversarial() -> list[Case]:
    """Sources without the capability, and maps of tokens paired at random, each with a calibration that would otherwise do."""
    capabilities = ("think", "double")
    return [
        Case(*pair, capability, "text", max(N_TEXTS), 48, max(N_PAIRS), "proportional", fake)
        for fake in FAKES
        for pair in FAKE_PAIRS
        for capability in capabilities
    ]


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
        self.locked_states = cache(self._locked_states)
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

    def direction(self, case: Case) -> ul.CapabilityDirection:
        """The source's, or what a fake case has in its place."""
        true = self.contrast(case.source, case.capability).first(case.n_pairs).direction()
        if case.fake == "minus":
            return -true
        if case.fake == "noise":
            return controls.random_like(true, self.seed)
        if case.fake == "states":
            return controls.noise_of_states(true, self.states(case)[0], self.seed)
        if case.fake == "halves":
            return controls.halves(true, self.locked_states(case.source), self.seed)
        if case.fake == "wrong":
            return self.contrast(case.source, "reverse").direction()
        return true

    def states(self, case: Case) -> tuple[Tensor, Tensor]:
        """Of the calibration texts through both models, at the tokens that they have in common."""
        without = case.behaviour if case.calibration == "without" else None
        asked = case.capability if case.calibration == "prompts" else None
        source, target, counts = self.captured(case.source, case.target, case.calibration, case.mix, without, asked)
        n = sum(counts[: case.n_texts])
        return source[:, :n], target[:, :n]

    def _captured(
        self, source: str, target: str, calibration: str, mix: str, without: str | None, asked: str | None
    ) -> tuple[Tensor, Tensor, list[int]]:
        texts = self._texts(calibration, mix, without, asked)
        variants = ul.Variant(model(source), texts), ul.Variant(model(target), texts)
        tokens = paired_tokens(*variants, "last" if calibration == "paper" else "all")
        found = [read.states(read.Picked(v, t), how=read.How(BATCH)) for v, t in zip(variants, tokens, strict=True)]
        return found[0], found[1], [len(of_text) for of_text in tokens[0]]

    def _locked_states(self, name: str) -> Tensor:
        return read.at_position(ul.Variant(model(name), self.tasks["extract"].direct), batch_size=BATCH)

    def _texts(self, calibration: str, mix: str, without: str | None, asked: str | None) -> list[str]:
        task = self.tasks["calibrate"]
        if asked:
            unlocked = task.direct if asked == "post" else task.prompts(asked)
            return [prompt for pair in zip(task.direct, unlocked, strict=True) for prompt in pair]
        if calibration in ("paper", "locked"):
            return task.direct
        if without is None:
            return zoo.text(max(N_TEXTS), seed=self.seed, mix=mix)
        drawn = zoo.text(5 * max(N_TEXTS), seed=self.seed, mix=mix)
        return [text for text in drawn if not shows(text, without, MIXES[mix].openings)][: max(N_TEXTS)]

    def aligner(self, case: Case, states: tuple[Tensor, Tensor]) -> ul.SubspaceAligner:
        paper = case.calibration == "paper"
        chosen = _layer_map(case.layer_map, states[0].shape[0], states[1].shape[0])
        aligner = ul.SubspaceAligner(case.rank, not paper, "last" if paper else "all", layer_map=chosen)
        source, target = states
        if case.fake == "shuffled":
            source = controls.shuffled(source, self.seed)
        return aligner.fit_activations(source, target)

    def cycle(self, case: Case, states: tuple[Tensor, Tensor], direction: ul.CapabilityDirection, forth: Any) -> float:
        """Mean cosine of the direction with itself after the way to the target and back, by maps of the same settings.

        The map back takes each source layer from the first target layer that it went to.
        """
        paper = case.calibration == "paper"
        back = {a: b for b, a in reversed(forth.layer_map.items())}
        aligner = ul.SubspaceAligner(case.rank, not paper, "last" if paper else "all", layer_map=back)
        source, target = states
        source = controls.shuffled(source, self.seed) if case.fake == "shuffled" else source
        cosines = ul.path_cosine(direction, [forth, aligner.fit_activations(target, source)])
        return sum(cosines.values()) / len(cosines)

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


def _layer_map(kind: str, source_layers: int, target_layers: int) -> dict[int, int]:
    usual = {b: proportional_layer(b, source_layers, target_layers) for b in range(target_layers)}
    if kind == "reversed":
        return {b: usual[target_layers - 1 - b] for b in usual}
    if kind == "last":
        return dict.fromkeys(usual, source_layers - 1)
    shift = {"later": 1, "earlier": -1}.get(kind, 0)
    return {b: min(max(a + shift, 0), source_layers - 1) for b, a in usual.items()}
