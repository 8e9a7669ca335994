"""Aggregators: how the differences D_i[l] of all prompts become one vector a layer (docs/method.md, section 1: extract)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxtyping import Float
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.linalg import right_factors

__all__ = ["AGGREGATORS", "Aggregator", "mean", "pca"]

Aggregator = Callable[[Float[Tensor, "n d_model"]], Float[Tensor, " d_model"]]
"""Makes one vector of the differences D[l] of all prompts at one layer."""


def pca(differences: Float[Tensor, "n d_model"]) -> Float[Tensor, " d_model"]:
    """First right singular vector of the centred differences, its sign such that <v, mean_i D_i> >= 0.

    Raises:
        InvalidInput: differences that do not vary between prompts.

    Source: docs/method.md, section 1.

    Example:
        >>> import torch
        >>> from unlock_lens.method.extract import pca
        >>> pca(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        tensor([1., 0.])
    """
    mean = differences.mean(dim=0)
    spread = differences - mean
    if not bool(spread.abs().max() > 0):
        raise InvalidInput('aggregate="pca" needs differences that vary between prompts; give more prompts or take "mean"')
    axis = right_factors(spread, rank=1).vectors[0].to(differences)
    return -axis if bool(axis @ mean < 0) else axis


def mean(differences: Float[Tensor, "n d_model"]) -> Float[Tensor, " d_model"]:
    """mean_i D_i, summed in float64.

    Source: docs/method.md, section 1.

    Example:
        >>> import torch
        >>> from unlock_lens.method.extract import mean
        >>> mean(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        tensor([2., 0.])
    """
    return differences.double().mean(dim=0).float()


AGGREGATORS: Mapping[str, Aggregator] = {"mean": mean, "pca": pca}


def aggregated(differences: Float[Tensor, "n d_model"], aggregate: str | Aggregator) -> Float[Tensor, " d_model"]:
    """One vector of the differences of one layer.

    Raises:
        InvalidInput: there is no such aggregate.
    """
    if callable(aggregate):
        return aggregate(differences)
    check_aggregate(aggregate)
    return AGGREGATORS[aggregate](differences)


def check_aggregate(aggregate: str | Aggregator) -> None:
    """Raise InvalidInput unless this is a name of `AGGREGATORS` or a function."""
    if not callable(aggregate) and aggregate not in AGGREGATORS:
        raise InvalidInput(f'there is no aggregate {aggregate!r}; take "mean", "pca", or a function')


def aggregate_name(aggregate: str | Aggregator) -> str:
    """As provenance tells it."""
    return aggregate if isinstance(aggregate, str) else getattr(aggregate, "__name__", type(aggregate).__name__)
