"""CapabilityDirection: what an unlocked variant has and a locked one lacks (docs/method.md, section 1: extract)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core import files
from unlock_lens.core.differences import differences, mean_difference
from unlock_lens.core.files import Shareable
from unlock_lens.core.read import How, check_layers
from unlock_lens.core.tokens import check_position
from unlock_lens.core.variant import Variant
from unlock_lens.errors import IncompatibleModel, InvalidInput, caution
from unlock_lens.hosts.identity import Basis, ModelIdentity
from unlock_lens.method.apply import unit
from unlock_lens.method.extract import Aggregator, aggregate_name, aggregated, check_aggregate
from unlock_lens.method.linalg import projected_out

_KIND = "direction"


@dataclass(frozen=True)
class Provenance:
    """How a direction was made.

    Attributes:
        aggregate: "mean", "pca", or the name of the aggregator.
        position: token of the prompt, counted without padding.
        n_prompts: number of locked prompts, which equals that of unlocked ones.
        locked_hash: hash of the locked prompts.
        unlocked_hash: hash of the unlocked prompts.
        unlocked_model: the unlocked variant's model; the direction's own `model` is the locked one, or the target.
        source_model: the model that a transported direction comes from.
        rank: rank of the map that transported it.
        steps: what else was done to the direction, in words.
        locked: what the locked prompts were: template, the first of them, chat template, tokenizer (`Variant.description`).
        unlocked: the same for the unlocked prompts.

    Example:
        >>> from unlock_lens.core.direction import Provenance
        >>> Provenance(aggregate="mean", n_prompts=32).then("scaled to norm 1").steps
        ('scaled to norm 1',)
    """

    aggregate: str | None = None
    position: int | None = None
    n_prompts: int | None = None
    locked_hash: str | None = None
    unlocked_hash: str | None = None
    unlocked_model: ModelIdentity | None = None
    source_model: ModelIdentity | None = None
    rank: int | None = None
    steps: tuple[str, ...] = ()
    locked: Mapping[str, Any] | None = None
    unlocked: Mapping[str, Any] | None = None

    def then(self, step: str) -> Provenance:
        return replace(self, steps=(*self.steps, step))


@dataclass(frozen=True, eq=False, repr=False)
class CapabilityDirection(Shareable, kind=_KIND):
    """One vector for each layer, in the residual stream at the output of that block (`blocks.l.hook_resid_post`).

    Attributes:
        vectors: float32 on the CPU; row i belongs to layer layers[i].
        layers: ascending.
        basis: "raw", or "zero_mean" if it comes from a host that removes the mean over d_model from the residual stream.
        model: the model whose residual stream it belongs to; None if unknown.
        provenance: how it was made.

    Raises:
        InvalidInput: shapes do not match, values are not finite, or a vector has zero norm.

    Source: docs/method.md, section 1.

    Example:
        >>> import torch
        >>> from unlock_lens import CapabilityDirection
        >>> a = CapabilityDirection(torch.eye(2, 8), layers=(0, 1))
        >>> (2 * a).cosine(a)
        tensor([1., 1.])
    """

    vectors: Float[Tensor, "layer d_model"]
    layers: tuple[int, ...]
    basis: Basis = "raw"
    model: ModelIdentity | None = None
    provenance: Provenance = field(default=Provenance())

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", self.vectors.detach().to("cpu", torch.float32))
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        if not self.layers or self.layers[0] < 0 or list(self.layers) != sorted(set(self.layers)):
            raise InvalidInput(f"layers {list(self.layers)} were given; give at least one, ascending, without repetition")
        if self.vectors.ndim != 2 or len(self.layers) != self.vectors.shape[0]:
            raise InvalidInput(
                f"{len(self.layers)} layers and vectors of shape {tuple(self.vectors.shape)} were given; "
                "one row for each layer is needed"
            )
        if self.basis not in ("raw", "zero_mean"):
            raise InvalidInput(f"basis {self.basis!r} was given; use raw or zero_mean")
        for layer, vector in zip(self.layers, self.vectors, strict=True):
            if not bool(vector.isfinite().all()):
                raise InvalidInput(f"the vector of layer {layer} is not finite; check the activations that it was made from")
            if not bool(vector.any()):
                raise InvalidInput(
                    f"the vector of layer {layer} is zero; if locked and unlocked do not differ there, "
                    "choose other prompts or another position, or leave that layer out with layers="
                )

    @classmethod
    def extract(
        cls,
        locked: Variant,
        unlocked: Variant,
        aggregate: Literal["mean", "pca"] | Aggregator = "mean",
        layers: Sequence[int] | None = None,
        position: int = -1,
        batch_size: int = 8,
        progress: bool = True,
        resume: str | Path | None = None,
        wait: bool = True,
        placebo: Variant | None = None,
    ) -> CapabilityDirection:
        """The direction from a locked to an unlocked variant: D_i[l] = h_unlocked,i[l] - h_locked,i[l], aggregated over i.

        If both variants have the same model, this is a prompt contrast; with two models it is a model contrast. Layer l is the
        true output of block l, whereas the paper's own code reads the last layer after the final norm.

        Args:
            locked: the variant that lacks the capability.
            unlocked: the variant that has it; prompt i belongs to prompt i of `locked`.
            aggregate: "mean", "pca", or a function of the differences [n, d_model] of one layer to a vector [d_model].
            layers: layers to extract; None for all.
            position: token of the prompt, counted without padding; -1 is the last.
            batch_size: prompts in one forward pass.
            progress: whether to show a progress bar (after a second of work).
            resume: for models on a server: a folder that stores finished requests, so that the same call can resume after a
                fault.
            wait: for models on a server: if False, requests are sent without waiting, and the same call collects them later.
            placebo: the locked model with prompts that end like the unlocked ones but ask for nothing. The cosine of the
                direction with theirs is recorded in the provenance.

        Warns:
            UserWarning: locked and unlocked prompts end in different tokens, and there is no placebo. Part of the direction is
                then the difference between two tokens.

        Raises:
            InvalidInput: the numbers of prompts differ, layers are out of range, a prompt lacks the position, states are not
                finite, the aggregate is unknown, or resume= is given without a server.
            IncompatibleModel: the two models have different shapes or bases.
            RemoteError: the server does not answer, refuses, or fails; JobsRunning with wait=False.

        Source: docs/method.md, section 1.

        Example:
            >>> import unlock_lens as ul
            >>> from unlock_lens import zoo
            >>> model, task = zoo.load("small-base"), zoo.running_sum(n=32)
            >>> direction = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think))
            >>> direction.vectors.shape
            torch.Size([3, 64])
        """
        check_pair(locked, unlocked)
        check_tokens(locked, unlocked)
        if position == -1 and placebo is None:
            tell_last_tokens(locked, unlocked)
        check_aggregate(aggregate)
        where = check_layers(layers, locked.backend.identity.n_layers)
        for variant in (locked, unlocked):
            check_position(variant, position)
        how = How(batch_size, resume, wait, progress)
        if aggregate == "mean":
            vectors = mean_difference(unlocked, locked, where, position, how)
        else:
            leading = 1 if aggregate == "pca" else None
            found = differences(unlocked, locked, where, position, leading, how)
            vectors = torch.stack([aggregated(of_layer, aggregate) for of_layer in found])
        model = locked.backend.identity
        found = cls(vectors, where, model.basis, model, provenance_of(locked, unlocked, aggregate, position))
        if placebo is None:
            return found
        check_pair(locked, placebo)
        other = mean_difference(placebo, locked, where, position, how)
        shared = (unit(vectors.double()) * unit(other.double())).sum(dim=1)
        told = f"shares a cosine of {float(shared.mean()):.2f} (mean over layers) with the placebo {placebo.prompts[0][-60:]!r}"
        return replace(found, provenance=found.provenance.then(told))

    @property
    def d_model(self) -> int:
        return self.vectors.shape[1]

    def __repr__(self) -> str:
        made = f", {self.provenance.aggregate} of {self.provenance.n_prompts} prompts" if self.provenance.aggregate else ""
        where = f"layers {list(self.layers)}, d_model {self.d_model}"
        return f"CapabilityDirection({self.model or 'of no known model'}; {where}{made})"

    def at_layers(self, layers: Sequence[int]) -> CapabilityDirection:
        """The same direction at only some of its layers.

        Raises:
            InvalidInput: the direction lacks one of the layers.
        """
        missing = sorted(set(layers) - set(self.layers))
        if missing:
            raise InvalidInput(f"layers {missing} were requested; this direction has {list(self.layers)}")
        chosen = tuple(sorted(layers))
        return replace(self, vectors=self.vectors[[self.layers.index(layer) for layer in chosen]], layers=chosen)

    def zero_mean(self) -> CapabilityDirection:
        """The same direction in the basis of hosts that remove the mean over d_model from the residual stream: v - mean(v)."""
        if self.basis == "zero_mean":
            return self
        model = replace(self.model, basis="zero_mean", fingerprint=None) if self.model else None
        return replace(self, vectors=self.vectors - self.vectors.mean(dim=1, keepdim=True), basis="zero_mean", model=model)

    def cosine(self, other: CapabilityDirection) -> Float[Tensor, " layer"]:
        """Cosine similarity with another direction, for each layer.

        Raises:
            IncompatibleModel: layers, width, basis or model differ.
        """
        self._check_same_space(other)
        return (unit(self.vectors.double()) * unit(other.vectors.double())).sum(dim=1).float()

    def unit(self) -> CapabilityDirection:
        """The same direction with vectors of norm 1, so that capabilities of different strength can be added or compared.

        Example:
            >>> import torch
            >>> from unlock_lens import CapabilityDirection
            >>> CapabilityDirection(torch.tensor([[3.0, 4.0]]), (0,)).unit().vectors
            tensor([[0.6000, 0.8000]])
        """
        return replace(self, vectors=unit(self.vectors), provenance=self.provenance.then("scaled to norm 1"))

    def without(self, other: CapabilityDirection) -> CapabilityDirection:
        """This direction without its component along another: v - <v, u> u with u = w / ||w||, for each layer.

        Raises:
            IncompatibleModel: layers, width, basis or model differ.
            InvalidInput: nothing is left at some layer.

        Example:
            >>> import torch
            >>> from unlock_lens import CapabilityDirection
            >>> a, b = (CapabilityDirection(torch.tensor([v]), (0,)) for v in ([3.0, 4.0], [1.0, 0.0]))
            >>> a.without(b).vectors
            tensor([[0., 4.]])
        """
        self._check_same_space(other)
        left, gone = projected_out(self.vectors, other.vectors)
        if gone:
            raise InvalidInput(
                f"the vector of layer {self.layers[gone[0]]} is a multiple of the other direction's, so nothing is left of it"
            )
        return replace(self, vectors=left, provenance=self.provenance.then("without its part along another direction"))

    def __add__(self, other: CapabilityDirection) -> CapabilityDirection:
        self._check_same_space(other)
        return self._made(self.vectors + other.vectors, "added to another direction")

    def __sub__(self, other: CapabilityDirection) -> CapabilityDirection:
        return self + (-1.0) * other

    def __mul__(self, factor: float) -> CapabilityDirection:
        return self._made(self.vectors * factor, f"times {factor:g}")

    __rmul__ = __mul__

    def __neg__(self) -> CapabilityDirection:
        return self * -1.0

    def _made(self, vectors: Tensor, step: str) -> CapabilityDirection:
        """A direction computed from this one; a zero vector in it comes from the arithmetic, not from the prompts."""
        zero = [layer for layer, vector in zip(self.layers, vectors, strict=True) if not bool(vector.any())]
        if zero:
            raise InvalidInput(f"{step}, the direction is zero at layers {zero}; leave those layers out with at_layers")
        return replace(self, vectors=vectors, provenance=self.provenance.then(step))

    def save(self, path: str | Path) -> None:
        """Write the direction and its metadata to a safetensors file; an interrupted save leaves the old file unchanged.

        Raises:
            ArtifactError: the path is a folder, or its folder does not exist.
        """
        files.save(path, _KIND, {"vectors": self.vectors}, self.description)

    @classmethod
    def load(cls, path: str | Path) -> CapabilityDirection:
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file is missing, not a direction, of another format version, or damaged.
        """
        tensors, told = files.load(path, _KIND)
        with files.reading(path):
            return cls.described(tensors["vectors"], told)

    @property
    def description(self) -> dict[str, Any]:
        """All of it but its vectors, as JSON holds it."""
        model = asdict(self.model) if self.model else None
        return {"layers": self.layers, "basis": self.basis, "model": model, "provenance": asdict(self.provenance)}

    @classmethod
    def described(cls, vectors: Float[Tensor, "layer d_model"], told: Mapping[str, Any]) -> CapabilityDirection:
        """The direction of vectors and their `description`."""
        provenance = dict(told["provenance"])
        for name in ("unlocked_model", "source_model"):
            provenance[name] = _identity(provenance[name])
        provenance["steps"] = tuple(provenance["steps"])
        return cls(vectors, tuple(told["layers"]), told["basis"], _identity(told["model"]), Provenance(**provenance))

    def _check_same_space(self, other: CapabilityDirection) -> None:
        if (self.layers, self.d_model, self.basis) != (other.layers, other.d_model, other.basis):
            raise IncompatibleModel(
                f"the directions have layers {list(self.layers)} and {list(other.layers)}, "
                f"d_model {self.d_model} and {other.d_model}, bases {self.basis} and {other.basis}; all must match "
                "(use at_layers and zero_mean)"
            )
        if self.model and other.model and not self.model.is_same_model(other.model):
            raise IncompatibleModel(
                f"the directions belong to different models, {self.model} and {other.model}; transport one of them first"
            )


