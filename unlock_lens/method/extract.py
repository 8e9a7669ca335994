"""Extract (docs/method.md, section 1): from the differences D_i[l] of all prompts to one vector v[l] for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.linalg import NOISE, spectrum

__all__ = ["AGGREGATORS", "Aggregator", "aggregate_name", "aggregated", "check_aggregate", "differences", "mean", "pca"]

Aggregator = Callable[[Float[Tensor, "n d_model"]], Float[Tensor, " d_model"]]
"""Makes one vector of the differences D[l] of all prompts at one layer."""


def differences(
    h_unlocked: Float[Tensor, "*layer n d_model"], h_locked: Float[Tensor, "*layer n d_model"]
) -> Float[Tensor, "*layer n d_model"]:
    """D_i[l] = h_unlocked,i[l] - h_locked,i[l]."""
    return h_unlocked - h_locked


def mean(differences: Float[Tensor, "n d_model"]) -> Float[Tensor, " d_model"]:
    """v[l] = mean_i D_i[l], summed in float64."""
    return differences.double().mean(dim=0).float()


def pca(differences: Float[Tensor, "n d_model"]) -> Float[Tensor, " d_model"]:
    """v[l] is the first right singular vector of the centered D[l], its sign such that <v[l], mean_i D_i[l]> >= 0.

    Raises:
        InvalidInput: the differences do not vary between prompts.
    """
    centre = differences.double().mean(dim=0)
    spread = differences.double() - centre
    if not bool(spread.norm() > NOISE * differences.double().norm()):
        raise InvalidInput('aggregate="pca" needs differences that vary between prompts; give more prompts or use "mean"')
    axis = spectrum(spread, rank=1).vectors[0]
    return (-axis if bool(axis @ centre < 0) else axis).to(differences)


AggregateName = Literal["mean", "pca"]
AGGREGATORS: Mapping[str, Aggregator] = {"mean": mean, "pca": pca}


def aggregated(differences: Float[Tensor, "n d_model"], aggregate: str | Aggregator) -> Float[Tensor, " d_model"]:
    """v[l] of D[l].

    Raises:
        InvalidInput: the aggregate is unknown.
    """
    check_aggregate(aggregate)
    return aggregate(differences) if callable(aggregate) else AGGREGATORS[aggregate](differences)


def check_aggregate(aggregate: str | Aggregator) -> None:
    """Raise InvalidInput unless this is a name of `AGGREGATORS` or a function."""
    if not callable(aggregate) and aggregate not in AGGREGATORS:
        raise InvalidInput(f'there is no aggregate {aggregate!r}; use "mean", "pca", or a function')


def aggregate_name(aggregate: str | Aggregator) -> str:
    """The name that provenance records."""
    return aggregate if isinstance(aggregate, str) else getattr(aggregate, "__name__", type(aggregate).__name__)
