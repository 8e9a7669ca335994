"""Shipping: a steering hook that the body of a user's remote trace names, as it reaches a server without this library."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from unlock_lens.errors import IncompatibleModel
from unlock_lens.hosts.tracing import apply_edits, identity_and_blocks
from unlock_lens.method.apply import edits_of


class ShippedHook:
    """What a `SteeringHook` is there: its direction and settings, and `apply`.

    Args:
        direction: vectors, layers, basis, model and provenance.
        settings: the hook's other attributes.
    """

    def __init__(self, direction: tuple[Any, ...], settings: Mapping[str, Any]) -> None:
        self.vectors, self.layers, self.basis, self.model, _ = direction
        self.settings = dict(settings)
        self.check_model = self.settings.pop("check_model")

    def apply(self, model: Any, tracer: Any = None, layer: int | None = None) -> None:
        """`SteeringHook.apply`; a server's models are raw."""
        identity, blocks = identity_and_blocks(model)
        fits = self.vectors.shape[1] == identity.d_model and max(self.layers) < identity.n_layers
        same = self.model is None or not self.check_model or self.model.is_same_model(identity)
        if not fits or not same or (self.basis != "raw" and self.settings["operation"] != "add"):
            raise IncompatibleModel(
                f"the direction ({self.model}, {self.basis}, layers {list(self.layers)}) does not fit {identity}; "
                "transport it with a SubspaceAligner"
            )
        edits = edits_of(self.vectors, self.layers, **self.settings)
        apply_edits(model, blocks, {edited: [edit] for edited, edit in edits.items()}, tracer, layer)


def arrived(home: str, direction: tuple[Any, ...], settings: Mapping[str, Any]) -> Any:
    """A hook that was pickled: what the module `home` makes of it with its `rebuilt`, or a `ShippedHook` where it is missing.

    The name of the module travels, because a class would draw the whole library along, and a registry would stay behind.
    """
    try:
        module = import_module(home)
    except ImportError:
        return ShippedHook(direction, settings)
    return module.rebuilt(direction, settings)
