"""The config of a sweep (a YAML file, checked completely before any model is loaded), and one setting of its grid."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from unlock_lens.core.alignment import SETTINGS, SubspaceAligner
from unlock_lens.core.inputs import SLOT, fill, parse_layer_map, parse_layers
from unlock_lens.core.variant import Variant
from unlock_lens.core.yaml_files import read_yaml
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.schema import in_words
from unlock_lens.evidence.spec import Spec
from unlock_lens.evidence.tasks.problems import Sizes
from unlock_lens.evidence.tasks.specs import TaskSpec
from unlock_lens.evidence.tasks.texts import CalibrationSpec, SelfText, TextSpec
from unlock_lens.hosts import Dtype
from unlock_lens.hosts.remote import Remote, Where, remote_of
from unlock_lens.method.align import RANK, MethodName
from unlock_lens.method.apply import Operation, Positions
from unlock_lens.method.extract import AggregateName

T = TypeVar("T")
Values = Annotated[tuple[T, ...], Field(min_length=1)]
Aligner = Literal["text", "prompts", "paper"]
Control = Literal[
    "paper", "own", "random", "anti_mean", "without_mean", "shuffled", "unaligned", "naive", "minus", "wrong", "placebo",
    "same_end", "forced", "at_price",
]  # fmt: skip
CONTROLS: tuple[Control, ...] = get_args(Control)


class Demonstration(Spec):
    """A question with an answer that shows how to answer such questions."""

    question: str
    answer: str


class Capability(Spec):
    """The capability to transfer, as a contrast of prompts or of models.

    Attributes:
        name: its name; one of the task's behaviours, if the task tells behaviours apart.
        locked: template of the prompts without the capability.
        unlocked: template of the prompts with it; by default (for a model contrast) the locked one.
        chat: whether to put each prompt into the tokenizer's chat template as a user's turn.
        system: the system prompt before it.
        unlocked_system: the system prompt of the unlocked prompts; by default the same.
        placebo: template of prompts that end like the unlocked ones but ask for nothing, for the control "placebo".
        same_end: template of unlocked prompts that end on the locked ones' last token, for the arm "same_end".
        pairs: JSONL file of prompt pairs (`locked`, `unlocked`) from which to make directions, instead of the templates and the
            extract split; the templates still make the prompts that are completed.
        demonstrations: questions with answers that precede each unlocked prompt, in its template (in-context learning).
        source_unlocked: the model that has the capability, for a model contrast; by default the source.
        target_unlocked: its counterpart of the target's size, for the control "own".
    """

    name: str
    locked: str = SLOT
    unlocked: str | None = None
    chat: bool = False
    system: str | None = None
    unlocked_system: str | None = None
    placebo: str | None = None
    same_end: str | None = None
    pairs: Path | None = None
    demonstrations: tuple[Demonstration, ...] = ()
    source_unlocked: str | None = None
    target_unlocked: str | None = None

    @field_validator("locked", "unlocked", "placebo", "same_end")
    @classmethod
    def _has_slot(cls, template: str | None) -> str | None:
        if template is not None and SLOT not in template:
            raise ValueError(f"the template {template!r} has no {SLOT}; add it where the question goes")
        return template

    @model_validator(mode="after")
    def _is_contrast(self) -> Capability:
        if not (self.asks or self.pairs or self.source_unlocked):
            raise ValueError(
                "locked and unlocked are the same; give unlocked (a template), unlocked_system, demonstrations, pairs, "
                "or source_unlocked (a model)"
            )
        if (self.system or self.unlocked_system) is not None and not self.chat:
            raise ValueError("system needs chat: true, which applies the chat template")
        return self

    @property
    def asks(self) -> bool:
        """Whether some prompt asks for the capability."""
        return self.unlocked is not None or self.unlocked_system is not None or bool(self.demonstrations)

    @property
    def plain(self) -> tuple[str, bool, str | None]:
        """What makes the locked prompts of questions."""
        return self.locked, self.chat, self.system

    def asked(self, model: Any, questions: Sequence[str], unlocked: bool, **how: Any) -> Variant:
        """The locked or the unlocked prompts of questions, to a model."""
        template = self.unlocked or self.locked if unlocked else self.locked
        system = self.unlocked_system if unlocked and self.unlocked_system is not None else self.system
        shown = self.demonstrations if unlocked else ()
        asked = fill(template, [each.question for each in shown])
        pairs = [(question, each.answer) for question, each in zip(asked, shown, strict=True)]
        return Variant(model, questions, template=template, chat=self.chat, system=system, demonstrations=pairs, **how)


class Grid(Spec):
    """The values that are tried, in all combinations.

    Attributes:
        aligner: calibration. "text": all tokens, centered, of the calibration texts and both sides' prompts; "prompts": of the
            prompts alone; "paper": last token of the locked prompts, uncentered (centered for pca).
        n: number of questions from which the direction (and with "prompts" and "paper" the map) is made.
        layer_map: "proportional", or target:source pairs such as "0:0 1:1 2:3".
        method: the aligner's method; the control "paper" always uses the paper's.
        layers: layers to steer, such as "0-2,5"; None for all.
        rank: rank of the maps; by default 256, or what the calibration tokens span if that is less.
        alpha, position, aggregate, operation, positions: as in `SteeringHook`, `SubspaceAligner`, `CapabilityDirection`.
    """

    alpha: Values[Annotated[FiniteFloat, Field(gt=0)]]
    n: Values[PositiveInt]
    rank: Values[PositiveInt] = (RANK,)
    aligner: Values[Aligner] = ("text", "paper")
    layer_map: Values[str] = ("proportional",)
    layers: Values[str | None] = (None,)
    position: Values[int] = (-1,)
    aggregate: Values[AggregateName] = ("mean",)
    operation: Values[Operation] = ("norm_preserving",)
    positions: Values[Positions] = ("last_prompt",)
    method: Values[MethodName] = ("unlock",)

    @model_validator(mode="after")
    def _no_repeats(self) -> Grid:
        for name in type(self).model_fields:
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} lists a value twice: {list(values)}")
        for spec in self.layers:
            parse_layers(spec)
        for spec in self.layer_map:
            parse_layer_map(spec)
        return self


_IN_GRID = ("rank", "method", "layer_map")
_HINTS = get_type_hints(SubspaceAligner.__init__)
_FIELDS: dict[str, Any] = {name: (_HINTS[name], value) for name, value in SETTINGS.items() if name not in _IN_GRID}
AlignerOptions: Any = create_model("AlignerOptions", __base__=Spec, **_FIELDS)
"""The arguments of `SubspaceAligner` that are not in the grid, with its defaults."""


class Sampling(Spec):
    """Sampled completions of the unsteered target, for pass@k and the analysis of sharpening; 0 samples turn it off."""

    samples: Annotated[int, Field(ge=0)] = 8
    temperature: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    problems: PositiveInt = 100


class PaperFigure(Spec):
    """A share of right answers that the paper reports.

    Attributes:
        arm: what was run, as arms are called here: unsteered, transferred, prompted, post_trained.
        right: percentage of right answers.
        about: whether it was read by eye from a bar, to within a point.
        of: the test set, if it is not this config's.
    """

    arm: Literal["unsteered", "transferred", "prompted", "post_trained"]
    right: Annotated[FiniteFloat, Field(ge=0, le=100)]
    about: bool = False
    of: str | None = None


class SweepConfig(Spec):
    """A whole sweep.

    Attributes:
        source: folder or hub id of the model that has the capability, or `zoo:NAME`.
        target: of the model that is to get it.
        naive: of a model that never learned the capability, for the control "naive".
        dtype: that they are loaded in; a server's models are in its own.
        device: that they are loaded on, such as "cpu" or "cuda:1"; by default the GPU where there is one.
        remote: true, or the URL of a server, where they are not loaded but run on NDIF (backend nnsight); "local" runs here
            as NDIF would.
        sizes: how many problems each split takes; the splits share none.
        others: other behaviours of the task, transferred with the chosen settings to check that each transfer is specific.
        calibration: text for the aligner "text": ordinary text, or what the models write themselves.
        aligner: further options of `SubspaceAligner`, for all maps but the paper's: sinks, ridge, skip_first and so on.
        unrelated: text that has nothing to do with the capability, on which to measure the price of steering.
        controls: directions that the transfer is compared with.
        control_seeds: how many of each random control.
        nulls: how many sources without a capability go through the transfer's maps, grid and choice: noise, noise with the
            covariance of the source's states, and halves of the locked prompts against each other, in turn.
        stop: every completion ends before the first of these strings.
        seed: seed of problems, texts and controls.
        paper_reports: the paper's figures for this experiment, which the report shows next to the results.

    Raises:
        pydantic.ValidationError: a misspelt key or a value out of range; `load` and `parse` turn it into InvalidInput.
    """

    name: str
    source: str
    target: str
    naive: str | None = None
    backend: Literal["transformer_lens", "nnsight"] = "transformer_lens"
    dtype: Dtype = "float32"
    device: str | None = None
    remote: bool | str = False
    task: TaskSpec
    sizes: Sizes
    capability: Capability
    others: tuple[Capability, ...] = ()
    calibration: CalibrationSpec | None = None
    unrelated: TextSpec | None = None
    grid: Grid
    aligner: AlignerOptions = AlignerOptions()  # pyright: ignore[reportInvalidTypeForm]  made of a signature
    controls: tuple[Control, ...] = CONTROLS
    control_seeds: PositiveInt = 3
    nulls: NonNegativeInt = 19
    sampling: Sampling = Sampling()
    max_new_tokens: PositiveInt = 64
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    batch_size: PositiveInt = 8
    special_tokens: bool = True
    seed: int = 0
    paper_reports: tuple[PaperFigure, ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> SweepConfig:
        SubspaceAligner(**self.aligner.model_dump())
        if max(self.grid.n) > self.sizes.extract and not self.capability.pairs:
            raise ValueError(f"grid.n asks for {max(self.grid.n)} questions; sizes.extract gives {self.sizes.extract}")
        if "text" in self.grid.aligner and self.calibration is None:
            raise ValueError('the aligner "text" needs calibration: (the text); or leave it out of grid.aligner')
        if (
            isinstance(self.calibration, SelfText)
            and (self.calibration.n or 0) > self.sizes.extract
            and not self.capability.pairs
        ):
            raise ValueError(f"calibration.n asks for {self.calibration.n} questions; sizes.extract gives {self.sizes.extract}")
        if self.remote and self.backend != "nnsight":
            raise ValueError(f"remote is {self.remote!r}, and the backend {self.backend}; models on a server take nnsight")
        remote_of(self.remote)
        names = [self.capability.name, *(other.name for other in self.others)]
        if len(set(names)) < len(names):
            raise ValueError(f"two capabilities have one name: {names}")
        return self

    @classmethod
    def load(cls, file: str | Path) -> SweepConfig:
        """Read a YAML file.

        Raises:
            InvalidInput: the file is missing or not YAML, a key is misspelt (the nearest is suggested), or a value is out of
                range.
        """
        file = Path(file)
        if not file.is_file():
            raise InvalidInput(f"there is no file {file}")
        content = read_yaml(file)
        if not isinstance(content, dict):
            raise InvalidInput(f"{file} contains a {type(content).__name__}; expected keys such as source, target, task, grid")
        return cls.parse(content, str(file))

    @classmethod
    def parse(cls, content: Mapping[str, Any], name: str = "the config") -> SweepConfig:
        """Check a config that is already a mapping.

        Raises:
            InvalidInput: as `load`.
        """
        try:
            return cls.model_validate(content)
        except RecursionError:
            raise InvalidInput(f"{name} cannot be used: it is nested too deeply") from None
        except ValidationError as error:
            problems = "\n".join(f"  {in_words(problem)}" for problem in _first_causes(error.errors(include_url=False)))
            raise InvalidInput(f"{name} cannot be used:\n{problems}") from None

    @property
    def where(self) -> Where:
        """`remote`; a host that a config names is not trusted with the API key."""
        given = remote_of(self.remote)
        if isinstance(given, Remote) and given.host is not None:
            return replace(given, trusted=False)
        return self.remote

    def to_yaml(self) -> str:
        """The whole config, defaults filled in."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _first_causes(problems: Sequence[Any]) -> list[Any]:
    """Without the lists that are too short only because something in them is wrong."""
    places = [problem["loc"] for problem in problems]
    return [
        problem
        for problem in problems
        if problem["type"] != "too_short"
        or not any(len(place) > len(problem["loc"]) and place[: len(problem["loc"])] == problem["loc"] for place in places)
    ]


@dataclass(frozen=True)
class Setting:
    """One setting of a sweep; None where a part does not apply (a baseline has no alpha)."""

    capability: str
    control: str | None = None
    seed: int = 0
    aligner: str | None = None
    n: int | None = None
    aggregate: AggregateName | None = None
    position: int | None = None
    layer_map: str | None = None
    layers: str | None = None
    rank: int | None = None
    operation: Operation | None = None
    positions: Positions | None = None
    alpha: float | None = None
    method: MethodName | None = None


def difference(old: str, new: str) -> str:
    """What changed between two configs, line by line; empty where nothing did."""
    return "\n".join(
        line
        for line in difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    )