def _identity(told: Mapping[str, Any] | None) -> ModelIdentity | None:
    return ModelIdentity(**told) if told else None


def is_a(given: Any, kind: type) -> bool:
    """An instance, also of the class as it was before a module was reloaded."""
    return isinstance(given, kind) or (type(given).__module__, type(given).__qualname__) == (kind.__module__, kind.__qualname__)


def check_direction(given: Any) -> None:
    """Raise InvalidInput unless it is a direction."""
    if not is_a(given, CapabilityDirection):
        raise InvalidInput(f"direction is a {type(given).__name__}; give a CapabilityDirection (its load() reads one)")


def check_pair(locked: Variant, unlocked: Variant) -> None:
    """Raise unless the prompts correspond one to one, in models of the same shape and basis."""
    for side, variant in (("locked", locked), ("unlocked", unlocked)):
        if not isinstance(variant, Variant):  # pyright: ignore[reportUnnecessaryIsInstance]  users have no type checker
            raise InvalidInput(f"{side} is a {type(variant).__name__}; give Variant(model, prompts)")
    if len(locked) != len(unlocked):
        raise InvalidInput(
            f"{len(locked)} locked and {len(unlocked)} unlocked prompts were given; "
            "prompt i of one must correspond to prompt i of the other"
        )
    a, b = locked.backend.identity, unlocked.backend.identity
    if (a.n_layers, a.d_model, a.basis) != (b.n_layers, b.d_model, b.basis):
        raise IncompatibleModel(f"locked is {a}, unlocked is {b}; a contrast needs two models of the same shape and basis")


