"""What the description in each kind of file must hold (docs/hub.md).

A file is foreign until its description has been checked here: types, ranges, unique keys and depth, and that its tensors have
the shapes that the description speaks of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from unlock_lens.core.wording import expectation
from unlock_lens.errors import ArtifactError, shown

MOST = 100_000
"""Of layers, ranks and widths: no model comes near it."""


def _no_controls(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters")
    return text


def _ascending(layers: list[int]) -> list[int]:
    if not layers or layers != sorted(set(layers)):
        raise ValueError("layers must be there, ascend and be unique")
    return layers


def _one_each(pairs: list[list[Any]]) -> list[list[Any]]:
    if not pairs or any(len(pair) != 2 for pair in pairs) or len({pair[0] for pair in pairs}) != len(pairs):
        raise ValueError("pairs must be there, and a layer may stand in one of them")
    return pairs


Line = Annotated[str, Field(max_length=500), AfterValidator(_no_controls)]
Layer = Annotated[int, Field(ge=0, lt=MOST)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=1, le=MOST)]
Share = Annotated[float, Field(ge=0, le=1)]
Layers = Annotated[list[Layer], AfterValidator(_ascending)]
LayerMap = Annotated[list[list[Layer]], AfterValidator(_one_each)]
Strengths = Annotated[list[list[float]], AfterValidator(_one_each)]
Basis = Literal["raw", "zero_mean"]
Told = dict[str, Any]
"""What prompts or texts were, in words: it is shown and decides nothing."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Identity(_Strict):
    """`ModelIdentity`."""

    name: Line
    n_layers: Size
    d_model: Size
    basis: Basis = "raw"
    fingerprint: Line | None = None
    revision: Line | None = None
    architecture: Line | None = None
    weights: Line | None = None


class Provenance(_Strict):
    """`core.direction.Provenance`."""

    aggregate: Line | None
    position: int | None
    n_prompts: Count | None
    locked_hash: Line | None
    unlocked_hash: Line | None
    unlocked_model: Identity | None
    source_model: Identity | None
    rank: Count | None
    steps: list[str]
    locked: Told | None = None
    unlocked: Told | None = None


class Direction(_Strict):
    """`CapabilityDirection.description`."""

    layers: Layers
    basis: Basis
    model: Identity | None
    provenance: Provenance


class Chosen(_Strict):
    """`CrossValidation.to_json`."""

    layers: Annotated[list[Layer], Field(min_length=1)]
    ranks: Annotated[list[Count], Field(min_length=1)]
    ridges: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
    r2: list[list[list[float]]]
    tolerance: Annotated[float, Field(ge=0)] = 0.0


class Aligner(_Strict):
    """The settings of a `SubspaceAligner`, and what it was fitted on; the first versions had fewer settings."""

    rank: Size | Literal["auto", "cv"] | None
    centered: bool
    positions: Count | Literal["all", "last"]
    skip_first: bool
    layer_map: LayerMap
    method: Literal["unlock", "ridge", "procrustes", "rrr", "cca"] = "unlock"
    ridge: Annotated[float, Field(ge=0)] | Literal["cv"] | None = None
    sinks: Literal["auto", "keep", "drop", "rescale"] = "keep"
    without_mean: bool = False
    own_layer_map: bool
    cross_validation: Chosen | None = None
    n_tokens: Count | None
    prompts_hash: Line | None
    texts: dict[Literal["source", "target"], Told] | None = None
    source_model: Identity | None
    target_model: Identity | None


class Gate(_Strict):
    """`Gate.description`."""

    direction: Direction
    threshold: float
    positions: Literal["last_prompt", "all"]
    auroc: Share | None
    hits: Share | None
    false_alarms: Share | None


class Evidence(_Strict):
    """`core.keys.Evidence.description`."""

    task: str
    n: Count
    gain: Annotated[float, Field(ge=-1, le=1)]
    interval: Annotated[list[float], Field(min_length=2, max_length=2)]
    price: Annotated[float, Field(ge=0)]
    controls: Annotated[dict[Line, float], Field(min_length=1)]
    verdict: str


class Key(_Strict):
    """`SteeringHook.description`."""

    direction: Direction
    alpha: float | Strengths
    operation: Literal["norm_preserving", "add", "ablate"]
    positions: Literal["last_prompt", "prompt", "generated", "all"]
    layers: Layers | None
    gate: Gate | None
    chat_template_hash: Line | None
    evidence: Evidence | None


class Finished(_Strict):
    """A request that a server has answered."""

    key: Line


