"""Gates on the zoo: do readers survive the way into another architecture, what does a gate save, and what does it cost?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/gates.py readers prices decoding

Prints the tables of docs/gates.md. Readers and maps are fitted on other problems than those that are reported.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import permutations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from speed_models import SHAPE, make_folder, random_direction
from speed_models import prompts as random_prompts

import unlock_lens as ul
from unlock_lens import distributions, zoo
from unlock_lens.core import read
from unlock_lens.hosts import open_model
from unlock_lens.method.gate import auroc
from unlock_lens.zoo.task import behaviour_of

ARCHITECTURES = {"Llama": "small-base", "GPT-2": "small-gpt2", "Mamba": "small-mamba"}
BEHAVIOURS = ("think", "reverse", "double")
ASKED = ("direct", *BEHAVIOURS)
FIT, CHOOSE, TEST = zoo.running_sum(100, seed=1), zoo.running_sum(40, seed=4), zoo.running_sum(100, seed=9)
CALIBRATION, OTHER, DRAWN = (zoo.text(n, seed=seed) for n, seed in ((600, 1), (200, 2), (600, 3)))
ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
TAGS = ("think", "rev", "double")
BATCH = 200
Rows = Iterator[Sequence[str]]


@cache
def model(name: str) -> Any:
    """One of the zoo's."""
    return zoo.load(name)


def variant(name: str, prompts: Sequence[str]) -> ul.Variant:
    """Of one of the zoo's models."""
    return ul.Variant(model(name), prompts)


def prompts(task: Any, behaviours: Sequence[str]) -> list[str]:
    """Those that ask for any of these."""
    return [prompt for behaviour in behaviours for prompt in task.prompts(behaviour)]


def unrelated(texts: Sequence[str]) -> list[str]:
    """Those that ask for something and get it: half of a text without a tag may be the very prompt that is to be steered."""
    return [text for text in texts if any(tag in text for tag in TAGS)]


