"""SubspaceAligner: a low-rank linear map from one model's residual stream to another's (docs/method.md, section 2: align)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core import files
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.files import Shareable
from unlock_lens.core.paired import Reader
from unlock_lens.core.read import How
from unlock_lens.core.tokens import Positions, check_positions, paired_tokens
from unlock_lens.core.variant import Variant
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.align import METHODS, FactoredMaps, Factors, MethodName, check_method, layer_map_of
from unlock_lens.method.calibrate import SINKS, Calibration, Held, SinkRule, Sinks
from unlock_lens.method.crossval import FOLDS, CrossValidation, cross_validate
from unlock_lens.method.linalg import RELATIVE_TOLERANCE, projected_out

logger = logging.getLogger(__name__)
_KIND = "aligner"
_SETTINGS: Mapping[str, Any] = {
    "rank": 16,
    "centered": False,
    "positions": "last",
    "skip_first": False,
    "layer_map": None,
    "method": "unlock",
    "ridge": None,
    "sinks": "keep",
    "without_mean": False,
}
_ALWAYS_TOLD = ("rank", "centered", "positions")


class SubspaceAligner(Shareable, kind=_KIND):
    """The linear map between two models, fitted on what both make of the same texts.

    Args:
        rank: k, the dimension of the subspaces; capped, with a warning, at what the calibration tokens span. "cv" chooses it by
            cross-validation on the calibration texts; None is the method's own: 16, or (ridge, procrustes) all that is spanned.
        centered: take the mean over tokens out before the decomposition.
        positions: "last" token of each text (the paper's), "all" tokens, or a stride: 4 is every fourth, back from the last.
            Two tokenizers' tokens are paired where they end at the same character.
        skip_first: leave out the first token of each text (unless positions="last").
        layer_map: target layer -> source layer; None is the paper's, in proportion to depth. Target layers that are
            left out get no map, and are not read.
        method: "unlock" (the paper's), "ridge", "procrustes", "rrr" or "cca"; each is explained in docs/aligners.md.
        ridge: strength of the penalty, in mean squared singular values of the source's states (in ridge, rrr and cca); "cv"
            chooses it by cross-validation; None is the method's own.
        sinks: attention sinks, tokens with more than 10 times the median norm of their layer: "keep" them, "drop" them, or
            "whiten" them: bring them to that median.
        without_mean: project the part along the target's mean calibration state out of what is transported.

    The defaults are the paper's exact calibration; ordinary text, positions="all", centered=True transfers better
    (docs/aligners.md has the table).

    Raises:
        InvalidInput: rank below 1, a ridge that is negative or unknown to the method, unknown positions, method or sinks.

    Source: docs/method.md, section 2; docs/aligners.md.

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
        rank: int | Literal["cv"] | None = None,
        centered: bool = False,
        positions: Positions = "last",
        skip_first: bool = False,
        layer_map: Mapping[int, int] | None = None,
        method: MethodName = "unlock",
        ridge: float | Literal["cv"] | None = None,
        sinks: Sinks = "keep",
        without_mean: bool = False,
    ) -> None:
        check_positions(positions)
        check_method(method, rank, ridge)
        if sinks not in SINKS:
            raise InvalidInput(f"sinks {sinks!r} was given; take one of {', '.join(SINKS)}")
        self.rank: int | Literal["cv"] | None = METHODS[method].default_rank if rank is None else rank
        if isinstance(rank, Integral):  # NumPy's too
            self.rank = int(rank)
        self.centered = centered
        self.positions: Positions = positions
        self.skip_first = skip_first
        self.method: MethodName = method
        self.ridge: float | Literal["cv"] | None = METHODS[method].default_ridge if ridge is None else ridge
        self.sinks: Sinks = sinks
        self.without_mean = without_mean
        self.source_model: ModelIdentity | None = None
        self.target_model: ModelIdentity | None = None
        self.n_tokens: int | None = None
        self.prompts_hash: str | None = None
        self.cross_validation: CrossValidation | None = None
        if layer_map is not None and not isinstance(layer_map, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"layer_map is a {type(layer_map).__name__}; give {{target layer: source layer}}")
        self._wanted_layers = {int(b): int(a) for b, a in layer_map.items()} if layer_map is not None else None
        self._maps: FactoredMaps | None = None

    def fit(
        self,
        source: Any,
        target: Any,
        texts: Iterable[str] | None = None,
        batch_size: int = 8,
        progress: bool = True,
        resume: str | Path | None = None,
        wait: bool = True,
    ) -> SubspaceAligner:
        """Fit the map on both variants' states at the calibration tokens; returns the aligner itself.

        States are held in float32, or sums over them in float64, whichever takes fewer bytes.

        Args:
            source: a `Variant` of the model that directions come from, with the calibration texts; or that model, with `texts`.
            target: a `Variant` of the model that they go to, with as many texts, in the same order; or that model.
            texts: the calibration texts, if source and target are models.
            batch_size: texts in one forward pass.
            progress: whether to show a progress bar (after a second of work).
            resume: for models on a server: a folder that keeps finished requests, so that the same call goes on after a fault.
            wait: for models on a server: otherwise all requests are sent, and the same call collects them later.

        Raises:
            InvalidInput: different numbers of texts, texts whose tokens cannot be paired, layers out of range, states that are
                not finite or do not vary, resume without a server, sinks that are to be dealt with on a server.
            RemoteError: a server that does not answer, refuses, or fails; JobsRunning with wait=False.
        """
        if texts is not None:
            given = tuple(texts)
            source, target = Variant(source, given), Variant(target, given)
        for side, variant in (("source", source), ("target", target)):
            if not isinstance(variant, Variant):
                raise InvalidInput(
                    f"{side} is a {type(variant).__name__}; give Variant(model, texts), or two models and texts="
                )
        models = source.backend.identity, target.backend.identity
        layer_map = layer_map_of(self._wanted_layers, models[0].n_layers, models[1].n_layers)
        tokens = paired_tokens(source, target, self.positions, self.skip_first)
        calibration = Reader(
            source=source,
            target=target,
            layer_map=layer_map,
            source_tokens=tokens[0],
            target_tokens=tokens[1],
            centered=self.centered,
            sinks=self.sinks,
            folds=FOLDS if self._chooses else 1,
            rank=self.rank if isinstance(self.rank, int) else None,
            leading_axes=METHODS[self.method].leading_axes,
            how=How(batch_size, resume, wait, progress),
        ).run()
        return self._fitted(calibration, layer_map, *models, source.prompts_hash)

    def fit_activations(
        self,
        source_acts: Float[Tensor, "layer_s n d_source"],
        target_acts: Float[Tensor, "layer_t n d_target"],
        source_model: ModelIdentity | None = None,
        target_model: ModelIdentity | None = None,
        prompts_hash: str | None = None,
    ) -> SubspaceAligner:
        """Fit the map on activations that are already at hand, all layers of both models; returns the aligner itself.

        Row i of both is one token. Activations in float64 are decomposed exactly, others to float32's precision. An aligner
        that is told no models checks widths alone; cross-validation takes runs of neighbouring rows for texts.

        Raises:
            InvalidInput: different numbers of tokens, layers out of range, states that are not finite or all zero.
        """
        for side, acts in (("source", source_acts), ("target", target_acts)):
            if not isinstance(acts, Tensor) or acts.ndim != 3:  # pyright: ignore[reportUnnecessaryIsInstance]
                given = f"shape {list(acts.shape)}" if isinstance(acts, Tensor) else type(acts).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidInput(f"{side} activations of {given} were given; a torch tensor [layer, n, d_model] is needed")
        n = source_acts.shape[1]
        if target_acts.shape[1] != n:
            raise InvalidInput(f"{n} source and {target_acts.shape[1]} target tokens were given; they must be the same tokens")
        layer_map = layer_map_of(self._wanted_layers, source_acts.shape[0], target_acts.shape[0])
        source = {a: source_acts[a] for a in sorted(set(layer_map.values()))}
        target = {b: target_acts[b] for b in layer_map}
        fold = torch.arange(n) * (FOLDS if self._chooses else 1) // n
        held = Held(layer_map, source, target, fold, self.centered, SinkRule.of(self.sinks, source, target))
        return self._fitted(held, layer_map, source_model, target_model, prompts_hash)

    def _fitted(
        self,
        calibration: Calibration,
        layer_map: Mapping[int, int],
        source_model: ModelIdentity | None,
        target_model: ModelIdentity | None,
        prompts_hash: str | None,
    ) -> SubspaceAligner:
        rank, ridge, chosen = self.rank, self.ridge, None
        if self._chooses:
            chosen = cross_validate(calibration, list(layer_map), self.method, self.centered, rank, ridge)
            best = chosen.best
            rank, ridge = best[0] if rank == "cv" else rank, best[1]
        k, strength = None if rank is None else int(rank), float(ridge or 0.0)
        fitted = (self._of_layer(calibration, b, k, strength) for b in layer_map)
        bound = min(k or calibration.widest, calibration.widest)
        self._maps = FactoredMaps.collected(layer_map, bound, fitted, calibration.dtype)
        self.n_tokens, self.cross_validation = calibration.n, chosen
        self.source_model, self.target_model, self.prompts_hash = source_model, target_model, prompts_hash
        self._tell_cap()
        if chosen and not bool((chosen.r2.mean(dim=0) > 0).any()):
            logger.warning(
                "no rank or ridge predicts held-out target states better than their mean does: the map carries nothing; "
                "are the texts the same, in the same order?"
            )
        return self

    def _of_layer(
        self, calibration: Calibration, target_layer: int, rank: int | None, ridge: float
    ) -> tuple[Factors, Tensor, Tensor]:
        """The factors of one layer's map, and both mean states."""
        method = METHODS[self.method]
        pair = calibration.pair(target_layer, method.axes(rank))
        return method.fit(pair, rank or max(pair.coupling.shape), ridge), pair.source.mean, pair.target.mean

    def transport(self, direction: CapabilityDirection) -> CapabilityDirection:
        """The direction in the target's residual stream, v_t[b] = v_s[a(b)] W[b], wherever it has the source layer a(b).

        Raises:
            InvalidInput: not fitted yet, or no layer in common.
            IncompatibleModel: a direction of another width, model or basis than the aligner's source.
        """
        maps = self.maps
        direction = self._in_source_basis(direction)
        rows = [(b, direction.layers.index(a)) for b, a in maps.layer_map.items() if a in direction.layers]
        if not rows:
            raise InvalidInput(
                f"the direction has layers {list(direction.layers)}, the map reads layers "
                f"{sorted(set(maps.layer_map.values()))}: none in common"
            )
        vectors = torch.stack([maps.carry(b, direction.vectors[j]) for b, j in rows])
        if self.without_mean:
            means = torch.stack([maps.target_mean[list(maps.layer_map).index(b)] for b, _ in rows])
            vectors, gone = projected_out(vectors, means.to(vectors))
            if gone:
                raise InvalidInput(
                    f"at target layer {rows[gone[0]][0]} the transported vector is a multiple of the mean state; "
                    "with without_mean=True nothing is left of it"
                )
        told = f"transported by {self!r}, fitted on {self.n_tokens} tokens of texts {self.prompts_hash or 'unknown'}"
        provenance = replace(direction.provenance.then(told), source_model=direction.model, rank=maps.rank)
        basis = self.target_model.basis if self.target_model else direction.basis
        return CapabilityDirection(vectors.float(), tuple(b for b, _ in rows), basis, self.target_model, provenance)

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
        """W[b], dense, for inspection; a row vector v_s of the source becomes v_s W[b], before `without_mean` if that is asked.

        Raises:
            InvalidInput: no map for that layer, or not fitted yet.
        """
        maps = self.maps
        if target_layer not in maps.layer_map:
            raise InvalidInput(f"there is no map for target layer {target_layer}; it maps {sorted(maps.layer_map)}")
        return maps.dense(target_layer)

    def at_rank(self, rank: int) -> SubspaceAligner:
        """The aligner that a fit at a smaller rank would give: the factors are nested, nothing is fitted again.

        Raises:
            InvalidInput: rank below 1 or above the fitted one.
        """
        if not 1 <= rank <= self.maps.rank:
            raise InvalidInput(f"rank {rank} was asked for; this aligner holds ranks 1 to {self.maps.rank}")
        settings: dict[str, Any] = {**self._settings, "rank": rank}
        smaller = SubspaceAligner(**settings)
        smaller.source_model, smaller.target_model = self.source_model, self.target_model
        smaller.n_tokens, smaller.prompts_hash = self.n_tokens, self.prompts_hash
        smaller.cross_validation = self.cross_validation
        smaller._maps = self.maps.at_rank(rank)
        return smaller

    def save(self, path: str | Path) -> None:
        """Write the factors and all that describes them to a safetensors file; an interrupted save loses nothing.

        Raises:
            ArtifactError: the path is a folder, or lies in none.
            InvalidInput: not fitted yet.
        """
        maps = self.maps
        described = {
            **self._settings,
            "layer_map": list(maps.layer_map.items()),
            "own_layer_map": self._wanted_layers is not None,
            "cross_validation": self.cross_validation.to_json() if self.cross_validation else None,
            "n_tokens": self.n_tokens,
            "prompts_hash": self.prompts_hash,
            "source_model": asdict(self.source_model) if self.source_model else None,
            "target_model": asdict(self.target_model) if self.target_model else None,
        }
        files.save(path, _KIND, maps.tensors(), described)

    @classmethod
    def load(cls, path: str | Path) -> SubspaceAligner:
        """Read what `save` wrote.

        Raises:
            ArtifactError: no such file, not an aligner, another format version, or damaged.
        """
        tensors, told = files.load(path, _KIND)
        with files.reading(path):
            layer_map = dict(map(tuple, told["layer_map"]))
            given = {name: told[name] for name in _SETTINGS if name in told and name != "layer_map"}
            aligner = cls(**given, layer_map=layer_map if told["own_layer_map"] else None)
            chosen = told.get("cross_validation")
            aligner.cross_validation = CrossValidation.from_json(chosen) if chosen else None
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
        settings = {name: value for name, value in self._settings.items() if name in _ALWAYS_TOLD or value != _SETTINGS[name]}
        told = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        if self.cross_validation:
            told += f"; chose rank {self.maps.rank}, ridge {self.ridge_in_use:g}"
        return f"SubspaceAligner({told}; {state})"

    @property
    def _settings(self) -> dict[str, Any]:
        """What the constructor was given."""
        return {name: self._wanted_layers if name == "layer_map" else getattr(self, name) for name in _SETTINGS}

    @property
    def ridge_in_use(self) -> float:
        """The strength that the map was fitted with: as given, or as cross-validation chose it; 0 for a method without."""
        _ = self.maps  # refused where nothing is fitted yet
        return self.cross_validation.best[1] if self.cross_validation else float(self.ridge or 0.0)

    @property
    def _chooses(self) -> bool:
        return "cv" in (self.rank, self.ridge)

    def _tell_cap(self) -> None:
        spanned = dict(zip(self.maps.layer_map, self.maps.spanned, strict=True))
        least = min(spanned, key=lambda b: spanned[b])
        widths = self.maps.source_factors.shape[-1], self.maps.target_factors.shape[-1]
        expected = (
            self.rank if isinstance(self.rank, int) else min(self.maps.rank, (self.n_tokens or 0) - self.centered, *widths)
        )
        if spanned[least] < expected:
            logger.warning(
                "rank %d was asked for, but the %d calibration tokens span no more than rank %d at target layer %d (%s); "
                "that is used there",
                expected,
                self.n_tokens,
                spanned[least],
                least,
                f"singular values are cut below {RELATIVE_TOLERANCE:g} of the largest"
                if self.maps.core.dtype == torch.float32
                else "singular values are cut where float64 ends",
            )

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
