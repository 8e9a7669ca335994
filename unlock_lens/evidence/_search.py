"""Strengths one after another: how close each gets the target, and its price (docs/strength.md)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.generation import generate
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence._forecast import forecast
from unlock_lens.evidence._pairs import Pairs
from unlock_lens.evidence.distributions import Meter, Price, kl_divergence, next_token_log_probs

PASSES = 8
"""How often each set of prompts is read at most."""
WORST = 1.0
"""Nats that steering may cost the worst 5% of tokens."""
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
MOVES = 1e-3
"""A change of fewer nats counts as none."""


class Search:
    """Reads the locked prompts at one strength after another, all of them or a few each, and remembers what was found."""

    def __init__(self, hook: SteeringHook, before: Variant, after: Variant | None, batch_size: int) -> None:
        self.hook, self.before, self.asked, self.passes = hook, before, after is not None, 1
        self._batch_size = batch_size
        blind = after is not None and goes_on(before, after)
        self.texts: Sequence[list[list[int]]] = _going_on(before, after, batch_size) if after is not None and blind else ()
        everyone = range(len(before))
        self._plain = self._read(before, None, everyone)
        self.wanted = [] if after is None or self.texts else self._read(after, None, everyone)
        self._full: dict[float, tuple[float, float]] = {}
        self._of_each = self._distances(self._plain, everyone)
        self.apart = float(self._of_each.mean())
        if self.asked and self.apart < MOVES:
            raise InvalidInput(
                f"the target does the same after unlocked prompts as after locked ones (KL {self.apart:.1g} nats), so no "
                "strength brings it closer; give prompts that ask it for the capability, or omit unlocked="
            )

    def over(self, layers: Sequence[int]) -> Search:
        """The same search with some of the hook's layers; the unsteered prompts are not read again."""
        other = copy.copy(self)
        for found in ("scanned", "nearest"):
            vars(other).pop(found, None)
        other.hook, other.passes, other._full = self.hook.at_layers(layers), 1, {}
        return other

    def _read(self, variant: Variant, steer: SteeringHook | None, rows: Sequence[int]) -> list[Tensor]:
        """Log-probabilities [token, vocabulary] after each of some prompts: of the next token, or along the texts."""
        variant = variant if len(rows) == len(variant) else _some(variant, rows)
        if not self.texts:
            return [*next_token_log_probs(variant, steer=steer, batch_size=self._batch_size).unsqueeze(1)]
        parts: list[list[Tensor]] = [[] for _ in rows]
        for text in self.texts:
            pairs = replace(Pairs.of(variant, [""] * len(variant)), following=[text[row] for row in rows])
            for scored in pairs.scored(steer, self._batch_size):
                for row, log_probs, mask in zip(scored.rows.tolist(), scored.log_probs, scored.mask, strict=True):
                    parts[row].append(log_probs[mask.bool()])
        return [torch.cat(of_row) for of_row in parts]

    def _distances(self, found: list[Tensor], rows: Sequence[int]) -> Float[Tensor, " prompt"]:
        """D of some prompts; where the target was not asked, R."""
        if self.texts:
            return torch.stack([self._surprise(q, row) for row, q in zip(rows, found, strict=True)])
        wanted = self.wanted or self._plain
        return torch.stack([kl_divergence(wanted[row], q).mean() for row, q in zip(rows, found, strict=True)])

    def _surprise(self, log_probs: Tensor, row: int) -> Tensor:
        """-log of the probability that one of the two texts is written."""
        ids = [text[row] for text in self.texts]
        of_tokens = log_probs.gather(1, torch.tensor([*ids[0], *ids[1]]).unsqueeze(1)).squeeze(1)
        return -torch.stack([of_text.sum() for of_text in of_tokens.split([len(text) for text in ids])]).logsumexp(0)

    def _at(self, alpha: float, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """D and R of some prompts."""
        steered = self._read(self.before, replace(self.hook, alpha=alpha), rows)
        moved = [kl_divergence(self._plain[row], q).mean() for row, q in zip(rows, steered, strict=True)]
        return self._distances(steered, rows), torch.stack(moved)

    def whole(self, alpha: float) -> tuple[float, float]:
        """D and R, means over all prompts: one pass."""
        if alpha not in self._full:
            distance, response = self._at(alpha, range(len(self.before)))
            self._full[alpha] = float(distance.mean()), float(response.mean())
            self.passes += 1
        return self._full[alpha]

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """(alpha, D) of each strength that all prompts were read at."""
        return tuple((alpha, self._full[alpha][0]) for alpha in sorted(self._full))

    def reach(self, alpha: float) -> float:
        """1 - D(alpha) / D(0)."""
        return 1 - self.whole(alpha)[0] / self.apart

    def _dealt(self, alphas: Sequence[float]) -> tuple[Float[Tensor, " strength"], Float[Tensor, " strength"]]:
        """D, as a share of D(0), and R at several strengths. The prompts are dealt out to them: it costs a pass, or two."""
        n, deals = len(self.before), math.ceil(len(alphas) / len(self.before))
        left, moved = torch.zeros(len(alphas)), torch.zeros(len(alphas))
        for i, alpha in enumerate(alphas):
            rows = range(i // deals, n, len(alphas) // deals)
            distance, response = self._at(alpha, rows)
            left[i] = distance.sum() / self._of_each[list(rows)].sum()
            moved[i] = response.mean()
        self.passes += deals
        return left, moved

    @cached_property
    def scanned(self) -> tuple[list[float], Float[Tensor, " strength"], Float[Tensor, " strength"]]:
        """All strengths that are searched, with D, as a share of D(0), and R."""
        low, high = RANGES[self.hook.operation]
        alphas = [low * (high / low) ** (i / (SCANNED - 1)) for i in range(SCANNED)]
        left, moved = self._dealt(alphas)
        if moved.max() < MOVES:
            raise InvalidInput(
                f"nothing moves: at strengths up to {high:g} what follows the locked prompts changes by at most "
                f"{moved.max():.1g} nats. Steer other layers or positions (positions='generated' changes no first token), or "
                "use another direction"
            )
        return alphas, left, moved

    @property
    def roughly(self) -> tuple[float, float]:
        """The smallest scanned strength that is as near as it gets, and the least D, as a share of D(0)."""
        alphas, left, _ = self.scanned
        return _first_near(alphas, left), float(left.min())

    @cached_property
    def nearest(self) -> float:
        """The smallest strength that is as near as it gets: a scan, a finer one, then the best and its neighbours in full."""
        alphas = self.scanned[0]
        step = (alphas[1] / alphas[0]) ** (2 / FINER)
        around = [self.roughly[0] * step ** (i - FINER // 2 + 1) for i in range(FINER)]
        best, step = _first_near(around, self._dealt(around)[0]), math.sqrt(step)
        for alpha in (best, best / step, best * step):
            self.whole(alpha)
        while self.passes + 1 < PASSES and (best := self._best) in (min(self._full), max(self._full)):
            self.whole(best / step if best == min(self._full) else best * step)
        least = self._full[self._best][0]
        enough = least + NEAR * max(self.apart - least, 0)
        return min(alpha for alpha, (distance, _) in self._full.items() if distance <= enough)

    @property
    def _best(self) -> float:
        return min(self._full, key=lambda alpha: self._full[alpha][0])

    @property
    def at_the_end(self) -> bool:
        """Whether the best strength is at the end of those that are searched."""
        alphas = self.scanned[0]
        return not alphas[0] < self._best < alphas[-1]

    def forecast(self, alpha: float, batch_size: int) -> dict[int, float]:
        """What each layer's edit adds to the log-probability of what is wanted, to first order (`lens.forecast_by_layer`)."""
        if self.wanted:
            wanted = torch.cat(self.wanted).exp()
        else:  # the token that the unlocked prompts add first
            first = torch.tensor([ids[0] for ids in self.texts[0]])
            wanted = torch.nn.functional.one_hot(first, self._plain[0].shape[1]).float()
        return forecast(replace(self.hook, alpha=alpha), self.before, wanted, batch_size)

    def knee(self) -> float:
        """The middle of the step over which the response grows fastest, halved as long as passes are left."""
        alphas, _, moved = self.scanned
        slopes = moved.clamp_min(torch.finfo().tiny).log().diff()
        steepest = int(torch.where(moved[1:] > MOVES, slopes, -torch.inf).argmax())
        low, high = alphas[steepest], alphas[steepest + 1]
        self.whole(low)
        self.whole(high)
        while self.passes + 1 < PASSES:
            middle = math.sqrt(low * high)
            below, inside, above = (self.whole(alpha)[1] for alpha in (low, middle, high))
            low, high = (low, middle) if inside**2 > below * above else (middle, high)
        return math.sqrt(low * high)


class Till:
    """Prices strengths until one costs what may be spent: the mean within the budget, the worst tokens within a nat."""

    def __init__(self, meter: Meter, hook: SteeringHook, budget: float) -> None:
        self._meter, self._hook, self._budget = meter, hook, budget
        self.first = Price(0, 0, 0)  # of the strength that was wanted

    def told(self, price: Price) -> str:
        """A price in words."""
        mean = f"{price.kl:.2g} nats per token on unrelated text (budget {self._budget:g})"
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
                f"the budget of {self._budget:g} nats is below the price of any edit: even alpha {low:g} costs "
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
    """Whether the unlocked prompts extend the locked ones, so that their next tokens cannot be compared."""
    return all(b.startswith(a) and a != b for a, b in zip(before.prompts, after.prompts, strict=True))


def _going_on(before: Variant, after: Variant, batch_size: int) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of what the target writes after the unlocked prompts, with the rest of these prompts before it, and without."""
    written = generate(after, max_new_tokens=CONTINUATION, batch_size=batch_size, progress=False)
    rest = [b.removeprefix(a) for a, b in zip(before.prompts, after.prompts, strict=True)]
    alone = Pairs.of(after, written).following
    if not all(alone):
        raise InvalidInput(
            "the target writes nothing after an unlocked prompt that extends the locked one, so nothing can be "
            "compared; leave out that prompt, or unlocked="
        )
    return [of_rest + ids for of_rest, ids in zip(Pairs.of(before, rest).following, alone, strict=True)], alone


def _some(variant: Variant, rows: Sequence[int]) -> Variant:
    """Some of its prompts, as the same ids."""
    chosen = variant.tokens.rows(torch.tensor(rows))
    return Variant(variant.model, tokens=chosen.ids, attention_mask=chosen.mask, remote=variant.remote)
