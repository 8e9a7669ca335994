"""Methods of alignment, one file each: formula, source, and the factors of the map that it makes of one layer pair."""

from collections.abc import Mapping

from unlock_lens.methods import cca, procrustes, ridge, rrr, unlock
from unlock_lens.methods.base import Axes, Factors, Method, Pair

METHODS: Mapping[str, Method] = {module.METHOD.name: module.METHOD for module in (unlock, ridge, procrustes, rrr, cca)}

__all__ = ["METHODS", "Axes", "Factors", "Method", "Pair"]
