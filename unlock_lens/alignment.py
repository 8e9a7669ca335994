"""SubspaceAligner: a low-rank linear map from one model's residual stream to another's (docs/method.md, section 2: align)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens import artifact, capture
from unlock_lens.direction import CapabilityDirection
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.identity import ModelIdentity
from unlock_lens.linear_map import FactoredMaps, decompose, fit_layer, proportional_layer
from unlock_lens.variant import Variant

logger = logging.getLogger(__name__)
_KIND = "aligner"


class SubspaceAligner:
    """The linear map between two models, fitted on what both make of the same texts.

    Args:
        rank: k, the dimension of the subspaces; capped, with a warning, at what the calibration tokens span.
        centered: take the mean over tokens out before the decomposition.
        positions: "last" token of each text (the paper's), or "all" tokens.
        skip_first: leave out the first token of each text (with positions="all"), often an attention sink of huge norm.
        layer_map: target layer -> source layer; None is the paper's, in proportion to depth. Target layers that are
            left out get no map.

    The defaults are the paper's exact calibration; ordinary text, positions="all", centered=True transfers better
    (docs/method.md, "Beyond the paper").

    Raises:
        InvalidInput: rank below 1, unknown positions.

    Source: docs/method.md, section 2.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> text = zoo.text(n=64)
        >>> aligner = ul.SubspaceAligner(rank=16, centered=True, positions="all").fit(
        ...     source=ul.Variant(zoo.load("large-base"), text), target=ul.Variant(zoo.load("small-base"), text))
        >>> aligner.layer_map
        {0: 0, 1: 1, 2: 3}
        >>> aligner.map(2).shape
        torch.Size([96, 64])
    """

    def __init__(
        self,
        rank: int = 16,
        centered: bool = False,
        positions: Literal["last", "all"] = "last",
        skip_first: bool = False,
        layer_map: Mapping[int, int] | None = None,
    ) -> None:
        if rank < 1:
            raise InvalidInput(f"rank {rank} was given; at least 1 is needed")
        if positions not in ("last", "all"):
            raise InvalidInput(f'positions {positions!r} was given; take "last" or "all"')
        self.rank = rank
        self.centered = centered
        self.positions: Literal["last", "all"] = positions
        self.skip_first = skip_first
        self.source_model: ModelIdentity | None = None
        self.target_model: ModelIdentity | None = None
        self.n_tokens: int | None = None
        self.prompts_hash: str | None = None
        self._wanted_layers = {int(b): int(a) for b, a in layer_map.items()} if layer_map is not None else None
        self._maps: FactoredMaps | None = None

    def fit(self, source: Variant, target: Variant, batch_size: int = 8, progress: bool = True) -> SubspaceAligner:
        """Fit the map on both variants' states at the calibration tokens; returns the aligner itself.

        Args:
            source: the model that directions come from, with the calibration texts.
            target: the model that they go to, with as many texts, in the same order.
            batch_size: texts in one forward pass.
            progress: whether to show a progress bar (after a second of work).

        Raises:
            InvalidInput: different numbers of texts or (with positions="all") of tokens, layers out of range, states that
                are not finite or do not vary.
        """
        if len(source) != len(target):
            raise InvalidInput(
                f"{len(source)} source and {len(target)} target texts were given; text i of one belongs to text i of the other"
            )
        source_model, target_model = source.backend.identity, target.backend.identity
        self._layers(source_model.n_layers, target_model.n_layers)
        if self.positions == "all":
            capture.check_same_tokens(source, target, self.skip_first)
            h_s, h_t = (capture.at_all_tokens(v, None, self.skip_first, batch_size, progress) for v in (source, target))
        else:
            h_s, h_t = (capture.at_position(v, None, -1, batch_size, progress) for v in (source, target))
        return self.fit_activations(h_s, h_t, source_model, target_model, source.prompts_hash)

    def fit_activations(
        self,
        source_acts: Float[Tensor, "layer_s n d_source"],
        target_acts: Float[Tensor, "layer_t n d_target"],
        source_model: ModelIdentity | None = None,
        target_model: ModelIdentity | None = None,
        prompts_hash: str | None = None,
    ) -> SubspaceAligner:
        """Fit the map on activations that are already at hand, all layers of both models; returns the aligner itself.

        Row i of both is one token. An aligner that is told no models checks widths alone.

        Raises:
            InvalidInput: different numbers of tokens, layers out of range, states that are not finite or all zero.
        """
        n = source_acts.shape[1]
        if target_acts.shape[1] != n:
            raise InvalidInput(f"{n} source and {target_acts.shape[1]} target tokens were given; they must be the same tokens")
        layer_map = self._layers(source_acts.shape[0], target_acts.shape[0])
        rank = min(self.rank, n, source_acts.shape[2], target_acts.shape[2])
        # Several target layers may read one source layer: each layer is decomposed once.
        source = {
            a: decompose(source_acts[a], rank, self.centered, f"source layer {a}") for a in sorted(set(layer_map.values()))
        }
        target = {b: decompose(target_acts[b], rank, self.centered, f"target layer {b}") for b in layer_map}
        fitted = [fit_layer(source[a], target[b], rank) for b, a in layer_map.items()]
        names = list(fitted[0])
        self._maps = FactoredMaps(layer_map, **{name: torch.stack([layer[name] for layer in fitted]) for name in names})
        self.n_tokens = n
        self.source_model, self.target_model, self.prompts_hash = source_model, target_model, prompts_hash
        self._tell_cap()
        return self

    def transport(self, direction: CapabilityDirection) -> CapabilityDirection:
        """The direction in the target's residual stream, v_t[b] = v_s[a(b)] W[b], wherever it has the source layer a(b).

        Raises:
            InvalidInput: not fitted yet, or no layer in common.
            IncompatibleModel: a direction of another width, model or basis than the aligner's source.
        """
        maps = self.maps
        direction = self._in_source_basis(direction)
        rows = [(i, b, direction.layers.index(a)) for i, (b, a) in enumerate(maps.layer_map.items()) if a in direction.layers]
        if not rows:
            raise InvalidInput(
                f"the direction has layers {list(direction.layers)}, the map reads layers "
                f"{sorted(set(maps.layer_map.values()))}: none in common"
            )
        vectors = [
            direction.vectors[j].double()
            @ maps.source_factors[i].double().T
            @ maps.core[i].double()
            @ maps.target_factors[i].double()
            for i, _, j in rows
        ]
        told = f"transported by {self!r}, fitted on {self.n_tokens} tokens of texts {self.prompts_hash or 'unknown'}"
        provenance = replace(direction.provenance.then(told), source_model=direction.model, rank=maps.rank)
        basis = self.target_model.basis if self.target_model else direction.basis
        return CapabilityDirection(torch.stack(vectors), tuple(b for _, b, _ in rows), basis, self.target_model, provenance)

    @property
    def maps(self) -> FactoredMaps:
        """The fitted factors.

        Raises:
            InvalidInput: not fitted yet.
        """
        if self._maps is None:
            raise InvalidInput("this aligner is not fitted yet; call fit or fit_activations first")
        return self._maps

    @property
    def layer_map(self) -> dict[int, int]:
        """Target layer -> source layer."""
        return dict(self.maps.layer_map)

    def map(self, target_layer: int) -> Float[Tensor, "d_source d_target"]:
        """W[b], dense, for inspection; a row vector v_s of the source becomes v_s W[b].

        Raises:
            InvalidInput: no map for that layer, or not fitted yet.
        """
        maps = self.maps
        if target_layer not in maps.layer_map:
            raise InvalidInput(f"there is no map for target layer {target_layer}; it maps {sorted(maps.layer_map)}")
        i = list(maps.layer_map).index(target_layer)
        return maps.source_factors[i].T @ maps.core[i] @ maps.target_factors[i]

    def at_rank(self, rank: int) -> SubspaceAligner:
        """The aligner that a fit at a smaller rank would give: the factors are nested, nothing is fitted again.

        Raises:
            InvalidInput: rank below 1 or above the fitted one.
        """
        if not 1 <= rank <= self.maps.rank:
            raise InvalidInput(f"rank {rank} was asked for; this aligner holds ranks 1 to {self.maps.rank}")
        smaller = SubspaceAligner(rank, self.centered, self.positions, self.skip_first, self._wanted_layers)
        smaller.source_model, smaller.target_model = self.source_model, self.target_model
        smaller.n_tokens, smaller.prompts_hash = self.n_tokens, self.prompts_hash
        smaller._maps = self.maps.at_rank(rank)
        return smaller

    def save(self, path: str | Path) -> None:
        """Write the factors and all that describes them to a safetensors file; an interrupted save loses nothing."""
        maps = self.maps
        described = {
            "rank": self.rank,
            "centered": self.centered,
            "positions": self.positions,
            "skip_first": self.skip_first,
            "layer_map": list(maps.layer_map.items()),
            "own_layer_map": self._wanted_layers is not None,
            "n_tokens": self.n_tokens,
            "prompts_hash": self.prompts_hash,
            "source_model": asdict(self.source_model) if self.source_model else None,
            "target_model": asdict(self.target_model) if self.target_model else None,
        }
        artifact.save(path, _KIND, maps.tensors(), described)

    @classmethod
    def load(cls, path: str | Path) -> SubspaceAligner:
        """Read what `save` wrote.

        Raises:
            ArtifactError: no such file, not an aligner, another format version, or damaged.
        """
        tensors, told = artifact.load(path, _KIND)
        with artifact.reading(path):
            layer_map = dict(map(tuple, told["layer_map"]))
            aligner = cls(
                told["rank"],
                told["centered"],
                told["positions"],
                told["skip_first"],
                layer_map if told["own_layer_map"] else None,
            )
            aligner.n_tokens, aligner.prompts_hash = told["n_tokens"], told["prompts_hash"]
            aligner.source_model, aligner.target_model = (
                ModelIdentity(**told[side]) if told[side] else None for side in ("source_model", "target_model")
            )
            aligner._maps = FactoredMaps(layer_map, **tensors)
            if aligner.maps.core.shape[0] != len(layer_map):
                raise ValueError(f"{len(layer_map)} layers are mapped, {aligner.maps.core.shape[0]} maps are there")
        return aligner

    def __repr__(self) -> str:
        state = f"{self.source_model} -> {self.target_model}" if self._maps else "not fitted"
        return f"SubspaceAligner(rank={self.rank}, centered={self.centered}, positions={self.positions!r}; {state})"

    def _tell_cap(self) -> None:
        spanned = {b: min(s, t) for b, s, t in zip(self.maps.layer_map, *self.maps.spanned, strict=True)}
        least = min(spanned, key=lambda b: spanned[b])
        if spanned[least] < self.rank:
            logger.warning(
                "rank %d was asked for, but the %d calibration tokens span no more than rank %d at target layer %d; "
                "that is used there",
                self.rank,
                self.n_tokens,
                spanned[least],
                least,
            )

    def _layers(self, source_layers: int, target_layers: int) -> dict[int, int]:
        if self._wanted_layers is None:
            return {b: proportional_layer(b, source_layers, target_layers) for b in range(target_layers)}
        if not self._wanted_layers:
            raise InvalidInput("the layer map is empty; map at least one target layer")
        for b, a in self._wanted_layers.items():
            if not (0 <= b < target_layers and 0 <= a < source_layers):
                raise InvalidInput(
                    f"the layer map sends target layer {b} to source layer {a}; "
                    f"the target has layers 0 to {target_layers - 1}, the source 0 to {source_layers - 1}"
                )
        return dict(sorted(self._wanted_layers.items()))

    def _in_source_basis(self, direction: CapabilityDirection) -> CapabilityDirection:
        d_source = self.maps.source_factors.shape[-1]
        if direction.d_model != d_source:
            raise IncompatibleModel(f"the direction has d_model {direction.d_model}, the aligner's source {d_source}")
        if self.source_model is None:
            return direction
        if direction.basis != self.source_model.basis:
            if direction.basis == "centered":
                raise IncompatibleModel(
                    "the direction is centered (its d_model mean is gone), the aligner's source is raw; "
                    "extract it again from the raw model"
                )
            direction = direction.centered()
        if direction.model is not None and not direction.model.is_same_model(self.source_model):
            raise IncompatibleModel(f"the direction lives in {direction.model}, the aligner reads {self.source_model}")
        return direction
