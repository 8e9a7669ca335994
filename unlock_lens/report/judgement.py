"""What a sweep shows, in words that a sceptical reader would sign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from unlock_lens.plots.behaviour import specificity_rows
from unlock_lens.plots.vocabulary import arm, in_order
from unlock_lens.results import TRANSFERRED, Line, Results

Status = Literal["arrived", "not from the source", "unchecked", "undecided", "did not arrive", "did harm", "unfinished"]
COMES = 0.2  # a behaviour has come, and correctness with it, when its share grows by more than this


@dataclass(frozen=True)
class Verdict:
    """The judgement on a sweep.

    Attributes:
        status: the judgement in a word or two.
        headline: the judgement as a sentence.
        paragraphs: what speaks for it and against it.
    """

    status: Status
    headline: str
    paragraphs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join((self.headline, *self.paragraphs))


def verdict(results: Results) -> Verdict:
    """Judge a sweep.

    A capability has arrived when the 95% interval of the transferred arm lies above those of the unsteered target and of
    every rival: random, shuffled, anti-mean and unaligned directions, and a target that never learned it. References (the
    target's own direction, the prompt, the paper's calibration) put the result in proportion and decide nothing.

    Example:
        >>> from unlock_lens.report import verdict
        >>> from unlock_lens.results import Results
        >>> line = {"config": {"capability": "think", "control": None}, "split": "train", "accuracy": 0.9}
        >>> verdict(Results({"capability": {"name": "think"}}, (line,))).status
        'unfinished'
    """
    arms, name = results.arms(), f"“{results.capability or 'the capability'}”"
    absent = [each for each in (TRANSFERRED, "unsteered") if each not in arms]
    if absent:
        return Verdict(
            "unfinished",
            f"The sweep is unfinished: the test split has no result yet of {' and '.join(absent)}.",
            (f"{len(results.lines)} configurations are finished; run `unlock-lens sweep` again, it goes on.",),
        )
    status = _status(arms)
    told = (_gain(arms), _rivals(results, arms), _references(arms), _behaviour(results, arms), _specific(results))
    rest = (_price(arms), _sharper(arms), _limits(results, arms))
    return Verdict(status, _headline(status, name, arms), tuple(text for text in (*told, *rest) if text))


def rivals(arms: Mapping[str, Line]) -> dict[str, Line]:
    """The controls that a transfer has to beat."""
    return {name: arms[name] for name in in_order(arms) if arm(name).role == "rival"}


def _status(arms: Mapping[str, Line]) -> Status:
    main, base = arms[TRANSFERRED], arms["unsteered"]
    if _worse(main):
        return "did harm"
    if not _better(main, base):
        return "undecided" if _too_few(base) else "did not arrive"
    unbeaten = [line for line in rivals(arms).values() if main["low"] <= line["high"]]
    if any(_better(line, base) for line in unbeaten if line["config"]["control"] != "naive"):
        return "not from the source"
    if unbeaten or main["low"] <= base["high"]:
        return "undecided"
    return "arrived" if rivals(arms) else "unchecked"


def _better(line: Line, base: Line) -> bool:
    """Whether an arm gained on the unsteered target: by the paired comparison where there is one."""
    paired = line.get("paired")
    return paired["low"] > 0 and paired["p"] < 0.05 if paired else line["low"] > base["high"]


def _worse(line: Line) -> bool:
    paired = line.get("paired")
    return bool(paired) and paired["high"] < 0 and paired["p"] < 0.05


def _too_few(base: Line) -> str | None:
    from unlock_lens.statistics import sample_size_in_words

    return sample_size_in_words(base["n"], base["accuracy"])


def _headline(status: Status, name: str, arms: Mapping[str, Line]) -> str:
    change = f"right answers go from {_percent(arms['unsteered'])} to {_percent(arms[TRANSFERRED])}"
    best = max(rivals(arms).items(), key=lambda item: item[1]["accuracy"], default=None)
    rival = f"{arm(best[0]).label} reaches {_percent(best[1])}" if best else "no control was run"
    return {
        "arrived": f"{name} arrived: {change}, and no control comes near ({rival} at most).",
        "not from the source": f"{name} cannot be credited to the source: {change}, but {rival} as well.",
        "unchecked": f"{name} is unchecked: {change}, but {rival}, so nothing says that it came from the source.",
        "undecided": f"{name} is undecided: {change}, and the 95% intervals do not tell it apart from what it must beat.",
        "did not arrive": f"{name} did not arrive: {change}, no more than chance would change.",
        "did harm": f"{name} did not arrive, and steering did harm: {change}.",
        "unfinished": "",
    }[status]


def _gain(arms: Mapping[str, Line]) -> str:
    main, base = arms[TRANSFERRED], arms["unsteered"]
    paired = main.get("paired")
    told = (
        f"On {main['n']} test questions the transferred arm is right in {_share(main)}, the unsteered target in {_share(base)}."
    )
    if paired:
        told += (
            f" That is {points(paired['difference'])} points (95% paired interval {points(paired['low'])} to "
            f"{points(paired['high'])}, McNemar {p_value(paired['p'])}): {paired['gained']} wrong answers became right, "
            f"{paired['lost']} right ones became wrong."
        )
    few = _too_few(base)
    return f"{told} Mind the sample: {few}." if few else told


def _rivals(results: Results, arms: Mapping[str, Line]) -> str:
    main, others = arms[TRANSFERRED], rivals(arms)
    beaten = [_named(results, name) for name, line in others.items() if main["low"] > line["high"]]
    unbeaten = [_named(results, name) for name, line in others.items() if main["low"] <= line["high"]]
    told = [f"Its interval lies above those of {_list(beaten)}."] if beaten else []
    told += [f"It does not lie above {_list(unbeaten)}."] if unbeaten else []
    told += [_naive(arms)] if "naive" in arms else []
    absent = [name for name in ("random", "shuffled", "anti_mean", "naive") if name not in others]
    if absent:
        reasons: Mapping[str, str] = (results.provenance or {}).get("controls_left_out") or {}
        named = [arm(name).label + (f" ({reasons[name]})" if name in reasons else "") for name in absent]
        told.append(f"Not run, and so not ruled out: {_list(named)}.")
    return " ".join(told)


def _naive(arms: Mapping[str, Line]) -> str:
    """Where the target never learned the capability, there is nothing to unlock."""
    naive = arms["naive"]
    if _better(naive, arms.get("naive_unsteered", arms["unsteered"])):
        return f"The naive target gains too ({_percent(naive)}): what it never learned was brought to it, not unlocked in it."
    return "The naive target does not gain, as it must not."


def _references(arms: Mapping[str, Line]) -> str:
    main, base = arms[TRANSFERRED], arms["unsteered"]
    found = [name for name in in_order(arms) if arm(name).role == "reference" and name != "naive_unsteered"]
    told = [f"For proportion: {_list([f'{arm(name).label} {_percent(arms[name])}' for name in found])}."] if found else []
    without = arms.get("without_mean")
    if without and _better(main, base):
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


def _specific(results: Results) -> str:
    rows = [(name, shares) for name, shares in specificity_rows(results) if name != "unsteered" and name in shares]
    if not rows:
        return ""
    own = [name for name, shares in rows if shares[name] == max(shares.values()) and shares[name] > 0.5]
    told = _list([f"{name} {shares[name]:.0%}" for name, shares in rows])
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
        f"{f' ({_list(others)})' if others else ''}, "
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
    chosen = ", ".join(f"{key} {config[key]}" for key in ("aligner", "rank", "n", "alpha") if config.get(key) is not None)
    told = (
        f"Chosen among {len(tried)} configurations on {tried[0]['n']} other questions: {chosen}. " if tried and chosen else ""
    )
    return f"{told}This is one pair of models and one task; it says nothing of others."


def _named(results: Results, name: str) -> str:
    seeds, line = len(results.tested()[name]), results.arms()[name]
    return f"{arm(name).label} ({_share(line)}{f', best of {seeds} seeds' if seeds > 1 else ''})"


def _share(line: Line) -> str:
    return f"{_percent(line)} [{line['low']:.1%} to {line['high']:.1%}]"


def _percent(line: Line) -> str:
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


def _list(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
