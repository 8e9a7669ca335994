"""The verdict's paragraphs: what speaks for a transfer and against it, with every number that a sceptic asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unlock_lens.evidence.plots.behaviour import specificity_rows
from unlock_lens.evidence.plots.vocabulary import arm, in_order
from unlock_lens.evidence.report.comparison import REQUIRED, Paired, Rival, better, gain, left_out
from unlock_lens.evidence.results import TRANSFERRED, Line, Results
from unlock_lens.evidence.statistics import sample_size_in_words

COMES = 0.2  # a behaviour has come, and correctness with it, when its share grows by more than this


def paragraphs(results: Results, arms: Mapping[str, Line], against: Sequence[Rival]) -> tuple[str, ...]:
    """All that is to be said beside the headline; what was not measured is not claimed."""
    told = (_gain(arms), _rivals(results, against), _naive(arms), _references(arms), _behaviour(results, arms))
    rest = (specificity(results), _price(arms), _sharper(arms), _limits(results, arms))
    return tuple(text for text in (*told, *rest) if text)


def too_few(base: Line) -> str | None:
    """What the sample is too small for, in words; None where it is large enough."""
    return sample_size_in_words(base["n"], base["accuracy"])


def _gain(arms: Mapping[str, Line]) -> str:
    main, base = arms[TRANSFERRED], arms["unsteered"]
    paired, few = gain(main, base), too_few(base)
    told = (
        f"On {main['n']} test questions the transferred arm is right in {_share(main)}, the unsteered target in {_share(base)}."
    )
    if paired:
        told += (
            f" That is {points(paired['difference'])} points (95% paired interval {points(paired['low'])} to "
            f"{points(paired['high'])}, McNemar {p_value(paired['p'])}): {paired['gained']} wrong answers became right, "
            f"{paired['lost']} right ones became wrong."
        )
    return f"{told} Mind the sample: {few}." if few else told


def _rivals(results: Results, against: Sequence[Rival]) -> str:
    told: list[str] = []
    if against:
        how = "question by question" if all(rival.paired for rival in against) else "by intervals where no answers were kept"
        told.append(f"Controls that it must beat, every one: {len(against)}, compared {how}.")
    for verb, beaten in (("It beats", True), ("It does not beat", False)):
        named = [_named(results, rival) for rival in against if rival.beaten == beaten]
        told += [f"{verb} {listed(named)}."] if named else []
    run, reasons = {rival.name for rival in against}, left_out(results)
    wanted = dict.fromkeys((*REQUIRED, "naive", *(name for name in reasons if arm(name).role == "rival")))
    absent = [name for name in wanted if name not in run]
    if absent:
        named = [arm(name).label + (f" ({reasons[name]})" if name in reasons else "") for name in absent]
        told.append(f"Not run, and so not ruled out: {listed(named)}.")
    return " ".join(told)


def _naive(arms: Mapping[str, Line]) -> str:
    """Where the target never learned the capability, there is nothing to unlock."""
    if "naive" not in arms:
        return ""
    naive, base = arms["naive"], arms.get("naive_unsteered", arms["unsteered"])
    paired, few = gain(naive, base), too_few(base)
    change = f"{percent(base)} to {percent(naive)}: {_difference(paired)}" if paired else f"{_share(base)} to {_share(naive)}"
    if better(naive, base):
        return f"The naive target gains too ({change}): what it never learned was brought to it, not unlocked in it."
    if few:
        return f"Whether the naive target gains, which it must not, cannot be told ({change}): {few}."
    return f"The naive target shows no gain, as it must not ({change})."


def _references(arms: Mapping[str, Line]) -> str:
    main, base = arms[TRANSFERRED], arms["unsteered"]
    found = [name for name in in_order(arms) if arm(name).role == "reference" and name != "naive_unsteered"]
    told = [f"For proportion: {listed([f'{arm(name).label} {percent(arms[name])}' for name in found])}."] if found else []
    without = arms.get("without_mean")
    if without and better(main, base):
        keeps = without["accuracy"] - base["accuracy"] > 0.5 * (main["accuracy"] - base["accuracy"])
        told.append(
            "Without its part along the target's mean state the direction keeps most of the gain: no anti-mean in disguise."
            if keeps
            else "Without its part along the target's mean state most of the gain is gone: suspect an anti-mean in disguise."
        )
    return " ".join(told)


def _behaviour(results: Results, arms: Mapping[str, Line]) -> str:
    main, base, name = arms[TRANSFERRED], arms["unsteered"], results.capability or ""
    tokens = f"Completions have {base['tokens']:.1f} tokens before and {main['tokens']:.1f} after." if "tokens" in main else ""
    if name not in (main.get("behaviours") or {}):
        return f"{tokens} Behaviour was not told apart from correctness in this task.".strip()
    before, after = ((line.get("behaviours") or {}).get(name, 0.0) for line in (base, main))
    came, right = after - before > COMES, main["accuracy"] - base["accuracy"] > COMES
    judged = {
        (True, True): "and correctness follows it",
        (True, False): "but correctness does not follow: behaviour alone was moved",
        (False, True): "so the right answers do not come by way of it",
        (False, False): "and correctness hardly moves either",
    }[came, right]
    return f"The behaviour goes from {before:.0%} to {after:.0%} of completions, {judged}. {tokens}".strip()


def specificity(results: Results) -> str:
    """Whether each transferred capability brings its own behaviour; empty where fewer than two were transferred."""
    rows = [(name, shares) for name, shares in specificity_rows(results) if name != "unsteered" and name in shares]
    if len(rows) < 2:
        return ""
    own = [name for name, shares in rows if shares[name] == max(shares.values()) and shares[name] > 0.5]
    told = listed([f"{name} {shares[name]:.0%}" for name, shares in rows])
    others = [share for name, shares in rows for other, share in shares.items() if other not in (name, "direct", "other")]
    stray = max(others, default=0.0)
    return (
        f"Specificity: {len(own)} of {len(rows)} transferred capabilities bring their own behaviour in most completions "
        f"({told}); another one's comes in at most {stray:.0%}."
    )


def _price(arms: Mapping[str, Line]) -> str:
    price = arms[TRANSFERRED].get("price")
    if not price:
        return "The price on unrelated text was not measured."
    steered, before = price["perplexity"], price["perplexity_unsteered"]
    others = [
        f"{arm(name).label} {nats(arms[name]['price']['kl'])}" for name in ("own", "random") if arms.get(name, {}).get("price")
    ]
    return (
        f"Price on unrelated text: {nats(price['kl'])} nats a token from the unsteered target"
        f"{f' ({listed(others)})' if others else ''}, "
        f"perplexity {before:.3g} to {steered:.3g} ({_signed(steered / before - 1, '+.1%')})."
    )


def _sharper(arms: Mapping[str, Line]) -> str:
    found = arms[TRANSFERRED].get("sharpening") or {}
    told: list[str] = []
    if found.get("pass_at_k"):
        k, best = max(((int(k), share) for k, share in found["pass_at_k"].items()), key=lambda item: item[0])
        greedy = found["greedy"]["steered"]
        told.append(
            f"Unsteered, one of {k} samples is right in {best:.0%} of questions; steered, the greedy answer in {greedy:.0%}."
        )
    before, after = ((found.get("success") or {}).get(side) or {} for side in ("unsteered", "steered"))
    if before.get("n"):
        told.append(
            f"Of the {before['n']} questions that it solves in some sample, those right completions have "
            f"{before['probability']:.0%} of the probability unsteered and {after['probability']:.0%} steered."
        )
    return " ".join(told)


def _limits(results: Results, arms: Mapping[str, Line]) -> str:
    config, tried = arms[TRANSFERRED]["config"], results.trained()
    chosen = ", ".join(
        f"{key} {config[key]}" for key in ("aligner", "method", "rank", "n", "alpha") if config.get(key) is not None
    )
    told = (
        f"Chosen among {len(tried)} configurations on {tried[0]['n']} other questions: {chosen}. " if tried and chosen else ""
    )
    return f"{told}This is one pair of models and one task; it says nothing of others."


def _named(results: Results, rival: Rival) -> str:
    seeds = len(results.tested()[rival.name])
    best = f", best of {seeds} seeds" if seeds > 1 else ""
    shown = f"{percent(rival.line)}{best}: {_difference(rival.paired)}" if rival.paired else f"{_share(rival.line)}{best}"
    return f"{arm(rival.name).label} ({shown})"


def _difference(paired: Paired) -> str:
    return f"{points(paired['difference'])} points [{points(paired['low'])} to {points(paired['high'])}]"


def _share(line: Line) -> str:
    return f"{percent(line)} [{line['low']:.1%} to {line['high']:.1%}]"


def percent(line: Line) -> str:
    """A line's share of right answers."""
    return f"{line['accuracy']:.1%}"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return _signed(100 * share, "+.1f")


def _signed(value: float, form: str) -> str:
    """A number with a minus sign that is one."""
    return format(value, form).replace("-", "\u2212")


def p_value(p: float) -> str:
    """A p value as people write it."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def nats(kl: float) -> str:
    """A divergence, which is never below 0."""
    return "<0.001" if 0 < kl < 0.001 else f"{kl:.3g}"


def listed(words: list[str]) -> str:
    """Words with an "and" before the last."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
