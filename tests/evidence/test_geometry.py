"""What maps look like at every rank, against fits at that rank and against numpy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unlock_lens as ul
from unlock_lens import recipes
from unlock_lens.evidence.sweep import runner
from unlock_lens.evidence.sweep.config import SweepConfig
from unlock_lens.evidence.sweep.geometry import geometry, held_out_errors
from unlock_lens.evidence.sweep.material import Material


def states(d_model: int, seed: int, n: int = 80) -> torch.Tensor:
    return torch.randn(2, n, d_model, generator=torch.Generator().manual_seed(seed)) + 3


@pytest.mark.parametrize("centered", [True, False])
def test_held_out_errors_are_those_of_a_fit_at_each_rank(centered: bool) -> None:
    """One nested decomposition gives what fitting the first tokens anew at every rank gives."""
    h_s, h_t = states(10, 0), states(6, 1)
    like = ul.SubspaceAligner(6, centered=centered).fit_activations(h_s, h_t)
    ranks = (1, 3, 6)
    for rank, (errors, r2) in zip(ranks, held_out_errors(h_s, h_t, like, ranks), strict=True):
        fitted = ul.SubspaceAligner(rank, centered=centered).fit_activations(h_s[:, :60], h_t[:, :60])
        for b in range(2):
            mean_s, mean_t = (h[b, :60].mean(dim=0) if centered else torch.zeros(h.shape[-1]) for h in (h_s, h_t))
            wanted = h_t[b, 60:] - mean_t
            residual = wanted - (h_s[b, 60:] - mean_s) @ fitted.map(b)
            spread = h_t[b, 60:] - h_t[b, :60].mean(dim=0)  # not its own mean, which the map has not seen
            assert errors[b] == pytest.approx(float(residual.norm() / wanted.norm()), rel=1e-4)
            assert r2[b] == pytest.approx(float(1 - residual.square().sum() / spread.square().sum()), rel=1e-3, abs=1e-4)


def test_a_map_that_is_exact_has_no_error() -> None:
    h_s = states(6, 0)
    turned = h_s @ torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2))).Q
    like = ul.SubspaceAligner(6, centered=True).fit_activations(h_s, turned)
    ((errors, r2),) = held_out_errors(h_s, turned, like, [6])
    assert max(errors) < 1e-5
    assert min(r2) > 1 - 1e-6


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    content = recipes.smallest().model_dump(mode="json")
    grid = {"aligner": ["text", "paper"], "n": [20, 100], "rank": [4, 48], "alpha": [0.5]}
    config = SweepConfig.parse({**content, "grid": grid, "controls": ["own"]})
    material = Material(config, progress=False)
    return geometry(material, runner.grid(config, "think")[3])


def test_every_map_of_the_grid_is_described(found: dict[str, Any]) -> None:
    told = [(line["aligner"], line["n"], line["rank"]) for line in found["maps"]]
    assert told == [(aligner, n, rank) for aligner in ("text", "paper") for n in (20, 100) for rank in (4, 48)]
    for line in found["maps"]:
        assert line["layers"] == [0, 1, 2]
        for name in ("error", "r2", "coverage", "cosine_own"):
            assert len(line[name]) == 3
        assert all(0 <= share <= 1 for share in line["coverage"])


def test_the_text_spans_the_direction_and_carries_it_to_the_targets_own(found: dict[str, Any]) -> None:
    text = next(line for line in found["maps"] if (line["aligner"], line["n"], line["rank"]) == ("text", 100, 48))
    assert min(text["coverage"]) > 0.95
    assert min(text["cosine_own"]) > 0.9
    paper = next(line for line in found["maps"] if (line["aligner"], line["n"], line["rank"]) == ("paper", 100, 48))
    assert min(paper["cosine_own"]) < 0.5


def test_spectra_and_effects_are_of_every_layer(found: dict[str, Any]) -> None:
    assert [(line["side"], line["layer"]) for line in found["spectra"]] == [
        ("source", 0), ("source", 1), ("source", 3), ("target", 0), ("target", 1), ("target", 2),
    ]  # fmt: skip
    for line in found["spectra"]:
        assert line["values"] == sorted(line["values"], reverse=True)
        assert 1 <= line["effective_rank"] <= len(line["values"])
    assert [(line["rank"], line["layers"]) for line in found["effect"]] == [(4, [0, 1, 2]), (48, [0, 1, 2])]
    assert max(found["effect"][1]["kl"]) > 3 * max(found["effect"][0]["kl"])
