"""Gate: steering that acts only where the residual stream reads above a threshold (docs/gates.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection, Provenance, check_direction
from unlock_lens.core.read import at_position, check_layers
from unlock_lens.core.variant import Variant
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.align import FactoredMaps
from unlock_lens.method.apply import GATE_POSITIONS, GatePositions, Gating, reader_of
from unlock_lens.method.gate import auroc, best_cut, discriminant, held_out_readings

OVERLAP = 0.6
"""An AUROC below which two classes count as overlapping."""
TOLERANCE = 1e-2
"""Singular values of a map below this share of the largest are noise, which a pseudo-inverse would amplify."""
_AS_GOOD = 0.01
"""Layers whose AUROC is this close to the best count as equal; the earliest of them leaves most layers to steer."""


@dataclass(frozen=True, eq=False)
class Gate:
    """Lets a steering hook act only where <w, h> > threshold, where h is the residual stream at the output of one block.

    The steered layers must not come before the gate's, because an edit cannot wait for a later layer.

    Attributes:
        direction: the reader w, one vector at one layer of the steered model.
        threshold: in units of <w, h>.
        positions: "last_prompt": each row's last prompt token decides for the whole row, including generated tokens. "all":
            each token decides for itself.
        auroc: probability that a prompt where the hook should act reads above one where it should not, on held-out prompts;
            None if the threshold was not fitted in this model.
        hits: share of the prompts where the hook should act that read above the threshold; None as above.
        false_alarms: share of the others that do; None as above.

    Raises:
        InvalidInput: the direction has several layers, the threshold is not finite, or positions are unknown.

    Source: docs/gates.md; conditional steering is from arXiv:2409.05907.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=32)
        >>> ul.Gate.fit(act=ul.Variant(model, task.direct), not_act=ul.Variant(model, task.reverse))
        Gate(layer 0 of small-base, last_prompt; AUROC 1.000, hits 100%, false alarms 0%)
    """

    direction: CapabilityDirection
    threshold: float
    positions: GatePositions = "last_prompt"
    auroc: float | None = None
    hits: float | None = None
    false_alarms: float | None = None

    def __post_init__(self) -> None:
        check_direction(self.direction)
        if len(self.direction.layers) != 1:
            raise InvalidInput(
                f"the direction has layers {list(self.direction.layers)}, but a gate reads one; give direction.at_layers([l]), "
                "or let Gate.fit choose"
            )
        if not isinstance(self.threshold, Real) or not math.isfinite(self.threshold):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"threshold {self.threshold} was given; a finite number is needed")
        if self.positions not in GATE_POSITIONS:
            raise InvalidInput(f"gate positions {self.positions!r} were given; use one of {', '.join(GATE_POSITIONS)}")

    @classmethod
    def fit(
        cls,
        act: Variant,
        not_act: Variant,
        direction: CapabilityDirection | None = None,
        layers: Sequence[int] | None = None,
        positions: GatePositions = "last_prompt",
        force: bool = False,
        batch_size: int = 8,
        progress: bool = True,
    ) -> Gate:
        """Find reader, layer and threshold on prompts where the hook should act and prompts where it should not.

        At each layer the reader is Fisher's discriminant of the two classes' states at the last prompt token (shrunk by 1% of
        their mean variance), or the given direction. Of the layers whose AUROC is within 0.01 of the best, the earliest is
        taken; the threshold is where the ROC has the largest hits - false alarms. A reader that is found here is judged on
        held-out prompts (five folds).

        Args:
            act: prompts of the model where the hook should act.
            not_act: prompts of the same model where it should not; as many as you like.
            direction: a reader that you already have; None finds one.
            layers: layers that may be read; None for all, or those of the direction.
            positions: as in `Gate`.
            force: whether to make a gate even if the classes overlap.
            batch_size: prompts in one forward pass.
            progress: whether to show a progress bar (after a second of work).

        Raises:
            InvalidInput: the two models differ, a class has fewer than two prompts, layers are out of range, or the AUROC is
                below 0.6 without force.
            IncompatibleModel: the direction belongs to a different model.
        """
        for name, variant in (("act", act), ("not_act", not_act)):
            if not isinstance(variant, Variant):  # pyright: ignore[reportUnnecessaryIsInstance]  users have no type checker
                raise InvalidInput(f"{name} is a {type(variant).__name__}; give Variant(model, prompts)")
            if len(variant) < 2:
                raise InvalidInput(f"{name} has {len(variant)} prompt; at least 2 are needed, better 30 or more")
        if act.model is not not_act.model:
            raise InvalidInput("act and not_act have different models; give prompts of the model that will be steered")
        identity = act.backend.identity
        if direction is not None:
            direction = fitting(direction, identity)
        where = check_layers(layers if direction is None or layers is not None else direction.layers, identity.n_layers)
        if direction is not None:
            direction = direction.at_layers(where)
        states = [at_position(variant, where, batch_size=batch_size, progress=progress) for variant in (act, not_act)]
        read = [_readings(of_act, rest, direction, i) for i, (of_act, rest) in enumerate(zip(*states, strict=True))]
        found = [auroc(*of_layer) for of_layer in read]
        i = next(i for i, area in enumerate(found) if area >= max(found) - _AS_GOOD)
        if found[i] < OVERLAP and not force:
            raise InvalidInput(
                f"the classes overlap: the best layer, {where[i]}, has an AUROC of {found[i]:.2f} (0.5 is chance, {OVERLAP} is "
                "required); give prompts that differ at their last token, or force=True to make the gate anyway"
            )
        if direction is None:
            reader = discriminant(states[0][i], states[1][i]).float().unsqueeze(0)
            made = Provenance("reader", -1, len(act), not_act.prompts_hash, act.prompts_hash, identity)
            direction = CapabilityDirection(reader, (where[i],), identity.basis, identity, made)
        cut = best_cut(*read[i])
        return cls(direction.at_layers([where[i]]), cut.threshold, positions, found[i], cut.hits, cut.false_alarms)

    @property
    def layer(self) -> int:
        """The layer whose output it reads."""
        return self.direction.layers[0]

    def readings(self, variant: Variant, batch_size: int = 8, progress: bool = True) -> Float[Tensor, " prompt"]:
        """<w, h> at the last token of each prompt, in float64.

        Raises:
            IncompatibleModel: the gate was made for a different model.
        """
        reader = reader_of(fitting(self.direction, variant.backend.identity).vectors, self.direction.basis)
        states = at_position(variant, [self.layer], batch_size=batch_size, progress=progress)[0]
        return states.double() @ reader.double()

    def gating(self, identity: ModelIdentity, check_model: bool = True) -> Gating:
        """The condition that edits check, for a model.

        Raises:
            IncompatibleModel: the gate was made for a different model.
        """
        direction = fitting(self.direction, identity, check_model)
        return Gating(self.layer, reader_of(direction.vectors, direction.basis), self.threshold, self.positions)

    def transported(
        self, maps: FactoredMaps, centered: bool, source: ModelIdentity | None, target: ModelIdentity | None, told: str
    ) -> Gate:
        """The gate of a source model in the target's residual stream; called by the aligner's `transport`.

        With h_t = (h_s - m_s) W + m_t it is w_t = W^+ w_s and threshold_t = threshold_s - <w_s, m_s> + <w_t, m_t>, so that
        <w_t, h_t> - threshold_t = <w_s, h_s> - threshold_s for states h_s that W carries without loss (m is 0 if uncentered).

        Raises:
            IncompatibleModel: it was not made for the source.
        """
        w_s = self._read_by(source, maps.source_factors.shape[-1])
        b = next(b for b, a in maps.layer_map.items() if a == self.layer)
        w_t = maps.carry_reader(b, w_s, TOLERANCE)
        i = list(maps.layer_map).index(b)
        shift = w_t @ maps.target_mean[i].double() - w_s @ maps.source_mean[i].double() if centered else 0.0
        return self._elsewhere(w_t, b, self.threshold + float(shift), target, maps.rank, told)

    def pulled_back(
        self, maps: FactoredMaps, centered: bool, source: ModelIdentity | None, target: ModelIdentity | None, told: str
    ) -> Gate:
        """The gate of a target model in the source's residual stream; called by the aligner's `pull_back`.

        w_s = W w_t and threshold_s = threshold_t - <w_t, m_t> + <w_s, m_s>: exact for every state that W carries.

        Raises:
            IncompatibleModel: it was not made for the target.
        """
        w_t = self._read_by(target, maps.target_factors.shape[-1])
        i = list(maps.layer_map).index(self.layer)
        left, core, right = (part[i].double() for part in (maps.source_factors, maps.core, maps.target_factors))
        w_s = left.T @ (core @ (right @ w_t))
        shift = w_s @ maps.source_mean[i].double() - w_t @ maps.target_mean[i].double() if centered else 0.0
        return self._elsewhere(w_s, maps.layer_map[self.layer], self.threshold + float(shift), source, maps.rank, told)

    def _read_by(self, model: ModelIdentity | None, width: int) -> Tensor:
        """w in float64, if it reads states of that model, or of that width if the model is unknown."""
        if model is not None:
            fitting(self.direction, model)
        if self.direction.d_model != width:
            raise IncompatibleModel(f"the gate has d_model {self.direction.d_model}, but the aligner's model has {width}")
        return reader_of(self.direction.vectors, self.direction.basis).double()

    def _elsewhere(
        self, reader: Tensor, layer: int, threshold: float, model: ModelIdentity | None, rank: int, told: str
    ) -> Gate:
        """The gate in a model where its AUROC is unknown."""
        provenance = replace(self.direction.provenance.then(told), source_model=self.direction.model, rank=rank)
        basis = model.basis if model else self.direction.basis
        return Gate(
            CapabilityDirection(reader.float().unsqueeze(0), (layer,), basis, model, provenance), threshold, self.positions
        )

    @property
    def description(self) -> dict[str, Any]:
        """All of it but its vector, as JSON holds it."""
        told = {name: getattr(self, name) for name in ("threshold", "positions", "auroc", "hits", "false_alarms")}
        return {**told, "direction": self.direction.description}

    @classmethod
    def described(cls, vector: Float[Tensor, "1 d_model"], told: Mapping[str, Any]) -> Gate:
        """The gate of a vector and its `description`."""
        rest = {name: value for name, value in told.items() if name != "direction"}
        return cls(CapabilityDirection.described(vector, told["direction"]), **rest)

    def __repr__(self) -> str:
        name = self.direction.model.name if self.direction.model else "an unknown model"
        told = f"; AUROC {self.auroc:.3f}" if self.auroc is not None else ""
        if self.hits is not None and self.false_alarms is not None:
            told += f", hits {self.hits:.0%}, false alarms {self.false_alarms:.0%}"
        return f"Gate(layer {self.layer} of {name}, {self.positions}{told})"


def fitting(direction: CapabilityDirection, identity: ModelIdentity, check_model: bool = True) -> CapabilityDirection:
    """The reader w, after checking that it reads this model's states.

    Raises:
        IncompatibleModel: width, depth or model differ, or the basis is one in which it would read something else.
    """
    if direction.d_model != identity.d_model or max(direction.layers) >= identity.n_layers:
        raise IncompatibleModel(
            f"the gate's direction ({direction.model or 'its model is unknown'}; d_model {direction.d_model}, layers "
            f"{list(direction.layers)}) does not fit {identity}; transport the gate with a SubspaceAligner"
        )
    if check_model and direction.model is not None and not direction.model.is_same_model(identity):
        raise IncompatibleModel(
            f"the gate was made for {direction.model}, but this model is {identity}; transport it with a SubspaceAligner"
        )
    means = direction.vectors.double().mean(dim=1).abs()
    if (
        direction.basis == "raw"
        and identity.basis == "zero_mean"
        and bool((means > 1e-6 * direction.vectors.norm(dim=1)).any())
    ):
        raise IncompatibleModel(
            f"the gate also reads the mean over d_model, which {identity.name} removes from its residual stream; "
            "fit it in this model"
        )
    return direction


def _readings(act: Tensor, rest: Tensor, direction: CapabilityDirection | None, i: int) -> tuple[Tensor, Tensor]:
    if direction is None:
        return held_out_readings(act, rest)
    reader = reader_of(direction.vectors[i : i + 1], direction.basis).double()
    return act.double() @ reader, rest.double() @ reader
