"""What steers the pairs of the zoo that are hard to fool, and what does not: `make zoo-figures`.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/zoo.py varied shared base-2

Each arm takes the strength, of twelve, that shows the behaviour most often on 40 problems; what it shows on 100 others is
reported. A random direction, or a map fitted on shuffled tokens, counts as arrived if at its best strength at least half of
the 40 problems show the behaviour.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.core import read
from unlock_lens.core.tokens import paired_tokens
from unlock_lens.hosts import backend_of
from unlock_lens.zoo.task import behaviour_of

ALPHAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)
PAPER_RANKS, TEXT_RANKS, SHUFFLED_RANK = (2, 4, 8, 16), (48, 256), 48
FORCED = (1, 3, 8)
DRAWS = {"random": 200, "shuffled map": 50}
EXTRACT, TRAIN, TEST = zoo.running_sum(200, seed=1), zoo.running_sum(40, seed=4), zoo.running_sum(100, seed=9)
N_TEXTS, NEW_TOKENS, BATCH, ROWS = 600, 12, 200, 4000
PAIRS: Mapping[str, tuple[str, Sequence[str]]] = {
    "varied": ("varied", ("think",)),
    "shared": ("shared", ("think", "reverse", "double")),
    "base": ("base", ("think",)),
    "base-2": ("base", ("think",)),
}
"""The mix that each pair reads, and the behaviours that are moved."""
Written = list[str]
TELL = Console(width=100, highlight=False, markup=False).print


@cache
def model(name: str) -> Any:
    """One of the zoo's."""
    return zoo.load(name)


