"""What maps look like at every rank, from one decomposition a layer: held-out error, coverage, cosine, spectra, effect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.evidence.diagnosis.map_quality import coverage, entropy_of, singular_values
from unlock_lens.evidence.distributions import kl_divergence, next_token_log_probs
from unlock_lens.evidence.sweep.material import PROBED, Material
from unlock_lens.evidence.sweep.setting import Setting
from unlock_lens.method.align import FactoredMaps

HELD_OUT = 0.25
"""Share of the calibration tokens, the last ones, that the map whose error is told was not fitted on."""


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
    """For each rank of a map fitted on the first tokens: relative error and R2 at each target layer, on the last ones.

    The paper's transform error ||H_s W - H_t|| / ||H_t||, states centred where the map is; R2 = 1 - residual / variance.
    """
    n = source.shape[1] - max(1, round(HELD_OUT * source.shape[1]))
    fitted = SubspaceAligner(
        min(like.maps.rank, n), like.centered, layer_map=like.layer_map, method=like.method, ridge=like.ridge
    )
    maps = fitted.fit_activations(source[:, :n], target[:, :n]).maps
    rest = [_held_out(maps, i, source[a, n:], target[b, n:], like.centered) for i, (b, a) in enumerate(maps.layer_map.items())]
    for k in ranks:
        residuals = [
            (h_t - scores[:, :k] @ maps.core[i, :k, :k].double() @ v_t[:k]) for i, (scores, v_t, h_t) in enumerate(rest)
        ]
        errors = [float(r.norm() / h_t.norm()) for r, (_, _, h_t) in zip(residuals, rest, strict=True)]
        spreads = [(h_t - h_t.mean(dim=0)).square().sum() for _, _, h_t in rest]
        yield errors, [float(1 - r.square().sum() / spread) for r, spread in zip(residuals, spreads, strict=True)]


def _held_out(maps: FactoredMaps, i: int, source: Tensor, target: Tensor, centered: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the source's tokens on V_s, V_t, and the target's tokens."""
    h_s, h_t = source.double(), target.double()
    if centered:
        h_s, h_t = h_s - maps.source_mean[i].double(), h_t - maps.target_mean[i].double()
    return h_s @ maps.source_factors[i].double().T, maps.target_factors[i].double(), h_t


def _maps(material: Material, chosen: Setting) -> Iterator[dict[str, Any]]:
    grid = material.config.grid
    own = material.own_direction(chosen) if "own" in material.controls else None
    for aligner_name, n, layer_map in product(grid.aligner, grid.n, grid.layer_map):
        method = "unlock" if aligner_name == "paper" else chosen.method
        setting = replace(chosen, aligner=aligner_name, n=n, layer_map=layer_map, rank=None, method=method)
        whole = material.aligner(setting)
        states = [material.states(side, aligner_name, n) for side in ("source", "target")]
        source = material.source_direction(setting)
        errors = held_out_errors(states[0], states[1], whole, grid.rank)
        for rank, (error, r2) in zip(grid.rank, errors, strict=True):
            aligner = whole.at_rank(min(rank, whole.maps.rank))
            yield {
                "aligner": aligner_name,
                "method": method,
                "n": n,
                "layer_map": layer_map,
                "rank": rank,
                "layers": list(aligner.layer_map),
                "error": error,
                "r2": r2,
                "coverage": _coverage(source, aligner),
                "cosine_own": aligner.transport(source).cosine(own.at_layers(list(aligner.layer_map))).tolist()
                if own
                else None,
            }


def _coverage(direction: CapabilityDirection, aligner: SubspaceAligner) -> list[float]:
    rows = enumerate(aligner.layer_map.values())
    return [coverage(direction.vectors[direction.layers.index(a)], aligner.maps.source_factors[i]) for i, a in rows]


def _spectra(material: Material, chosen: Setting) -> Iterator[dict[str, Any]]:
    """Singular values of the states that the chosen map was fitted on."""
    aligner = material.aligner(chosen)
    layers = {"source": sorted(set(aligner.layer_map.values())), "target": list(aligner.layer_map)}
    for side, of_side in layers.items():
        states = material.states("source" if side == "source" else "target", chosen.aligner or "text", chosen.n)
        for layer in of_side:
            values = singular_values(states[layer], aligner.centered)
            entropy = entropy_of(values)
            yield {
                "aligner": chosen.aligner,
                "side": side,
                "layer": layer,
                "values": [float(f"{value:.5g}") for value in values],
                "entropy": entropy,
                "effective_rank": math.exp(entropy),
            }


def _effect(material: Material, chosen: Setting) -> list[dict[str, Any]]:
    """How far each layer alone, steered as chosen, moves the distribution of the first token: mean KL in nats."""
    config = material.config
    task = material.splits.train.first(min(PROBED, config.sizes.train))
    prompts = task.prompts(config.capability.locked)

    def first_tokens(setting: Setting | None, layer: int = 0) -> Tensor:
        hook = replace(material.steer(setting), layers=[layer]) if setting else None
        return next_token_log_probs(material.target, prompts, hook, config.batch_size, config.special_tokens, config.remote)

    plain = first_tokens(None)
    found: list[dict[str, Any]] = []
    for rank in config.grid.rank:
        setting = replace(chosen, rank=rank, layers=None)
        layers = material.direction(setting).layers
        kl = [float(kl_divergence(first_tokens(setting, layer), plain).mean()) for layer in layers]
        found.append({"rank": rank, "layers": list(layers), "kl": kl})
    return found
