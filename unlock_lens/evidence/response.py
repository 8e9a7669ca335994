"""Dose and response: the behaviour at each strength, and its price (docs/strength.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from unlock_lens.core.generation import complete_arms
from unlock_lens.core.progress import shown
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant, variant_of
from unlock_lens.errors import InvalidInput, caution
from unlock_lens.evidence.distributions import Meter
from unlock_lens.evidence.statistics import CONFIDENCE, wilson_interval
from unlock_lens.hosts.remote import Where

FACTORS = tuple(2 ** (i / 4) for i in range(-8, 5))
"""The strengths that are tried, as multiples of the hook's."""
SHOWN = 0.9
"""The share of completions from which a strength counts as inside the window."""
RISES = 0.1
"""A behaviour whose share rises by less than this has no EC50."""
RESAMPLES = 2000
Judge = Callable[[Sequence[str]], Sequence[bool]]


@dataclass(frozen=True, eq=False)
class Response:
    """How a behaviour and its price grow with the strength.

    Attributes:
        table: a row for each strength, ascending, the first 0; columns "share" of completions that show the behaviour, its
            95% Wilson interval "low" and "high", "accuracy" if answers are judged, "kl" and "kl_worst" (nats per token) if
            there is unrelated text.
        ec50: the strength at which the share is halfway between its value at 0 and its maximum; None if it never rises.
        ec50_interval: its 95% bootstrap interval over prompts, no narrower than the step between strengths.
        window: the smallest and the largest strength of the range around the maximum in which at least 90% of the completions
            show the behaviour; None if there is none.
        own: the same for the target's own direction, if it was given.
    """

    table: pd.DataFrame
    ec50: float | None
    ec50_interval: tuple[float, float] | None
    window: tuple[float, float] | None
    own: Response | None = None

    @property
    def width(self) -> float | None:
        """The window's width in octaves: log2(end / start)."""
        return None if self.window is None else math.log2(self.window[1] / self.window[0])

    @property
    def ratio(self) -> float | None:
        """The EC50 divided by that of the target's own direction: how much more of this direction is needed."""
        ends = self.ec50, self.own.ec50 if self.own else None
        return None if ends[0] is None or ends[1] is None else ends[0] / ends[1]

    def share_at_price(self, kl: float) -> float:
        """The largest share within a price in nats per token, interpolated linearly between strengths.

        Use it to compare arms at equal price instead of equal strength.

        Raises:
            InvalidInput: no price was measured.
        """
        if "kl" not in self.table:
            raise InvalidInput("no price was measured; give unrelated= to ul.response")
        rows = [*zip(self.table["kl"], self.table["share"], strict=True)]
        best = max(share for cost, share in rows if cost <= kl)
        for (cost, share), (dearer, other) in pairwise(rows):
            if cost <= kl < dearer:
                best = max(best, share + (other - share) * (kl - cost) / (dearer - cost))
        return float(best)


def response(
    hook: SteeringHook,
    model: Any,
    prompts: Iterable[str] | Variant,
    shows: Judge,
    *,
    correct: Judge | None = None,
    unrelated: Iterable[str] | Variant | None = None,
    own: SteeringHook | None = None,
    alphas: Sequence[float] | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    stop: Sequence[str] = (),
    add_special_tokens: bool = True,
    remote: Where = False,
    progress: bool = True,
    seed: int = 0,
) -> Response:
    """The curve of a behaviour over strength: its price, where it starts, and how wide its window is.

    Args:
        hook: strengths from a quarter to twice its own are tried, in steps of a quarter octave.
        model: a model of any host.
        prompts: prompts to complete at each strength.
        shows: takes all completions, and says which show the behaviour.
        correct: takes all completions, and says which are right.
        unrelated: text on which to measure the price.
        own: the target's own direction at its own strength, for comparison; tried at the same multiples of it.
        alphas: the strengths themselves, instead of multiples.
        max_new_tokens: as in `generate`.
        batch_size: as in `generate`.
        stop: as in `generate`.
        add_special_tokens: as in `generate`.
        remote: as in `generate`.
        progress: whether to show a progress bar.
        seed: seed of the bootstrap.

    Raises:
        InvalidInput: the hook has a strength for each layer, strengths are not positive, a judge does not judge every
            completion, or as for `generate`.
        IncompatibleModel: the direction was made for a different model.

    Source: docs/strength.md.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=32)
        >>> direction = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think))
        >>> found = ul.response(
        ...     ul.SteeringHook(direction, 0.5), model, task.direct, lambda texts: [text.startswith("S") for text in texts],
        ...     max_new_tokens=10, batch_size=32, progress=False,
        ... )
        >>> found.window[0] < 0.5 < found.window[1]
        True
    """
    variant = variant_of(model, prompts, add_special_tokens, remote)
    tried = strengths(hook, alphas)
    meter = None if unrelated is None else Meter(model, unrelated, batch_size, add_special_tokens, None, remote)
    lines: list[dict[str, float]] = []
    outcomes: list[Sequence[bool]] = []
    steers = [None, *(replace(hook, alpha=alpha) for alpha in tried)]
    arms = complete_arms(variant, steers, max_new_tokens, batch_size, progress, stop)
    for steer, of_arm in shown([*zip(steers, arms, strict=True)], "judging each strength", progress, "strengths"):
        written = [each.text for each in of_arm]
        outcomes.append(_judged(shows, written))
        successes, n = sum(outcomes[-1]), len(written)
        low, high = wilson_interval(successes, n)
        line = {"share": successes / n, "low": low, "high": high}
        if correct is not None:
            line["accuracy"] = sum(_judged(correct, written)) / n
        if meter is not None:
            price = meter.price(steer)
            line |= {"kl": price.kl, "kl_worst": price.kl_worst}
        lines.append(line)
    table = pd.DataFrame(lines, index=pd.Index([0.0, *tried], name="alpha"))
    rises = np.array(outcomes, dtype=float)
    ec50, interval = half_way(rises, tried, seed)
    if ec50 is None:
        caution(
            f"the behaviour appears in at most {rises.mean(1).max():.0%} of the completions ({rises[0].mean():.0%} unsteered), "
            "so it has no EC50. Try other strengths (alphas=), or another direction"
        )
    elif ec50 == tried[0]:
        caution(
            f"the behaviour is half way up at {ec50:.3g}, the smallest strength that was tried; give smaller ones (alphas=)"
        )
    beside = None
    if own is not None:
        how: dict[str, Any] = {"correct": correct, "unrelated": unrelated, "alphas": alphas, "max_new_tokens": max_new_tokens}
        how |= {"batch_size": batch_size, "stop": stop, "add_special_tokens": add_special_tokens, "remote": remote}
        beside = response(own, model, variant, shows, **how, progress=progress, seed=seed)
    return Response(table, ec50, interval, window_of(table["share"]), beside)


