"""Gates (docs/gates.md): how well a reader tells two classes of prompts apart, and from which reading on it should act.

A reader w is a covector: it takes a state h of the residual stream to the number <w, h>.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FOLDS = 5
SHRINKAGE = 0.01
"""Lambda, in mean variances of the states."""


@dataclass(frozen=True)
class Cut:
    """A threshold, and what it does on the readings that it was chosen on.

    Attributes:
        threshold: act above it.
        hits: share of the readings of the first class above it (true positive rate).
        false_alarms: share of those of the other class above it (false positive rate).
    """

    threshold: float
    hits: float
    false_alarms: float


def discriminant(act: Float[Tensor, "n d_model"], rest: Float[Tensor, "m d_model"]) -> Float[Tensor, " d_model"]:
    """w = (S + lambda I)^-1 (mean of the states where to act - mean of the others), S their covariance within classes; float64.

    Scaled to <w, difference of means> = 1, so that a threshold is a share of the way between the classes. Solved among the n
    prompts, by the Woodbury identity, because they are mostly fewer than d_model.
    Source: Fisher, Annals of Eugenics 7 (1936); with a ridge, Friedman, Journal of the American Statistical Association 84
    (1989).
    """
    means = [states.double().mean(dim=0) for states in (act, rest)]
    within = torch.cat([states.double() - mean for states, mean in zip((act, rest), means, strict=True)])
    within = within / len(within) ** 0.5
    shrinkage = SHRINKAGE * within.square().sum() / within.shape[1]
    difference = means[0] - means[1]
    if not bool(shrinkage > 0):  # all states of a class are one
        return difference / difference.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    inner = within @ within.T + shrinkage * torch.eye(len(within), dtype=torch.float64, device=within.device)
    reader = (difference - within.T @ torch.linalg.solve(inner, within @ difference)) / shrinkage
    return reader / (reader @ difference).clamp_min(torch.finfo(torch.float64).tiny)


def auroc(act: Float[Tensor, " n"], rest: Float[Tensor, " m"]) -> float:
    """The chance that a reading of the first class is above one of the other, ties counting half.

    Source: Hanley and McNeil, Radiology 143 (1982).
    """
    above = act[:, None] > rest
    ties = act[:, None] == rest
    return float((above.double() + ties.double() / 2).mean())


def best_cut(act: Float[Tensor, " n"], rest: Float[Tensor, " m"]) -> Cut:
    """The point of the ROC with the largest hits - false alarms (Youden's J), in the middle of the gap between two readings.

    Source: Youden, Cancer 3 (1950).
    """
    readings = torch.cat([act, rest]).unique()
    cuts = (readings[1:] + readings[:-1]) / 2 if len(readings) > 1 else readings
    hits, alarms = ((of[:, None] > cuts).double().mean(dim=0) for of in (act, rest))
    best = int((hits - alarms).argmax())
    return Cut(float(cuts[best]), float(hits[best]), float(alarms[best]))


def held_out_readings(
    act: Float[Tensor, "n d_model"], rest: Float[Tensor, "m d_model"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
    """What readers of the other folds read in each state, so that no state is read by a reader that has seen it."""
    folds = min(FOLDS, len(act), len(rest))
    of_act, of_rest = (torch.arange(len(states)) % folds for states in (act, rest))
    found = [act.new_zeros(len(states), dtype=torch.float64) for states in (act, rest)]
    for fold in range(folds):
        reader = discriminant(act[of_act != fold], rest[of_rest != fold])
        for readings, states, places in zip(found, (act, rest), (of_act, of_rest), strict=True):
            readings[places == fold] = states[places == fold].double() @ reader
    return found[0], found[1]
