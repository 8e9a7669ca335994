"""A probe before a long run: one forward pass for each strength, no labels, nothing generated (docs/diagnosis.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.distributions import next_token_log_probs

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LEAST_DIFFERING = 0.1
"""Share of prompts that must begin otherwise when unlocked; below it the first token says nothing."""


@dataclass(frozen=True)
class Probe:
    """Whether the steered target begins as the unlocked model does, at the strength where it does most.

    Attributes:
        share: of the prompts whose likeliest first token differs between the unsteered target and the unlocked model, how many
            get the unlocked one's when steered; None where that could not be seen.
        alpha: the strength at which (the middle one of equals): a place to begin a sweep.
        by_alpha: strength and share, for each.
        n_differing: prompts whose first token differs between unsteered and unlocked.
        skipped: why there is no share.
        minus: the share with minus the direction; a direction that works does not work turned round.
        nulls: the shares of directions without a capability, each at its best strength.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> from unlock_lens.evidence.probe import Probe
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=16)
        >>> locked, unlocked = ul.Variant(model, task.direct), ul.Variant(model, task.think)
        >>> Probe.run(ul.CapabilityDirection.extract(locked, unlocked), locked, unlocked).share
        1.0
    """

    share: float | None
    alpha: float | None
    by_alpha: tuple[tuple[float, float], ...]
    n_prompts: int
    n_differing: int
    skipped: str | None = None
    minus: float | None = None
    nulls: tuple[float, ...] = ()

    @property
    def score(self) -> float | None:
        """The share, less what noise reaches: 0 where minus the direction does as well, and times the nulls that do worse."""
        if self.share is None:
            return None
        if self.minus is not None and self.minus >= self.share:
            return 0.0
        worse = sum(null < self.share for null in self.nulls)
        return self.share * (worse / len(self.nulls) if self.nulls else 1.0)

    @classmethod
    def run(
        cls,
        direction: CapabilityDirection,
        target: Variant,
        unlocked: Variant,
        alphas: Sequence[float] = ALPHAS,
        batch_size: int = 8,
        hook: Callable[[float], SteeringHook] | None = None,
        nulls: Sequence[CapabilityDirection] = (),
    ) -> Probe:
        """Steer the target with the transported direction and look at its first tokens.

        Args:
            direction: in the target's space.
            target: the target with locked prompts; 16 to 32 will do.
            unlocked: the source's unlocked variant (or the target's own, where there is one), of the same questions.
            alphas: strengths.
            batch_size: prompts in one forward pass.
            hook: what steers at a strength; by default the norm-preserving edit of the last prompt token at every layer.
            nulls: directions without a capability, through the same map (`controls.random_like` of the source's, transported).

        Raises:
            InvalidInput: different numbers of prompts, or no strengths.
            IncompatibleModel: the direction was made for another model than the target's.
        """
        if len(target) != len(unlocked):
            raise InvalidInput(
                f"{len(target)} target and {len(unlocked)} unlocked prompts were given; "
                "prompt i of one belongs to prompt i of the other"
            )
        if skipped := _incomparable(target, unlocked):
            return cls(None, None, (), len(target), 0, skipped)

        def first_tokens(of: Variant, steer: SteeringHook | None = None) -> Tensor:
            return next_token_log_probs(of, None, steer, batch_size)

        found = [first_tokens(target), first_tokens(unlocked)]
        # Sizes of a family pad their unembedding differently; beyond the shorter one there are no tokens.
        width = min(log_probs.shape[1] for log_probs in found)
        hook = hook or (lambda alpha: SteeringHook(direction, alpha))

        def seen(of: CapabilityDirection) -> Probe:
            steered = {alpha: first_tokens(target, replace(hook(alpha), direction=of))[:, :width] for alpha in alphas}
            return cls.of(found[0][:, :width], found[1][:, :width], steered)

        own = seen(hook(alphas[0]).direction if alphas else direction)
        if own.share is None:
            return own
        shares = [seen(null).share or 0.0 for null in nulls]
        return replace(own, minus=seen(-hook(alphas[0]).direction).share, nulls=tuple(shares))

    @classmethod
    def of(
        cls,
        unsteered: Float[Tensor, "prompt vocabulary"],
        unlocked: Float[Tensor, "prompt vocabulary"],
        steered: Mapping[float, Float[Tensor, "prompt vocabulary"]],
    ) -> Probe:
        """From log-probabilities (or logits) of first tokens that you already have.

        Raises:
            InvalidInput: no strengths, or shapes that differ.
        """
        shapes = {tuple(scores.shape) for scores in (unsteered, unlocked, *steered.values())}
        if not steered or len(shapes) > 1:
            raise InvalidInput(
                f"{len(steered)} strengths and scores of shapes {sorted(shapes)} were given; "
                "a probe needs one strength at least, and the same prompts and vocabulary everywhere"
            )
        wanted = unlocked.argmax(dim=-1)
        differing = unsteered.argmax(dim=-1) != wanted
        n, n_differing = len(wanted), int(differing.sum())
        if n_differing < max(1, LEAST_DIFFERING * n):
            alike = f"unlocked and unsteered begin alike in {n - n_differing} of {n} prompts"
            return cls(None, None, (), n, n_differing, alike)
        by_alpha = tuple(
            (float(alpha), float((scores.argmax(dim=-1) == wanted)[differing].float().mean()))
            for alpha, scores in sorted(steered.items())
        )
        share = max(found for _, found in by_alpha)
        equals = [alpha for alpha, found in by_alpha if found == share]
        return cls(share, equals[len(equals) // 2], by_alpha, n, n_differing)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Probe:
        """From the fields as JSON holds them (`dataclasses.asdict`)."""
        read: dict[str, Any] = {**given, "by_alpha": tuple((float(alpha), float(share)) for alpha, share in given["by_alpha"])}
        read["nulls"] = tuple(given.get("nulls", ()))
        return cls(**read)


def _incomparable(target: Variant, unlocked: Variant) -> str | None:
    """Why the first tokens of the two cannot be compared."""
    if target.backend.tokenizer.get_vocab() != unlocked.backend.tokenizer.get_vocab():
        return f"{target.backend.identity.name} and {unlocked.backend.identity.name} have different vocabularies"
    pairs = zip(target.prompts, unlocked.prompts, strict=True)
    if any(asked.startswith(plain) and asked != plain for plain, asked in pairs):
        return "unlocked prompts continue where the locked ones end, so their next token is not the first of a completion"
    return None
