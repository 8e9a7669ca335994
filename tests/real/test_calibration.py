"""Calibration on real text through a real model: attention sinks, what they do to each method, and streamed against held.

The model is mapped to itself, so the true map is known: every direction should come back as it went. Prints what
docs/aligners.md says of sinks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import unlock_lens as ul
from tests.hosts.models import open_host
from tests.real.test_smollm2 import direction_of, problems
from unlock_lens.core import read

pytestmark = pytest.mark.real

LAYERS = tuple(range(2, 30, 3))
METHODS: tuple[dict[str, Any], ...] = (
    {"rank": 16},
    {"rank": 64},
    {"method": "ridge"},
    {"method": "rrr", "rank": 64},
    {"method": "cca", "rank": 64},
    {"method": "procrustes"},
)
console = Console(width=110)


@pytest.fixture(scope="module")
def model(folder: str) -> Any:
    return open_host(folder, "nnsight")


@pytest.fixture(scope="module")
def calibration(model: Any) -> ul.Variant:
    return ul.Variant(model, [f"{question}\nAnswer: Let's think step by step." for question in problems(48, seed=7)[0]])


def test_the_first_token_is_a_sink_and_is_recognised(calibration: ul.Variant) -> None:
    states = read.at_all_tokens(calibration)
    norms = states.norm(dim=-1)
    ratios = norms / norms.median(dim=-1, keepdim=True).values
    firsts = calibration.tokens.lengths.cumsum(0) - calibration.tokens.lengths
    others = torch.ones(states.shape[1], dtype=torch.bool)
    others[firsts] = False
    console.print(f"\nlargest norm in medians of its layer: first tokens {float(ratios[:, firsts].max()):.0f}, "
                  f"all others {float(ratios[:, others].max()):.0f}")  # fmt: skip
    assert bool((ratios[:, firsts].max(dim=0).values > 100).all())
    left = ul.SubspaceAligner(8, centered=True, sinks="drop", layer_map={20: 20}).fit_activations(states, states)
    assert left.n_tokens is not None
    assert states.shape[1] - left.n_tokens >= len(calibration)


def test_what_sinks_do_to_a_map(model: Any, calibration: ul.Variant) -> None:
    direction, _ = direction_of(model)
    own = direction.at_layers(LAYERS).vectors
    states = read.at_all_tokens(calibration)
    table = Table("cosine with the direction that was sent", "keep", "drop", "rescale", box=SIMPLE_HEAD)
    found: dict[str, dict[str, float]] = {}
    for options in METHODS:
        name = " ".join(f"{key} {value}" for key, value in options.items())
        found[name] = {}
        for sinks in ("keep", "drop", "rescale"):
            aligner = ul.SubspaceAligner(centered=True, layer_map={b: b for b in LAYERS}, sinks=sinks, **options)
            back = aligner.fit_activations(states, states).transport(direction).vectors
            found[name][sinks] = float(torch.cosine_similarity(back, own, dim=1).mean())
        table.add_row(name, *(f"{cosine:.3f}" for cosine in found[name].values()))
    console.print(table)
    assert found["method ridge"]["rescale"] > 0.9
    assert found["method procrustes"]["keep"] > 0.99


def test_streamed_and_held_are_one_map(calibration: ul.Variant) -> None:
    few: dict[str, Any] = {"rank": 32, "centered": True, "layer_map": {20: 20}}
    streamed = ul.SubspaceAligner(positions="all", **few).fit(calibration, calibration, progress=False)
    states = read.at_all_tokens(calibration)
    held = ul.SubspaceAligner(**few).fit_activations(states, states)
    assert streamed.n_tokens == held.n_tokens
    assert (held.n_tokens or 0) > 576
    assert float((streamed.map(20) - held.map(20)).norm() / held.map(20).norm()) < 1e-3
