"""What a sweep shows, in words that a sceptical reader would sign: comparisons, the verdict, and every number behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from unlock_lens.evidence.evaluation import compare
from unlock_lens.evidence.plots.behaviour import specificity_rows
from unlock_lens.evidence.plots.vocabulary import arm, in_order
from unlock_lens.evidence.results import (
    AT_PRICE,
    GROUPS,
    NAIVE,
    NAIVE_UNSTEERED,
    POST_TRAINED,
    PROMPTED,
    SEEDED,
    TRANSFERRED,
    UNSTEERED,
    Line,
    Results,
)  # fmt: skip
from unlock_lens.evidence.statistics import detectable_difference, sample_size_in_words

Status = Literal[
    "arrived", "a small gain", "not from the source", "unchecked", "undecided", "did not arrive", "did harm", "unfinished"
]  # fmt: skip
Paired = Mapping[str, Any]
Arms = Mapping[str, Line]
REQUIRED = ("random", "anti_mean", "shuffled")
"""Without any one of these nothing can be credited to the source."""
SIGNIFICANT = 0.05
ENOUGH = 100
"""Test problems below which nothing is said to have arrived."""
MARGIN = 0.5
"""The gain must be at least this share of what asking gives, and no null source may reach this share of the gain."""
MANY_CUT = 0.2
"""Where the budget of new tokens cuts a larger share of the completions, the verdict says so."""
COMES = 0.2
"""A behaviour has come, and correctness with it, when its share grows by more than this."""


@dataclass(frozen=True)
class Verdict:
    """The judgement on a sweep: in a word or two, as a sentence, and what speaks for it and against it, with every number."""

    status: Status
    headline: str
    paragraphs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join((self.headline, *self.paragraphs))


@dataclass(frozen=True)
class Rival:
    """A control that the transfer has to beat, with the line of its best seed."""

    name: str
    line: Line
    paired: Paired | None
    """The transfer compared with it on the same questions; None if the answers were not kept."""
    beaten: bool
    gains: bool
    """Whether it gains on the unsteered target. Never of the naive target, whose gain is the source's too."""


def verdict(results: Results) -> Verdict:
    """Judge a sweep.

    A capability has arrived when, on at least 100 questions, three things hold. (1) The transferred arm beats the unsteered
    target and every rival on the same questions: the 95% interval of the paired difference lies above 0, and McNemar's p is
    below 0.05. Rivals are random, shuffled, anti-mean and unaligned directions, each by its best seed, minus the direction, a
    placebo contrast, other capabilities, and a target that never learned it; the first three must have been run. (2) Sources
    without a capability that went through the same maps, settings and choice seldom do as well: p is at most 0.05
    (`null_test`). (3) The margins are kept: the gain is at least half of what asking gives, no null source reaches half of it
    at the same setting, the naive target gains nothing, and the behaviour that comes is the wanted one. References (the
    target's own direction, the prompt, the paper's calibration) put the result in proportion and decide nothing. A sweep that
    lacks anything its config asks for is not judged.

    Source: Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9 (2010), for p = (1 + b) / (1 + K).
    """
    if absent := _missing(results):
        return Verdict(
            "unfinished",
            f"The sweep is unfinished: the test split has no result yet of {_listed(absent)}.",
            (f"{len(results.lines)} configurations are finished; run `unlock-lens sweep` again to resume it.",),
        )
    arms = results.arms()
    against = _rivals(arms)
    nulls = null_test(results)
    status = _status(results, arms, against, nulls)
    name = f"“{results.capability}”" if results.capability else "The capability"
    found = (
        _gain(arms), _null_sources(nulls), _comparisons(results, against), _naive(arms), _references(arms),
        _behaviour(results, arms), _answers(arms), specificity(results), _price(arms), _sharper(arms), _limits(results, arms),
    )  # fmt: skip
    return Verdict(status, f"{name} {_headline(status, results, arms, against, nulls)}.", tuple(text for text in found if text))