def strengths(hook: SteeringHook, alphas: Sequence[float] | None) -> list[float]:
    """The strengths to try, ascending.

    Raises:
        InvalidInput: fewer than two, or one that is not positive; a hook with a strength for each layer, without `alphas`.
    """
    if alphas is None and not isinstance(hook.alpha, int | float):
        raise InvalidInput("the hook has a strength for each layer; give one for all, or alphas= to try")
    one: Any = hook.alpha
    tried = [factor * one for factor in FACTORS] if alphas is None else sorted({float(alpha) for alpha in alphas})
    if len(tried) < 2 or not all(0 < alpha < math.inf for alpha in tried):
        raise InvalidInput(f"the strengths {tried} were to be tried; give at least two positive ones")
    return tried


def _judged(judge: Judge, written: Sequence[str]) -> list[bool]:
    found = [bool(each) for each in judge(written)]
    if len(found) != len(written):
        raise InvalidInput(f"the judge gave {len(found)} verdicts on {len(written)} completions; one for each is needed")
    return found


def half_way(
    outcomes: Float[np.ndarray, "strength prompt"], tried: Sequence[float], seed: int
) -> tuple[float | None, tuple[float, float] | None]:
    """The EC50 and its bootstrap interval: prompts are drawn, each with its outcomes at all strengths.

    A draw says between which two strengths the EC50 lies; the interval is from the 2.5% quantile of the lower to the 97.5%
    quantile of the upper ones, so that it is never narrower than the steps that were tried.

    Args:
        outcomes: unsteered first, then at each strength.
        tried: the strengths, ascending.
        seed: of the draws.
    """
    n, ladder = outcomes.shape[1], np.array([0.0, *tried])
    draws = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    (ec50, *_), _, _ = _crossings(outcomes.mean(1)[None], ladder)
    if np.isnan(ec50):
        return None, None
    _, below, above = _crossings(outcomes.T[draws].mean(1), ladder)
    tail = (1 - CONFIDENCE) / 2
    return float(ec50), (float(np.nanquantile(below, tail)), float(np.nanquantile(above, 1 - tail)))


def _crossings(shares: Float[np.ndarray, "draw rung"], ladder: Float[np.ndarray, " rung"]) -> Float[np.ndarray, "3 draw"]:
    """Where shares first are half way up, on a line in log alpha, and the strengths below and above; NaN if they never rise.

    If they are at the least strength already, that is where.
    """
    base, top = shares[:, 0], shares.max(1)
    half = (base + top) / 2
    above = (shares[:, 1:] >= half[:, None]).argmax(1) + 1
    every, least = np.arange(len(shares)), above == 1
    low, high = np.where(least, ladder[1], ladder[above - 1]), ladder[above]
    rise = shares[every, above] - shares[every, above - 1]
    part = (half - shares[every, above - 1]) / np.where(rise == 0, 1, rise)
    found = np.stack([low * (high / low) ** part, ladder[above - 1], high])
    return np.where(top - base < RISES, np.nan, found)


def window_of(shares: pd.Series) -> tuple[float, float] | None:
    """The stretch around the greatest share in which 90% at least show the behaviour; shares by strength, 0 first."""
    tried, good = [*shares.index][1:], [share >= SHOWN for share in shares][1:]
    if not any(good):
        return None
    first = last = int(np.argmax([*shares][1:]))
    while first > 0 and good[first - 1]:
        first -= 1
    while last + 1 < len(good) and good[last + 1]:
        last += 1
    return float(tried[first]), float(tried[last])
