"""What a sweep's folder may hold: each line, description and config is compared with this before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, RootModel, ValidationError, model_validator

from unlock_lens.core.wording import expectation
from unlock_lens.errors import plain, shown

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Bit = Annotated[int, Field(ge=0, le=1)]
Text = dict[str, str]
_ROUNDING = 1e-6


class _Strict(BaseModel):
    """Values are of the kinds that are written, never converted to them; keys of newer versions are let through."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class SettingOf(_Strict):
    """`config` of a line: all fields of a sweep's `Setting`; those of before methods could be chosen have none."""

    model_config = ConfigDict(extra="forbid")

    capability: str | None
    control: str | None
    seed: Count
    aligner: str | None
    n: Count | None
    aggregate: str | None
    position: int | None
    layer_map: str | None
    layers: str | None
    rank: Count | None
    operation: str | None
    positions: str | None
    alpha: FiniteFloat | None
    method: str | None = None


class Paired(_Strict):
    """The comparison with the baseline, problem by problem."""

    difference: Annotated[float, Field(ge=-1, le=1)]
    low: Annotated[float, Field(ge=-1, le=1)]
    high: Annotated[float, Field(ge=-1, le=1)]
    gained: Count
    lost: Count
    p: Share


class Price(_Strict):
    """What steering costs on unrelated text."""

    kl: FiniteFloat
    perplexity: Annotated[float, Field(gt=0)]
    perplexity_unsteered: Annotated[float, Field(gt=0)]


class StrictScore(_Strict):
    """What the answers within the tags are worth."""

    tags: Annotated[list[str], Field(min_length=2, max_length=2)]
    accuracy: Share
    low: Share
    high: Share
    right: list[Bit]
    tagged: Share


class Success(_Strict):
    """How likely a model's own successful samples are."""

    probability: Annotated[float, Field(ge=0, le=1 + _ROUNDING)] | None = None
    log_prob: FiniteFloat | None = None
    n: Count


class Sides(_Strict):
    """Shares of both sides."""

    unsteered: Share
    steered: Share


class Entropies(_Strict):
    """Of each of the first tokens, in nats."""

    unsteered: Annotated[list[FiniteFloat], Field(min_length=1)]
    steered: Annotated[list[FiniteFloat], Field(min_length=1)]


class Successes(_Strict):
    """Of both sides."""

    unsteered: Success
    steered: Success


class Sharpening(_Strict):
    """The analysis of what the target could already write."""

    entropy: Entropies | None = None
    success: Successes | None = None
    pass_at_k: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}$")], Share] | None = None
    greedy: Sides | None = None

    @model_validator(mode="after")
    def _whole(self) -> Sharpening:
        if self.pass_at_k and not self.greedy:
            raise ValueError("pass_at_k needs greedy, which it is compared with")
        return self