def _missing(results: Results) -> list[str]:
    """What the config asks for and the test split lacks, in words; only the provenance says which controls cannot be run."""
    tested, without = results.tested(), _left_out(results)
    found = [name for name in (TRANSFERRED, UNSTEERED) if name not in tested]
    for name in results.config.get("controls") or ():
        for each in GROUPS.get(name, (name,)) if name not in without else ():
            absent = set(range(_seeds(results, each))) - {line["config"].get("seed", 0) for line in tested.get(each, ())}
            if absent:
                seeds = ", ".join(str(seed) for seed in sorted(absent))
                some = f" (seed{'s' if len(absent) > 1 else ''} {seeds})" if each in tested else ""
                found.append(arm(each).label + some)
    moved = {line["config"].get("capability") for line in results.lines if line["split"] == "test"}
    others = [other["name"] for other in results.config.get("others") or ()]
    found += [f"the capability “{name}”" for name in others if name not in moved]
    if (lacking := results.config.get("nulls", 0) - len(results.nulls())) > 0:
        found.append(f"{lacking} null sources")
    return found


def _seeds(results: Results, name: str) -> int:
    if name == "wrong":
        return len(results.config.get("others") or ())
    return results.config.get("control_seeds", 1) if AT_PRICE.get(name, name) in SEEDED else 1


@dataclass(frozen=True)
class NullTest:
    """The transfer among sources without a capability, moved by the same maps, with the same settings to choose from.

    They are noise, noise with the covariance of the source's states, and halves of the locked prompts against each other.

    Attributes:
        p: (1 + as_good) / (1 + n): the chance that a source without a capability does as well.
        n: number of null sources.
        as_good: how many of them do at least as well as the transfer: they arrive at no greater strength; where neither
            arrives, they gain no less. Arriving is gaining `needed`, on train.
        needed: the gain that counts as arriving: half of what asking gives, or 20 points where nothing asks.
        arrive: how many of them arrive at any setting.
        best: the highest accuracy of a null source at the transfer's own setting.
    """

    p: float
    n: int
    as_good: int
    needed: float
    arrive: int
    best: float

    @property
    def is_rare(self) -> bool:
        """Whether p is at most 0.05."""
        return self.p <= SIGNIFICANT


def null_test(results: Results) -> NullTest | None:
    """The randomisation test at the level of directions, on the train split; None where no null source was run."""
    nulls, arms = results.nulls(), results.arms()
    if not nulls:
        return None
    base, asked = arms[UNSTEERED]["accuracy"], _asked(arms)
    needed = max(MARGIN * (asked["accuracy"] - base), 0.1) if asked else COMES
    own = _score(results.trained(), base + needed)
    as_good = sum(_score(lines, base + needed) >= own for lines in nulls)
    arrive = sum(max(line["accuracy"] for line in lines) >= base + needed for lines in nulls)
    chosen = _apart_from_source(arms[TRANSFERRED])
    same = [line["accuracy"] for lines in nulls for line in lines if _apart_from_source(line) == chosen]
    return NullTest((1 + as_good) / (1 + len(nulls)), len(nulls), as_good, needed, arrive, max(same, default=0.0))


def _score(lines: Sequence[Line], arriving: float) -> tuple[float, float]:
    """The least strength that arrives, the smaller the better; of those that do not, the highest accuracy."""
    strengths = [line["config"]["alpha"] for line in lines if line["accuracy"] >= arriving]
    return (-min(strengths), 0.0) if strengths else (-float("inf"), max(line["accuracy"] for line in lines))


def _apart_from_source(line: Line) -> Mapping[str, Any]:
    return {key: value for key, value in line["config"].items() if key not in ("control", "seed")}


def _asked(arms: Arms) -> Line | None:
    return arms.get(PROMPTED) or arms.get(POST_TRAINED)


def _left_out(results: Results) -> Mapping[str, str]:
    """Controls that a finished sweep could not run, and why."""
    return (results.provenance or {}).get("controls_left_out") or {}


def _rivals(arms: Arms) -> list[Rival]:
    """Every control that the transfer has to beat; the naive target answers the same questions, so it is paired too."""
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    found: list[Rival] = []
    for name in in_order(arms):
        if arm(name).role == "rival":
            line, paired = arms[name], _compared(main, arms[name])
            found.append(Rival(name, line, paired, _above(main, line, paired), name != NAIVE and _better(line, base)))
    return found


def gain(line: Line, base: Line) -> Paired | None:
    """An arm compared with the same model unsteered: what the sweep recorded, or what the answers give."""
    return line.get("paired") or _compared(line, base)


def _compared(line: Line, other: Line) -> Paired | None:
    after, before = ([bool(right) for right in each.get("right") or ()] for each in (line, other))
    return asdict(compare(after, before)) if after and before else None


