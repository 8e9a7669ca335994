"""Reading where the states stay where they are: passes and reductions go to the model, conclusions come back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from unlock_lens.core import capture
from unlock_lens.core.capture import Chosen
from unlock_lens.core.jobs import Found, Request, batches_in_request, check_resumable, collect, in_requests, key_of
from unlock_lens.core.progress import shown
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import Pass, Server
from unlock_lens.hosts.remote import Remote, remote_of
from unlock_lens.method.factors import LayerFactors, merged, of_result
from unlock_lens.method.reduce import Factors, Reduction

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of one variant that are read.

    Attributes:
        variant: the model and its prompts.
        chosen: of each prompt the tokens, counted without padding.
        sign: -1 where their states are taken from those of another variant of the same model.
    """

    variant: Variant
    chosen: Chosen
    sign: int = 1


@dataclass(frozen=True)
class How:
    """How requests are made and waited for; each is explained in `CapabilityDirection.extract`."""

    batch_size: int
    resume: str | Path | None = None
    wait: bool = True
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Part:
    """What one request gave.

    Attributes:
        found: the reduction's result.
        n: tokens that it read.
        places: which of the reading's held tokens it held, in its order.
    """

    found: Found
    n: int
    places: Int[Tensor, " held"]


@dataclass(frozen=True, eq=False)
class Reading:
    """What is reduced together: tokens of one variant, or of two of the same model on the same server.

    Attributes:
        tokens: of each variant; prompt i of one belongs to prompt i of the other.
        layers: ascending.
        reduction: makes the reduction of so many held tokens and so many tokens in all.
        places: of each prompt, the place at which each of its chosen tokens is held, or -1.
        how: batches, resuming, waiting.
    """

    tokens: Sequence[Tokens]
    layers: Sequence[int]
    reduction: Callable[[int, int], Reduction]
    places: Chosen
    how: How

    @property
    def variant(self) -> Variant:
        return self.tokens[0].variant

    @cached_property
    def server(self) -> Server | None:
        """None where the model runs here."""
        where = remote_of(self.variant.remote)
        return self.variant.backend.on(where) if where else None

    @cached_property
    def chunks(self) -> Sequence[Sequence[Int[Tensor, " prompt"]]]:
        """Batches of like length, the longest first, and how many go into one request."""
        if self.how.batch_size < 1:
            raise InvalidInput(f"batch_size {self.how.batch_size} was given; at least 1 is needed")
        lengths = torch.stack([tokens.variant.tokens.lengths for tokens in self.tokens]).sum(dim=0)
        order = lengths.argsort(descending=True, stable=True)
        batches = order[[len(self.places[p]) > 0 for p in order.tolist()]].split(self.how.batch_size)
        return in_requests(batches, remote_of(self.variant.remote), self.how.resume is not None)

    def requests(self) -> list[Request]:
        """One for each chunk; none where the model runs here."""
        server = self.server
        return [self._request(server, chunk) for chunk in self.chunks] if server else []

    def parts(self, found: Sequence[Found]) -> list[Part]:
        """What the requests gave, with what it belongs to."""
        sizes = [self._size(chunk) for chunk in self.chunks]
        return [Part(result, n, places) for result, (places, n) in zip(found, sizes, strict=True)]

    def run_here(self) -> list[Part]:
        """The same reduction on a model that runs here."""
        batches = [batch for chunk in self.chunks for batch in chunk]
        places, n = self._size(batches)
        reduction = self.reduction(len(places), n)
        name = self.variant.backend.identity.name
        for batch in shown(batches, f"reading {name}", self.how.progress):
            for one in self._passes([batch], places):
                keep = partial(_add, reduction, one)
                self.variant.backend.capture(one.batch, self.layers, one.rows, one.columns, keep)
        return [Part(reduction.result(), n, places)]

    def _size(self, batches: Sequence[Tensor]) -> tuple[Tensor, int]:
        """The held places of these prompts, ascending, and the number of their tokens."""
        places = torch.cat([self.places[p] for p in torch.cat(tuple(batches)).tolist()])
        return places[places >= 0].sort().values, len(places)

    def _passes(self, batches: Sequence[Tensor], held: Tensor) -> list[Pass]:
        passes: list[Pass] = []
        for prompts in batches:
            places = torch.cat([self.places[p] for p in prompts.tolist()])
            local = torch.where(places >= 0, torch.searchsorted(held, places), -1)
            for tokens in self.tokens:
                batch, rows, columns = capture.picked(tokens.variant, prompts, tokens.chosen)
                passes.append(Pass(batch, rows, columns, local, tokens.sign))
        return passes

    def _request(self, server: Server, chunk: Sequence[Tensor]) -> Request:
        places, n = self._size(chunk)
        passes, reduction = self._passes(chunk, places), self.reduction(len(places), n)
        told = {
            "server": server.told,
            "model": self.variant.backend.identity,
            "layers": list(self.layers),
            "reduction": [type(reduction).__name__, {k: v for k, v in vars(reduction).items() if not isinstance(v, dict)}],
            "signs": [one.sign for one in passes],
        }
        tensors = [t for p in passes for t in (p.batch.ids, p.batch.mask, p.rows, p.columns, p.places)]
        return Request(server, partial(server.reduce, passes, self.layers, reduction), key_of(told, tensors))


