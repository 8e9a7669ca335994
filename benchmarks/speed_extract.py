"""Extraction against the bare forward passes that it cannot do without, against naive batching and the paper's procedure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from unittest.mock import patch

import torch
from measure import Work, interleaved, peak_bytes
from speed_models import BATCH, HOSTS, SHAPE, bare_pass, batches, bridge_pass, prompts
from speed_rows import Row, Setup
from torch import Tensor

import unlock_lens as ul
from unlock_lens.core import read
from unlock_lens.core.differences import mean_state
from unlock_lens.core.variant import Tokens

PAIRS = 32
LENGTHS = (16, 32)
UNEVEN = (4, 64)


def extract_rows(setup: Setup) -> list[Row]:
    """All layers, mean, batches of 16, both hosts."""
    models = setup.models
    texts = [prompts(PAIRS, *LENGTHS, seed=seed) for seed in (0, 1)]
    read = [batch for text in texts for batch in batches(ul.Variant(models.bridge, text), BATCH)]
    works: dict[str, Work] = {
        "bare HF body": partial(bare_pass, models.bare, read),
        "bare TransformerBridge pass": partial(bridge_pass, models.bridge, read),
        "the paper's procedure": partial(
            paper_procedure, models.bare, [batch for text in texts for batch in singles(setup, text)]
        ),
    }
    for host in HOSTS:
        works[f"extract, {host}"] = extraction(setup, host, texts)
    times = interleaved(works, setup.rounds, setup.tell)
    found = [
        Row.timed(times, "extract, nnsight", "bare HF body", 1.05),
        Row.timed(times, "extract, TransformerBridge", "bare TransformerBridge pass", 1.05),
        Row.timed(times, "extract, TransformerBridge", "bare HF body"),
    ]
    return [*found, *(Row.timed(times, f"extract, {host}", "the paper's procedure", 0.35) for host in HOSTS)]


def uneven_rows(setup: Setup) -> list[Row]:
    """The library's batches of like length against the same library with batches in the given order."""
    texts = [prompts(PAIRS, *UNEVEN, seed=seed) for seed in (2, 3)]
    sorted_batches = extraction(setup, "nnsight", texts)

    def in_given_order() -> None:
        with patch.object(Tokens, "batches", lambda tokens, size: torch.arange(len(tokens.ids)).split(size)):  # pyright: ignore
            sorted_batches()

    works: dict[str, Work] = {"extract, uneven prompts": sorted_batches, "the same in the given order": in_given_order}
    times = interleaved(works, setup.rounds, setup.tell)
    return [Row.timed(times, *works, bar=0.99)]


def memory_rows(setup: Setup) -> list[Row]:
    """What extraction holds beyond the bare passes, against what it must give back."""
    size = SHAPE["num_hidden_layers"] * SHAPE["hidden_size"]
    found: list[Row] = []
    for host in HOSTS:
        for n in (64, 256):
            states, mean = _extra_bytes(setup, host, n)
            found += [
                Row.counted(
                    f"peak memory, states of {n} prompts, {host}", "n x layers x d x 4 bytes", states / (n * size * 4), 1.2
                ),
                Row.counted(f"peak memory, mean of {n} prompts, {host}", "layers x d x 8 bytes", mean / (size * 8), 1.2),
            ]
            setup.tell()
    return found


def _extra_bytes(setup: Setup, host: str, n: int) -> tuple[int, int]:
    """Of all states, and of their mean."""
    variant = ul.Variant(setup.models.of_host(host), prompts(n, 4, 8))
    passes = batches(variant)
    model = setup.models.of_host(host)
    bare = peak_bytes(
        partial(bridge_pass, model, passes) if host == HOSTS[0] else partial(bare_pass, setup.models.bare, passes)
    )
    states = peak_bytes(partial(read.at_position, variant, batch_size=BATCH))
    mean = peak_bytes(partial(mean_state, variant, how=read.How(BATCH)))
    return states - bare, mean - bare


def extraction(setup: Setup, host: str, texts: Sequence[Sequence[str]]) -> Work:
    """A mean direction of two prompt lists, whose tokens are at hand."""
    locked, unlocked = (ul.Variant(setup.models.of_host(host), text) for text in texts)
    return partial(ul.CapabilityDirection.extract, locked, unlocked, batch_size=BATCH, progress=False)


def singles(setup: Setup, text: Sequence[str]) -> list[dict[str, Tensor]]:
    """One prompt a batch."""
    return batches(ul.Variant(setup.models.bridge, text), 1)


def paper_procedure(model: torch.nn.Module, read: Sequence[dict[str, Tensor]]) -> list[list[Tensor]]:
    """One prompt at a time through the whole model, all layers' full hidden states copied to the CPU and kept."""
    kept: list[list[Tensor]] = []
    with torch.no_grad():
        for batch in read:
            states = model(**batch, output_hidden_states=True).hidden_states
            kept.append([of_layer.to("cpu", copy=True) for of_layer in states])
    return kept