def _above(line: Line, other: Line, paired: Paired | None) -> bool:
    """By the paired comparison; without one, by intervals that do not meet, which is stricter."""
    return paired["low"] > 0 and paired["p"] < SIGNIFICANT if paired else line["low"] > other["high"]


def _better(line: Line, base: Line) -> bool:
    """Whether an arm gained on the same model unsteered."""
    return _above(line, base, gain(line, base))


def _too_few(base: Line) -> str | None:
    """What the sample is too small for, in words; None if it is large enough."""
    return sample_size_in_words(base["n"], base["accuracy"])


def _status(results: Results, arms: Arms, against: Sequence[Rival], nulls: NullTest | None) -> Status:
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    paired = gain(main, base)
    if paired["high"] < 0 and paired["p"] < SIGNIFICANT if paired else main["high"] < base["low"]:
        return "did harm"
    if not _better(main, base):
        return "undecided" if _too_few(base) else "did not arrive"
    unbeaten = [rival for rival in against if not rival.beaten]
    if any(rival.gains for rival in unbeaten):
        return "not from the source"
    if nulls and not nulls.is_rare:
        return "not from the source" if nulls.as_good else "undecided"
    if unbeaten or _doubts(results, arms, nulls):
        return "undecided"
    if _unchecked(arms, nulls):
        return "unchecked"
    return "a small gain" if _is_small(arms) else "arrived"


def _unchecked(arms: Arms, nulls: NullTest | None) -> list[str]:
    return [arm(name).label for name in REQUIRED if name not in arms] + ([] if nulls else ["null sources"])


def _is_small(arms: Arms) -> bool:
    """Whether the gain is less than half of what asking gives."""
    asked, base = _asked(arms), arms[UNSTEERED]["accuracy"]
    return asked is not None and arms[TRANSFERRED]["accuracy"] - base < MARGIN * (asked["accuracy"] - base)


def _doubts(results: Results, arms: Arms, nulls: NullTest | None) -> list[str]:
    """What stands between a gain and an arrival, in words."""
    main, base, name = arms[TRANSFERRED], arms[UNSTEERED], results.capability or ""
    found: list[str] = []
    if main["n"] < ENOUGH:
        found.append(f"{main['n']} test questions are too few ({ENOUGH} are needed)")
    if nulls and nulls.best - base["accuracy"] > MARGIN * (main["accuracy"] - base["accuracy"]):
        found.append(f"a source without a capability reaches {nulls.best:.1%} at the same setting")
    if NAIVE in arms and _better(arms[NAIVE], arms.get(NAIVE_UNSTEERED, base)):
        found.append("the naive target, which never learned it, gains too")
    shares, before = (line.get("behaviours") or {} for line in (main, base))
    grown = {behaviour: share - before.get(behaviour, 0.0) for behaviour, share in shares.items()}
    if name in grown and (other := max(grown, key=lambda behaviour: grown[behaviour])) != name and grown[other] > COMES:
        found.append(f"the behaviour that comes is “{other}”")
    return found


def _headline(status: Status, results: Results, arms: Arms, against: Sequence[Rival], nulls: NullTest | None) -> str:
    """What is said of the capability's name."""
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    change = f"right answers go from {_percent(base)} to {_percent(main)}"
    better = _asks_better(arms)
    if status == "a small gain":
        return f"gained a little: {change}, less than half of what asking gives ({_percent(_asked(arms) or base)})"
    if status == "arrived":
        best = _best(against)
        near = best.line["high"] < (base["accuracy"] + main["accuracy"]) / 2
        beats, left = "no control comes near" if near else "it beats every control", arms.get("without_mean")
        gone = left is not None and not _better(left, base)
        doubt = "; but nothing of it is left without the direction's part along the target's mean state" if gone else ""
        rare = f", and {_as_good(nulls)}" if nulls else ""
        return f"arrived: {change}, {'' if rare else 'and '}{beats} ({_reaches(best)} at most){rare}{better}{doubt}"
    if status == "not from the source" and nulls and not nulls.is_rare:
        return f"cannot be credited to the source: {change}, but {_as_good(nulls)} (p = {nulls.p:.2g})"
    if status == "not from the source":
        best = _best([rival for rival in against if rival.gains and not rival.beaten])
        return f"cannot be credited to the source: {change}, but {_reaches(best)} as well"
    if status == "unchecked":
        absent = _unchecked(arms, nulls)
        were = "was" if len(absent) == 1 else "were"
        return f"is unchecked: {change}, but {_listed(absent)} {were} not run, so the source cannot be credited with it"
    if status == "undecided" and _better(main, base) and (doubts := _doubts(results, arms, nulls)):
        return f"is undecided: {change}, but {_listed(doubts)}"
    if status == "undecided":
        unbeaten = [arm(rival.name).label for rival in against if not rival.beaten]
        equals = unbeaten if _better(main, base) else ["the unsteered target"]
        return f"is undecided: {change}, which cannot be told apart from {_listed(equals)}"
    if status == "did harm":
        return f"did not arrive, and steering did harm: {change}"
    return f"did not arrive: {change}, no more than chance would change; {_could_show(base)}"


