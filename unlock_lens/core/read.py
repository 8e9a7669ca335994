"""Read: reduce the states of chosen layers at chosen tokens, here or on a server, and return the result.

Layer l means the output of block l (TransformerLens `blocks.l.hook_resid_post`, nnsight `layers[l].output`). For the last
layer that is the state before the final norm, where edits are made; the paper's own code reads it after the norm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlock_lens.core.jobs import Found, Request, batches_in_request, check_resumable, collect, in_requests, key_of
from unlock_lens.core.progress import shown
from unlock_lens.core.tokens import Chosen, all_tokens, one_token
from unlock_lens.core.variant import Variant, check_batch_size
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import Batch, Pass, Server
from unlock_lens.hosts.answers import fault_of_reduction
from unlock_lens.hosts.remote import Remote, remote_of
from unlock_lens.method.reduce import LayerFactors, LeadingAxes, Reduction, States, merged, of_result

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class How:
    """How requests are made and waited for, as explained in `CapabilityDirection.extract`."""

    batch_size: int = 8
    resume: str | Path | None = None
    wait: bool = True
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Picked:
    """The tokens of one variant that are read.

    Attributes:
        variant: the model and its prompts.
        chosen: the tokens of each prompt, counted without padding.
        sign: -1 if their states are subtracted from those of another variant of the same model.
    """

    variant: Variant
    chosen: Chosen
    sign: int = 1


@dataclass(frozen=True, eq=False)
class Part:
    """The result of one request.

    Attributes:
        found: the reduction's result.
        n: number of tokens that it read.
        places: which of the reading's held tokens it held, in its order.
    """

    found: Found
    n: int
    places: Int[Tensor, " held"]


@dataclass(frozen=True, eq=False)
class Reading:
    """Tokens that are reduced together: of one variant, or of two variants of the same model in the same place.

    Attributes:
        tokens: the tokens of each variant; prompt i of one corresponds to prompt i of the other.
        layers: ascending.
        reduction: makes the reduction, given how many tokens are held and how many are read in all.
        places: for each prompt, the place at which each of its chosen tokens is held, or -1.
        how: batches, resuming, waiting.
    """

    tokens: Sequence[Picked]
    layers: Sequence[int]
    reduction: Callable[[int, int], Reduction]
    places: Chosen
    how: How

    @property
    def variant(self) -> Variant:
        return self.tokens[0].variant

    @cached_property
    def server(self) -> Server | None:
        """None if the model runs here."""
        where = remote_of(self.variant.remote)
        return self.variant.backend.on(where) if where else None

    @cached_property
    def chunks(self) -> Sequence[Sequence[Int[Tensor, " prompt"]]]:
        """Batches of similar length, longest first, grouped by request."""
        check_batch_size(self.how.batch_size)
        lengths = torch.stack([tokens.variant.tokens.lengths for tokens in self.tokens]).sum(dim=0)
        order = lengths.argsort(descending=True, stable=True)
        batches = order[[len(self.places[p]) > 0 for p in order.tolist()]].split(self.how.batch_size)
        return in_requests(batches, remote_of(self.variant.remote), self.how.resume is not None)

    def requests(self) -> list[Request]:
        """One for each chunk; none if the model runs here."""
        server = self.server
        return [self._request(server, chunk) for chunk in self.chunks] if server else []

    def parts(self, found: Sequence[Found]) -> list[Part]:
        """What the requests gave, with what it belongs to."""
        sizes = [self._size(chunk) for chunk in self.chunks]
        return [Part(result, n, places) for result, (places, n) in zip(found, sizes, strict=True)]

    def run_here(self) -> list[Part]:
        """The same reduction on a model that runs here.

        Raises:
            InvalidInput: a state is not finite.
        """
        batches = [batch for chunk in self.chunks for batch in chunk]
        places, n = self._size(batches)
        reduction = self.reduction(len(places), n)
        for prompts in shown(batches, f"reading {self.variant.backend.identity.name}", self.how.progress):
            for tokens, one in zip(self.tokens, self._passes([prompts], places), strict=True):
                run_pass(tokens.variant, prompts, one, self.layers, reduction)
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
            passes += [one_pass(tokens, prompts, local) for tokens in self.tokens]
        return passes

    def _request(self, server: Server, chunk: Sequence[Tensor]) -> Request:
        places, n = self._size(chunk)
        passes, reduction = self._passes(chunk, places), self.reduction(len(places), n)
        description = {
            "server": server.told,
            "model": self.variant.backend.identity,
            "layers": list(self.layers),
            "reduction": [type(reduction).__name__, {k: v for k, v in vars(reduction).items() if not isinstance(v, dict)}],
            "signs": [one.sign for one in passes],
        }
        tensors = [t for p in passes for t in (p.batch.ids, p.batch.mask, p.rows, p.columns, p.places)]
        fault = partial(self._fault, reduction=reduction, passes=passes)
        return Request(server, partial(server.reduce, passes, self.layers, reduction), key_of(description, tensors), fault)

    def _fault(self, found: Any, reduction: Reduction, passes: Sequence[Pass]) -> str | None:
        """What is wrong with a result, or None; InvalidInput for states that are not finite."""
        fault = fault_of_reduction(found, reduction, passes, len(self.layers), self.variant.backend.identity.d_model)
        if fault is None:
            for part in ("states", "mean", "energy"):
                if part in found:
                    check_finite(found[part].reshape(len(self.layers), -1), self)
        return fault


def one_pass(tokens: Picked, prompts: Int[Tensor, " prompt"], places: Int[Tensor, " picked"]) -> Pass:
    """One forward pass over some of the prompts; their chosen tokens go to `places`, prompt after prompt."""
    rows_of, chosen = tokens.variant.tokens.rows(prompts), [tokens.chosen[p] for p in prompts.tolist()]
    rows = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(of_prompt) for of_prompt in chosen]))
    columns = torch.cat(chosen) + (rows_of.ids.shape[1] - rows_of.lengths)[rows]
    return Pass(Batch(rows_of.ids, rows_of.mask), rows, columns, places, tokens.sign)


def run_pass(variant: Variant, prompts: Int[Tensor, " prompt"], one: Pass, layers: Sequence[int], reduction: Reduction) -> None:
    """Run it here, layer after layer into the reduction.

    Raises:
        InvalidInput: a state is not finite.
    """
    spoiled: list[tuple[int, int]] = []

    def keep(i: int, states: Tensor) -> None:
        states = states.cpu() if states.device.type == "mps" else states  # which has no float64 to sum in
        bad = (~states.isfinite()).any(dim=-1).nonzero()
        if len(bad):  # raised afterwards, because hosts wrap what is raised during a pass
            spoiled.append((layers[i], int(prompts[one.rows[bad[0].cpu()]])))
        reduction.add(i, states, one.places, one.sign)

    variant.backend.capture(one.batch, layers, one.rows, one.columns, keep)
    for layer, prompt in spoiled[:1]:
        raise InvalidInput(
            f"the residual stream of {variant.backend.identity.name} is not finite at layer {layer}, prompt {prompt} "
            f"({variant.prompts[prompt][:40]!r}); omit that prompt, or load the model in float32"
        )


def read(readings: Sequence[Reading]) -> list[list[Part]]:
    """All readings: requests to servers first, then what runs here.

    Raises:
        InvalidInput: a state is not finite.
        RemoteError: the server does not answer, refuses, or fails; JobsRunning if results are not waited for.
    """
    how = readings[0].how
    requests = [reading.requests() for reading in readings]
    names = " and ".join(dict.fromkeys(r.variant.backend.identity.name for r in readings if r.server))
    found = collect([one for of in requests for one in of], how.resume, how.wait, how.progress, f"asking {names}")
    parts: list[list[Part]] = []
    for reading, of in zip(readings, requests, strict=True):
        parts.append(reading.parts(found[: len(of)]) if reading.server else reading.run_here())
        found = found[len(of) :]
    return parts


def states(
    tokens: Picked | Sequence[Picked], layers: Sequence[int] | None = None, how: How | None = None
) -> Float[Tensor, "layer token d_model"]:
    """The residual stream at the chosen tokens, in the order of the prompts; for two variants of one model, the difference.

    Raises:
        InvalidInput: layers are out of range, or a state is not finite.
        RemoteError: as `read`.
    """
    of = [tokens] if isinstance(tokens, Picked) else list(tokens)
    model = of[0].variant.backend.identity
    read_layers = check_layers(layers, model.n_layers)
    places = in_order(of[0].chosen)
    reading = Reading(of, read_layers, lambda held, n: States(len(read_layers), held, model.d_model), places, how or How())
    parts = read([reading])[0]
    if len(parts) == 1:
        return parts[0].found["states"]
    order = torch.cat([part.places for part in parts]).argsort()
    return torch.cat([part.found["states"] for part in parts], dim=1)[:, order]


def at_position(
    variant: Variant, layers: Sequence[int] | None = None, position: int = -1, batch_size: int = 8, progress: bool = False
) -> Float[Tensor, "layer prompt d_model"]:
    """The residual stream at one token of each prompt, counted without padding (-1: the last); errors are those of `states`."""
    return states(Picked(variant, one_token(variant, position)), layers, How(batch_size, progress=progress))


def at_all_tokens(
    variant: Variant,
    layers: Sequence[int] | None = None,
    skip_first: bool = False,
    batch_size: int = 8,
    progress: bool = False,
) -> Float[Tensor, "layer token d_model"]:
    """The residual stream at every token of every prompt, or every one but the first; errors are those of `states`."""
    return states(Picked(variant, all_tokens(variant, skip_first)), layers, How(batch_size, progress=progress))


def in_order(chosen: Chosen) -> Chosen:
    """Places for all chosen tokens, prompt after prompt."""
    counts = [len(of_prompt) for of_prompt in chosen]
    return torch.arange(sum(counts)).split(counts)


def check_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    """All layers for None; otherwise these, ascending.

    Raises:
        InvalidInput: layers are empty, repeated, or out of range.
    """
    if layers is None:
        return tuple(range(n_layers))
    if isinstance(layers, int):
        raise InvalidInput(f"layers={layers} was given; give a list, layers=[{layers}]")
    chosen = tuple(sorted(int(layer) for layer in layers))
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 0 or chosen[-1] >= n_layers:
        raise InvalidInput(f"layers {list(layers)} were given; choose different ones from 0 to {n_layers - 1}")
    return chosen


def runs_on_server(how: How, *variants: Variant) -> bool:
    """Whether any of them does.

    Raises:
        InvalidInput: none does, and there is nothing to resume or to wait for; one model both there and here.
    """
    found = any(variant.remote for variant in variants)
    for a, b in pairwise(variants):
        if a.model is b.model and bool(a.remote) != bool(b.remote):
            raise InvalidInput(
                f"{a.backend.identity.name} should run on a server for one variant and here for the other; give both remote="
            )
    check_resumable(found, how.resume, how.wait)
    return found


def together(a: Variant, b: Variant) -> bool:
    """Whether both are one model on one server, so that their difference is taken there; here each has batches of its own."""
    return a.model is b.model and bool(a.remote) and remote_of(a.remote) == remote_of(b.remote)


def check_finite(of_layers: Tensor, reading: Reading) -> None:
    """Raise InvalidInput where what came back for a layer is not finite; rows are the reading's layers."""
    bad = (~of_layers.isfinite().flatten(1).all(dim=1)).nonzero()
    if len(bad):
        raise InvalidInput(
            f"the residual stream of {reading.variant.backend.identity.name} is not finite at layer "
            f"{reading.layers[int(bad[0])]}; omit the prompt that causes it, or run the model in float32"
        )


