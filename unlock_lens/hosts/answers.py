"""Checks of server responses against the request, before anything is made of them: each says what is wrong, or None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unlock_lens.errors import shown
from unlock_lens.hosts.base import Batch, Pass
from unlock_lens.method.reduce import LeadingAxes, Mean, Reduction, States

_HALF, _SINGLE = 1e-2, 1e-3
"""How far from orthonormal returned axes may be, in float16 and in float32."""
_STRONG, _WEAK = 1e-4, 0.2
"""Axes below this share of the largest are made of rounding in part, and may be farther from it."""
_NONE = 1e-20
"""Energy of states that vary only by rounding."""


def fault_of_tensors(found: Any, asked: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> str | None:
    """Whether these are the tensors that were asked for, by name, with their shapes and dtypes."""
    if not isinstance(found, dict):
        return f"{shown(found)} came back; tensors named {', '.join(asked)} were asked for"
    if set(found) != set(asked):
        return f"{len(found)} tensors came back under other names than {', '.join(asked)}"
    for name, (shape, dtype) in asked.items():
        if told := _fault_of_tensor(found[name], shape, dtype):
            return f"{name} is {told}"
    return None


def _fault_of_tensor(found: Any, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    if not isinstance(found, Tensor):
        return f"{shown(found)}; a tensor was asked for"
    if found.is_nested or found.is_quantized or found.is_meta or found.layout != torch.strided:
        return "a nested, sparse, quantized or empty tensor; a dense one was asked for"
    if tuple(found.shape) != shape or found.dtype != dtype:
        return f"{found.dtype} {list(found.shape)[:8]}; {dtype} {list(shape)} was asked for"
    return None


def fault_of_reduction(found: Any, reduction: Reduction, passes: Sequence[Pass], layers: int, d_model: int) -> str | None:
    """Whether a result is what this reduction gives. Values that are not finite are the caller's to judge: models do that."""
    single, double = torch.float32, torch.float64
    if isinstance(reduction, States):
        return fault_of_tensors(found, {"states": (reduction.shape, single)})
    if isinstance(reduction, Mean):
        return fault_of_tensors(found, {"mean": ((layers, d_model), double)}) or _fault_of_mean(found["mean"], passes)
    if isinstance(reduction, LeadingAxes):
        k, small = reduction.axes, torch.float16 if reduction.half else single
        asked = {
            "mean": ((layers, d_model), single),
            "energy": ((layers,), single),
            "values": ((layers, k), single),
            "vectors": ((layers, k, d_model), small),
            "left": ((layers, reduction.rows, k), small),
        }
        return fault_of_tensors(found, asked) or _fault_of_axes(found, reduction, passes)
    return None


def _fault_of_mean(mean: Tensor, passes: Sequence[Pass]) -> str | None:
    """A model's mean state is never 0; a mean difference may be."""
    if all(one.sign > 0 for one in passes) and not bool((mean != 0).any(dim=1).all()):
        return "the mean state of a layer is 0"
    return None


def _fault_of_axes(found: dict[str, Tensor], reduction: LeadingAxes, passes: Sequence[Pass]) -> str | None:
    """Axes are orthonormal, singular values descend, and both hold no more than the energy and all of it where none is cut."""
    mean, energy, values, vectors, left = (found[name].double() for name in ("mean", "energy", "values", "vectors", "left"))
    if not bool(mean.isfinite().all() and energy.isfinite().all()):
        return None  # the model's own states are not finite, which is said with the layer's name
    if not all(bool(part.isfinite().all()) for part in (values, vectors, left)):
        return "axes are not finite, though the states are"
    if told := _fault_of_mean(mean, passes):
        return told
    tolerance = _HALF if reduction.half else _SINGLE
    if bool((values < 0).any()) or bool((values.diff(dim=1) > 0).any()):
        return "singular values are negative, or do not descend"
    held = values.square().sum(dim=1)
    if bool((held > energy * (1 + tolerance)).any()) or bool(((energy > _NONE) & (held <= 0)).any()):
        return "singular values do not fit the energy of the states"
    real, strong = (values > 0).double(), values > _STRONG * values[:, :1]
    allowed = torch.where(strong[:, :, None] | strong[:, None, :], tolerance, _WEAK)
    if bool(((vectors @ vectors.mT - torch.diag_embed(real)).abs() > allowed).any()):
        return "axes are not orthonormal"
    if bool((left.square().sum(dim=1) > real + torch.where(strong, tolerance, _WEAK)).any()):
        return "scores are larger than the axes hold"
    return None


def fault_of_ids(found: Any, batches: Sequence[Batch], new: int, vocabulary: int) -> str | None:
    """Whether these are completions of all batches: at most `new` tokens, each within the vocabulary."""
    if not isinstance(found, dict) or set(found) != {str(i) for i in range(len(batches))}:
        return f"{shown(found)} came back; the completions of {len(batches)} batches were asked for"
    for i, batch in enumerate(batches):
        ids, rows = found[str(i)], len(batch.ids)
        width = ids.shape[1] if isinstance(ids, Tensor) and ids.ndim == 2 else 0
        if told := _fault_of_tensor(ids, (rows, max(1, min(width, new))), torch.int64):
            return f"batch {i} is {told}, {new} columns at most"
        if width and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            return f"batch {i} has ids from {int(ids.min())} to {int(ids.max())}; the vocabulary has {vocabulary}"
    return None


def fault_of_log_probs(found: Any, rows: int, predicted: int, vocabulary: int) -> str | None:
    """Whether these are the logarithms of probabilities that add up to 1."""
    if told := _fault_of_tensor(found, (rows, predicted, vocabulary), torch.float32):
        return told
    if not torch.allclose(found.logsumexp(-1), torch.zeros(rows, predicted), rtol=0, atol=1e-3):
        return "no logarithms of probabilities that add up to 1"
    return None


def fault_of_logits(found: Any, shapes: Sequence[tuple[int, ...]], vocabulary: int) -> str | None:
    """Whether these are logits of the given shapes, one tensor each."""
    if not isinstance(found, list | tuple) or len(found) != len(shapes):
        return f"{shown(found)} came back; {len(shapes)} tensors of logits were asked for"
    for logits, shape in zip(found, shapes, strict=True):
        dtype = logits.dtype if isinstance(logits, Tensor) and logits.is_floating_point() else torch.float32
        if told := _fault_of_tensor(logits, (*shape, vocabulary), dtype):
            return told
        if bool(logits.isnan().any()):
            return "NaN, which are no logits"
    return None