def check_tokens(locked: Variant, unlocked: Variant) -> None:
    """Raise InvalidInput if one model reads the same tokens in both variants, because nothing then differs."""
    if locked.model is unlocked.model and torch.equal(locked.tokens.ids, unlocked.tokens.ids):
        read = locked.backend.tokenizer.convert_ids_to_tokens(locked.tokens.ids[0][locked.tokens.mask[0].bool()].tolist())
        raise InvalidInput(
            f"locked and unlocked are the same tokens to this model, {read} for {unlocked.prompts[0][:40]!r}; "
            "give prompts that differ in words that its tokenizer knows"
        )


def tell_last_tokens(locked: Variant, unlocked: Variant) -> None:
    """Warn if most locked prompts end in a different token from their unlocked counterparts."""
    ends = [variant.tokens.ids[:, -1] for variant in (locked, unlocked)]  # padding is on the left
    if locked.model is not unlocked.model or int((ends[0] != ends[1]).sum()) * 2 <= len(locked):
        return
    shown = [locked.backend.tokenizer.decode([int(end[0])]) for end in ends]
    caution(
        f"the locked prompts end in {shown[0]!r} and the unlocked ones in {shown[1]!r}, so part of this direction is the "
        "difference between these two tokens. End both in the same token (ask for the capability before it), or give "
        "placebo=, prompts that end like the unlocked ones but ask for nothing"
    )


def provenance_of(locked: Variant, unlocked: Variant, aggregate: str | Aggregator | None, position: int) -> Provenance:
    """The provenance of a direction between these variants."""
    return Provenance(
        aggregate=aggregate if aggregate is None else aggregate_name(aggregate),
        position=position,
        n_prompts=len(locked),
        locked_hash=locked.prompts_hash,
        unlocked_hash=unlocked.prompts_hash,
        locked=locked.description,
        unlocked=unlocked.description,
        unlocked_model=unlocked.backend.identity,
    )
