"""What stands behind a verdict, one paragraph for each kind of number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unlock_lens.evidence.plots.behaviour import specificity_rows
from unlock_lens.evidence.plots.vocabulary import arm, in_order
from unlock_lens.evidence.report.comparisons import COMES, REQUIRED, Arms, NullTest, Rival, gain, gains_on, left_out_of, too_few
from unlock_lens.evidence.report.numbers import difference_of, listed, nats, p_value, percent_of, points, share_of, signed
from unlock_lens.evidence.results import (
    AT_PRICE,
    NAIVE,
    NAIVE_UNSTEERED,
    POST_TRAINED,
    PROMPTED,
    TRANSFERRED,
    UNSTEERED,
    Results,
)

MANY_CUT = 0.2
"""Where the budget of new tokens cuts a larger share of the completions, the verdict says so."""


def of(results: Results, arms: Arms, against: Sequence[Rival], nulls: NullTest | None) -> tuple[str, ...]:
    """All paragraphs that have something to say, in the order in which a reader asks."""
    found = (
        _gain(arms), _nulls(nulls), _controls(results, against), _naive(arms), _references(arms),
        _behaviour(results, arms), _answers(arms), specificity(results), _price(arms), _sharpening(arms),
        _choice(results, arms),
    )  # fmt: skip
    return tuple(text for text in found if text)


def _nulls(nulls: NullTest | None) -> str:
    if nulls is None:
        return "No source without a capability was tried, so it is unknown how often noise would look like this."
    return (
        f"{nulls.n} sources without a capability (noise, noise with the covariance of the source's states, halves of the "
        f"locked prompts) went through the same maps, with the same settings to choose from. {nulls.as_good} of them arrive at "
        f"no greater strength than the transfer: p = {nulls.p:.2g}. Arriving means gaining {points(nulls.needed)} points on "
        f"train; {nulls.arrive} of them arrive at some strength."
    )


def _gain(arms: Arms) -> str:
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    text = (
        f"On {main['n']} test questions the transferred arm is right in {share_of(main)}, the unsteered target in "
        f"{share_of(base)}."
    )
    if paired := gain(main, base):
        text += (
            f" That is {points(paired['difference'])} points (95% paired interval {points(paired['low'])} to "
            f"{points(paired['high'])}, McNemar {p_value(paired['p'])}): {paired['gained']} wrong answers became right, "
            f"{paired['lost']} right ones became wrong."
        )
    few = too_few(base)
    return f"{text} Mind the sample: {few}." if few else text


def _controls(results: Results, against: Sequence[Rival]) -> str:
    found: list[str] = []
    if against:
        how = "question by question" if all(rival.paired for rival in against) else "by intervals where no answers were kept"
        found.append(f"The transfer must beat every control ({len(against)} were run), compared {how}.")
    for verb, beaten in (("It beats", True), ("It does not beat", False)):
        named = [_named(results, rival) for rival in against if rival.beaten == beaten]
        found += [f"{verb} {listed(named)}."] if named else []
    run, reasons = {rival.name for rival in against}, left_out_of(results)
    wanted = dict.fromkeys((*REQUIRED, NAIVE, *(name for name in reasons if arm(name).role == "rival")))
    absent = [arm(name).label + (f" ({reasons[name]})" if name in reasons else "") for name in wanted if name not in run]
    return " ".join([*found, f"Not run, and so not ruled out: {listed(absent)}."] if absent else found)


def _named(results: Results, rival: Rival) -> str:
    seeds = len(results.tested()[rival.name])
    best = f", best of {seeds} seeds" if seeds > 1 else ""
    shown = (
        f"{percent_of(rival.line)}{best}: {difference_of(rival.paired)}" if rival.paired else f"{share_of(rival.line)}{best}"
    )
    return f"{arm(rival.name).label} ({shown})"


def _naive(arms: Arms) -> str:
    """If the target never learned the capability, there is nothing to unlock."""
    if NAIVE not in arms:
        return ""
    naive, base = arms[NAIVE], arms.get(NAIVE_UNSTEERED, arms[UNSTEERED])
    paired, few = gain(naive, base), too_few(base)
    change = (
        f"{percent_of(base)} to {percent_of(naive)}: {difference_of(paired)}"
        if paired
        else f"{share_of(base)} to {share_of(naive)}"
    )
    if gains_on(naive, base):
        return f"The naive target gains too ({change}): what it never learned was brought to it, not unlocked in it."
    if few:
        return f"Whether the naive target gains, which it must not, cannot be decided ({change}): {few}."
    return f"The naive target shows no gain, as expected ({change})."


def _references(arms: Arms) -> str:
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    shares = [
        f"{arm(name).label} {percent_of(arms[name])}"
        for name in in_order(arms)
        if arm(name).role == "reference" and name != NAIVE_UNSTEERED
    ]
    found = [f"For comparison: {listed(shares)}."] if shares else []
    without = arms.get("without_mean")
    if without and gains_on(main, base):
        keeps = without["accuracy"] - base["accuracy"] > 0.5 * (main["accuracy"] - base["accuracy"])
        found.append(
            "Without its part along the target's mean state the direction keeps most of the gain, so it is not an anti-mean in "
            "disguise."
            if keeps
            else "Without its part along the target's mean state most of the gain is gone: suspect an anti-mean in disguise."
        )
    return " ".join(found)


def _behaviour(results: Results, arms: Arms) -> str:
    main, base, name = arms[TRANSFERRED], arms[UNSTEERED], results.capability or ""
    tokens = f"Completions have {base['tokens']:.1f} tokens before and {main['tokens']:.1f} after." if "tokens" in main else ""
    if name not in (main.get("behaviours") or {}):
        return f"{tokens} This task does not tell behaviour apart from correctness.".strip()
    before, after = ((line.get("behaviours") or {}).get(name, 0.0) for line in (base, main))
    judged = {
        (True, True): "and correctness follows it",
        (True, False): "but correctness does not follow: behaviour alone was moved",
        (False, True): "so the right answers do not come by way of it",
        (False, False): "and correctness hardly moves either",
    }[after - before > COMES, main["accuracy"] - base["accuracy"] > COMES]
    return f"The behaviour goes from {before:.0%} to {after:.0%} of completions, {judged}. {tokens}".strip()


def _answers(arms: Arms) -> str:
    """How answers were read where they have tags, and which completions the budget cut."""
    shown = {name: arms[name] for name in (UNSTEERED, TRANSFERRED, PROMPTED, POST_TRAINED) if name in arms}
    strict = {name: line["strict"] for name, line in shown.items() if line.get("strict")}
    found: list[str] = []
    if strict:
        opening, closing = strict[TRANSFERRED]["tags"]
        shares = listed([f"{arm(name).label} {share_of(of)}" for name, of in strict.items()])
        found.append(f"Read between {opening} and {closing} alone, right are: {shares}.")
    if absent := [arm(name).label for name, of in strict.items() if not of["tagged"]]:
        found.append(f"The tag never appears in completions of: {listed(absent)}; does the prompt ask for it?")
    if cut := [f"{arm(name).label} {line['cut']:.0%}" for name, line in shown.items() if (line.get("cut") or 0.0) > MANY_CUT]:
        found.append(f"The budget of new tokens cut many completions before they ended ({listed(cut)}): raise max_new_tokens.")
    return " ".join(found)


def specificity(results: Results) -> str:
    """Whether each transferred capability brings its own behaviour; empty if fewer than two were transferred."""
    rows = [(name, shares) for name, shares in specificity_rows(results) if name != UNSTEERED and name in shares]
    if len(rows) < 2:
        return ""
    own = [name for name, shares in rows if shares[name] == max(shares.values()) and shares[name] > 0.5]
    shown = listed([f"{name} {shares[name]:.0%}" for name, shares in rows])
    stray = [share for name, shares in rows for other, share in shares.items() if other not in (name, "direct", "other")]
    return (
        f"Specificity: {len(own)} of {len(rows)} transferred capabilities bring their own behaviour in most completions "
        f"({shown}); that of another appears in at most {max(stray, default=0.0):.0%}."
    )


def _price(arms: Arms) -> str:
    price = arms[TRANSFERRED].get("price")
    if not price:
        return "The price on unrelated text was not measured."
    steered, before = price["perplexity"], price["perplexity_unsteered"]
    others = [
        f"{arm(name).label} {nats(arms[name]['price']['kl'])}" for name in ("own", "random") if arms.get(name, {}).get("price")
    ]
    return (
        f"Price on unrelated text: {nats(price['kl'])} nats per token from the unsteered target"
        f"{f' ({listed(others)})' if others else ''}, "
        f"perplexity {before:.3g} to {steered:.3g} ({signed(steered / before - 1, '+.1%')})."
        f"{_where_it_costs(price)}{_at_equal_price(arms)}"
    )


def _where_it_costs(price: Mapping[str, float]) -> str:
    if "kl_worst" not in price:  # sweeps of earlier versions
        return ""
    return (
        f" Over all text after an edited prompt it adds up to {nats(price['kl_of_prompt'])} nats; the worst 5% of tokens lie "
        f"{nats(price['kl_worst'])} nats away."
    )


def _at_equal_price(arms: Arms) -> str:
    shares = [f"{arm(name).label} {percent_of(arms[name])}" for name in AT_PRICE if name in arms]
    return f" At strengths that cost as much: {listed(shares)}." if shares else ""


def _sharpening(arms: Arms) -> str:
    sharpening = arms[TRANSFERRED].get("sharpening") or {}
    found: list[str] = []
    if sharpening.get("pass_at_k"):
        k, best = max((int(k), share) for k, share in sharpening["pass_at_k"].items())
        greedy = sharpening["greedy"]["steered"]
        found.append(
            f"Unsteered, one of {k} samples is right in {best:.0%} of questions; steered, the greedy answer in {greedy:.0%}."
        )
    before, after = ((sharpening.get("success") or {}).get(side) or {} for side in ("unsteered", "steered"))
    if before.get("n"):
        found.append(
            f"Of the {before['n']} questions that it solves in some sample, those right completions have "
            f"{before['probability']:.0%} of the probability unsteered and {after['probability']:.0%} steered."
        )
    return " ".join(found)


def _choice(results: Results, arms: Arms) -> str:
    config, tried = arms[TRANSFERRED]["config"], results.trained()
    keys = [key for key in ("aligner", "method", "rank", "n", "alpha") if config.get(key) is not None]
    chosen = ", ".join(f"{key} {config[key]}" for key in keys)
    how = f"Chosen among {len(tried)} configurations on {tried[0]['n']} other questions: {chosen}. " if tried and keys else ""
    return f"{how}This is one pair of models and one task; it says nothing about others."
