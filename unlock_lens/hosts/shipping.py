"""Shipping: a steering hook that the body of a user's remote trace names, as it reaches a server without this library."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from unlock_lens.errors import IncompatibleModel
from unlock_lens.hosts.tracing import apply_edits, identity_and_blocks
from unlock_lens.method.apply import Gating, edits_of, reader_of


class ShippedHook:
    """What a `SteeringHook` is there: its direction and settings, and `apply`.

    Args:
        direction: vectors, layers, basis, model and provenance.
        settings: the hook's other attributes; of its gate the direction, as above, and the rest.
    """

    def __init__(self, direction: tuple[Any, ...], settings: Mapping[str, Any]) -> None:
        self.vectors, self.layers, self.basis, self.model, _ = direction
        self.settings = dict(settings)
        self.check_model = self.settings.pop("check_model")
        self.gate = self.settings.pop("gate")
        self.settings.pop("evidence")
        self.settings.pop("chat_template_hash")

    def apply(self, model: Any, tracer: Any = None, layer: int | None = None) -> None:
        """`SteeringHook.apply`; a server's models are raw."""
        identity, blocks = identity_and_blocks(model)
        if self.basis != "raw" and self.settings["operation"] != "add":
            raise IncompatibleModel(
                f"the direction is in the basis {self.basis}, but {identity} is raw; extract it from the raw model"
            )
        self._check_fits("direction", self.vectors, self.layers, self.model, identity)
        gating = None
        if self.gate is not None:
            (vectors, layers, basis, of_model, _), gate = self.gate
            self._check_fits("gate", vectors, layers, of_model, identity)
            gating = Gating(layers[0], reader_of(vectors, basis), gate["threshold"], gate["positions"])
        edits = edits_of(self.vectors, self.layers, **self.settings, gate=gating)
        apply_edits(model, blocks, edits, tracer, layer)

    def _check_fits(self, what: str, vectors: Any, layers: Any, made_for: Any, identity: Any) -> None:
        fits = vectors.shape[1] == identity.d_model and max(layers) < identity.n_layers
        if not fits or not (made_for is None or not self.check_model or made_for.is_same_model(identity)):
            raise IncompatibleModel(
                f"the {what} ({made_for}, layers {list(layers)}) does not fit {identity}; transport it with a SubspaceAligner"
            )


def arrived(home: str, direction: tuple[Any, ...], settings: Mapping[str, Any]) -> Any:
    """A hook that was pickled: what the module `home` makes of it with its `rebuilt`, or a `ShippedHook` where it is missing.

    The name of the module travels, because a class would draw the whole library along, and a registry would stay behind.
    """
    try:
        module = import_module(home)
    except ImportError:
        return ShippedHook(direction, settings)
    return module.rebuilt(direction, settings)
