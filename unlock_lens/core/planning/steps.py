"""What a plan says: steps, their requests summed, and what was assumed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        tokens: that the model reads.
        padded_tokens: the same with padding.
        bytes_up: of the request's payload.
        bytes_down: of its result.
        server_bytes: what the server holds beside the model's weights, at its peak.
        flops: of the forward passes.
    """

    tokens: int
    padded_tokens: int
    bytes_up: int
    bytes_down: int
    server_bytes: int
    flops: int


@dataclass(frozen=True)
class Step(Ask):
    """Requests of one kind to one model: sums over them, but `server_bytes`, which is the largest request's.

    Attributes:
        name: what is done.
        model: to which model.
        requests: how many.

    Source: docs/plan.md.

    Example:
        >>> from unlock_lens.core.planning import Step
        >>> one = Step(9, 9, bytes_up=100, bytes_down=50, server_bytes=1000, flops=10, name="extract", model="a", requests=1)
        >>> both = Step.of("total", "", [one, one])
        >>> both.requests, both.tokens, both.server_bytes
        (2, 18, 1000)
    """

    name: str
    model: str
    requests: int

    @classmethod
    def of(cls, name: str, model: str, asks: Iterable[Ask]) -> Step:
        found = [asdict(ask) for ask in asks]
        requests = sum(int(ask.get("requests", 1)) for ask in found)
        numbers = {key: (max if key == "server_bytes" else sum)(ask[key] for ask in found) for key in Ask.__dataclass_fields__}
        return cls(**numbers, name=name, model=model, requests=requests)


@dataclass(frozen=True)
class Plan:
    """What will be asked of servers; `str(plan)` is a table.

    Attributes:
        steps: in order.
        assumptions: what was assumed, in words.

    Source: docs/plan.md.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> ul.plan(zoo.path() / "large-base", prompts=64, prompt_tokens=9).total.tokens
        1152
    """

    steps: tuple[Step, ...]
    assumptions: tuple[str, ...]

    @property
    def total(self) -> Step:
        """All steps: sums, and the largest `server_bytes`, for the steps run one after the other."""
        return Step.of("total", "", self.steps)

    def to_json(self) -> dict[str, Any]:
        """For programs: bytes, tokens and FLOPs as whole numbers."""
        return {
            "steps": [asdict(step) for step in self.steps],
            "total": asdict(self.total),
            "assumptions": list(self.assumptions),
        }

    def __str__(self) -> str:
        from unlock_lens.core.planning import table

        return table.text(self)
