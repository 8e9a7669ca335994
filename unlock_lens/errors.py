"""The library's exceptions: each message says what was given, what was expected and what to do."""

from __future__ import annotations


class UnlockLensError(Exception):
    """Base class of all errors that unlock-lens raises on purpose."""


class InvalidInput(UnlockLensError, ValueError):
    """An argument that cannot be worked with: counts, ranges, shapes, values that are not finite."""


class UnsupportedModel(UnlockLensError, TypeError):
    """A model that no backend can serve, or not in the way that was asked for."""


class IncompatibleModel(UnlockLensError, ValueError):
    """A direction or an aligner met a model that it was not made for (width, depth, basis or weights)."""


class ArtifactError(UnlockLensError, ValueError):
    """A file that is not a readable unlock-lens artifact of the wanted kind."""
