"""How strongly to steer, found without labels from next-token passes: reach and price (docs/strength.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.generation import generate
from unlock_lens.core.progress import tell
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant, variant_of
from unlock_lens.errors import InvalidInput, caution
from unlock_lens.evidence.distributions import Meter, Pairs, Price, kl_divergence, next_token_log_probs
from unlock_lens.hosts.remote import Where

PASSES = 8
"""How often each set of prompts is read at most."""
BUDGET = 0.1
"""Nats a token that steering may cost on unrelated text, unless another budget is given."""
WORST = 1.0
"""Nats that it may cost the worst 5% of tokens."""
NEAR = 0.05
"""A strength is as near as it gets when it leaves at most this share of the distance more than the best one does."""
WITHIN = 0.9
"""A strength that is bound by the price uses at least this share of what it may cost."""
RANGES = {"norm_preserving": (0.04, 8.0), "add": (0.04, 8.0), "ablate": (0.1, 2.0)}
"""The strengths that are searched, for each operation."""
SCANNED, FINER, FEWEST = 16, 8, 8
"""Strengths that the scan tries, and the finer one around the best; the fewest prompts that they need."""
CONTINUATION = 8
"""Tokens that are scored where first tokens say nothing."""
MOVES, ARRIVES = 1e-3, 0.5
"""Nats below which nothing moves, and the share of the distance below which a direction does not arrive."""
Distance = Callable[[list[Tensor]], Float[Tensor, " prompt"]]


@dataclass(frozen=True, eq=False)
class Strength:
    """The strength that was chosen, what it does, and why.

    Attributes:
        hook: steers with it.
        alpha: the strength.
        reach: 1 - D(alpha) / D(0), at most 1: how much of the distance to what the target does when it is asked is covered.
            None where the target was not asked.
        moved: KL(unsteered || steered) of the next token after the locked prompts, in nats.
        price: on the unrelated text; None without one.
        passes: how often the locked prompts were read.
        met: whether one strength does both: it reaches as far as any, for a price within the budget.
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
    layers: Sequence[int] | None = None,
    operation: Literal["norm_preserving", "add", "ablate"] = "norm_preserving",
    positions: Literal["last_prompt", "prompt", "generated", "all"] = "last_prompt",
    batch_size: int = 8,
    add_special_tokens: bool = True,
    remote: Where = False,
    progress: bool = True,
) -> Strength:
    """The smallest strength that reaches what the direction can reach, at a price within a budget; nothing is generated.

    *Reach.* D(alpha) is the mean over prompts of KL(p_unlocked || p_alpha) of the next token: of the target when it is asked
    (unlocked prompts), and steered with alpha after the locked prompts. The smallest alpha is taken that leaves at most 5% of
    D(0) - min D more than the minimum. Without unlocked prompts it is the knee of the response R(alpha) = mean KL(p_0 ||
    p_alpha): the middle of the step over which d log R / d log alpha is greatest.

    *Price.* On unrelated text the mean KL(unsteered || steered) stays within `budget`, and that of the worst 5% of tokens
    within 1 nat. Where the strength that reaches costs more, the largest one within both is taken, and a warning says so.

    Where the unlocked prompts go on where the locked ones end, their first tokens cannot be compared. Then the target
    continues the unlocked prompts by 8 tokens (the only generation), and D is -log of the probability that the steered target
    writes these tokens after the locked prompt, at once or after the rest of the unlocked prompt; both texts are read.

    Args:
        direction: in this model's residual stream.
        model: a model of any host.
        locked: at least 8 prompts without the capability.
        unlocked: as many prompts that ask this model for it, prompt i for the same question as locked prompt i.
        unrelated: texts that the price is read on; without them there is none.
        budget: nats a token that steering may cost there; 0.1 unless given.
        layers: which of the direction's layers; None for all.
        operation: as in `SteeringHook`.
        positions: as in `SteeringHook`.
        batch_size: prompts at a time, of like length.
        add_special_tokens: as in `generate`.
        remote: as in `generate`.
        progress: whether to tell the choice in a line.

    Raises:
        InvalidInput: fewer than 8 locked prompts, another number of unlocked ones, a budget without unrelated text or below
            what the weakest edit costs, prompts on which nothing moves, and what `SteeringHook` refuses.
        IncompatibleModel: a direction that was made for another model.

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
    hook = SteeringHook(direction, 1.0, operation, positions, layers)
    before = variant_of(model, locked, add_special_tokens, remote)
    after = None if unlocked is None else variant_of(model, unlocked, add_special_tokens, remote)
    _check(before, after, unrelated, budget)
    hook.edits(before.backend.identity)  # says what does not fit
    search = _Search(hook, before, after, batch_size, progress)
    wanted, why = search.nearest() if after else search.knee()
    if unrelated is None:
        return search.report(wanted, None, True, why)
    till = _Till(
        Meter(model, unrelated, batch_size, add_special_tokens, None, remote), hook, BUDGET if budget is None else budget
    )
    alpha, price = till.largest(wanted)
    if alpha == wanted:
        return search.report(wanted, price, True, f"{why}; {till.told(price)}, within the budget")
    dear = f"{why}, but that costs {till.told(till.first)}"
    why = f"{dear}; {alpha:.3g} is the largest strength within the budget: {till.told(price)}"
    return search.report(alpha, price, False, why)


def _check(before: Variant, after: Variant | None, unrelated: Any, budget: float | None) -> None:
    if len(before) < FEWEST:
        raise InvalidInput(f"{len(before)} locked prompts were given; the search for a strength needs at least {FEWEST}")
    if after is not None and len(after) != len(before):
        raise InvalidInput(
            f"{len(before)} locked and {len(after)} unlocked prompts were given; give one unlocked prompt for each locked one"
        )
    if budget is not None and unrelated is None:
        raise InvalidInput(f"budget={budget} was given without text to read the price on; give unrelated=")
    if budget is not None and not 0 < budget < math.inf:
        raise InvalidInput(f"budget={budget} was given; it is a positive number of nats a token, such as 0.1")


class _Search:
    """Reads the locked prompts at one strength after another, all of them or a few each, and remembers what was found."""

    def __init__(self, hook: SteeringHook, before: Variant, after: Variant | None, batch_size: int, progress: bool) -> None:
        self._hook, self._before, self._batch_size, self._progress = hook, before, batch_size, progress
        self._texts = _going_on(before, after, batch_size) if after is not None and goes_on(before, after) else ()
        self._plain = self._read(before, None, range(len(before)))
        self._wanted = [] if after is None or self._texts else self._read(after, None, range(len(before)))
        self._asked, self._passes = after is not None, 1
        self._full: dict[float, tuple[Tensor, Tensor]] = {}
        self._apart = self._distances(self._plain, range(len(before)))
        if self._asked and self._apart.mean() < MOVES:
            raise InvalidInput(
                f"the target does the same after unlocked prompts as after locked ones (KL {self._apart.mean():.1g} nats), so "
                "no strength brings it nearer; give prompts that ask it for the capability, or leave unlocked= out"
            )

    def _read(self, variant: Variant, steer: SteeringHook | None, rows: Sequence[int]) -> list[Tensor]:
        """Log-probabilities [token, vocabulary] after each of some prompts: of the next token, or along the texts."""
        variant = variant if len(rows) == len(variant) else _some(variant, rows)
        if not self._texts:
            return [*next_token_log_probs(variant, steer=steer, batch_size=self._batch_size).unsqueeze(1)]
        parts: list[list[Tensor]] = [[] for _ in rows]
        for text in self._texts:
            pairs = replace(Pairs.of(variant, [""] * len(variant)), following=[text[row] for row in rows])
            for scored in pairs.scored(steer, self._batch_size):
                for row, log_probs, mask in zip(scored.rows.tolist(), scored.log_probs, scored.mask, strict=True):
                    parts[row].append(log_probs[mask.bool()])
        return [torch.cat(of_row) for of_row in parts]

    def _distances(self, found: list[Tensor], rows: Sequence[int]) -> Float[Tensor, " prompt"]:
        """D of some prompts; where the target was not asked, R."""
        if self._texts:
            return torch.stack([self._surprise(q, row) for row, q in zip(rows, found, strict=True)])
        wanted = self._wanted or self._plain
        return torch.stack([kl_divergence(wanted[row], q).mean() for row, q in zip(rows, found, strict=True)])

    def _surprise(self, log_probs: Tensor, row: int) -> Tensor:
        """-log of the probability that one of the two texts is written."""
        ids = [text[row] for text in self._texts]
        of_tokens = log_probs.gather(1, torch.tensor([*ids[0], *ids[1]]).unsqueeze(1)).squeeze(1)
        return -torch.stack([of_text.sum() for of_text in of_tokens.split([len(text) for text in ids])]).logsumexp(0)

    def _at(self, alpha: float, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """D and R of some prompts."""
        steered = self._read(self._before, replace(self._hook, alpha=alpha), rows)
        moved = [kl_divergence(self._plain[row], q).mean() for row, q in zip(rows, steered, strict=True)]
        return self._distances(steered, rows), torch.stack(moved)

    def _whole(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Of all prompts: one pass."""
        if alpha not in self._full:
            self._full[alpha] = self._at(alpha, range(len(self._before)))
            self._passes += 1
        return self._full[alpha]

    def _dealt(self, alphas: Sequence[float]) -> tuple[Float[Tensor, " strength"], Float[Tensor, " strength"]]:
        """D, as a share of D(0), and R at several strengths. The prompts are dealt out to them: it costs a pass, or two."""
        n, deals = len(self._before), math.ceil(len(alphas) / len(self._before))
        left, moved = torch.zeros(len(alphas)), torch.zeros(len(alphas))
        for i, alpha in enumerate(alphas):
            rows = range(i // deals, n, len(alphas) // deals)
            distance, response = self._at(alpha, rows)
            left[i] = distance.sum() / self._apart[list(rows)].sum()
            moved[i] = response.mean()
        self._passes += deals
        return left, moved

    def _scan(self) -> tuple[list[float], Float[Tensor, " strength"], Float[Tensor, " strength"]]:
        """All strengths that are searched, with D, as a share of D(0), and R."""
        low, high = RANGES[self._hook.operation]
        alphas = [low * (high / low) ** (i / (SCANNED - 1)) for i in range(SCANNED)]
        left, moved = self._dealt(alphas)
        if moved.max() < MOVES:
            raise InvalidInput(
                f"nothing moves: at strengths up to {high:g} what follows the locked prompts changes by at most "
                f"{moved.max():.1g} nats. Steer other layers or positions (positions='generated' changes no first token), or "
                "take another direction"
            )
        return alphas, left, moved

    def nearest(self) -> tuple[float, str]:
        """The smallest strength that is as near as it gets: a scan, a finer one, then the best and its neighbours in full."""
        alphas, left, _ = self._scan()
        step = (alphas[1] / alphas[0]) ** (2 / FINER)
        around = [_first_near(alphas, left) * step ** (i - FINER // 2 + 1) for i in range(FINER)]
        best, step = _first_near(around, self._dealt(around)[0]), math.sqrt(step)
        for alpha in (best, best / step, best * step):
            self._whole(alpha)
        best = min(self._full, key=self._distance)
        while self._passes + 1 < PASSES and best in (min(self._full), max(self._full)):
            self._whole(best / step if best == min(self._full) else best * step)
            best = min(self._full, key=self._distance)
        apart, least = float(self._apart.mean()), self._distance(best)
        enough = least + NEAR * max(apart - least, 0)
        alpha = min(each for each in self._full if self._distance(each) <= enough)
        share = 1 - self._distance(alpha) / apart
        scored = "what is written (first tokens say nothing here)" if self._texts else "the next token"
        why = f"alpha {alpha:.3g} brings {scored} {max(share, 0):.0%} of the way to what the target does when it is asked"
        if share < ARRIVES:
            caution(
                f"no strength from {alphas[0]:g} to {alphas[-1]:g} brings the target more than {max(share, 0):.0%} of the way "
                "to what it does when it is asked; look at ul.diagnose, fit the aligner on locked and unlocked prompts, or "
                "steer other layers"
            )
        elif not alphas[0] < best < alphas[-1]:
            caution(f"the best strength, {best:.3g}, is at the end of those that are searched; try further ones yourself")
        return alpha, why

    def knee(self) -> tuple[float, str]:
        """The middle of the step over which the response grows fastest, halved as long as passes are left."""
        alphas, _, moved = self._scan()
        slopes = moved.clamp_min(torch.finfo().tiny).log().diff()
        steepest = int(torch.where(moved[1:] > MOVES, slopes, -torch.inf).argmax())
        low, high = alphas[steepest], alphas[steepest + 1]
        self._whole(low), self._whole(high)
        while self._passes + 1 < PASSES:
            middle = math.sqrt(low * high)
            self._whole(middle)
            below, inside, above = (self._distance(alpha) for alpha in (low, middle, high))
            low, high = (low, middle) if inside**2 > below * above else (middle, high)
        alpha = math.sqrt(low * high)
        return alpha, f"alpha {alpha:.3g} is the knee of the response: there the next token changes fastest with the strength"

    def _distance(self, alpha: float) -> float:
        return float(self._full[alpha][0].mean())

    def report(self, alpha: float, price: Price | None, met: bool, why: str) -> Strength:
        """What was chosen, told in a line, with a warning where no strength does both."""
        distance, response = (float(found.mean()) for found in self._whole(alpha))
        reach = None if not self._asked else 1 - distance / float(self._apart.mean())
        if not met:
            far = "" if reach is None else f" and brings the target {reach:.0%} of the way"
            caution(
                f"no strength both reaches and stays within the budget: {why}{far}. Give a larger budget=, steer fewer layers "
                "(layers=), or take a cleaner direction"
            )
        tell(why, self._progress)
        curve = tuple((each, self._distance(each)) for each in sorted(self._full))
        return Strength(replace(self._hook, alpha=alpha), alpha, reach, response, price, self._passes, met, why, curve)


class _Till:
    """Prices strengths until one costs what may be spent: the mean within the budget, the worst tokens within a nat."""

    def __init__(self, meter: Meter, hook: SteeringHook, budget: float) -> None:
        self._meter, self._hook, self._budget = meter, hook, budget
        self.first = Price(0, 0, 0)

    def told(self, price: Price) -> str:
        """A price in words."""
        mean = f"{price.kl:.2g} nats a token on unrelated text (budget {self._budget:g})"
        return f"{mean}, {price.kl_worst:.2g} in the worst 5% (at most {WORST:g})"

    def _spent(self, price: Price) -> float:
        """1 where all of it is spent."""
        return max(price.kl / self._budget, price.kl_worst / WORST, torch.finfo().tiny)

    def largest(self, wanted: float) -> tuple[float, Price]:
        """The wanted strength if it is within the budget, otherwise the largest one that is.

        False position on log cost over log strength, where a cost that grows as alpha^2 is a straight line.
        """
        self.first = self._meter.price(replace(self._hook, alpha=wanted))
        if self._spent(self.first) <= 1:
            return wanted, self.first
        low, high = RANGES[self._hook.operation][0] / 4, wanted
        cheapest = self._meter.price(replace(self._hook, alpha=low))
        if self._spent(cheapest) > 1:
            raise InvalidInput(
                f"the budget of {self._budget:g} nats is below what any edit costs: already alpha {low:g} costs "
                f"{self.told(cheapest)}; give a larger budget, or steer fewer layers"
            )
        ends, kept = [(low, math.log(self._spent(cheapest))), (high, math.log(self._spent(self.first)))], (low, cheapest)
        for _ in range(PASSES - 3):  # the unsteered texts, and the two ends
            (low, below), (high, above) = ends
            share = (math.log(0.97) - below) / (above - below)
            alpha = low * (high / low) ** min(max(share, 0.1), 0.9)
            price = self._meter.price(replace(self._hook, alpha=alpha))
            spent = self._spent(price)
            if spent > 1:
                ends[1] = (alpha, math.log(spent))
                continue
            ends[0], kept = (alpha, math.log(spent)), (alpha, price)
            if spent >= WITHIN:
                break
        return kept


def _first_near(alphas: Sequence[float], left: Float[Tensor, " strength"]) -> float:
    near = left <= left.min() + NEAR * (1 - left.min()).clamp_min(0)
    return alphas[int(near.nonzero()[0])]


def goes_on(before: Variant, after: Variant) -> bool:
    """Whether the unlocked prompts go on where the locked ones end, so that their next tokens cannot be compared."""
    return all(b.startswith(a) and a != b for a, b in zip(before.prompts, after.prompts, strict=True))


def _going_on(before: Variant, after: Variant, batch_size: int) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of what the target writes after the unlocked prompts, with the rest of these prompts before it, and without."""
    written = generate(after, max_new_tokens=CONTINUATION, batch_size=batch_size, progress=False)
    rest = [b.removeprefix(a) for a, b in zip(before.prompts, after.prompts, strict=True)]
    alone = Pairs.of(after, written).following
    if not all(alone):
        raise InvalidInput(
            "the target writes nothing after an unlocked prompt that goes on where the locked one ends, so that nothing can be "
            "compared; leave that prompt out, or unlocked="
        )
    return [of_rest + ids for of_rest, ids in zip(Pairs.of(before, rest).following, alone, strict=True)], alone


def _some(variant: Variant, rows: Sequence[int]) -> Variant:
    """Some of its prompts, as the same ids."""
    chosen = variant.tokens.rows(torch.tensor(rows))
    return Variant(variant.model, tokens=chosen.ids, attention_mask=chosen.mask, remote=variant.remote)