def factors(readings: Sequence[Reading], axes: int, centered: bool) -> list[list[LayerFactors]]:
    """For each reading and each layer, the leading principal axes and the held tokens' scores, by place."""
    found: list[list[LayerFactors]] = []
    for parts in read(readings):
        order = torch.cat([part.places for part in parts]).argsort()
        layers = list(zip(*(of_result(part.found, part.n) for part in parts), strict=True))
        if len(parts) > 1:
            warn_of_share([layer for of_layer in layers for layer in of_layer], "of a part, which is merged with others")
        found.append([merged(of_layer, axes, centered).reordered(order) for of_layer in layers])
    return found


def warn_of_share(found: Sequence[LayerFactors], of_what: str) -> None:
    """Say so where leading axes leave out some of what is asked for."""
    share = min(layer.share for layer in found)
    if share < 0.999:
        logger.warning(
            "%d axes were returned; they hold %.1f%% of the variance %s at the worst layer; ask for more with Remote(axes=...)",
            len(found[0].axes.values),
            100 * share,
            of_what,
        )


def factoring(variant: Variant, axes: int, centered: bool) -> Callable[[int, int], Reduction]:
    """Makes `LeadingAxes` of as many axes as are asked for, as the tokens span, and as the model is wide."""
    settings = _settings(variant)
    half = settings is not None and settings.half
    d_model = variant.backend.identity.d_model
    return lambda held, n: LeadingAxes(min(axes, n, d_model), held, n, centered, half)


def axes_of(*variants: Variant) -> int:
    """How many axes come back where a rank alone does not say how many are needed; only variants on servers count."""
    return max([settings.axes for settings in map(_settings, variants) if settings] or [Remote().axes])


def positions_of(*variants: Variant) -> int:
    """For how many calibration tokens scores come back at most."""
    return min([settings.positions for settings in map(_settings, variants) if settings] or [Remote().positions])


def in_one_request(how: How, *variants: Variant) -> bool:
    """Whether each server is asked once, so that no factors of parts are merged."""
    resumes = how.resume is not None
    return not any(variant.remote and batches_in_request(remote_of(variant.remote), resumes) for variant in variants)


def _settings(variant: Variant) -> Remote | None:
    where = remote_of(variant.remote)
    return where if isinstance(where, Remote) else None
