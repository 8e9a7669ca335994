"""A probe before a long run: one forward pass for each strength, without labels or generation (docs/diagnosis.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.distributions import next_token_log_probs

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LEAST_DIFFERING = 0.1
"""Share of completions that must start differently when unlocked; below it the first token says nothing."""


@dataclass(frozen=True)
class Probe:
    """How often the steered target starts like the unlocked model, at the best strength.

    Attributes:
        share: among prompts whose most likely first token differs between the unsteered target and the unlocked model, the
            share that get the unlocked one when steered; None if too few differ.
        alpha: the best strength (the middle one, if several are equal), a good place to start a sweep.
        by_alpha: strength and share, for each.
        n_differing: prompts whose first token differs between unsteered and unlocked.
        skipped: the reason if share is None.
        minus: the share with minus the direction, which should not work.
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
        """The share times the part of the nulls that do worse; 0 if minus the direction does as well."""
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
        example: tuple[CapabilityDirection, Variant] | None = None,
    ) -> Probe:
        """Steer the target with the transported direction and examine its first tokens.

        Models with the same vocabulary are compared by tokens, others by the text of the tokens: one must be a prefix of the
            other.

        Args:
            direction: a direction in the target's space.
            target: the target with locked prompts; 16 to 32 are enough.
            unlocked: the source's unlocked variant (or the target's own, if there is one), of the same questions.
            alphas: strengths.
            batch_size: prompts in one forward pass.
            hook: makes the hook for a strength; by default the norm-preserving edit of the last prompt token at every layer.
            nulls: directions without a capability, through the same map (`controls.random_like` of the source's, transported).
            example: the source's own direction and its locked prompts. If unlocked prompts extend the locked ones, as
                "Answer: Let's think step by step." does, a steered model may write the extension or what follows it. The token
                that the source's own steered run starts with then counts as well.

        Raises:
            InvalidInput: the numbers of prompts differ, or no strengths are given.
            IncompatibleModel: the direction was made for another model than the target's.
        """
        for name, other in (("unlocked", unlocked), *([("example", example[1])] if example else [])):
            if len(target) != len(other):
                raise InvalidInput(
                    f"{len(target)} target and {len(other)} {name} prompts were given; "
                    "prompt i of one belongs to prompt i of the other"
                )
        in_words = target.backend.tokenizer.get_vocab() != unlocked.backend.tokenizer.get_vocab()

        def begins(of: Variant, steer: SteeringHook | None = None) -> list[str]:
            return _openings(of, next_token_log_probs(of, None, steer, batch_size), in_words)

        before, wanted = begins(target), [{opening} for opening in begins(unlocked)]
        if example and _continues(target, unlocked):
            for accepted, opening in zip(wanted, _example(example, begins, alphas), strict=True):
                accepted.add(opening)
        hook = hook or (lambda alpha: SteeringHook(direction, alpha))

        def seen(of: CapabilityDirection) -> Probe:
            steered = {alpha: begins(target, replace(hook(alpha), direction=of)) for alpha in alphas}
            return cls.counted(before, wanted, steered, in_words)

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

        def begins(scores: Tensor) -> list[str]:
            return [str(token) for token in scores.argmax(dim=-1).tolist()]

        wanted = [{opening} for opening in begins(unlocked)]
        return cls.counted(begins(unsteered), wanted, {alpha: begins(scores) for alpha, scores in steered.items()})

    @classmethod
    def counted(
        cls, before: Sequence[str], wanted: Sequence[set[str]], steered: Mapping[float, Sequence[str]], in_words: bool = False
    ) -> Probe:
        """From openings as text: before steering, those that are wanted for each prompt, and at each strength.

        In words, an opening is a wanted one if either begins with the other; otherwise they must be equal.

        Raises:
            InvalidInput: no strengths.
        """
        if not steered:
            raise InvalidInput("no strengths were given; a probe needs one at least")
        open_to = [i for i, opening in enumerate(before) if not _is_one_of(opening, wanted[i], in_words)]
        n, n_differing = len(wanted), len(open_to)
        if n_differing < max(1, LEAST_DIFFERING * n):
            alike = f"unlocked and unsteered begin alike in {n - n_differing} of {n} prompts"
            return cls(None, None, (), n, n_differing, alike)
        by_alpha = tuple(
            (float(alpha), sum(_is_one_of(found[i], wanted[i], in_words) for i in open_to) / n_differing)
            for alpha, found in sorted(steered.items())
        )
        share = max(found for _, found in by_alpha)
        equals = [alpha for alpha, found in by_alpha if found == share]
        return cls(share, equals[len(equals) // 2], by_alpha, n, n_differing)


def _openings(variant: Variant, log_probs: Float[Tensor, "prompt vocabulary"], in_words: bool) -> list[str]:
    """The most likely next token of each prompt, as a token of its vocabulary or as text."""
    tokenizer = variant.backend.tokenizer
    likeliest = log_probs[:, : len(tokenizer)].argmax(dim=-1).tolist()  # beyond it an unembedding is padding
    if in_words:
        return [tokenizer.decode([token]).strip() for token in likeliest]
    return [str(name) for name in tokenizer.convert_ids_to_tokens(likeliest)]


def _is_one_of(opening: str, wanted: set[str], in_words: bool) -> bool:
    if not in_words:
        return opening in wanted
    return any(opening and other and (opening.startswith(other) or other.startswith(opening)) for other in wanted)


def _continues(target: Variant, unlocked: Variant) -> bool:
    """Whether any unlocked prompt extends the locked one."""
    pairs = zip(target.prompts, unlocked.prompts, strict=True)
    return any(asked.startswith(plain) and asked != plain for plain, asked in pairs)


def _example(
    example: tuple[CapabilityDirection, Variant], begins: Callable[..., list[str]], alphas: Sequence[float]
) -> list[str]:
    """How the source begins when its own direction steers it, at the least strength that changes half of its openings."""
    direction, locked = example
    before = begins(locked)
    for alpha in sorted(alphas):
        found = begins(locked, SteeringHook(direction, alpha))
        if sum(a != b for a, b in zip(found, before, strict=True)) >= len(before) / 2:
            return found
    return before
