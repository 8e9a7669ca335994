"""The strength of steering, found without labels from next-token passes: reach and price (docs/strength.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.progress import tell
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant, variant_of
from unlock_lens.errors import InvalidInput, caution
from unlock_lens.evidence._search import FEWEST, NEAR, Search, Till
from unlock_lens.evidence.distributions import Meter, Price
from unlock_lens.hosts.remote import Where

BUDGET = 0.1
"""Nats per token that steering may cost on unrelated text by default."""
ARRIVES = 0.5
"""A direction that covers less than this share of the distance does not arrive."""


@dataclass(frozen=True, eq=False)
class Strength:
    """The strength that was chosen, what it does, and why.

    Attributes:
        hook: the hook at that strength.
        alpha: the strength.
        reach: 1 - D(alpha) / D(0), at most 1: the share of the distance to the asked target that is covered. None if the target
            was not asked.
        moved: KL(unsteered || steered) of the next token after the locked prompts, in nats.
        price: the price on the unrelated text; None without such text.
        passes: how often the locked prompts were read, including the search over layers.
        met: whether one strength reaches as far as any, at a price within the budget.
        why: the choice in words.
        curve: (alpha, D(alpha)) in nats for each strength that all locked prompts were read at; without unlocked prompts
            the response R(alpha).
    """

    hook: SteeringHook
    alpha: float
    reach: float | None
    moved: float
    price: Price | None
    passes: int
    met: bool
    why: str
    curve: tuple[tuple[float, float], ...]


def calibrated(direction: CapabilityDirection, model: Any, **how: Any) -> SteeringHook:
    """A hook at the strength that `strength` finds; arguments and errors are those of `strength`.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=32)
        >>> direction = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think))
        >>> steer = ul.calibrated(direction, model, locked=task.direct, unlocked=task.think)
        >>> ul.generate(model, ["Q 1 2 3 4 5 6 A :"], steer=steer)
        ['S 1 3 6 3 1 0 = 0']
    """
    return strength(direction, model, **how).hook


def strength(
    direction: CapabilityDirection,
    model: Any,
    *,
    locked: Iterable[str] | Variant,
    unlocked: Iterable[str] | Variant | None = None,
    unrelated: Iterable[str] | Variant | None = None,
    budget: float | None = None,
    layers: Sequence[int] | Literal["auto"] | None = None,
    operation: Literal["norm_preserving", "add", "ablate"] = "norm_preserving",
    positions: Literal["last_prompt", "prompt", "generated", "all"] = "last_prompt",
    batch_size: int = 8,
    add_special_tokens: bool = True,
    remote: Where = False,
    progress: bool = True,
) -> Strength:
    """The smallest strength that reaches as far as the direction can, at a price within a budget; nothing is generated.

    *Reach.* D(alpha) is the mean over prompts of KL(p_unlocked || p_alpha) of the next token, for the target when asked
    (unlocked prompts) and when steered with alpha after the locked prompts. The result is the smallest alpha whose D exceeds
    the minimum by at most 5% of D(0) - min D. Without unlocked prompts, it is the knee of the response R(alpha) = mean
    KL(p_0 || p_alpha): the middle of the step over which d log R / d log alpha is greatest.

    *Price.* On unrelated text the mean KL(unsteered || steered) stays within `budget`, and that of the worst 5% of tokens
    within 1 nat. If the strength that reaches the goal costs more, the largest one within both is taken, with a warning.

    If the unlocked prompts extend the locked ones, their first tokens cannot be compared. The target then continues the
    unlocked prompts by 8 tokens (the only generation), and D is -log of the probability that the steered target writes these
    tokens after the locked prompt, immediately or after the rest of the unlocked prompt; both texts are read.

    Args:
        direction: a direction in this model's residual stream.
        model: a model of any host.
        locked: at least 8 prompts without the capability.
        unlocked: prompts that ask this model for it, one for each locked prompt and the same question.
        unrelated: texts on which to measure the price.
        budget: nats per token that steering may cost there; 0.1 by default.
        layers: layers of the direction to steer; None for all. "auto" compares all, the best third and the best one by
            `lens.forecast_by_layer`, and all but the last. Of those with nearly the best reach, it takes the cheapest on
            the unrelated text or, without it, the first. The choice uses these prompts, so report on others.
        operation: as in `SteeringHook`.
        positions: as in `SteeringHook`.
        batch_size: prompts at a time, of similar length.
        add_special_tokens: as in `generate`.
        remote: as in `generate`.
        progress: whether to print the choice in a line.

    Raises:
        InvalidInput: there are fewer than 8 locked prompts, the numbers of prompts differ, a budget is given without unrelated
            text or is below the price of the weakest edit, nothing moves on these prompts, layers="auto" is given without
            unlocked prompts, or as for `SteeringHook`.
        IncompatibleModel: the direction was made for a different model.
        UnsupportedModel: layers="auto" needs a backward pass, which the model does not support.

    Source: docs/strength.md.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=32)
        >>> direction = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think))
        >>> found = ul.strength(direction, model, locked=task.direct, unlocked=task.think, progress=False)
        >>> found.reach > 0.95, found.passes <= 8
        (True, True)
    """
    auto = isinstance(layers, str)
    if auto and (layers != "auto" or unlocked is None):
        raise InvalidInput(
            f"layers={layers!r} was given{'' if unlocked else ' without unlocked='}; give a list of layers, None for all, or "
            '"auto" with unlocked prompts to choose on'
        )
    hook = SteeringHook(direction, 1.0, operation, positions, None if isinstance(layers, str) else layers)
    before = variant_of(model, locked, add_special_tokens, remote)
    after = None if unlocked is None else variant_of(model, unlocked, add_special_tokens, remote)
    _check(before, after, unrelated, budget)
    hook.edits(before.backend.identity)  # says what does not fit
    search, chosen = Search(hook, before, after, batch_size), ""
    meter = None if unrelated is None else Meter(model, unrelated, batch_size, add_special_tokens, None, remote)
    if auto:
        search, chosen = best_layers(search, meter, batch_size)
    alpha, why = _reaching(search, chosen) if after else _at_the_knee(search)
    price, met = None, True
    if meter is not None:
        till = Till(meter, search.hook, BUDGET if budget is None else budget)
        wanted, (alpha, price) = alpha, till.largest(alpha)
        met = alpha == wanted
        why = f"{why}; {till.told(price)}" if met else f"{why}, but that costs {till.told(till.first)}"
        if not met:
            why += f"; {alpha:.3g} is the largest strength within the budget: {till.told(price)}"
    moved, reach = search.whole(alpha)[1], search.reach(alpha) if search.asked else None
    if not met:
        far = "" if reach is None else f" and brings the target {max(reach, 0):.0%} of the way"
        caution(
            f"no strength both reaches and stays within the budget: {why}{far}. Give a larger budget=, steer fewer layers "
            "(layers=), or use a cleaner direction"
        )
    tell(why, progress)
    return Strength(replace(search.hook, alpha=alpha), alpha, reach, moved, price, search.passes, met, why, search.curve)


def _reaching(search: Search, chosen: str) -> tuple[float, str]:
    alpha = search.nearest
    share = max(search.reach(alpha), 0)
    if share < ARRIVES:
        caution(
            f"no strength brings the target more than {share:.0%} of the way to what it does when it is asked; look at "
            "ul.diagnose, fit the aligner on locked and unlocked prompts, or steer other layers"
        )
    elif search.at_the_end:
        caution(f"the best strength, about {alpha:.3g}, is at the end of the searched range; try strengths beyond it")
    scored = "what is written (first tokens say nothing here)" if search.texts else "the next token"
    return alpha, f"alpha {alpha:.3g}{chosen} brings {scored} {share:.0%} of the way to what the target does when it is asked"


def _at_the_knee(search: Search) -> tuple[float, str]:
    alpha = search.knee()
    return alpha, f"alpha {alpha:.3g} is the knee of the response: there the next token changes fastest with the strength"


def _check(before: Variant, after: Variant | None, unrelated: Any, budget: float | None) -> None:
    if len(before) < FEWEST:
        raise InvalidInput(f"{len(before)} locked prompts were given; the search for a strength needs at least {FEWEST}")
    if after is not None and len(after) != len(before):
        raise InvalidInput(
            f"{len(before)} locked and {len(after)} unlocked prompts were given; give one unlocked prompt for each locked one"
        )
    if budget is not None and unrelated is None:
        raise InvalidInput(f"budget={budget} was given without text to measure the price on; give unrelated=")
    if budget is not None and not 0 < budget < math.inf:
        raise InvalidInput(f"budget={budget} was given; give a positive number of nats per token, such as 0.1")


def best_layers(search: Search, meter: Meter | None, batch_size: int) -> tuple[Search, str]:
    """The search over the best set of layers, and which: every set is scanned, the better half is measured in full."""
    forecast = search.forecast(search.roughly[0], batch_size)
    ranked, layers = sorted(forecast, key=lambda layer: -forecast[layer]), sorted(forecast)
    sets = (layers, sorted(ranked[: math.ceil(len(layers) / 3)]), ranked[:1], layers[:-1] or layers)
    rivals = [search.over(some) for some in dict.fromkeys(map(tuple, sets))]

    def cost(alpha: float, rival: Search) -> float:
        return meter.price(replace(rival.hook, alpha=alpha)).kl if meter else rivals.index(rival)

    least = min(rival.roughly[1] for rival in rivals)
    order = {id(rival): (rival.roughly[1] > least + NEAR, cost(rival.roughly[0], rival)) for rival in rivals}
    half = sorted(rivals, key=lambda rival: order[id(rival)])[: math.ceil(len(rivals) / 2)]
    farthest = max(rival.reach(rival.nearest) for rival in half)
    equals = [rival for rival in half if rival.reach(rival.nearest) >= farthest - NEAR]
    best = min(equals, key=lambda rival: cost(rival.nearest, rival))
    best.passes = search.passes + sum(rival.passes - 1 for rival in rivals)
    return best, f" at layers {[*(best.hook.layers or ())]}, the best of {len(rivals)} sets,"
