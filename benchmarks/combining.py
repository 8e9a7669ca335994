"""Several sources for one capability, and several capabilities at once, on the zoo.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/combining.py sources paths capabilities

Prints the tables of docs/combining.md. Strengths are chosen on other problems than those that are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
from gates import ALPHAS, BATCH, CHOOSE, FIT, TEST, Rows, model, plain_gate, print_tables, prompts, share, variant
from scipy.stats import rankdata

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.zoo.task import behaviour_of

MODELS = ("large-base", "small-base", "small-gpt2", "small-mamba")
BEHAVIOURS = ("think", "reverse", "double")
CALIBRATIONS = {"text and prompts": (600, 100), "30 texts": (30, 0), "8 texts": (8, 0)}
"""How many texts, and problems whose prompts of every kind are added."""


@cache
def aligner(source: str, target: str, calibration: str) -> ul.SubspaceAligner:
    """Of the default settings."""
    n_texts, n_problems = CALIBRATIONS[calibration]
    texts = zoo.text(n_texts, seed=1) + (prompts(FIT, ("direct", *BEHAVIOURS)) if n_problems else [])
    return ul.SubspaceAligner().fit(model(source), model(target), texts, batch_size=BATCH, progress=False)


@cache
def direction(name: str, behaviour: str) -> ul.CapabilityDirection:
    """A model's own."""
    pair = variant(name, FIT.direct), variant(name, FIT.prompts(behaviour))
    return ul.CapabilityDirection.extract(*pair, batch_size=BATCH, progress=False)


def arrival(target: str, behaviour: str, moved: ul.CapabilityDirection) -> float:
    """Share of new plain prompts that show the behaviour, at the strength that shows it most often on others."""
    hooks = [ul.SteeringHook(moved, alpha) for alpha in ALPHAS]
    best = max(hooks, key=lambda hook: share(target, CHOOSE, behaviour, hook))
    return share(target, TEST, behaviour, best)


def sources() -> Rows:
    """Table 1: each of three sources alone, and their consensus."""
    yield (
        "calibrated on",
        "target",
        "behaviour",
        "shown by each source",
        "by the consensus",
        "cosine with own: each",
        "consensus",
    )
    for calibration in CALIBRATIONS:
        for target in MODELS:
            for behaviour in BEHAVIOURS:
                others = [name for name in MODELS if name != target]
                moved = [aligner(s, target, calibration).transport(direction(s, behaviour)) for s in others]
                layers = sorted(set.intersection(*(set(one.layers) for one in moved)))
                moved = [one.at_layers(layers) for one in moved]
                own = direction(target, behaviour).at_layers(layers)
                agreed = ul.consensus(moved)
                shares = [f"{arrival(target, behaviour, one):.0%}" for one in moved]
                cosines = [f"{float(one.cosine(own).mean()):.2f}" for one in (*moved, agreed)]
                told = ", ".join(shares), f"{arrival(target, behaviour, agreed):.0%}", ", ".join(cosines[:-1]), cosines[-1]
                yield calibration, target, behaviour, *told


def paths() -> Rows:
    """Table 2: by way of a third model against the straight way, all ordered triples of models and all behaviours."""
    yield (
        "calibrated on",
        "paths",
        "cosine of both ways",
        "cosine with own, straight",
        "by way of a third",
        "rho of first and last",
    )
    for calibration in CALIBRATIONS:
        found: list[tuple[float, ...]] = []
        for (a, b, c), behaviour in product(permutations(MODELS, 3), BEHAVIOURS):
            ab, bc, ac = (aligner(*pair, calibration) for pair in ((a, b), (b, c), (a, c)))
            moved, own = direction(a, behaviour), direction(c, behaviour)
            both = ul.path_cosine(moved, [ab, bc], ac)
            ways = [
                way.at_layers([*both]).cosine(own.at_layers([*both])).mean()
                for way in (ac.transport(moved), bc.transport(ab.transport(moved)))
            ]
            found.append((sum(both.values()) / len(both), *map(float, ways)))
        cosines, direct, by_way = zip(*found, strict=True)
        means = (f"{sum(each) / len(each):.2f}" for each in (cosines, direct, by_way))
        yield calibration, str(len(found)), *means, f"{np.corrcoef(rankdata(cosines), rankdata(by_way))[0, 1]:.2f}"


