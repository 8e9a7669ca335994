"""A reduction that fails, which is sent to the server by value."""

from __future__ import annotations

from torch import Tensor


class Broken:
    """Fails at the first states that it is given."""

    def add(self, i: int, states: Tensor, places: Tensor, sign: int) -> None:
        raise ArithmeticError(f"these {len(states)} states cannot be added")

    def result(self) -> dict[str, Tensor]:
        return {}