def _asks_better(arms: Arms) -> str:
    """Said where asking does better, question by question."""
    asked = _asked(arms)
    if asked is None or not _above(asked, arms[TRANSFERRED], _compared(asked, arms[TRANSFERRED])):
        return ""
    return f"; asking does better ({_percent(asked)})"


def _could_show(base: Line) -> str:
    """What a sample of this size would have shown, so that absence of evidence is not read as evidence of absence."""
    least = detectable_difference(base["n"], base["accuracy"])
    return (
        f"{base['n']} questions show a gain of {points(least)} points 4 times in 5"
        if least
        else "no gain could have been shown"
    )


def _null_sources(nulls: NullTest | None) -> str:
    if nulls is None:
        return "No source without a capability was tried: how often noise would look like this is not known."
    return (
        f"Of {nulls.n} sources without a capability (noise, noise with the covariance of the source's states, halves of the "
        f"locked prompts), moved by the same maps and with the same settings to choose from, {nulls.as_good} arrive at no "
        f"greater strength than the transfer: p = {nulls.p:.2g}. Arriving is a gain of {points(nulls.needed)} points on train; "
        f"{nulls.arrive} of them arrive at some strength."
    )


def _as_good(nulls: NullTest) -> str:
    does = "do" if nulls.as_good > 1 else "does"
    return f"{nulls.as_good or 'none'} of {nulls.n} sources without a capability {does} as well"


def _best(against: Sequence[Rival]) -> Rival:
    return max(against, key=lambda rival: rival.line["accuracy"])


def _reaches(rival: Rival) -> str:
    return f"{arm(rival.name).label} reaches {_percent(rival.line)}"


def _gain(arms: Arms) -> str:
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    text = (
        f"On {main['n']} test questions the transferred arm is right in {_share(main)}, the unsteered target in {_share(base)}."
    )
    if paired := gain(main, base):
        text += (
            f" That is {points(paired['difference'])} points (95% paired interval {points(paired['low'])} to "
            f"{points(paired['high'])}, McNemar {p_value(paired['p'])}): {paired['gained']} wrong answers became right, "
            f"{paired['lost']} right ones became wrong."
        )
    few = _too_few(base)
    return f"{text} Mind the sample: {few}." if few else text


def _comparisons(results: Results, against: Sequence[Rival]) -> str:
    found: list[str] = []
    if against:
        how = "question by question" if all(rival.paired for rival in against) else "by intervals where no answers were kept"
        found.append(f"Controls that it must beat, every one: {len(against)}, compared {how}.")
    for verb, beaten in (("It beats", True), ("It does not beat", False)):
        named = [_named(results, rival) for rival in against if rival.beaten == beaten]
        found += [f"{verb} {_listed(named)}."] if named else []
    run, reasons = {rival.name for rival in against}, _left_out(results)
    wanted = dict.fromkeys((*REQUIRED, NAIVE, *(name for name in reasons if arm(name).role == "rival")))
    absent = [arm(name).label + (f" ({reasons[name]})" if name in reasons else "") for name in wanted if name not in run]
    return " ".join([*found, f"Not run, and so not ruled out: {_listed(absent)}."] if absent else found)


def _named(results: Results, rival: Rival) -> str:
    seeds = len(results.tested()[rival.name])
    best = f", best of {seeds} seeds" if seeds > 1 else ""
    shown = f"{_percent(rival.line)}{best}: {_difference(rival.paired)}" if rival.paired else f"{_share(rival.line)}{best}"
    return f"{arm(rival.name).label} ({shown})"