def halves(texts: Sequence[str]) -> list[str]:
    """What `distributions.price` steers of such texts."""
    return [" ".join(text.split()[: len(text.split()) // 2]) for text in unrelated(texts)]


def rest(behaviour: str) -> list[str]:
    """The other prompts."""
    return [other for other in ASKED if other != behaviour]


@cache
def aligner(source: str, target: str, method: Any = "unlock") -> ul.SubspaceAligner:
    """Fitted on ordinary text and prompts of every kind."""
    texts = CALIBRATION + prompts(FIT, ASKED)
    return ul.SubspaceAligner(method=method).fit(model(source), model(target), texts, batch_size=BATCH, progress=False)


def carried(gate: ul.Gate, source: str, target: str) -> dict[str, ul.Gate]:
    """By the pseudo-inverse of the map forth, and back through the map that was fitted the other way."""
    return {"transport": aligner(source, target).transport(gate), "pull_back": aligner(target, source, "ridge").pull_back(gate)}


def judged(gate: ul.Gate, name: str, act: Sequence[str], other: Sequence[str]) -> str:
    """AUROC, and hits and false alarms at the gate's threshold, on prompts of the report."""
    found = [gate.readings(variant(name, of), batch_size=BATCH, progress=False) for of in (act, other)]
    hits, alarms = (float((of > gate.threshold).double().mean()) for of in found)
    return f"{auroc(*found):.3f}; {hits:.0%}, {alarms:.0%}"


def readers() -> Rows:
    """Table 1."""
    yield (
        "source to target", "reads", "layer", "own reader", "transport", "pull_back", "pull_back, worst layer",
        "difference of means, worst layer of the source",
    )  # fmt: skip
    for (kind, source), (other_kind, target) in permutations(ARCHITECTURES.items(), 2):
        forth, back = aligner(source, target), aligner(target, source, "ridge")
        both = sorted(set(forth.layer_map.values()) & set(back.layer_map))
        for behaviour in BEHAVIOURS:
            act, other = FIT.prompts(behaviour), prompts(FIT, rest(behaviour))
            test = TEST.prompts(behaviour), prompts(TEST, rest(behaviour))

            def fitted(name: str, layers: Any, act: list[str] = act, other: list[str] = other) -> ul.Gate:
                how: dict[str, Any] = {"batch_size": BATCH, "progress": False}
                return ul.Gate.fit(variant(name, act), variant(name, other), layers=layers, **how)

            gate = fitted(source, both)
            moved = carried(gate, source, target)
            own = fitted(target, None)
            each = [back.pull_back(fitted(source, [layer])) for layer in sorted(back.layer_map)]
            areas = [judged(one, target, *test).partition(";")[0] for one in each]
            told = [judged(one, target, *test) for one in (own, *moved.values())]
            plain = f"{worst_of_means(source, behaviour):.3f}"
            yield f"{kind} to {other_kind}", behaviour, f"{gate.layer} to {own.layer}", *told, min(areas), plain


@cache
def worst_of_means(name: str, behaviour: str) -> float:
    """The lowest AUROC, over layers, of the difference of mean states as a reader in its own model."""
    asked = [(task.prompts(behaviour), prompts(task, rest(behaviour))) for task in (FIT, TEST)]
    (act, other), test = ([read.at_position(variant(name, of), batch_size=BATCH).double() for of in pair] for pair in asked)
    readers_of = act.mean(dim=1) - other.mean(dim=1)
    read_there = [torch.einsum("lnd,ld->ln", states, readers_of) for states in test]
    return min(auroc(*of_layer) for of_layer in zip(*read_there, strict=True))


def share(target: str, task: Any, behaviour: str, steer: ul.SteeringHook | None) -> float:
    """Of completions of plain prompts that show the behaviour."""
    written = ul.generate(model(target), task.direct, steer, max_new_tokens=12, batch_size=BATCH, progress=False)
    return sum(behaviour_of(text) == behaviour for text in written) / len(written)


def price(target: str, steer: ul.SteeringHook, texts: Sequence[str], prompt_end: str | None) -> float:
    """Mean KL in nats a token."""
    return distributions.price(model(target), texts, steer, batch_size=BATCH, prompt_end=prompt_end).kl


def prices() -> Rows:
    """Table 2."""
    yield (
        "source to target", "brings", "alpha", "shown by: no gate", "fitted gate", "carried gate",
        "KL on text, cut in half: no gate", "fitted", "carried", "KL on requests: no gate", "fitted", "carried",
    )  # fmt: skip
    for (kind, source), (other_kind, target) in permutations(ARCHITECTURES.items(), 2):
        gates = {name: plain_gate(name) for name in (source, target)}
        gate = {"fitted": gates[target], "carried": aligner(target, source, "ridge").pull_back(gates[source])}
        for behaviour in BEHAVIOURS:
            pair = variant(source, FIT.direct), variant(source, FIT.prompts(behaviour))
            moved = aligner(source, target).transport(ul.CapabilityDirection.extract(*pair, batch_size=BATCH, progress=False))
            alpha = max(ALPHAS, key=lambda alpha, b=behaviour, d=moved: share(target, CHOOSE, b, ul.SteeringHook(d, alpha)))
            hooks = [ul.SteeringHook(moved, alpha)]
            for each in gate.values():
                layers = [layer for layer in moved.layers if layer >= each.layer]
                hooks.append(ul.SteeringHook(moved, alpha, layers=layers, gate=each))
            found = [f"{share(target, TEST, behaviour, hook):.0%}" for hook in hooks]
            for prompt_end in (None, ":"):
                found += [f"{price(target, hook, unrelated(DRAWN), prompt_end):.4f}" for hook in hooks]
            yield f"{kind} to {other_kind}", behaviour, f"{alpha:g}", *found


@cache
def plain_gate(name: str) -> ul.Gate:
    """Lets plain prompts through, and neither other requests nor the middle of a text."""
    closed = prompts(FIT, BEHAVIOURS) + halves(OTHER)
    return ul.Gate.fit(variant(name, FIT.direct), variant(name, closed), batch_size=BATCH, progress=False)


def decoding() -> Rows:
    """Table 3: a random Llama of 12 layers whose completions do not end; CPU seconds, the least of six runs that take turns."""
    yield "host", "new tokens", "unsteered", "steered", "gated", "gated / steered"
    with TemporaryDirectory() as folder:
        make_folder(Path(folder), SHAPE, vocabulary=512)
        asked = random_prompts(8, 20, 40, vocabulary=512)
        for host in ("transformer_lens", "nnsight"):
            target = open_model(folder, host)
            direction = random_direction()
            reader = ul.Gate(direction.at_layers([0]), 0.0)
            hooks = [None, ul.SteeringHook(direction, 0.1), ul.SteeringHook(direction, 0.1, gate=reader)]
            for new_tokens in (1, 64):
                best = [float("inf")] * len(hooks)
                for _, (i, hook) in product(range(6), enumerate(hooks)):
                    begun = time.process_time()
                    ul.generate(target, asked, hook, max_new_tokens=new_tokens, progress=False)
                    best[i] = min(best[i], time.process_time() - begun)
                seconds = [f"{one:.3f} s" for one in best]
                yield host, str(new_tokens), *seconds, f"{best[2] / best[1]:.2f}"


def print_tables(tables: Mapping[str, Callable[[], Rows]], told: str | None) -> None:
    """Command line: those that are asked for, or all, in Markdown."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=list(tables), choices=tables, help="which to print")
    torch.set_num_threads(1)
    logging.getLogger("unlock_lens").setLevel(logging.ERROR)  # rank 256 is capped at the width, which is meant
    for name in parser.parse_args().tables:
        rows = tables[name]()
        head = next(rows)
        print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")  # noqa: T201
        for row in rows:
            print(f"| {' | '.join(row)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    print_tables({"readers": readers, "prices": prices, "decoding": decoding}, __doc__)