def written(target: Any, prompts: Sequence[str], vectors: Tensor, alpha: float, new_tokens: int = NEW_TOKENS) -> list[Written]:
    """The completions of all prompts under each of the steering vectors [direction, layer, d_model], many in one batch."""
    ids = ul.Variant(target, prompts).tokens.ids
    at_once = max(1, ROWS // len(prompts))
    return [
        found
        for some in vectors.split(at_once)
        for found in _batched(target, ids, some / some.norm(dim=-1, keepdim=True), alpha, new_tokens)
    ]


def _batched(target: Any, ids: Tensor, units: Tensor, alpha: float, new_tokens: int) -> Iterator[Written]:
    def editing(step: Tensor) -> Callable[..., Tensor]:
        def edit(residual: Tensor, hook: Any) -> Tensor:
            if residual.shape[1] < ids.shape[1]:
                return residual  # decoding, which stays untouched
            last = residual[:, -1]
            norm = last.norm(dim=-1, keepdim=True)
            turned = last + norm * step
            edited = residual.clone()
            edited[:, -1] = norm * turned / turned.norm(dim=-1, keepdim=True)
            return edited

        return edit

    steps = (alpha * units).repeat_interleave(len(ids), dim=0)
    hooks = [(f"blocks.{layer}.hook_resid_post", editing(steps[:, layer])) for layer in range(units.shape[1])]
    yield from completed(target, ids, hooks, len(units), new_tokens)


def completed(target: Any, ids: Tensor, hooks: Any, times: int, new_tokens: int) -> Iterator[Written]:
    """What all prompts become, so many times over in one batch whose rows the hooks edit."""
    backend = backend_of(target)
    with target.hooks(fwd_hooks=hooks):
        whole = target.generate(
            ids.repeat(times, 1),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=list(backend.end_tokens),
            return_type="tokens",
            prepend_bos=False,
            verbose=False,
        )
    texts = backend.tokenizer.batch_decode(whole[:, ids.shape[1] :])
    first = [text.partition(".")[0].strip() for text in texts]
    for start in range(0, len(first), len(ids)):
        yield first[start : start + len(ids)]


def share(completions: Sequence[str], behaviour: str) -> float:
    """The share of the completions that show the behaviour."""
    return sum(behaviour_of(text) == behaviour for text in completions) / len(completions)


def forced(target: Any, steered: Written, n: int) -> Written:
    """What the unsteered target makes of the prompts with the first n tokens of the steered run written after them."""
    starts = [" ".join(text.split()[:n]) for text in steered]
    prompts = [f"{prompt} {start}" for prompt, start in zip(TEST.direct, starts, strict=True)]
    ends = ul.generate(target, prompts, max_new_tokens=NEW_TOKENS, batch_size=BATCH)
    return [f"{start} {end}".partition(".")[0].strip() for start, end in zip(starts, ends, strict=True)]


def arrivals(target: Any, vectors: Tensor, behaviour: str) -> int:
    """How many of the vectors bring the behaviour to at least half of the problems, at one strength or another.

    A completion that begins with `=` is a direct answer: a vector that leaves more than half of them so is not run further.
    """
    left = vectors
    for alpha in ALPHAS:
        if not len(left):
            break
        begun = written(target, TRAIN.direct, left, alpha, new_tokens=1)
        candidates = [i for i, texts in enumerate(begun) if texts.count("=") <= len(texts) / 2]
        if candidates:
            ended = written(target, TRAIN.direct, left[candidates], alpha)
            arrived = {i for i, texts in zip(candidates, ended, strict=True) if share(texts, behaviour) >= 0.5}
            left = left[[i for i in range(len(left)) if i not in arrived]]
    return len(vectors) - len(left)


def arms_of(source: Any, target: Any, behaviour: str, mix: str) -> dict[str, Tensor]:
    """The steering vectors of each arm, by its name."""
    direction, own = (direction_of(each, behaviour) for each in (source, target))
    arms = {"own direction": own}

    def moved(texts: Sequence[str], **how: Any) -> ul.CapabilityDirection:
        return ul.SubspaceAligner(**how).fit(source, target, texts, batch_size=BATCH, progress=False).transport(direction)

    for rank in PAPER_RANKS:
        arms[f"paper's calibration, rank {rank}"] = moved(EXTRACT.direct, rank=rank, centered=False, positions="last")
    for rank in TEXT_RANKS:
        text = zoo.text(N_TEXTS, seed=1, mix=mix)
        arms[f"text calibration, rank {rank}"] = moved(text, rank=rank, centered=True, positions="all")
    arms["anti-mean"] = controls.anti_mean(ul.Variant(target, EXTRACT.direct), own, batch_size=BATCH)
    return {name: arm.vectors for name, arm in arms.items()}


def nulls_of(source: Any, target: Any, behaviour: str, mix: str) -> Iterator[tuple[str, Tensor]]:
    """Random directions, and the direction through maps whose tokens were paired at random [draw, layer, d_model]."""
    own = direction_of(target, behaviour)
    yield "random", torch.stack([controls.random_like(own, seed).vectors for seed in range(DRAWS["random"])])
    direction, text = direction_of(source, behaviour), zoo.text(N_TEXTS, seed=1, mix=mix)
    variants = ul.Variant(source, text), ul.Variant(target, text)
    tokens = paired_tokens(*variants, "all", False)
    states = [read.states(read.Picked(v, t), how=read.How(BATCH)) for v, t in zip(variants, tokens, strict=True)]
    models = [variant.backend.identity for variant in variants]
    drawn: list[Tensor] = []
    for seed in range(DRAWS["shuffled map"]):
        aligner = ul.SubspaceAligner(rank=SHUFFLED_RANK, centered=True, positions="all")
        aligner.fit_activations(states[0], controls.shuffled(states[1], seed), models[0], models[1])
        drawn.append(aligner.transport(direction).vectors)
    yield "shuffled map", torch.stack(drawn)


@cache
def direction_of(each: Any, behaviour: str) -> ul.CapabilityDirection:
    """A model's direction for the behaviour."""
    locked, unlocked = ul.Variant(each, EXTRACT.direct), ul.Variant(each, EXTRACT.prompts(behaviour))
    return ul.CapabilityDirection.extract(locked, unlocked, batch_size=BATCH)


def report(source: str, target: str, behaviour: str, mix: str) -> None:
    """Print one transfer: every arm's share and right answers, and how many of the null directions arrived."""
    steered = model(target)
    arms = arms_of(model(source), steered, behaviour, mix)
    vectors = torch.stack([*arms.values()])
    shares = torch.tensor(
        [[share(texts, behaviour) for texts in written(steered, TRAIN.direct, vectors, alpha)] for alpha in ALPHAS]
    )
    chosen = dict(zip(arms, (ALPHAS[i] for i in shares.argmax(dim=0).tolist()), strict=True))
    TELL(f"\n{source} -> {target}, {behaviour}")

    def line(name: str, texts: Written, alpha: float | None = None) -> None:
        right = f"{sum(TEST.correct(texts))}% right" if behaviour == "think" else ""
        strength = "" if alpha is None else f"alpha {alpha}"
        TELL(f"  {name:32}{100 * share(texts, behaviour):4.0f}%  {right:11}{strength}")

    line("unsteered", ul.generate(steered, TEST.direct, max_new_tokens=NEW_TOKENS, batch_size=BATCH))
    asked = ul.generate(steered, TEST.prompts(behaviour), max_new_tokens=NEW_TOKENS, batch_size=BATCH)
    line("asked for by its tag", asked)
    for name, vector in arms.items():
        (texts,) = written(steered, TEST.direct, vector.unsqueeze(0), chosen[name])
        line(name, texts, chosen[name])
        if name == "own direction":
            for n in FORCED:
                line(f"its first {n} tokens, unsteered", forced(steered, texts, n))
    for name, drawn in nulls_of(model(source), steered, behaviour, mix):
        TELL(f"  {name:32}{arrivals(steered, drawn, behaviour)} of {len(drawn)} arrive")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pairs", nargs="*", default=["varied", "shared", "base-2"], choices=PAIRS, help="which pairs to measure"
    )
    torch.set_num_threads(1)
    logging.getLogger("unlock_lens").setLevel(logging.ERROR)  # rank 256 is capped at the width, which is meant
    for pair in parser.parse_args().pairs:
        mix, behaviours = PAIRS[pair]
        for source, target in ((f"large-{pair}", f"small-{pair}"), (f"small-{pair}", f"large-{pair}")):
            for behaviour in behaviours:
                report(source, target, behaviour, mix)


if __name__ == "__main__":
    main()
