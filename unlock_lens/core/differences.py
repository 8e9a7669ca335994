"""D, wherever the variants run: mean states, mean differences and differences (docs/method.md, section 1: extract)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core import capture
from unlock_lens.core.reducing import (
    How,
    Part,
    Reading,
    Tokens,
    axes_of,
    check_finite,
    factoring,
    factors,
    in_one_request,
    run,
    runs_on_server,
    tell_share,
    together,
)
from unlock_lens.core.variant import Variant
from unlock_lens.method.reduce import Mean


def mean_state(variant: Variant, layers: Sequence[int] | None, position: int, how: How) -> Float[Tensor, "layer d_model"]:
    """The mean state at a token; from a server that alone comes back."""
    layers = capture.check_layers(layers, variant.backend.identity.n_layers)
    if not runs_on_server(how, variant):
        return capture.mean_at_position(variant, layers, position, how.batch_size, how.progress)
    reading = _of_means([Tokens(variant, capture.one_token(variant, position))], layers, how)
    return _mean(run([reading])[0], reading)


def mean_difference(
    unlocked: Variant, locked: Variant, layers: Sequence[int], position: int, how: How
) -> Float[Tensor, "layer d_model"]:
    """mean_i D_i; from a server sums alone come back."""
    if not runs_on_server(how, unlocked, locked):
        return (mean_state(unlocked, layers, position, how) - mean_state(locked, layers, position, how)).float()
    readings = mean_readings(unlocked, locked, layers, position, how)
    means = [_mean(parts, reading) for reading, parts in zip(readings, run(readings), strict=True)]
    return (means[0] - means[1] if len(means) == 2 else means[0]).float()


def mean_readings(unlocked: Variant, locked: Variant, layers: Sequence[int], position: int, how: How) -> list[Reading]:
    """What `mean_difference` reads on servers: both variants at once, or each model for itself."""
    return [_of_means(tokens, layers, how) for tokens in _groups(unlocked, locked, position)]


def differences(
    unlocked: Variant, locked: Variant, layers: Sequence[int], position: int, leading: int | None, how: How
) -> Float[Tensor, "layer n d_model"]:
    """D_i of all prompts; from a server, as far as the leading axes hold them.

    One model on one server: D is made there and its leading axes come back, `leading` of them if that is enough for what is
    asked. Otherwise the leading axes of each variant's own states do.
    """
    if not runs_on_server(how, unlocked, locked):
        read = [capture.at_position(variant, layers, position, how.batch_size, how.progress) for variant in (unlocked, locked)]
        return read[0] - read[1]
    readings, axes = difference_readings(unlocked, locked, layers, position, leading, how)
    found = factors(readings, axes, centered=True)
    if axes != leading:
        tell_share([layer for of in found for layer in of], "of what the directions are made of")
    states = [torch.stack([layer.states(True) for layer in of]) for of in found]
    return (states[0] - states[1] if len(states) == 2 else states[0]).float()


def difference_readings(
    unlocked: Variant, locked: Variant, layers: Sequence[int], position: int, leading: int | None, how: How
) -> tuple[list[Reading], int]:
    """What `differences` reads on servers, and how many axes come back."""
    groups = _groups(unlocked, locked, position)
    # Parts of one axis each would not merge into the axis of all.
    whole = len(groups) == 1 and in_one_request(how, unlocked)
    axes = leading if leading and whole else axes_of(unlocked, locked)
    places = torch.arange(len(unlocked)).split(1)
    return [Reading(of, layers, factoring(of[0].variant, axes, True), places, how) for of in groups], axes


def _groups(unlocked: Variant, locked: Variant, position: int) -> list[list[Tokens]]:
    """One model on one server takes its difference there."""
    added, taken = capture.one_token(unlocked, position), capture.one_token(locked, position)
    if together(unlocked, locked):
        return [[Tokens(unlocked, added), Tokens(locked, taken, sign=-1)]]
    return [[Tokens(unlocked, added)], [Tokens(locked, taken)]]


def _of_means(tokens: Sequence[Tokens], layers: Sequence[int], how: How) -> Reading:
    nowhere = [torch.tensor([-1])] * len(tokens[0].variant)
    return Reading(tokens, layers, lambda held, n: Mean(n), nowhere, how)


def _mean(parts: Sequence[Part], reading: Reading) -> Float[Tensor, "layer d_model"]:
    total = torch.stack([part.found["mean"].double() * part.n for part in parts]).sum(dim=0)
    check_finite(total, reading)
    return total / sum(part.n for part in parts)