WAYS: Mapping[str, Callable[[ul.CapabilityDirection, ul.CapabilityDirection], list[tuple[ul.CapabilityDirection, Any]]]] = {
    "add": lambda a, b: [(a.unit() + b.unit(), None)],
    "orthogonalize": lambda a, b: [(a.unit() + b.without(a).unit(), None)],
    "difference": lambda a, b: [(a.unit() - b.unit(), None)],
    "stack": lambda a, b: [(a, None), (b, None)],
    "stack, odd and even layers": lambda a, b: [(a, a.layers[1::2]), (b, b.layers[::2])],
}


def shows(target: str, asked: Sequence[str], hooks: Sequence[ul.SteeringHook]) -> dict[str, float]:
    """Share of each behaviour."""
    written = ul.generate(model(target), asked, list(hooks), max_new_tokens=12, batch_size=BATCH, progress=False)
    found = [behaviour_of(text) for text in written]
    return {behaviour: found.count(behaviour) / len(found) for behaviour in zoo.running_sum(1).behaviour_names}


def capabilities() -> Rows:
    """Table 3: two behaviours that exclude each other in one answer, carried from large-base to small-base and back."""
    yield "transfer", "a and b", "way", "alpha", "shows a", "shows b", "other"
    for source, target in (("large-base", "small-base"), ("small-base", "large-base")):
        for a, b in combinations(BEHAVIOURS, 2):
            moved = [
                aligner(source, target, "text and prompts").transport(direction(source, behaviour)) for behaviour in (a, b)
            ]

            def hooks_of(way: str, alpha: float, moved: Any = moved) -> list[ul.SteeringHook]:
                return [ul.SteeringHook(one, alpha, layers=layers) for one, layers in WAYS[way](*moved)]

            for way in WAYS:
                best = max(ALPHAS, key=lambda alpha, w=way, f=hooks_of, ab=(a, b): sum_of(target, f(w, alpha), ab))
                found = shows(target, TEST.direct, hooks_of(way, best))
                rest = 1 - found[a] - found[b]
                shown = (f"{part:.0%}" for part in (found[a], found[b], abs(rest)))
                yield f"{source} to {target}", f"{a} and {b}", way, f"{best:g}", *shown
            yield f"{source} to {target}", f"{a} and {b}", "two gates", *gated(source, target, a, b, moved[0])


def sum_of(target: str, hooks: Sequence[ul.SteeringHook], wanted: Sequence[str]) -> float:
    """Share of the problems that choose a strength that shows either behaviour."""
    found = shows(target, CHOOSE.direct, hooks)
    return sum(found[behaviour] for behaviour in wanted)


def gated(source: str, target: str, a: str, b: str, to_a: ul.CapabilityDirection) -> tuple[str, ...]:
    """a where a prompt is plain, b where it asks for a third behaviour: two gated hooks over one mixed batch."""
    third = next(behaviour for behaviour in BEHAVIOURS if behaviour not in (a, b))
    how: dict[str, Any] = {"batch_size": BATCH, "progress": False}
    from_third = ul.CapabilityDirection.extract(variant(source, FIT.prompts(third)), variant(source, FIT.prompts(b)), **how)
    moved = to_a, aligner(source, target, "text and prompts").transport(from_third)
    rest = prompts(FIT, [behaviour for behaviour in ("direct", *BEHAVIOURS) if behaviour != third])
    gates = plain_gate(target), ul.Gate.fit(variant(target, FIT.prompts(third)), variant(target, rest), **how)

    def hooks(alphas: Sequence[float]) -> list[ul.SteeringHook]:
        every = zip(moved, alphas, gates, strict=True)
        return [ul.SteeringHook(v, s, layers=[at for at in v.layers if at >= g.layer], gate=g) for v, s, g in every]

    asked = "direct", third
    chosen = [
        max(ALPHAS, key=lambda alpha, i=i: shows(target, CHOOSE.prompts(asked[i]), [hooks([alpha] * 2)[i]])[(a, b)[i]])
        for i in range(2)
    ]
    mixed = TEST.prompts(asked[0]) + TEST.prompts(asked[1])
    written = ul.generate(model(target), mixed, hooks(chosen), max_new_tokens=12, **how)
    half = len(mixed) // 2
    found = [
        sum(behaviour_of(text) == wanted for text in of) / half for of, wanted in ((written[:half], a), (written[half:], b))
    ]
    strengths = ", ".join(f"{alpha:g}" for alpha in chosen)
    return strengths, f"{found[0]:.0%} of plain prompts", f"{found[1]:.0%} of those that ask for {third}", ""


if __name__ == "__main__":
    print_tables({"sources": sources, "paths": paths, "capabilities": capabilities}, __doc__)
