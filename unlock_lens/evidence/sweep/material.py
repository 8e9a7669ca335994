"""What a sweep works with, captured once: models, problems, contrasts, calibration states, maps, and what they give."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

from torch import Tensor

from unlock_lens import zoo
from unlock_lens.core import read
from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.contrast import Contrast
from unlock_lens.core.differences import mean_state
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.inputs import SLOT, parse_layer_map, parse_layers, read_pairs
from unlock_lens.core.read import How, Picked
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.tokens import one_token, paired_tokens
from unlock_lens.core.transfer import calibration_texts
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence import controls
from unlock_lens.evidence.probe import Probe
from unlock_lens.evidence.results import AT_PRICE, NAIVE, NAIVE_UNSTEERED, NULL, UNSTEERED
from unlock_lens.evidence.sweep.captures import Captures
from unlock_lens.evidence.sweep.config import Capability, Setting, SweepConfig
from unlock_lens.evidence.tasks.problems import Problem, Task
from unlock_lens.evidence.tasks.texts import SelfText
from unlock_lens.hosts import backend_of, shape_of
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.align import RANK

logger = logging.getLogger(__name__)
T = TypeVar("T")
Side = Literal["source", "target", "naive"]
PAPER_RANKS, PAPER_ALPHAS = (1, 4, 16, 64, 128, 256, 512), (0.05, 0.1, 0.2, 0.5)
"""What the paper tries (arXiv:2604.06377), with mean and pca, and n from 4 on."""
NULLS = ("noise", "states", "halves")
"""Kinds of sources without a capability, in turn."""
SHORT = 20
"""Characters below which a question may stand in a text by chance."""
PROBED = 32
"""Train prompts whose first tokens a forecast looks at."""


class Material:
    """Opens what a config names, checks it against the models, and captures each thing when it is first needed."""

    def __init__(self, config: SweepConfig, progress: bool = True) -> None:
        self.config, self.progress = config, progress
        self.shapes = self._shapes()
        self._check_ranges()
        self.splits = config.task.splits(config.sizes, config.seed)
        self.leaking = 0
        self._check_others()
        self._check_pairs()
        self._check_demonstrations()
        self.texts = self._calibration()
        self.unrelated = config.unrelated.read(config.seed + 1) if config.unrelated else None
        self._made: dict[Hashable, Any] = {}
        self.kept: Captures | None = None
        self.source, self.target = self.model(config.source), self.model(config.target)
        self.left_out = self._controls_left_out()

    @property
    def how(self) -> Mapping[str, Any]:
        """How models are run, as `generate` and everything that measures take it."""
        return {"batch_size": self.config.batch_size, **self._tokens}

    @property
    def _tokens(self) -> Mapping[str, Any]:
        return {"add_special_tokens": self.config.special_tokens, "remote": self.config.where}

    def asked(self, model: Any, task: Task, capability: Capability | None = None, unlocked: bool = False) -> Variant:
        """The locked or the unlocked prompts of a task's problems; those of the swept capability unless another is given."""
        return (capability or self.config.capability).asked(model, task.questions, unlocked, **self._tokens)

    @property
    def controls(self) -> list[str]:
        """Those that the config asks for and that can be run here."""
        return [name for name in self.config.controls if name not in self.left_out]

    def model(self, name: str) -> Any:
        config = self.config
        how = config.backend, config.dtype, config.where, config.device
        return self.once(("model", name), lambda: zoo.named(name, *how))

    def baseline(self, setting: Setting) -> Setting:
        """The unsteered run that a steered one is paired with: of the same model, on the same locked prompts."""
        swept = self.config.capability
        same = self.capability(setting.capability).plain == swept.plain
        return Setting(swept.name if same else setting.capability, NAIVE_UNSTEERED if setting.control == NAIVE else UNSTEERED)

    def capability(self, name: str) -> Capability:
        return next(c for c in (self.config.capability, *self.config.others) if c.name == name)

    def steer(self, setting: Setting) -> SteeringHook:
        """The hook of a steered setting."""
        if setting.alpha is None or setting.operation is None or setting.positions is None:
            raise InvalidInput(f"{setting} is a baseline, which is not steered")
        layers = parse_layers(setting.layers)
        return SteeringHook(self.direction(setting), setting.alpha, setting.operation, setting.positions, layers)

    def direction(self, setting: Setting) -> CapabilityDirection:
        """The direction of a setting, in the residual stream of the model that it steers."""
        where = replace(setting, alpha=None, operation=None, positions=None, layers=None)
        return self.once(("direction", where), lambda: self._direction(where))

    def source_direction(self, setting: Setting) -> CapabilityDirection:
        """Before transport."""
        return self.contrast("source", setting).direction(setting.aggregate or "mean")

    def own_direction(self, setting: Setting) -> CapabilityDirection:
        """The target's own, at all of its layers."""
        return self.contrast("target", setting).direction(setting.aggregate or "mean")

    def aligner(self, setting: Setting, to: Side = "target", shuffled: int | None = None) -> SubspaceAligner:
        """The map of a setting: fitted once at the largest rank, of which smaller ones are a part.

        `shuffled` is the seed of the control of that name.
        """
        n = None if setting.aligner == "text" else setting.n
        pca = setting.aligner == "paper" and setting.aggregate == "pca"
        key = ("aligner", setting.aligner, n, setting.layer_map, setting.method, pca, to, shuffled)
        full = self.once(key, lambda: self._fitted(setting, to, shuffled))
        return full.at_rank(min(setting.rank or full.rank_, full.rank_))

    def contrast(self, side: Side, setting: Setting) -> Contrast:
        """The differences of the first n questions, in the source or (for the control "own") in the target."""
        position = _position(setting)
        key = ("contrast", side, setting.capability, position)
        whole: Contrast = self.once(key, lambda: self._captured_contrast(side, setting.capability, position))
        return whole.first(setting.n or len(whole))

    @property
    def probed(self) -> Task:
        """The train problems whose first tokens a forecast looks at."""
        return self.splits.train.first(min(PROBED, len(self.splits.train)))

    def probe(self, setting: Setting) -> Probe:
        """How the steered target starts on train prompts, compared with the source's unlocked variant."""
        task = self.probed
        capability = self.capability(setting.capability)
        unlocked = self.model(capability.source_unlocked) if capability.source_unlocked else self.source
        return Probe.run(
            self.direction(replace(setting, control=None)),
            self.asked(self.target, task, capability),
            self.asked(unlocked, task, capability, unlocked=True),
            alphas=self.config.grid.alpha,
            batch_size=self.config.batch_size,
            hook=lambda alpha: self.steer(replace(setting, alpha=alpha)),
            nulls=[self.direction(replace(setting, control=NULL, seed=seed)) for seed in range(self.config.nulls)],
            example=(self.source_direction(setting), self.asked(self.source, task, capability)),
        )

    def states(self, side: Side, calibration: str, n: int | None, to: Side = "target") -> Tensor:
        """Calibration states of all layers, [layer, token, d_model], at the tokens that source and `to` have in common."""
        source, target = self._calibrating("source", calibration), self._calibrating(to, calibration)
        like = self._unfitted(calibration, None)
        tokens = self.once(("tokens", calibration, to), lambda: paired_tokens(source, target, like.positions, like.skip_first))
        own = 0 if side == "source" else 1
        chosen, how = Picked((source, target)[own], tokens[own]), How(self.config.batch_size, progress=self.progress)
        whole = self.read_once(("states", side, calibration, to), lambda: read.states(chosen, how=how))
        return whole[:, : sum(len(of_text) for of_text in tokens[own][: self._n_texts(calibration, n)])]

    def _n_texts(self, calibration: str, n: int | None) -> int | None:
        """How many of the calibration's texts belong to n questions; None for all."""
        if calibration == "text" or n is None:
            return None
        return 2 * n if calibration == "prompts" and self._both_sides else n

    @property
    def _both_sides(self) -> bool:
        """Whether locked and unlocked prompts differ."""
        return self.config.capability.asks or self.config.capability.pairs is not None

    def _mean_locked(self, layers: Sequence[int]) -> Tensor:
        """The target's mean state at the end of the locked prompts that directions are extracted from."""
        locked, how = self._calibrating("target", "prompts"), How(self.config.batch_size)
        return self.read_once("mean locked", lambda: mean_state(locked, None, -1, how))[list(layers)]

    def _direction(self, setting: Setting) -> CapabilityDirection:
        if setting.control in AT_PRICE:
            return self.direction(replace(setting, control=AT_PRICE[setting.control]))
        if setting.control in (None, "paper"):
            return self.aligner(setting).transport(self.source_direction(setting))
        if setting.control == NAIVE:
            return self.aligner(setting, "naive").transport(self.source_direction(setting))
        if setting.control == "own":
            own = self.own_direction(setting)
            mapped = parse_layer_map(setting.layer_map or "proportional")
            return own.at_layers(list(mapped)) if mapped else own  # where the transfer acts too
        if setting.control in ("placebo", "same_end"):
            return self.aligner(setting).transport(self._source_contrast(setting).direction(setting.aggregate or "mean"))
        if setting.control == "wrong":
            other = replace(setting, capability=self.config.others[setting.seed].name)
            return self.aligner(setting).transport(self.source_direction(other))
        if setting.control == NULL:
            return self.aligner(setting).transport(self._null_source(setting))
        transferred = self.direction(replace(setting, control=None, seed=0))
        if setting.control == "minus":
            return -transferred
        if setting.control == "random":
            return controls.random_like(transferred, self._drawn(setting.seed))
        if setting.control == "anti_mean":
            return controls.away_from(self._mean_locked(transferred.layers), transferred)
        if setting.control == "without_mean":
            return controls.projected_out(self._mean_locked(transferred.layers), transferred)
        source = self.source_direction(setting)
        if setting.control == "shuffled":
            drawn = self.aligner(setting, shuffled=self._drawn(setting.seed)).transport(source)
        else:
            drawn = controls.unaligned(source, self.aligner(setting).layer_map, backend_of(self.target).identity)
        return controls.at_norms_of(drawn, transferred)

    def _drawn(self, seed: int) -> int:
        """The seed of a random control: the config's seed counts too."""
        return seed + 1000 * self.config.seed

    def _null_source(self, setting: Setting) -> CapabilityDirection:
        """A source direction without a capability."""
        like = self.source_direction(setting)
        kind, seed = NULLS[setting.seed % len(NULLS)], self._drawn(setting.seed)
        if kind == "noise":
            return controls.random_like(like, seed)
        if kind == "halves":
            return controls.halves(like, self._locked_states(setting), seed)
        return controls.noise_of_states(like, self.states("source", setting.aligner or "text", None), seed)

    def _locked_states(self, setting: Setting) -> Tensor:
        """The source's states at the end of its locked prompts, at all layers."""
        locked = self._calibrating("source", "paper")
        tokens = one_token(locked, _position(setting))
        how = How(self.config.batch_size, progress=self.progress)
        return self.read_once(("locked states", setting.position), lambda: read.states(Picked(locked, tokens), how=how))

    def _source_contrast(self, setting: Setting) -> Contrast:
        """The source's contrast of the locked prompts with those of another template."""
        template = getattr(self.config.capability, setting.control or "")
        capability, extract = self.config.capability, self.splits.extract
        other = capability.model_copy(update={"unlocked": template, "pairs": None, "demonstrations": ()})
        locked, unlocked = self.asked(self.source, extract, other), self.asked(self.source, extract, other, unlocked=True)
        position = _position(setting)
        key = ("contrast", setting.control, position)
        whole = self.once(key, lambda: self._captured(locked, unlocked, position, key))
        return whole.first(min(setting.n or len(whole), len(whole)))

    def _fitted(self, setting: Setting, to: Side, shuffled: int | None) -> SubspaceAligner:
        calibration = setting.aligner or "text"
        states = [self.states("source", calibration, setting.n, to), self.states(to, calibration, setting.n, to)]
        if shuffled is not None:
            states[1] = controls.shuffled(states[1], shuffled)
        widest = min(*(held.shape[-1] for held in states), states[0].shape[1])
        most = max(PAPER_RANKS if calibration == "paper" else self.config.grid.rank)
        aligner = self._unfitted(calibration, min(most, widest), setting)
        source, target = (backend_of(self._side(side)).identity for side in ("source", to))
        texts = self._calibrating("source", calibration).prompts[: self._n_texts(calibration, setting.n)]
        return aligner.fit_activations(states[0], states[1], source, target, hash_of(texts))

    def _unfitted(self, calibration: str, rank: int | None, setting: Setting | None = None) -> SubspaceAligner:
        layer_map = parse_layer_map((setting and setting.layer_map) or "proportional")
        if calibration == "paper":
            centered = setting is not None and setting.aggregate == "pca"
            return SubspaceAligner(rank, centered, positions="last", layer_map=layer_map)
        options = self.config.aligner.model_dump()
        return SubspaceAligner(rank, layer_map=layer_map, method=(setting and setting.method) or "unlock", **options)

    def _captured_contrast(self, side: Side, name: str, position: int) -> Contrast:
        capability = self.capability(name)
        unlocked_model = capability.source_unlocked if side == "source" else capability.target_unlocked
        model = self._side(side)
        locked, unlocked = self._contrasted(capability, model, self.model(unlocked_model) if unlocked_model else model)
        return self._captured(locked, unlocked, position, ("contrast", side, name, position))

    def _captured(self, locked: Variant, unlocked: Variant, position: int, key: Hashable) -> Contrast:
        how = {"position": position, "batch_size": self.config.batch_size, "progress": self.progress}
        read_now = partial(Contrast.capture, locked, unlocked, **how)
        found = self.read_once(("differences", key), lambda: read_now().differences)
        return Contrast.of_read(found, locked, unlocked, position=position)

    def _contrasted(self, capability: Capability, locked: Any, unlocked: Any, n: int | None = None) -> tuple[Variant, Variant]:
        """What directions are made from: pairs of prompts, or the extract split in both templates; n of them, or all."""
        if capability.pairs is None:
            extract = self.splits.extract.first(n) if n else self.splits.extract
            return self.asked(locked, extract, capability), self.asked(unlocked, extract, capability, unlocked=True)
        prompts = [side[:n] for side in read_pairs(capability.pairs)]
        whole = capability.model_copy(update={"locked": SLOT, "unlocked": SLOT, "demonstrations": ()})
        return whole.asked(locked, prompts[0], False, **self._tokens), whole.asked(unlocked, prompts[1], True, **self._tokens)

    def _calibrating(self, side: Side, calibration: str) -> Variant:
        """What a map is calibrated on: locked prompts (the paper's), both sides' prompts in turn, or those after ordinary text.

        A map interpolates to states that it has seen, so the unlocked ones must be among them.
        """
        return self.once(("calibrating", side, calibration), lambda: self._to_calibrate(side, calibration))

    def _to_calibrate(self, side: Side, calibration: str) -> Variant:
        capability, model = self.config.capability, self._side(side)
        locked, unlocked = self._contrasted(capability, model, model)
        if calibration == "paper":
            return locked
        if calibration == "text" and isinstance(self.config.calibration, SelfText):
            return Variant(model, self._self_written(self.config.calibration), locked.add_special_tokens, self.config.where)
        sides = (locked.prompts, unlocked.prompts) if self._both_sides else (locked.prompts,)
        prompts = [prompt for pair in zip(*sides, strict=True) for prompt in pair]
        texts = [*(self.texts or ()), *prompts] if calibration == "text" else prompts
        # A chat template has written the special tokens already.
        special = self.config.special_tokens and not capability.chat
        return Variant(model, texts, special, self.config.where)

    def _self_written(self, how: SelfText) -> list[str]:
        """Calibration texts of the extract split, or of prompt pairs."""
        capability = self.config.capability
        unlocked = capability.source_unlocked if how.by == "source" else capability.target_unlocked
        other = self.model(unlocked) if unlocked else self._side(how.by)
        pair = self._contrasted(capability, self._side(how.by), other, how.n)
        budget, config = how.max_new_tokens or self.config.max_new_tokens, self.config
        write = partial(calibration_texts, *pair, budget, config.batch_size, config.stop, self.progress)
        kept = self.kept
        return self.once("self-written", partial(kept.texts, "self-written", write) if kept else write)

    def _side(self, side: Side) -> Any:
        return self.model({"source": self.config.source, "target": self.config.target, "naive": self.config.naive or ""}[side])

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made at the first request."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def read_once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """`once` of what is read from models, which an earlier run of the same sweep may have kept."""
        kept = self.kept
        return self.once(key, partial(kept.tensor, key, make) if kept else make)

    def _calibration(self) -> list[str] | None:
        """The calibration texts, without those that hold a question of the train or test split."""
        if self.config.calibration is None or isinstance(self.config.calibration, SelfText):
            return None
        texts = self.config.calibration.read(self.config.seed)
        asked = [*self.splits.train.questions, *self.splits.test.questions]
        kept = [line for line in texts if not any(question in line for question in asked)]
        self.leaking = len(texts) - len(kept)
        if not kept:
            raise InvalidInput("every calibration text holds a question of the train or test split; give other texts")
        if self.leaking:
            logger.warning(
                "%d of %d calibration texts hold a question of the train or test split, and are left out%s",
                self.leaking,
                len(texts),
                f" (the shortest question is {shortest!r})" if len(shortest := min(asked, key=len)) < SHORT else "",
            )
        return kept

    def _check_others(self) -> None:
        task, others = self.splits.test, [other.name for other in self.config.others]
        if unknown := [name for name in others if name not in task.behaviour_names]:
            known = ", ".join(task.behaviour_names) or "none"
            raise InvalidInput(f"others has {', '.join(unknown)}; the behaviours that {task.name} tells apart are: {known}")

    def _check_pairs(self) -> None:
        for capability in (self.config.capability, *self.config.others):
            if capability.pairs is None:
                continue
            locked, unlocked = read_pairs(capability.pairs)
            if max(self.config.grid.n) > len(locked):
                raise InvalidInput(
                    f"grid.n asks for {max(self.config.grid.n)} prompt pairs, {capability.pairs} has {len(locked)}"
                )
            asked = [*self.splits.train.questions, *self.splits.test.questions]
            if shared := next((q for q in asked if any(q in prompt for prompt in (*locked, *unlocked))), None):
                raise InvalidInput(f"{capability.pairs} contains the train or test question {shared[:60]!r}; remove it")

    def _check_demonstrations(self) -> None:
        asked = {problem.key: problem.question for task in (self.splits.train, self.splits.test) for problem in task.problems}
        for capability in (self.config.capability, *self.config.others):
            for shown in capability.demonstrations:
                text = Problem(f"{shown.question}\n{shown.answer}", shown.answer).key
                if held := next((question for key, question in asked.items() if key in text), None):
                    raise InvalidInput(f"a demonstration contains the train or test question {held[:60]!r}; remove it")

    def _controls_left_out(self) -> dict[str, str]:
        """Controls that cannot be run here, and why."""
        source, target = self.shapes[self.config.source], self.shapes[self.config.target]
        reasons = {
            NAIVE: (self.config.naive is None, "no naive model is named"),
            "unaligned": (source.d_model != target.d_model, f"the widths differ, {source.d_model} and {target.d_model}"),
            "own": (not self.can_ask, "capability.target_unlocked is not named"),
            "wrong": (not self.config.others, "no other capability is named"),
            "placebo": (self.config.capability.placebo is None, "capability.placebo is not named"),
            "same_end": (self.config.capability.same_end is None, "capability.same_end is not named"),
            "at_price": (self.unrelated is None, "no unrelated text is named"),
        }
        return {name: why for name, (lacks, why) in reasons.items() if lacks and name in self.config.controls}

    @property
    def widest(self) -> int:
        """The largest rank that a map between the models can have."""
        return min(self.shapes[name].d_model for name in (self.config.source, self.config.target))

    @property
    def can_ask(self) -> bool:
        """Whether there is an unlocked variant of the target: by its prompt, or a model."""
        capability = self.config.capability
        return capability.asks or capability.target_unlocked is not None

    def _shapes(self) -> dict[str, ModelIdentity]:
        """Depth and width of every model that is named, as their configs say: nothing is loaded for a name that is wrong."""
        capabilities = (self.config.capability, *self.config.others)
        unlocked = [name for each in capabilities for name in (each.source_unlocked, each.target_unlocked)]
        names = (self.config.source, self.config.target, self.config.naive, *unlocked)
        return {name: shape_of(zoo.resolved(name)) for name in dict.fromkeys(names) if name}

    def _check_ranges(self) -> None:
        source, target = self.shapes[self.config.source], self.shapes[self.config.target]
        grid, widest = self.config.grid, self.widest
        if (most := max((rank for rank in grid.rank if rank != RANK), default=0)) > widest:  # the default is capped
            raise InvalidInput(f"grid.rank has {most}; the narrower of {source} and {target} allows at most {widest}")
        for spec in grid.layers:
            read.check_layers(parse_layers(spec), target.n_layers)
        for spec in grid.layer_map:
            for b, a in (parse_layer_map(spec) or {}).items():
                if b >= target.n_layers or a >= source.n_layers:
                    depths = f"the target has {target.n_layers} layers, the source {source.n_layers}"
                    raise InvalidInput(f"grid.layer_map has {b}:{a}; {depths}")


def _position(setting: Setting) -> int:
    return -1 if setting.position is None else setting.position


def hash_of(texts: Sequence[str] | None) -> str | None:
    """A short fingerprint of texts in their order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16] if texts else None
