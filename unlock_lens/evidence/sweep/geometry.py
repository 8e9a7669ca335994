"""Maps at every rank, from one decomposition for each layer: held-out error, coverage, cosine, spectra, effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import exp
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.evidence.distributions import kl_divergence, next_token_log_probs
from unlock_lens.evidence.sweep.config import Setting
from unlock_lens.evidence.sweep.material import Material, Side
from unlock_lens.method.calibrate import Held
from unlock_lens.method.crossval import held_out, splits
from unlock_lens.method.linalg import coverage, spectral_entropy, spectrum

HELD_OUT = 0.25
"""Share of the calibration tokens (the last ones) that is held out when a map's error is measured."""


def geometry(material: Material, chosen: Setting) -> dict[str, list[dict[str, Any]]]:
    """`geometry.json`: every map of the grid at every rank, the spectra behind the chosen one, the effect of each layer."""
    return {
        "maps": list(_maps(material, chosen)),
        "spectra": list(_spectra(material, chosen)),
        "effect": _effect(material, chosen),
    }


def held_out_errors(
    source: Float[Tensor, "layer_s n d_source"],
    target: Float[Tensor, "layer_t n d_target"],
    like: SubspaceAligner,
    ranks: Sequence[int],
) -> Iterator[tuple[list[float], list[float]]]:
    """For each rank of a map fitted on the first tokens: relative error and R2 at each target layer, on the last ones."""
    n = source.shape[1]
    fold = (torch.arange(n) >= n - max(1, round(HELD_OUT * n))).long()
    layers = dict(enumerate(source)), dict(enumerate(target))
    held = Held(like.layer_map, layers[0], layers[1], fold, like.centered)
    found = [
        held_out(splits(held.scores(b), like.centered, held_out=[1]), like.method, ranks, [like.ridge_]) for b in like.layer_map
    ]
    for i in range(len(ranks)):
        yield [float(layer.error[0, i]) for layer in found], [float(layer.r2[0, i]) for layer in found]


def _maps(material: Material, chosen: Setting) -> Iterator[dict[str, Any]]:
    grid = material.config.grid
    own = material.own_direction(chosen) if "own" in material.controls else None
    for aligner_name, n, layer_map in product(grid.aligner, grid.n, grid.layer_map):
        method = "unlock" if aligner_name == "paper" else chosen.method
        setting = replace(chosen, aligner=aligner_name, n=n, layer_map=layer_map, rank=None, method=method)
        whole = material.aligner(setting)
        h_s, h_t = (material.states(side, aligner_name, n) for side in ("source", "target"))
        source, errors = material.source_direction(setting), held_out_errors(h_s, h_t, whole, grid.rank)
        for rank, (error, r2) in zip(grid.rank, errors, strict=True):
            aligner = whole.at_rank(min(rank, whole.rank_))
            cosine = aligner.transport(source).cosine(own.at_layers(list(aligner.layer_map))).tolist() if own else None
            rows = enumerate(aligner.layer_map.values())
            yield {
                "aligner": aligner_name, "method": method, "n": n, "layer_map": layer_map, "rank": rank,
                "layers": list(aligner.layer_map), "error": error, "r2": r2,
                "coverage": [coverage(source.vectors[source.layers.index(a)], aligner.maps.source_factors[i]) for i, a in rows],
                "cosine_own": cosine,
            }  # fmt: skip


def _spectra(material: Material, chosen: Setting) -> Iterator[dict[str, Any]]:
    """Singular values of the states that the chosen map was fitted on."""
    aligner = material.aligner(chosen)
    layers: dict[Side, list[int]] = {"source": sorted(set(aligner.layer_map.values())), "target": list(aligner.layer_map)}
    for side, of_side in layers.items():
        states = material.states(side, chosen.aligner or "text", chosen.n)
        for layer in of_side:
            h = states[layer]
            values = spectrum(h, mean=h.double().mean(dim=0) if aligner.centered else None).values
            entropy = spectral_entropy(values)
            shown = {"values": [float(f"{value:.5g}") for value in values], "entropy": entropy, "effective_rank": exp(entropy)}
            yield {"aligner": chosen.aligner, "side": side, "layer": layer, **shown}


def _effect(material: Material, chosen: Setting) -> list[dict[str, Any]]:
    """How far each layer alone, steered as chosen, moves the distribution of the first token: mean KL in nats."""
    config = material.config
    prompts = material.asked(material.target, material.probed)

    def first_tokens(setting: Setting | None, layer: int = 0) -> Tensor:
        hook = replace(material.steer(setting), layers=[layer]) if setting else None
        return next_token_log_probs(prompts, None, hook, config.batch_size)

    plain = first_tokens(None)
    found: list[dict[str, Any]] = []
    for rank in config.grid.rank:
        setting = replace(chosen, rank=rank, layers=None)
        layers = material.direction(setting).layers
        kl = [float(kl_divergence(first_tokens(setting, layer), plain).mean()) for layer in layers]
        found.append({"rank": rank, "layers": list(layers), "kl": kl})
    return found
