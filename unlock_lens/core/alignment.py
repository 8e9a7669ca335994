"""SubspaceAligner: a low-rank linear map from one model's residual stream to another's (docs/method.md, section 2: align)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import signature
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core import files
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.files import Shareable
from unlock_lens.core.gates import Gate
from unlock_lens.core.paired import Reader
from unlock_lens.core.progress import tell
from unlock_lens.core.read import How
from unlock_lens.core.tokens import Positions, check_positions, paired_tokens
from unlock_lens.core.variant import Variant
from unlock_lens.errors import IncompatibleModel, InvalidInput, caution
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.align import METHODS, FactoredMaps, Factors, MethodName, check_method, layer_map_of
from unlock_lens.method.calibrate import SINKS, Calibration, Held, SinkRule, Sinks
from unlock_lens.method.crossval import FOLDS, CrossValidation, cross_validate
from unlock_lens.method.linalg import RELATIVE_TOLERANCE, projected_out

logger = logging.getLogger(__name__)
_KIND = "aligner"
_ALWAYS_TOLD = ("rank", "centered", "positions")


@dataclass(frozen=True, eq=False)
class _Fit:
    """The result of a fit, and what it was fitted on."""

    maps: FactoredMaps
    n_tokens: int | None = None
    source_model: ModelIdentity | None = None
    target_model: ModelIdentity | None = None
    prompts_hash: str | None = None
    cross_validation: CrossValidation | None = None
    texts: Mapping[str, Any] | None = None
    seen: tuple[str, ...] = ()
    """The calibration texts themselves, which are not saved."""


class SubspaceAligner(Shareable, kind=_KIND):
    """The linear map between two models, fitted on what both compute for the same texts.

    Args:
        rank: k, the dimension of the subspaces; capped, with a warning, at what the calibration tokens span. None means all
            that they span, up to 256 (no limit for ridge and procrustes). "cv" chooses it by cross-validation on the
            calibration texts; "auto" on the last tokens of the texts, where directions are read: the smallest rank within 0.01
            of the best.
        centered: subtract the mean over tokens before the decomposition.
        positions: calibration tokens: "all" of each text, the "last" (the paper's), or a stride: 4 is every fourth, counted
            back from the last. Tokens of two tokenizers are paired where they end at the same character.
        skip_first: leave out the first token of each text (unless positions="last").
        layer_map: target layer -> source layer; None is the paper's, in proportion to depth. Target layers that are
            omitted get no map and are not read.
        method: "unlock" (the paper's), "ridge", "procrustes", "rrr" or "cca"; each is explained in docs/aligners.md.
        ridge: strength of the penalty in ridge, rrr and cca, in mean squared singular values of the source's states; "cv"
            chooses it by cross-validation; None is the method's default.
        sinks: attention sinks, tokens with more than 10 times the median norm of their layer: "auto" drops those that
            come first in a text (for models that run here), "drop" drops all; or "keep" them, or "rescale" them to that median.
        without_mean: remove the component along the target's mean calibration state from transported directions.

    The defaults are the calibration that transfers best, on all tokens of ordinary text and prompts (docs/aligners.md);
    `SubspaceAligner.paper()` is the paper's. Settings keep the values that were given; properties have what a fit found.

    Attributes:
        source_model, target_model: the models that it was fitted on; None if the origin of the activations is unknown.
        n_tokens: number of calibration tokens that it was fitted on, not counting dropped sinks.
        prompts_hash: hash of the calibration texts.
        cross_validation: held-out R2 of every rank and ridge that was tried; None if nothing was chosen.
        texts: a description of the calibration texts, the `Variant.description` of each side.

    Raises:
        InvalidInput: rank is below 1, ridge is negative or not used by the method, or positions, method or sinks are unknown.

    Source: docs/method.md, section 2; docs/aligners.md.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> text = zoo.text(n=64)
        >>> aligner = ul.SubspaceAligner().fit(zoo.load("large-base"), zoo.load("small-base"), text)
        >>> aligner.layer_map
        {0: 0, 1: 1, 2: 3}
        >>> aligner.map(2).shape
        torch.Size([96, 64])
    """

    def __init__(
        self,
        rank: int | Literal["auto", "cv"] | None = None,
        centered: bool = True,
        positions: Positions = "all",
        skip_first: bool = False,
        layer_map: Mapping[int, int] | None = None,
        method: MethodName = "unlock",
        ridge: float | Literal["cv"] | None = None,
        sinks: Sinks = "auto",
        without_mean: bool = False,
    ) -> None:
        check_positions(positions)
        check_method(method, rank, ridge)
        if sinks not in SINKS:
            raise InvalidInput(f"sinks {sinks!r} was given; take one of {', '.join(SINKS)}")
        if layer_map is not None and not isinstance(layer_map, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"layer_map is a {type(layer_map).__name__}; give {{target layer: source layer}}")
        self.rank: int | Literal["auto", "cv"] | None = int(rank) if isinstance(rank, Integral) else rank  # NumPy's too
        self.centered = centered
        self.positions: Positions = positions
        self.skip_first = skip_first
        self.method: MethodName = method
        self.ridge: float | Literal["cv"] | None = ridge
        self.sinks: Sinks = sinks
        self.without_mean = without_mean
        self._wanted_layers = {int(b): int(a) for b, a in layer_map.items()} if layer_map is not None else None
        self._fit: _Fit | None = None

    @classmethod
    def paper(cls, rank: int = 16, layer_map: Mapping[int, int] | None = None) -> SubspaceAligner:
        """The paper's calibration: the last token of each text, uncentered; the paper's texts are the locked prompts.

        Source: arXiv:2604.06377; docs/differences.md lists other differences from the paper's code.

        Example:
            >>> from unlock_lens import SubspaceAligner
            >>> SubspaceAligner.paper()
            SubspaceAligner(rank=16, centered=False, positions='last'; not fitted)
        """
        return cls(rank, centered=False, positions="last", layer_map=layer_map)

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
        """Fit the map on both variants' states at the calibration tokens, and return the aligner itself.

        Either the states are kept in float32, or sums over them in float64, whichever takes fewer bytes.

        Args:
            source: a `Variant` of the model that directions come from, with the calibration texts; or that model, with `texts`.
            target: a `Variant` of the model that they go to, with the same texts in the same order; or that model.
            texts: the calibration texts, if source and target are models.
            batch_size: texts in one forward pass.
            progress: whether to show a progress bar (after a second of work).
            resume: for models on a server: a folder that stores finished requests, so that the same call can resume after a
                fault.
            wait: for models on a server: if False, requests are sent without waiting, and the same call collects them later.

        Raises:
            InvalidInput: the numbers of texts differ, tokens cannot be paired, layers are out of range, states are not finite
                or do not vary, resume= is given without a server, or sinks would have to be handled on a server.
            RemoteError: the server does not answer, refuses, or fails; JobsRunning with wait=False.
        """
        if texts is not None:
            given = tuple(texts)
            source, target = Variant(source, given), Variant(target, given)
        for side, variant in (("source", source), ("target", target)):
            if not isinstance(variant, Variant):
                raise InvalidInput(
                    f"{side} is a {type(variant).__name__}; give Variant(model, texts), or give two models and texts="
                )
        reader = self.reader(source, target, How(batch_size, resume, wait, progress))
        models = source.backend.identity, target.backend.identity
        told = {"source": source.description, "target": target.description}
        self._fitted(reader.run(), reader.layer_map, *models, source.prompts_hash, told, source.prompts)
        if chosen := self.cross_validation:
            where = "the last tokens of held-out texts" if self.rank == "auto" else "held-out texts"
            tell(f"the map of rank {self.rank_} predicts {chosen.share:.0%} of the target's variance at {where}", progress)
        return self

    def reader(self, source: Variant, target: Variant, how: How) -> Reader:
        """The reader of both models' calibration tokens, with this aligner's settings.

        Raises:
            InvalidInput: the numbers of texts differ, tokens cannot be paired, or layers are out of range.
        """
        layers = source.backend.identity.n_layers, target.backend.identity.n_layers
        tokens = paired_tokens(source, target, self.positions, self.skip_first)
        return Reader(
            source=source,
            target=target,
            layer_map=layer_map_of(self._wanted_layers, *layers),
            source_tokens=tokens[0],
            target_tokens=tokens[1],
            centered=self.centered,
            sinks=self.sinks,
            folds=FOLDS if self._chooses else 1,
            rank=self._rank_at_most,
            leading_axes=METHODS[self.method].leading_axes,
            how=how,
        )

    def fit_activations(
        self,
        source_acts: Float[Tensor, "layer_s n d_source"],
        target_acts: Float[Tensor, "layer_t n d_target"],
        source_model: ModelIdentity | None = None,
        target_model: ModelIdentity | None = None,
        prompts_hash: str | None = None,
    ) -> SubspaceAligner:
        """Fit the map on activations that you already have, for all layers of both models, and return the aligner itself.

        Row i of both must be the same token. Which rows come first in a text is unknown, so sinks="auto" keeps all. Activations
        in float64 are decomposed exactly, others to the precision of float32. Without models, only widths are checked.
        Cross-validation treats runs of neighbouring rows as texts.

        Raises:
            InvalidInput: the numbers of tokens differ, layers are out of range, or states are not finite or all zero.
        """
        for side, acts in (("source", source_acts), ("target", target_acts)):
            if not isinstance(acts, Tensor) or acts.ndim != 3:  # pyright: ignore[reportUnnecessaryIsInstance]
                given = f"shape {list(acts.shape)}" if isinstance(acts, Tensor) else type(acts).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidInput(f"{side} activations of {given} were given; a torch tensor [layer, n, d_model] is needed")
        n = source_acts.shape[1]
        if target_acts.shape[1] != n:
            raise InvalidInput(f"{n} source and {target_acts.shape[1]} target tokens were given; row i must be the same token")
        layer_map = layer_map_of(self._wanted_layers, source_acts.shape[0], target_acts.shape[0])
        source = {a: source_acts[a] for a in sorted(set(layer_map.values()))}
        target = {b: target_acts[b] for b in layer_map}
        fold = torch.arange(n) * (FOLDS if self._chooses else 1) // n
        rule = SinkRule.of("keep" if self.sinks == "auto" else self.sinks, source, target)
        held = Held(layer_map, source, target, fold, self.centered, rule)
        return self._fitted(held, layer_map, source_model, target_model, prompts_hash)

    def _fitted(
        self,
        calibration: Calibration,
        layer_map: Mapping[int, int],
        source_model: ModelIdentity | None,
        target_model: ModelIdentity | None,
        prompts_hash: str | None,
        texts: Mapping[str, Any] | None = None,
        seen: Sequence[str] = (),
    ) -> SubspaceAligner:
        k, ridge, chosen = self._rank_at_most, self._ridge_asked, None
        if self._chooses:
            chosen = cross_validate(
                calibration, list(layer_map), self.method, self.centered, self.rank if self._chooses_rank else k, ridge
            )
            k, ridge = chosen.best[0] if self._chooses_rank else k, chosen.best[1]
        fitted = (self._of_layer(calibration, b, k, float(ridge or 0.0)) for b in layer_map)
        bound = min(k or calibration.widest, calibration.widest)
        maps = FactoredMaps.collected(layer_map, bound, fitted, calibration.dtype)
        self._fit = _Fit(maps, calibration.n, source_model, target_model, prompts_hash, chosen, texts, tuple(seen))
        if isinstance(self.rank, int):
            self._tell_cap(self.rank)
        if chosen and not bool((chosen.r2.mean(dim=0) > 0).any()):
            logger.warning(
                "no rank or ridge predicts held-out target states better than their mean does, so the map carries nothing; "
                "check that both models read the same texts in the same order"
            )
        return self

    def _of_layer(
        self, calibration: Calibration, target_layer: int, rank: int | None, ridge: float
    ) -> tuple[Factors, Tensor, Tensor]:
        """The factors of one layer's map, with both mean states."""
        method = METHODS[self.method]
        pair = calibration.pair(target_layer, method.axes(rank))
        return method.fit(pair, rank or max(pair.coupling.shape), ridge), pair.source.mean, pair.target.mean

    @overload
    def transport(self, direction: CapabilityDirection) -> CapabilityDirection: ...

    @overload
    def transport(self, direction: Gate) -> Gate: ...

    def transport(self, direction: CapabilityDirection | Gate) -> CapabilityDirection | Gate:
        """The direction in the target's residual stream, v_t[b] = v_s[a(b)] W[b], at each b whose source layer a(b) it has.

        A gate is transported by the pseudo-inverse, w_t = W[b]^+ w_s, to the first target layer b whose a(b) is the gate's
        layer (`Gate.transported`). The order of its readings survives better than its threshold; `pull_back` preserves both.

        Warns if no calibration text contains a prompt like the unlocked ones, because a map only knows states that it has seen.

        Raises:
            InvalidInput: not fitted yet, no layer in common, or a gate with without_mean=True.
            IncompatibleModel: the direction's width, model or basis differs from the aligner's source.
        """
        maps = self.maps
        if isinstance(direction, Gate):
            return self._gate(direction, forth=True)
        direction = self._in_source_basis(direction)
        rows = [(b, direction.layers.index(a)) for b, a in maps.layer_map.items() if a in direction.layers]
        if not rows:
            raise InvalidInput(
                f"the direction has layers {list(direction.layers)}, but the map reads layers "
                f"{sorted(set(maps.layer_map.values()))}; they have none in common"
            )
        self._check_seen(direction)
        vectors = torch.stack([maps.carry(b, direction.vectors[j]) for b, j in rows])
        if self.without_mean:
            means = torch.stack([maps.target_mean[list(maps.layer_map).index(b)] for b, _ in rows])
            vectors, gone = projected_out(vectors, means.to(vectors))
            if gone:
                raise InvalidInput(
                    f"at target layer {rows[gone[0]][0]} the transported vector is a multiple of the mean state, "
                    "so nothing is left of it with without_mean=True"
                )
        told = f"transported by {self!r}, fitted on {self.n_tokens} tokens of texts {self.prompts_hash or 'unknown'}"
        provenance = replace(direction.provenance.then(told), source_model=direction.model, rank=maps.rank)
        basis = self.target_model.basis if self.target_model else direction.basis
        return CapabilityDirection(vectors.float(), tuple(b for b, _ in rows), basis, self.target_model, provenance)

    def pull_back(self, gate: Gate) -> Gate:
        """A gate of the target as a gate of the source: w_s = W[b] w_t reads in h what w_t reads in the image of h.

        This holds for every state, so it loses less than `transport`. To carry a gate from A to B, fit a map from B to A on the
        same texts, and pull the gate back through it. `method="ridge"` works best (docs/gates.md).

        Raises:
            InvalidInput: not fitted yet, no map for the gate's layer, or without_mean=True.
            IncompatibleModel: the gate's width, model or basis differs from the aligner's target.

        Source: docs/gates.md.
        """
        return self._gate(gate, forth=False)

    def _gate(self, gate: Gate, forth: bool) -> Gate:
        maps = self.maps
        if self.without_mean:
            raise InvalidInput(
                "this aligner removes the mean state from directions, but a gate's threshold needs it; fit without"
            )
        read = sorted(set(maps.layer_map.values() if forth else maps.layer_map))
        if gate.layer not in read:
            raise InvalidInput(
                f"the gate reads layer {gate.layer}, but the map has layers {read} of that model; fit the gate at one, "
                f"Gate.fit(layers={read})"
            )
        told = f"{'transported' if forth else 'pulled back'} by {self!r}"
        if forth:
            return gate.transported(maps, self.centered, self.source_model, self.target_model, told)
        return gate.pulled_back(maps, self.centered, self.source_model, self.target_model, told)

    @property
    def maps(self) -> FactoredMaps:
        """The fitted factors.

        Raises:
            InvalidInput: not fitted yet.
        """
        if self._fit is None:
            raise InvalidInput("this aligner is not fitted yet; call fit or fit_activations first")
        return self._fit.maps

    @property
    def source_model(self) -> ModelIdentity | None:
        return self._fit and self._fit.source_model

    @property
    def target_model(self) -> ModelIdentity | None:
        return self._fit and self._fit.target_model

    @property
    def n_tokens(self) -> int | None:
        return self._fit and self._fit.n_tokens

    @property
    def prompts_hash(self) -> str | None:
        return self._fit and self._fit.prompts_hash

    @property
    def cross_validation(self) -> CrossValidation | None:
        return self._fit and self._fit.cross_validation

    @property
    def texts(self) -> Mapping[str, Any] | None:
        return self._fit and self._fit.texts

    @property
    def rank_(self) -> int:
        """The rank of the fitted map: the given one, the one that cross-validation chose, or all that the tokens span."""
        return self.maps.rank

    @property
    def ridge_(self) -> float:
        """The penalty of the fitted map: the given one, or the one that cross-validation chose; 0 if the method has none."""
        _ = self.maps  # refused where nothing is fitted yet
        return self.cross_validation.best[1] if self.cross_validation else float(self._ridge_asked or 0.0)

    @property
    def layer_map(self) -> dict[int, int]:
        """Target layer -> source layer."""
        return dict(self.maps.layer_map)

    def map(self, target_layer: int) -> Float[Tensor, "d_source d_target"]:
        """The dense matrix W[b], for inspection; a row vector v_s becomes v_s W[b], before `without_mean` is applied.

        Raises:
            InvalidInput: there is no map for that layer, or the aligner is not fitted yet.
        """
        maps = self.maps
        if target_layer not in maps.layer_map:
            raise InvalidInput(f"there is no map for target layer {target_layer}; it maps {sorted(maps.layer_map)}")
        return maps.dense(target_layer)

    def at_rank(self, rank: int) -> SubspaceAligner:
        """The aligner that a fit at a smaller rank would give; the factors are nested, so nothing is fitted again.

        Raises:
            InvalidInput: rank is below 1 or above the fitted one.
        """
        if not 1 <= rank <= self.maps.rank:
            raise InvalidInput(f"rank {rank} was requested; this aligner has ranks 1 to {self.maps.rank}")
        settings: dict[str, Any] = {**self._settings, "rank": rank}
        smaller = SubspaceAligner(**settings)
        assert self._fit is not None
        smaller._fit = replace(self._fit, maps=self.maps.at_rank(rank))
        return smaller

    def save(self, path: str | Path) -> None:
        """Write the factors and their metadata to a safetensors file; an interrupted save leaves the old file unchanged.

        Raises:
            ArtifactError: the path is a folder, or its folder does not exist.
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
            "texts": self.texts,
            "source_model": asdict(self.source_model) if self.source_model else None,
            "target_model": asdict(self.target_model) if self.target_model else None,
        }
        files.save(path, _KIND, maps.tensors(), described)

    @classmethod
    def load(cls, path: str | Path) -> SubspaceAligner:
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file is missing, not an aligner, of another format version, or damaged.
        """
        tensors, told = files.load(path, _KIND)
        with files.reading(path):
            layer_map = dict(map(tuple, told["layer_map"]))
            given = {name: told[name] for name in SETTINGS if name in told and name != "layer_map"}
            given.setdefault("sinks", "keep")  # before there was another way
            aligner = cls(**given, layer_map=layer_map if told["own_layer_map"] else None)
            chosen = told.get("cross_validation")
            source, target = (ModelIdentity(**told[side]) if told[side] else None for side in ("source_model", "target_model"))
            aligner._fit = _Fit(
                FactoredMaps(layer_map, **tensors),
                told["n_tokens"],
                source,
                target,
                told["prompts_hash"],
                CrossValidation.from_json(chosen) if chosen else None,
                told.get("texts"),
            )
        return aligner

    def __repr__(self) -> str:
        state = f"{self.source_model} -> {self.target_model}" if self._fit else "not fitted"
        settings = {name: value for name, value in self._settings.items() if name in _ALWAYS_TOLD or value != SETTINGS[name]}
        told = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        if self._fit and self.rank != self.rank_:
            told += f"; fitted at rank {self.rank_}"
        if self.cross_validation:
            told += f", ridge {self.ridge_:g}"
        return f"SubspaceAligner({told}; {state})"

    @property
    def _settings(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {name: self._wanted_layers if name == "layer_map" else getattr(self, name) for name in SETTINGS}

    @property
    def _rank_at_most(self) -> int | None:
        """The requested rank, or the method's limit; None if cross-validation chooses, or if there is no limit."""
        if self.rank is None:
            return METHODS[self.method].default_rank
        return self.rank if isinstance(self.rank, int) else None

    @property
    def _ridge_asked(self) -> float | Literal["cv"] | None:
        return METHODS[self.method].default_ridge if self.ridge is None else self.ridge

    @property
    def _chooses(self) -> bool:
        return self._chooses_rank or self.ridge == "cv"

    @property
    def _chooses_rank(self) -> bool:
        return isinstance(self.rank, str)

    def _tell_cap(self, rank: int) -> None:
        spanned = dict(zip(self.maps.layer_map, self.maps.spanned, strict=True))
        least = min(spanned, key=lambda b: spanned[b])
        if spanned[least] < rank:
            logger.warning(
                "rank %d requested, but %d calibration tokens span only rank %d at target layer %d (%s); using that rank there",
                rank,
                self.n_tokens,
                spanned[least],
                least,
                f"singular values are cut below {RELATIVE_TOLERANCE:g} of the largest"
                if self.maps.core.dtype == torch.float32
                else "singular values below the precision of float64 are cut",
            )

    def _check_seen(self, direction: CapabilityDirection) -> None:
        begin, end = (direction.provenance.unlocked or {}).get("frame") or ("", "")
        texts = self._fit.seen if self._fit else ()
        if not texts or not (begin or end):
            return
        after = (text.partition(begin)[2] if begin else text for text in texts)
        if not any(rest.endswith(end) if self.positions == "last" else end in rest for rest in after):
            caution(
                "no calibration token is the last of a prompt like the unlocked ones "
                f"({begin[-40:]!r} ... {end[:40]!r}), and a map only knows states like those it has seen; "
                "put locked and unlocked prompts among the texts"
            )

    def _in_source_basis(self, direction: CapabilityDirection) -> CapabilityDirection:
        d_source = self.maps.source_factors.shape[-1]
        if direction.d_model != d_source:
            raise IncompatibleModel(f"the direction has d_model {direction.d_model}, but the aligner's source has {d_source}")
        if self.source_model is None:
            return direction
        if direction.basis != self.source_model.basis:
            if direction.basis == "zero_mean":
                raise IncompatibleModel(
                    "the direction is in the zero-mean basis (its mean over d_model was removed), the aligner's source is raw; "
                    "extract it again from the raw model"
                )
            direction = direction.zero_mean()
        if direction.model is not None and not direction.model.is_same_model(self.source_model):
            raise IncompatibleModel(f"the direction belongs to {direction.model}, but the aligner reads {self.source_model}")
        return direction


SETTINGS: Mapping[str, Any] = {name: parameter.default for name, parameter in signature(SubspaceAligner).parameters.items()}
"""The constructor's arguments and their defaults, which the command line, configs and `plan` share."""
