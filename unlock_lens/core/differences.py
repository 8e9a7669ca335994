"""D_i[l], here or on a server: mean states, mean differences, and the differences themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core import read
from unlock_lens.core.read import How, Part, Picked, Reading
from unlock_lens.core.tokens import one_token
from unlock_lens.core.variant import Variant
from unlock_lens.method import extract
from unlock_lens.method.reduce import Mean


def mean_state(
    variant: Variant, layers: Sequence[int] | None = None, position: int = -1, how: How | None = None
) -> Float[Tensor, "layer d_model"]:
    """The mean state at a token, in float64; from a server, only sums are returned."""
    how = how or How()
    read.runs_on_server(how, variant)
    read_layers = read.check_layers(layers, variant.backend.identity.n_layers)
    reading = _of_means([Picked(variant, one_token(variant, position))], read_layers, how)
    return _mean(read.read([reading])[0], reading)


def mean_difference(
    unlocked: Variant, locked: Variant, layers: Sequence[int], position: int, how: How
) -> Float[Tensor, "layer d_model"]:
    """mean_i D_i[l], from means that are computed where the models run."""
    read.runs_on_server(how, unlocked, locked)
    readings = mean_readings(unlocked, locked, layers, position, how)
    means = [_mean(parts, reading) for reading, parts in zip(readings, read.read(readings), strict=True)]
    return (extract.differences(means[0], means[1]) if len(means) == 2 else means[0]).float()


def mean_readings(unlocked: Variant, locked: Variant, layers: Sequence[int], position: int, how: How) -> list[Reading]:
    """What `mean_difference` reads: both variants of a model on a server at once, otherwise each by itself."""
    return [_of_means(tokens, layers, how) for tokens in _groups(unlocked, locked, position)]


def differences(
    unlocked: Variant, locked: Variant, layers: Sequence[int], position: int, leading: int | None, how: How
) -> Float[Tensor, "layer n d_model"]:
    """D_i[l] of all prompts; from a server, as far as the leading principal axes represent them.

    For one model on one server, D is computed there and its leading axes are returned (`leading` of them, if given).
    Otherwise the leading axes of each variant's own states are returned.
    """
    if not read.runs_on_server(how, unlocked, locked):
        found = [read.states(tokens, layers, how) for tokens in _groups(unlocked, locked, position)]
    else:
        readings, axes = difference_readings(unlocked, locked, layers, position, leading, how)
        factors = read.factors(readings, axes, centered=True)
        if axes != leading:
            read.warn_of_share([layer for of in factors for layer in of], "of what the directions are made of")
        found = [torch.stack([layer.states(True) for layer in of]) for of in factors]
    return (extract.differences(found[0], found[1]) if len(found) == 2 else found[0]).float()


def difference_readings(
    unlocked: Variant, locked: Variant, layers: Sequence[int], position: int, leading: int | None, how: How
) -> tuple[list[Reading], int]:
    """What `differences` reads on servers, and how many axes are returned."""
    groups = _groups(unlocked, locked, position)
    # Parts of one axis each would not merge into the axis of all.
    whole = len(groups) == 1 and read.in_one_request(how, unlocked)
    axes = leading if leading and whole else read.axes_of(unlocked, locked)
    places = read.in_order(groups[0][0].chosen)
    return [Reading(of, layers, read.factoring(of[0].variant, axes, True), places, how) for of in groups], axes


def _groups(unlocked: Variant, locked: Variant, position: int) -> list[list[Picked]]:
    """One model on one server takes its difference there."""
    added, taken = one_token(unlocked, position), one_token(locked, position)
    if read.together(unlocked, locked):
        return [[Picked(unlocked, added), Picked(locked, taken, sign=-1)]]
    return [[Picked(unlocked, added)], [Picked(locked, taken)]]


def _of_means(tokens: Sequence[Picked], layers: Sequence[int], how: How) -> Reading:
    nowhere = [torch.tensor([-1])] * len(tokens[0].variant)
    return Reading(tokens, layers, lambda held, n: Mean(n), nowhere, how)


def _mean(parts: Sequence[Part], reading: Reading) -> Float[Tensor, "layer d_model"]:
    total = torch.stack([part.found["mean"].double() * part.n for part in parts]).sum(dim=0)
    read.check_finite(total, reading)
    return total / sum(part.n for part in parts)