class LineOf(_Strict):
    """One line of `results.jsonl`."""

    config: SettingOf
    split: Literal["train", "test"]
    accuracy: Share
    low: Share
    high: Share
    n: Annotated[int, Field(ge=1)]
    right: list[Bit]
    tokens: Annotated[float, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    behaviours: dict[str, Share] | None = None
    cut: Share | None = None
    strict: StrictScore | None = None
    lengths: list[Count] | None = None
    completions: list[str] | None = None
    paired: Paired | None = None
    price: Price | None = None
    sharpening: Sharpening | None = None

    @model_validator(mode="after")
    def _agrees(self) -> LineOf:
        for name in ("right", "lengths", "completions"):
            values = getattr(self, name)
            if values is not None and len(values) != self.n:
                raise ValueError(f"{name} has {len(values)} entries for {self.n} problems")
        if self.strict is not None and len(self.strict.right) != self.n:
            raise ValueError(f"strict.right has {len(self.strict.right)} entries for {self.n} problems")
        if abs(self.accuracy - sum(self.right) / self.n) > _ROUNDING:
            raise ValueError(f"accuracy is {self.accuracy:g}, and {sum(self.right)} of {self.n} answers are right")
        if not self.low - _ROUNDING <= self.accuracy <= self.high + _ROUNDING:
            raise ValueError(f"accuracy {self.accuracy:g} is outside its interval, {self.low:g} to {self.high:g}")
        if self.paired and abs(self.paired.difference - (self.paired.gained - self.paired.lost) / self.n) > _ROUNDING:
            raise ValueError("paired.difference is not that of its gained and lost answers")
        if self.config.control is None and self.config.alpha is None:
            raise ValueError("a line of no control needs config.alpha, its strength")
        if self.split == "train" and self.config.alpha is None:
            raise ValueError("a line of the train split needs config.alpha, its strength")
        return self


class Problem(_Strict):
    """One problem."""

    prompt: str
    answer: str


class Problems(_Strict):
    """`problems.json`."""

    train: list[Problem] = []
    test: list[Problem] = []


class MapOf(_Strict):
    """What a map looks like, one value for each layer."""

    aligner: str
    n: Count | None
    layer_map: str
    rank: Count | None
    layers: list[Count]
    method: str | None = None
    error: list[FiniteFloat] | None = None
    r2: list[FiniteFloat] | None = None
    coverage: list[FiniteFloat] | None = None
    cosine_own: list[FiniteFloat] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> MapOf:
        for name in ("error", "r2", "coverage", "cosine_own"):
            if (values := getattr(self, name)) and len(values) != len(self.layers):
                raise ValueError(f"{name} has {len(values)} values for {len(self.layers)} layers")
        return self


class SpectrumOf(_Strict):
    """Singular values of one layer's states."""

    aligner: str
    side: Literal["source", "target"]
    layer: Count
    values: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
    entropy: FiniteFloat
    effective_rank: FiniteFloat


class EffectOf(_Strict):
    """How far each layer alone moves the first token."""

    rank: Count | None
    layers: list[Count]
    kl: list[FiniteFloat]

    @model_validator(mode="after")
    def _agrees(self) -> EffectOf:
        if len(self.kl) != len(self.layers):
            raise ValueError(f"kl has {len(self.kl)} values for {len(self.layers)} layers")
        return self


class Geometry(_Strict):
    """`geometry.json`."""

    maps: list[MapOf] = []
    spectra: list[SpectrumOf] = []
    effect: list[EffectOf] = []


class LayerForecast(_Strict):
    """One layer of a forecast (`LayerDiagnosis`)."""

    target_layer: Count
    source_layer: Count
    coverage: FiniteFloat
    agreement: FiniteFloat | None = None
    full_agreement: FiniteFloat | None = None
    error: FiniteFloat | None = None
    r2: FiniteFloat | None = None
    own_cosine: FiniteFloat | None = None
    stability: FiniteFloat | None = None
    principal_cosine: FiniteFloat | None = None
    source_entropy: FiniteFloat | None = None
    source_rank: FiniteFloat | None = None
    target_entropy: FiniteFloat | None = None
    target_rank: FiniteFloat | None = None
    map_rank: FiniteFloat | None = None


class Forecast(_Strict):
    """`diagnosis.json`."""

    score: FiniteFloat | None = None
    verdict: str
    reasons: list[str] = []
    layers: list[LayerForecast] = []


class TaskPrice(_Strict):
    """One metric of one task (`benchmarks.TaskPrice`)."""

    task: str
    metric: str
    n: Count
    unsteered: FiniteFloat
    steered: FiniteFloat
    difference: FiniteFloat
    interval: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
    gained: Count
    lost: Count


class Prices(RootModel[Annotated[list[TaskPrice], Field(min_length=1)]]):
    """`benchmarks.json`."""


class Origin(_Strict):
    """`provenance.json`."""

    library_version: str | None = None
    created: str | None = None
    task: str | None = None
    versions: Text = {}
    models: Text = {}
    hashes: dict[str, str | None] = {}
    calibration_texts_left_out: str | None = None
    controls_left_out: Text = {}


class Inputs(_Strict):
    """`inputs.json`: what results depend on beyond the config."""

    models: Text
    problems: Text
    calibration: str | None = None
    unrelated: str | None = None
    pairs: dict[str, str] | None = None
    library: str | None = None


class _Named(_Strict):
    name: str
    target_unlocked: str | None = None


class _Figure(_Strict):
    arm: str
    right: Annotated[float, Field(ge=0, le=100)]
    about: bool = False
    of: str | None = None


class ConfigOf(_Strict):
    """What report and plots read of `config.yaml`; the sweep itself compares the whole of it."""

    name: str | None = None
    source: str | None = None
    target: str | None = None
    capability: _Named
    others: list[_Named] | None = None
    controls: list[str] | None = None
    control_seeds: Count = 1
    nulls: Count = 0
    paper_reports: list[_Figure] | None = None


DESCRIPTIONS: Mapping[str, type[BaseModel]] = {
    "problems": Problems, "geometry": Geometry, "diagnosis": Forecast, "provenance": Origin,
    "benchmarks": Prices,
}  # fmt: skip


def fault_of(content: Any, kind: type[BaseModel]) -> str | None:
    """What is wrong with a value that was read: the field, what was found, what is expected; None if nothing is."""
    try:
        kind.model_validate(content)
    except ValidationError as error:
        return "; ".join(map(in_words, error.errors(include_url=False)[:3]))
    except RecursionError:
        return "it is nested too deeply"
    return None


def in_words(problem: Mapping[str, Any]) -> str:
    """One problem that pydantic found, in a line."""
    place = plain(".".join(str(part)[:80] for part in problem["loc"][:8] if not _is_branch(part)), 200) or "the whole"
    silent = problem["type"] == "missing" or isinstance(problem["input"], dict | BaseModel)
    given = "" if silent else f" (given: {shown(problem['input'])})"
    return f"{place}: {expectation(problem)}{given}"


def _is_branch(part: int | str) -> bool:
    """Whether a part of a place is not a key: pydantic names the branch of a union that it tried."""
    return isinstance(part, str) and (part in ("bool", "str", "int", "float") or part.startswith(("literal[", "function-")))
