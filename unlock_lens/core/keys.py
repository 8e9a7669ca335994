"""What a key records besides its hook: a summary of the evidence, and the chat template of its prompts (docs/keys.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput


@dataclass(frozen=True)
class Evidence:
    """A summary of what a hook was shown to do, for whoever receives it as a key.

    Attributes:
        task: what was measured, in words.
        n: number of reported problems, none of which was used to choose a setting.
        gain: net share that steering gains: right (or showing the behaviour) with steering, minus without.
        interval: 95% interval of the gain.
        price: mean KL on unrelated text, in nats per token.
        controls: the same gain for each control arm, by name.
        verdict: a word such as "arrived" or "undecided".

    Raises:
        InvalidInput: there are no problems, controls or verdict, the gain is outside its interval or -1..1, or the price is
            negative.

    Example:
        >>> import unlock_lens as ul
        >>> ul.Evidence("running sums", 100, 0.83, (0.75, 0.9), 0.24, {"random": 0.0, "anti-mean": 0.01}, "arrived").n
        100
    """

    task: str
    n: int
    gain: float
    interval: tuple[float, float]
    price: float
    controls: Mapping[str, float]
    verdict: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "controls", dict(self.controls))
        low, high = self.interval
        if not -1 <= low <= self.gain <= high <= 1:
            raise InvalidInput(f"a gain of {self.gain} in {self.interval} was given; give shares, the gain in its interval")
        if self.n < 1 or not 0 <= self.price < math.inf:
            raise InvalidInput(f"{self.n} problems and a price of {self.price} nats were given; they must be at least 1 and 0")
        if not self.task.strip() or not self.verdict.strip() or not self.controls:
            raise InvalidInput(
                "evidence needs a task, a verdict and at least one control, because a gain alone does not show a transfer"
            )

    def __str__(self) -> str:
        low, high = (100 * share for share in self.interval)
        controls = ", ".join(f"{name} {100 * gain:+.0f}" for name, gain in self.controls.items())
        return (
            f"{self.task}, {self.n} problems: {100 * self.gain:+.0f} points ({low:+.0f} to {high:+.0f}) at {self.price:.3f} "
            f"nats per token on unrelated text; controls: {controls}; verdict: {self.verdict}"
        )

    @property
    def description(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "interval": list(self.interval)}

    @classmethod
    def described(cls, told: Mapping[str, Any]) -> Evidence:
        """The evidence of its `description`."""
        made: dict[str, Any] = {**told, "interval": tuple(told["interval"])}
        return cls(**made)


def template_hash(variant: Variant) -> str | None:
    """Hash of the chat template of a variant's prompts; None without one."""
    return variant.description["chat_template_hash"]