KINDS: Mapping[str, type[_Strict]] = {
    "direction": Direction,
    "aligner": Aligner,
    "key": Key,
    "finished request": Finished,
}


def checked(path: Any, kind: str, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise ArtifactError unless the description is one of this kind, and the tensors fit it."""
    try:
        told = KINDS[kind].model_validate(dict(description))
        _FITS[kind](told, tensors)
    except ValidationError as error:
        raise ArtifactError(f"{path}: {_told(error)}; save it again") from None
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}; save it again") from None


def _told(error: ValidationError) -> str:
    """The first field that is wrong, what was found there, and what was expected."""
    first = error.errors(include_url=False)[0]
    where, expected = ".".join(str(part) for part in first["loc"]), expectation(first)
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where} is {shown(first['input'])} ({expected[0].lower()}{expected[1:]})"


def _fits_direction(told: Direction, tensors: Mapping[str, Tensor], name: str = "vectors") -> None:
    vectors = _numbers(tensors, name, (torch.float32,))
    if vectors.ndim != 2 or len(vectors) != len(told.layers):
        raise ValueError(f"{name} have shape {list(vectors.shape)} for {len(told.layers)} layers")
    model = told.model
    if model and (model.d_model != vectors.shape[1] or told.layers[-1] >= model.n_layers):
        raise ValueError(f"{name} of width {vectors.shape[1]} up to layer {told.layers[-1]} do not fit {shown(model.name)}")


def _fits_aligner(told: Aligner, tensors: Mapping[str, Tensor]) -> None:
    n = len(told.layer_map)
    core = _numbers(tensors, "core", (torch.float32, torch.float64))
    if core.ndim != 3 or core.shape[0] != n or core.shape[1] != core.shape[2]:
        raise ValueError(f"core has shape {list(core.shape)} for {n} mapped layers")
    for side, model, column in (("source", told.source_model, 1), ("target", told.target_model, 0)):
        factors, mean = (_numbers(tensors, f"{side}_{part}", (core.dtype,)) for part in ("factors", "mean"))
        if factors.ndim != 3 or factors.shape[:2] != core.shape[:2]:
            raise ValueError(f"{side}_factors have shape {list(factors.shape)} beside a core of {list(core.shape)}")
        width = factors.shape[2]
        if list(mean.shape) != [n, width]:
            raise ValueError(f"{side}_mean has shape {list(mean.shape)} beside factors of {list(factors.shape)}")
        highest = max(pair[column] for pair in told.layer_map)
        if model and (model.d_model != width or highest >= model.n_layers):
            raise ValueError(f"maps of width {width} up to layer {highest} do not fit {side} model {shown(model.name)}")
    _check_names(tensors, {"core", "source_factors", "source_mean", "target_factors", "target_mean"})
    if chosen := told.cross_validation:
        shape = [len(chosen.layers), len(chosen.ridges), len(chosen.ranks)]
        if list(torch.tensor(chosen.r2).shape) != shape:
            raise ValueError(f"r2 has another shape than {shape}, its layers, ridges and ranks")


def _fits_key(told: Key, tensors: Mapping[str, Tensor]) -> None:
    _fits_direction(told.direction, tensors)
    if told.gate:
        _fits_direction(told.gate.direction, tensors, "gate")
    _check_names(tensors, {"vectors", "gate"} if told.gate else {"vectors"})


def _only_direction(told: Direction, tensors: Mapping[str, Tensor]) -> None:
    _fits_direction(told, tensors)
    _check_names(tensors, {"vectors"})


def _anything(told: Finished, tensors: Mapping[str, Tensor]) -> None:
    """Who asked for it knows what it must be."""


_FITS: Mapping[str, Callable[[Any, Mapping[str, Tensor]], None]] = {
    "direction": _only_direction,
    "aligner": _fits_aligner,
    "key": _fits_key,
    "finished request": _anything,
}


def _numbers(tensors: Mapping[str, Tensor], name: str, dtypes: Sequence[torch.dtype]) -> Tensor:
    if name not in tensors:
        raise ValueError(f"it has no tensor {name!r}")
    found = tensors[name]
    if found.dtype not in dtypes:
        raise ValueError(f"{name} has dtype {found.dtype}; expected {' or '.join(str(dtype) for dtype in dtypes)}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} is not finite")
    return found


def _check_names(tensors: Mapping[str, Tensor], names: set[str]) -> None:
    if more := sorted(set(tensors) - names):
        raise ValueError(f"it has a tensor {shown(more[0])} that does not belong there")
