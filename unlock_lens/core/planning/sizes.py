"""Bytes: of requests, of their results, of what a server holds meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlock_lens.method.reduce import Factors, Mean, Reduction

# Measured: requests of this library to an NDIF 0.1.2 server (nnsight 0.8.1, torch 2.13, Python 3.11), 1 to 40 passes of 80 to
# 8,000 tokens in models of 3 to 6 layers: `Remote.traffic`, less what the tensors hold. What is left is the shipped code, as
# source text; the name of each of the model's modules; a container around each tensor. References inside a pickle are longer or
# shorter as a process orders its sets, by 1 kB of the code and a tenth of the names either way; these are the middle.
# tests/core/test_plan.py measures uploads again, tests/remote/test_plan.py all of it.
_MEAN_CODE, _FACTORS_CODE, _GENERATION_CODE, _STEERING_CODE = 2_500, 7_400, 9_600, 7_290
_READ_MODULE, _GENERATION_MODULE = 160, 175
_PASS, _BATCH, _VECTOR = 1_465, 615, 360
_RESULT, _RESULT_TENSOR = 1_450, 195

_MODEL_BYTES = 2
"""Of one number in a model's activations: NDIF loads models in bfloat16."""


@dataclass(frozen=True)
class Shape:
    """One padded batch: rows, tokens of each with padding, tokens whose states are read."""

    rows: int
    length: int
    picked: int = 0

    @property
    def padded(self) -> int:
        return self.rows * self.length


def reading_up(reduction: Reduction, shapes: Sequence[Shape], modules: int) -> int:
    """Ids as int32 and a mask as bool for each token; row, column and place as int32 for each that is read."""
    code = _MEAN_CODE if isinstance(reduction, Mean) else _FACTORS_CODE
    return code + _READ_MODULE * modules + sum(_PASS + 5 * shape.padded + 12 * shape.picked for shape in shapes)


def reading_down(reduction: Reduction, layers: int, d_model: int) -> int:
    """A mean is float32; so are factors, but for axes and scores in float16 where `Remote(half=True)` asks for it."""
    if not isinstance(reduction, Factors):
        return _RESULT + _RESULT_TENSOR + 4 * layers * d_model
    large = reduction.axes * (d_model + reduction.rows)
    return _RESULT + 5 * _RESULT_TENSOR + layers * (4 * (d_model + 1 + reduction.axes) + (2 if reduction.half else 4) * large)


def reading_memory(reduction: Reduction, shapes: Sequence[Shape], layers: int, config: Any) -> int:
    """What the reduction keeps of all layers, and the larger of a pass and of the decomposition of one layer."""
    d = int(config.hidden_size)
    passes = max(_activations(shape, config) + 16 * shape.picked * d for shape in shapes)
    if not isinstance(reduction, Factors):
        return 8 * layers * d + passes
    summed = reduction.n > reduction.rows
    held = layers * (4 * reduction.rows * d + (8 * (d * d + 2 * d) if summed else 0))
    found = 8 * layers * reduction.axes * (d + reduction.rows)
    # The held rows in float64, twice; the Gram matrix with its eigenvectors, and as much again for the routine that finds them.
    side = d if summed else min(d, reduction.rows)
    return held + max(passes, found + 16 * reduction.rows * d + 5 * 8 * side * side)


def generation_up(shapes: Sequence[Shape], vectors: int, d_model: int, modules: int) -> int:
    """Ids and mask as int64 for each token, and a vector in float32 for each layer that is steered."""
    steering = _STEERING_CODE + vectors * (_VECTOR + 4 * d_model) if vectors else 0
    return _GENERATION_CODE + _GENERATION_MODULE * modules + steering + sum(_BATCH + 16 * shape.padded for shape in shapes)


def generation_down(shapes: Sequence[Shape], new: int) -> int:
    """At most, for completions that run to their end: ids as int64."""
    return _RESULT + sum(_RESULT_TENSOR + 8 * shape.rows * new for shape in shapes)


def generation_memory(shapes: Sequence[Shape], new: int, config: Any) -> int:
    """A pass over the prompts, and the KV cache of one batch."""
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kept = 2 * int(config.num_hidden_layers) * int(getattr(config, "num_key_value_heads", None) or heads) * width
    return max(_activations(shape, config) + _MODEL_BYTES * shape.rows * (shape.length + new) * kept for shape in shapes)


def _activations(shape: Shape, config: Any) -> int:
    """Of one block: the residual stream, normed, attended, and added to; three times the inside of the MLP."""
    inside = int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    return _MODEL_BYTES * shape.padded * (4 * int(config.hidden_size) + 3 * inside)