def _add(reduction: Reduction, one: Pass, i: int, states: Tensor) -> None:
    reduction.add(i, states, one.places, one.sign)


def run(readings: Sequence[Reading]) -> list[list[Part]]:
    """All readings: requests to servers first, then what runs here."""
    how = readings[0].how
    requests = [reading.requests() for reading in readings]
    names = " and ".join(dict.fromkeys(r.variant.backend.identity.name for r in readings if r.server))
    found = collect([one for of in requests for one in of], how.resume, how.wait, how.progress, f"asking {names}")
    parts: list[list[Part]] = []
    for reading, of in zip(readings, requests, strict=True):
        parts.append(reading.parts(found[: len(of)]) if reading.server else reading.run_here())
        found = found[len(of) :]
    return parts


def runs_on_server(how: How, *variants: Variant) -> bool:
    """Whether any of them does.

    Raises:
        InvalidInput: none does, and there is nothing to resume or to wait for; one model both there and here.
    """
    found = any(variant.remote for variant in variants)
    for a, b in pairwise(variants):
        if a.model is b.model and bool(a.remote) != bool(b.remote):
            raise InvalidInput(
                f"{a.backend.identity.name} is to run on a server for one variant and here for the other; give both remote="
            )
    check_resumable(found, how.resume, how.wait)
    return found


def together(a: Variant, b: Variant) -> bool:
    """Whether both are one model on one server, so that their difference can be taken there."""
    return a.model is b.model and bool(a.remote) and remote_of(a.remote) == remote_of(b.remote)


def check_finite(of_layers: Tensor, reading: Reading) -> None:
    """Raise InvalidInput where what came back of a layer is not finite; rows are the reading's layers."""
    bad = (~of_layers.isfinite().flatten(1).all(dim=1)).nonzero()
    if len(bad):
        raise InvalidInput(
            f"the residual stream of {reading.variant.backend.identity.name} is not finite at layer "
            f"{reading.layers[int(bad[0])]}; leave the prompt out that does it, or run the model in float32"
        )


def factors(readings: Sequence[Reading], axes: int, centered: bool) -> list[list[LayerFactors]]:
    """Of each reading, of each layer, the leading principal axes and the held tokens' scores, by place."""
    found: list[list[LayerFactors]] = []
    for reading, parts in zip(readings, run(readings), strict=True):
        for part in parts:
            check_finite(torch.cat([part.found["mean"], part.found["energy"][:, None]], dim=1), reading)
        order = torch.cat([part.places for part in parts]).argsort()
        layers = list(zip(*(of_result(part.found, part.n) for part in parts), strict=True))
        if len(parts) > 1:
            tell_share([layer for of_layer in layers for layer in of_layer], "of a part, which is merged with others")
        found.append([merged(of_layer, axes, centered).reordered(order) for of_layer in layers])
    return found


def tell_share(found: Sequence[LayerFactors], of_what: str) -> None:
    """Say so where leading axes leave out what is asked for."""
    share = min(layer.share for layer in found)
    if share < 0.999:
        logger.warning(
            "%d axes came back; they hold %.1f%% of the variance %s at the layer that is worst; Remote(axes=...) asks for more",
            len(found[0].axes.values),
            100 * share,
            of_what,
        )


def factoring(variant: Variant, axes: int, centered: bool) -> Callable[[int, int], Reduction]:
    """Makes `Factors` of as many axes as are asked for, tokens span, and the model is wide."""
    settings = _settings(variant)
    half = settings is not None and settings.half
    d_model = variant.backend.identity.d_model
    return lambda held, n: Factors(min(axes, n, d_model), held, n, centered, half)


def axes_of(*variants: Variant) -> int:
    """How many axes come back where a rank alone does not say how many are needed; what runs here does not say."""
    return max([settings.axes for settings in map(_settings, variants) if settings] or [Remote().axes])


def positions_of(*variants: Variant) -> int:
    """Of how many calibration tokens scores come back at most."""
    return min([settings.positions for settings in map(_settings, variants) if settings] or [Remote().positions])


def in_one_request(how: How, *variants: Variant) -> bool:
    """Whether each server is asked once, so that no factors of parts are merged."""
    resumes = how.resume is not None
    return not any(variant.remote and batches_in_request(remote_of(variant.remote), resumes) for variant in variants)


def _settings(variant: Variant) -> Remote | None:
    where = remote_of(variant.remote)
    return where if isinstance(where, Remote) else None
