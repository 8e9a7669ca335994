"""Methods of alignment, one file each: formula, source, and the factors of the map that it makes of one layer pair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral

from unlock_lens.errors import InvalidInput
from unlock_lens.method.methods import cca, procrustes, ridge, rrr, unlock
from unlock_lens.method.methods.base import Axes, Factors, Method, Pair

METHODS: Mapping[str, Method] = {module.METHOD.name: module.METHOD for module in (unlock, ridge, procrustes, rrr, cca)}

__all__ = ["METHODS", "Axes", "Factors", "Method", "Pair", "check_method"]


def check_method(method: str, rank: int | str | None, ridge: float | str | None) -> None:
    """Raise InvalidInput unless the method exists and takes this rank and ridge."""
    if method not in METHODS:
        raise InvalidInput(f"there is no method {method!r}; take one of {', '.join(METHODS)}")
    whole = isinstance(rank, Integral) and rank is not True
    if whole and int(rank or 0) < 1:
        raise InvalidInput(f"rank {rank} was given; at least 1 is needed")
    if rank is not None and rank != "cv" and not whole:
        raise InvalidInput(f'rank {rank!r} was given; take a whole number, "cv", or None')
    if ridge is not None and METHODS[method].default_ridge is None:
        raise InvalidInput(f"ridge {ridge!r} was given, but the method {method!r} has none; take ridge, rrr or cca")
    if isinstance(ridge, str) and ridge != "cv":
        raise InvalidInput(f'ridge {ridge!r} was given; take a number, "cv", or None')
    if isinstance(ridge, int | float) and not 0 <= ridge < math.inf:
        raise InvalidInput(f"ridge {ridge} was given; 0 or more is needed")
