"""Fits of a map between two models' states, measured alike in both environments of peers.py: time, memory, held-out error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
from measure import interleaved, peak_bytes
from torch import Tensor

N, LAYERS = 512, 3
WIDTHS = {"576 to 576": (576, 576), "576 to 896": (576, 896)}
"""Fitted on N rows, judged on as many others."""
NOISE = 0.3

Predict = Callable[[int, Tensor], Tensor]
"""Takes a layer and source states [n, d]; gives target states."""
Fit = Callable[[Tensor, Tensor], Predict]
"""Takes source and target states [layer, n, d]."""


def make_states() -> dict[str, Tensor]:
    """[layer, 2 N, d] of a source, and of a target that is its linear image with noise; spectra fall as those of models do."""
    made: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, (width, wide) in WIDTHS.items():
        scale = torch.arange(1, width + 1) ** -0.5
        source = torch.randn(LAYERS, 2 * N, width, generator=generator) * scale
        turned = torch.linalg.qr(torch.randn(LAYERS, width, width, generator=generator)).Q
        image = torch.linalg.qr(torch.randn(LAYERS, wide, width, generator=generator)).Q.mT
        target = source @ image
        noise = NOISE * target.std() * torch.randn(target.shape, generator=generator)
        made |= {f"{name}, source": source @ turned + 1, f"{name}, target": target + noise - 1}
    return made


def measured(states: dict[str, Tensor], fit: Fit, rounds: int) -> dict[str, dict[str, float]]:
    """For each pair of widths the time over that of two thin SVDs a layer, the peak of memory, and the held-out error."""
    found: dict[str, dict[str, float]] = {}
    for name in WIDTHS:
        source, target = (states[f"{name}, {side}"] for side in ("source", "target"))
        seen = source[:, :N].contiguous(), target[:, :N].contiguous()
        times = interleaved({"fit": partial(fit, *seen), "bare": partial(_thin_svds, *seen)}, rounds)
        predict, errors = fit(*seen), list[float]()
        for layer in range(LAYERS):
            true = target[layer, N:]
            missed = (true - predict(layer, source[layer, N:])).square().sum()
            errors.append(float(missed / (true - true.mean(dim=0)).square().sum()))
        found[name] = {
            **asdict(times.ratio("fit", "bare")),
            "megabytes": peak_bytes(partial(fit, *seen)) / 1e6,
            "error": sum(errors) / len(errors),
        }
    return found


def _thin_svds(*of_sides: Tensor) -> None:
    for states in of_sides:
        for of_layer in states:
            torch.linalg.svd(of_layer - of_layer.mean(dim=0), full_matrices=False)