def _naive(arms: Arms) -> str:
    """If the target never learned the capability, there is nothing to unlock."""
    if NAIVE not in arms:
        return ""
    naive, base = arms[NAIVE], arms.get(NAIVE_UNSTEERED, arms[UNSTEERED])
    paired, few = gain(naive, base), _too_few(base)
    change = f"{_percent(base)} to {_percent(naive)}: {_difference(paired)}" if paired else f"{_share(base)} to {_share(naive)}"
    if _better(naive, base):
        return f"The naive target gains too ({change}): what it never learned was brought to it, not unlocked in it."
    if few:
        return f"Whether the naive target gains, which it must not, cannot be decided ({change}): {few}."
    return f"The naive target shows no gain, as it must not ({change})."


def _references(arms: Arms) -> str:
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    shares = [
        f"{arm(name).label} {_percent(arms[name])}"
        for name in in_order(arms)
        if arm(name).role == "reference" and name != NAIVE_UNSTEERED
    ]
    found = [f"For proportion: {_listed(shares)}."] if shares else []
    without = arms.get("without_mean")
    if without and _better(main, base):
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
        shares = _listed([f"{arm(name).label} {_share(of)}" for name, of in strict.items()])
        found.append(f"Read between {opening} and {closing} alone, right are: {shares}.")
    if absent := [arm(name).label for name, of in strict.items() if not of["tagged"]]:
        found.append(f"The tag never appears in completions of: {_listed(absent)}; does the prompt ask for it?")
    if cut := [f"{arm(name).label} {line['cut']:.0%}" for name, line in shown.items() if (line.get("cut") or 0.0) > MANY_CUT]:
        found.append(f"The budget of new tokens cut many completions before they ended ({_listed(cut)}): raise max_new_tokens.")
    return " ".join(found)


def specificity(results: Results) -> str:
    """Whether each transferred capability brings its own behaviour; empty if fewer than two were transferred."""
    rows = [(name, shares) for name, shares in specificity_rows(results) if name != UNSTEERED and name in shares]
    if len(rows) < 2:
        return ""
    own = [name for name, shares in rows if shares[name] == max(shares.values()) and shares[name] > 0.5]
    shown = _listed([f"{name} {shares[name]:.0%}" for name, shares in rows])
    stray = [share for name, shares in rows for other, share in shares.items() if other not in (name, "direct", "other")]
    return (
        f"Specificity: {len(own)} of {len(rows)} transferred capabilities bring their own behaviour in most completions "
        f"({shown}); another one's comes in at most {max(stray, default=0.0):.0%}."
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
        f"{f' ({_listed(others)})' if others else ''}, "
        f"perplexity {before:.3g} to {steered:.3g} ({_signed(steered / before - 1, '+.1%')})."
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
    shares = [f"{arm(name).label} {_percent(arms[name])}" for name in AT_PRICE if name in arms]
    return f" At strengths that cost as much: {_listed(shares)}." if shares else ""


def _sharper(arms: Arms) -> str:
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


def _limits(results: Results, arms: Arms) -> str:
    config, tried = arms[TRANSFERRED]["config"], results.trained()
    keys = [key for key in ("aligner", "method", "rank", "n", "alpha") if config.get(key) is not None]
    chosen = ", ".join(f"{key} {config[key]}" for key in keys)
    how = f"Chosen among {len(tried)} configurations on {tried[0]['n']} other questions: {chosen}. " if tried and keys else ""
    return f"{how}This is one pair of models and one task; it says nothing about others."


def _difference(paired: Paired) -> str:
    return f"{points(paired['difference'])} points [{points(paired['low'])} to {points(paired['high'])}]"


def _share(line: Line) -> str:
    return f"{_percent(line)} [{line['low']:.1%} to {line['high']:.1%}]"


def _percent(line: Line) -> str:
    return f"{line['accuracy']:.1%}"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return _signed(100 * share, "+.1f")


def _signed(value: float, form: str) -> str:
    """A number with a true minus sign."""
    return format(value, form).replace("-", "\u2212")


def p_value(p: float) -> str:
    """A p value as people write it."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def nats(kl: float) -> str:
    """A divergence, which is never below 0."""
    return "<0.001" if 0 < kl < 0.001 else f"{kl:.3g}"


def _listed(words: list[str]) -> str:
    """Words with an "and" before the last."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
