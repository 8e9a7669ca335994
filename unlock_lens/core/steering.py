"""SteeringHook: a direction with its strength and place, attached natively (docs/method.md, section 3: apply)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from unlock_lens.core import files
from unlock_lens.core.direction import CapabilityDirection, check_direction, is_a
from unlock_lens.core.files import Shareable
from unlock_lens.core.gates import Gate
from unlock_lens.core.keys import Evidence, template_hash
from unlock_lens.core.variant import Variant
from unlock_lens.errors import IncompatibleModel, InvalidInput, caution
from unlock_lens.hosts import Backend, Edits, backend_of
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.hosts.shipping import arrived
from unlock_lens.method.apply import OPERATIONS, POSITIONS, LayerEdit, edits_of

_KIND = "key"
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class SteeringHook(Shareable, kind=_KIND):
    """Steers a model along a direction while it runs; its weights never change.

    A saved hook is a key: one file that unlocks the capability in the model that it was made for (docs/keys.md).

    Attributes:
        direction: one vector for each layer of this model's residual stream (transport it first if it is from another model).
        alpha: strength. For "norm_preserving" a fraction of the residual's norm, for "add" a multiple of the direction, for
            "ablate" the share of the component along the direction that is removed. One number for all layers, or
            {layer: strength} for the steered layers.
        operation: "norm_preserving" (the paper's), "add" or "ablate".
        positions: "last_prompt" (the paper's: only the prefill, so decoding is untouched), "prompt", "generated" or "all".
        layers: which of the direction's layers to steer; None for all. Layer l is edited at the output of block l, and
            layer l+1 reads the edited state.
        check_model: refuse models that the direction was not made for. Turn this off to try a related model.
        gate: act only in rows (or at tokens) whose residual stream reads above a threshold; None acts everywhere.
        evidence: a summary of what the hook was shown to do, which is saved with the key.
        chat_template_hash: hash of the chat template of its prompts; None without one (`proven` records it).

    Raises:
        InvalidInput: alpha is not finite or lacks a layer, the operation or position is unknown, or layers are not in the
            direction or come before the gate's.

    Source: docs/method.md, section 3.

    Example:
        >>> import torch
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=32)
        >>> direction = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think))
        >>> steer = ul.SteeringHook(direction, alpha=0.5)
        >>> ul.generate(model, ["Q 1 2 3 4 5 6 A :"], steer=steer)
        ['S 1 3 6 3 1 0 = 0']
    """

    direction: CapabilityDirection
    alpha: float | Tensor | Mapping[int, float]
    operation: Literal["norm_preserving", "add", "ablate"] = "norm_preserving"
    positions: Literal["last_prompt", "prompt", "generated", "all"] = "last_prompt"
    layers: Sequence[int] | None = None
    check_model: bool = True
    gate: Gate | None = None
    evidence: Evidence | None = None
    chat_template_hash: str | None = None

    def __post_init__(self) -> None:
        check_direction(self.direction)
        if isinstance(self.layers, int):
            raise InvalidInput(f"layers={self.layers} was given; give a list, layers=[{self.layers}]")
        object.__setattr__(self, "alpha", _plain(self.alpha))
        strengths = [*self.alpha.values()] if isinstance(self.alpha, Mapping) else [self.alpha]
        if not all(isinstance(strength, Real) and abs(float(strength)) <= _LARGEST for strength in strengths):
            raise InvalidInput(f"alpha {self.alpha} was given; a finite number is needed (of float32), or one for each layer")
        if self.operation not in OPERATIONS:
            raise InvalidInput(f"there is no operation {self.operation!r}; use one of {', '.join(OPERATIONS)}")
        if self.positions not in POSITIONS:
            raise InvalidInput(f"positions={self.positions!r} was given; use one of {', '.join(POSITIONS)}")
        steered = self.direction.at_layers(self.direction.layers if self.layers is None else self.layers)  # says which it lacks
        if isinstance(self.alpha, Mapping) and set(self.alpha) != set(steered.layers):
            raise InvalidInput(
                f"alpha has strengths for layers {sorted(self.alpha)}, but layers {list(steered.layers)} are steered; "
                "give a strength for each, or one number for all (layers= selects the steered layers)"
            )
        self._check_gate(steered.layers)

    def fwd_hooks(self, model: Any, attention_mask: Shaped[Tensor, "batch token"] | None = None) -> list[tuple[str, Any]]:
        """TransformerLens hooks for `run_with_hooks(fwd_hooks=...)` and `model.hooks(fwd_hooks=...)`.

        Concatenate the lists of several hooks; they act in that order at each layer. Make a new list for each run, in the
        thread that runs it. Without a KV cache, a pass that extends the previous one by one token counts as the next step of
        the same generation.

        Args:
            model: a TransformerBridge or HookedTransformer.
            attention_mask: mask of the whole prompts. It is needed only if you run passes by hand and split the prompts into
                several, or pad them on the right without a mask.

        Raises:
            IncompatibleModel: the direction was made for a different model.
            UnsupportedModel: the model is not a TransformerLens model.
        """
        backend = backend_of(model)
        return backend.fwd_hooks(edits_for(backend, [self]), attention_mask)

    def at_layers(self, layers: Sequence[int]) -> SteeringHook:
        """The same hook at only some of the layers that it steers.

        Raises:
            InvalidInput: it does not steer one of the layers.
        """
        steered = self.direction.layers if self.layers is None else self.layers
        if not set(layers) <= set(steered):
            raise InvalidInput(f"layers {sorted(layers)} were requested; this hook steers {sorted(steered)}")
        alpha = {layer: self.alpha[layer] for layer in layers} if isinstance(self.alpha, Mapping) else self.alpha
        return replace(self, alpha=alpha, layers=tuple(layers))

    def proven(self, evidence: Evidence, prompts: Variant | None = None) -> SteeringHook:
        """The same hook with its evidence, and the chat template of the prompts that gave it."""
        return replace(self, evidence=evidence, chat_template_hash=template_hash(prompts) if prompts else None)

    def save(self, path: str | Path) -> None:
        """Write the hook as a key, one safetensors file; an interrupted save leaves the old file as it was.

        Warns if the direction's model is unknown: such a key cannot refuse other models of the same shape.

        Raises:
            ArtifactError: the path is a folder, or its folder does not exist.
        """
        if self.direction.model is None:
            caution("the direction's model is unknown, so this key cannot refuse other models of the same shape")
        tensors = {"vectors": self.direction.vectors}
        if self.gate is not None:
            tensors["gate"] = self.gate.direction.vectors
        files.save(path, _KIND, tensors, self.description)

    @classmethod
    def load(cls, path: str | Path) -> SteeringHook:
        """Read what `save` wrote. A loaded key always checks the model.

        Raises:
            ArtifactError: the file is missing, not a key, of another format version, damaged, or has incomplete evidence.
        """
        tensors, told = files.load(path, _KIND)
        with files.reading(path):
            return cls.described(tensors, told)

    @property
    def description(self) -> dict[str, Any]:
        """All of it but its tensors, as JSON holds it."""
        return {
            "direction": self.direction.description,
            "alpha": [(int(layer), float(strength)) for layer, strength in self.alpha.items()]
            if isinstance(self.alpha, Mapping)
            else float(self.alpha),
            "operation": self.operation,
            "positions": self.positions,
            "layers": None if self.layers is None else [int(layer) for layer in self.layers],
            "gate": self.gate and self.gate.description,
            "chat_template_hash": self.chat_template_hash,
            "evidence": self.evidence and self.evidence.description,
        }

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> SteeringHook:
        """The hook of a key's tensors and its `description`."""
        alpha, gate, evidence = told["alpha"], told["gate"], told["evidence"]
        return cls(
            CapabilityDirection.described(tensors["vectors"], told["direction"]),
            dict(map(tuple, alpha)) if isinstance(alpha, list) else alpha,
            told["operation"],
            told["positions"],
            told["layers"],
            gate=gate and Gate.described(tensors["gate"], gate),
            evidence=evidence and Evidence.described(evidence),
            chat_template_hash=told["chat_template_hash"],
        )

    def attached(self, model: Any, attention_mask: Shaped[Tensor, "batch token"] | None = None) -> AbstractContextManager[None]:
        """A context in which every run of a local model is steered; it ends cleanly even after an exception.

        Token positions come from each run's mask, KV cache and position ids, and the end of the prompt from the prompts given
        to `generate`.

        Args:
            model: a model of any host.
            attention_mask: mask of the whole prompts. It is needed only if you run passes by hand and split the prompts into
                several, or pad them on the right without a mask.

        Raises:
            IncompatibleModel: the direction was made for a different model.
            UnsupportedModel: no backend supports the model.
            InvalidInput: another thread is steering the model.
        """
        return attached(model, [self], attention_mask)

    def apply(self, model: Any, tracer: Any = None, layer: int | None = None) -> None:
        """Edit inside an nnsight `trace`, `generate` or `session` body.

        Args:
            model: the nnsight model that is being traced.
            tracer: the one of `generate(...) as tracer`; needed for positions "generated" and "all", and without a KV cache.
                The edit then loops over all steps, so read results in another `tracer.invoke()`.
            layer: edit only this layer, in the current pass. Call it for each layer in ascending order to read and write
                other things between the edits, and in every step if you loop over steps yourself.

        Raises:
            InvalidInput: the positions, or a run without KV cache, need the tracer; or the layer is not steered.
            IncompatibleModel: the direction was made for a different model.
            UnsupportedModel: the model is not an nnsight model.
        """
        apply(model, [self], tracer, layer)

    def _check_gate(self, steered: Sequence[int]) -> None:
        if self.gate is None:
            return
        if not is_a(self.gate, Gate):
            raise InvalidInput(f"gate is a {type(self.gate).__name__}; give ul.Gate(direction, threshold), or ul.Gate.fit(...)")
        if early := [layer for layer in steered if layer < self.gate.layer]:
            later = [layer for layer in steered if layer >= self.gate.layer]
            raise InvalidInput(
                f"the gate reads layer {self.gate.layer}, but layers {early} are steered before it can decide; "
                + (f"steer layers={later}, or " if later else "")
                + "read an earlier layer (Gate.fit(layers=...))"
            )

    def edits(self, identity: ModelIdentity) -> dict[int, list[LayerEdit]]:
        """The edits at each layer for a model, and the gate that is read before them.

        Raises:
            IncompatibleModel: the direction was made for a different model.
        """
        direction, alpha = self._in_basis_of(identity), _plain(self.alpha)
        gate = self.gate and self.gate.gating(identity, self.check_model)
        return edits_of(direction.vectors, direction.layers, alpha, self.operation, self.positions, self.layers, gate)

    def __reduce__(self) -> Any:
        """Plain data from which the hook is rebuilt on arrival, because nnsight ships what a remote body names."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        if self.gate is not None:
            rest = {field.name: getattr(self.gate, field.name) for field in fields(self.gate)[1:]}
            settings["gate"] = _parts(self.gate.direction), rest
        if self.evidence is not None:
            settings["evidence"] = self.evidence.description  # a class would draw the whole library along
        return arrived, (__name__, _parts(self.direction), settings)

    def _in_basis_of(self, identity: ModelIdentity) -> CapabilityDirection:
        direction = self.direction
        if direction.d_model != identity.d_model or max(direction.layers) >= identity.n_layers:
            raise IncompatibleModel(
                f"the direction ({direction.model or 'its model is unknown'}; d_model {direction.d_model}, "
                f"layers {list(direction.layers)}) does not fit {identity}; transport it with a SubspaceAligner"
            )
        if self.check_model and direction.model is not None and not direction.model.is_same_model(identity):
            raise IncompatibleModel(
                f"the direction was made for {direction.model}, but this model is {identity}; transport it with a "
                "SubspaceAligner, or pass check_model=False to try it anyway"
            )
        if direction.basis == identity.basis:
            return direction
        if direction.basis == "raw":
            return direction.zero_mean()
        if self.operation != "add":
            raise IncompatibleModel(
                f"the direction is in the zero-mean basis (its mean over d_model was removed), but {identity.name} is raw, "
                f"where {self.operation} is a different edit; "
                'extract it again from the raw model, or use operation="add", which is the same in both'
            )
        return direction


def rebuilt(direction: tuple[Any, ...], settings: Mapping[str, Any]) -> SteeringHook:
    """A hook that was unpickled (`hosts.shipping.arrived`)."""
    gate = settings["gate"] and Gate(CapabilityDirection(*settings["gate"][0]), **settings["gate"][1])
    evidence = settings["evidence"] and Evidence.described(settings["evidence"])
    made: dict[str, Any] = {**settings, "gate": gate, "evidence": evidence}
    return SteeringHook(CapabilityDirection(*direction), **made)


def _parts(direction: CapabilityDirection) -> tuple[Any, ...]:
    return tuple(getattr(direction, field.name) for field in fields(direction))


def as_hooks(steer: SteeringHook | Sequence[SteeringHook] | None) -> list[SteeringHook]:
    """None, one or several hooks as a list.

    Raises:
        InvalidInput: anything else.
    """
    if steer is None:
        return []
    given: list[Any] = [*steer] if isinstance(steer, list | tuple) else [steer]
    for hook in given:
        if not is_a(hook, SteeringHook):
            raise InvalidInput(
                f"steer was given a {type(hook).__name__}; wrap a direction as SteeringHook(direction, alpha=0.5)"
            )
    return given


def check_template(hooks: Sequence[SteeringHook], variant: Variant) -> None:
    """Warn if a key was made for prompts in a different chat template."""
    for hook in hooks:
        if hook.chat_template_hash is not None and hook.chat_template_hash != (found := template_hash(variant)):
            caution(
                f"this key was made for prompts in the chat template {hook.chat_template_hash}, but these are in "
                f"{found or 'none'}, so its strength may not fit; give Variant(model, prompts, chat=True) with that template"
            )


def edits_for(backend: Backend, hooks: Sequence[SteeringHook]) -> Edits:
    """The edits of several hooks at each layer, in the order of the hooks."""
    merged: dict[int, list[LayerEdit]] = {}
    for hook in hooks:
        for layer, of_layer in hook.edits(backend.identity).items():
            merged.setdefault(layer, []).extend(of_layer)
    return merged


def attached(
    model: Any,
    steer: SteeringHook | Sequence[SteeringHook],
    attention_mask: Shaped[Tensor, "batch token"] | None = None,
) -> AbstractContextManager[None]:
    """`SteeringHook.attached` for several hooks, which act in the given order at each layer.

    Raises:
        IncompatibleModel: a direction was made for a different model.
        InvalidInput: an argument is not a hook.
        UnsupportedModel: no backend supports the model.

    Source: docs/method.md, section 3.

    Example:
        >>> import torch
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> model = zoo.load("small-base")
        >>> forth = ul.SteeringHook(ul.CapabilityDirection(torch.ones(1, 64), (0,)), alpha=1.0, operation="add")
        >>> back = ul.SteeringHook(-forth.direction, alpha=1.0, operation="add")
        >>> with ul.attached(model, [forth, back]):  # the second undoes the first
        ...     ul.generate(model, ["Q 1 2 3 4 5 6 think A :"])
        ['S 1 3 6 3 1 0 = 0']
    """
    backend = backend_of(model)
    return backend.attached(edits_for(backend, as_hooks(steer)), attention_mask)


def apply(model: Any, steer: SteeringHook | Sequence[SteeringHook], tracer: Any = None, layer: int | None = None) -> None:
    """`SteeringHook.apply` for several hooks, which act in the given order at each layer.

    Raises:
        InvalidInput: the positions need the tracer.
        IncompatibleModel: a direction was made for a different model.
        UnsupportedModel: the model is not an nnsight model.

    Source: docs/method.md, section 3.

    Example:
        >>> import torch
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> model = zoo.load("small-base", "nnsight")
        >>> forth = ul.SteeringHook(ul.CapabilityDirection(torch.ones(1, 64), (0,)), alpha=1.0, operation="add")
        >>> back = ul.SteeringHook(-forth.direction, alpha=1.0, operation="add")
        >>> with model.generate("Q 1 2 3 4 5 6 think A :", max_new_tokens=9) as tracer:
        ...     ul.apply(model, [forth, back])  # the second undoes the first
        ...     ids = tracer.result.save()
        >>> model.tokenizer.decode(ids[0])
        'Q 1 2 3 4 5 6 think A : S 1 3 6 3 1 0 = 0'
    """
    backend = backend_of(model)
    backend.apply(edits_for(backend, as_hooks(steer)), tracer, layer)


def _plain(alpha: Any) -> Any:
    """Scalars of torch and NumPy as numbers."""
    if isinstance(alpha, Mapping):
        return {layer: _plain(strength) for layer, strength in alpha.items()}
    return alpha.item() if hasattr(alpha, "item") and getattr(alpha, "ndim", None) == 0 else alpha
