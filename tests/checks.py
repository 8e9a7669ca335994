"""How the tests check shapes and types at run time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

typechecker: Callable[[Any], Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int is a float, as type checkers say."""


@contextmanager
def unchecked() -> Generator[None, None, None]:
    """As users run the library: wrong arguments reach the library's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
