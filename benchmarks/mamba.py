"""Between a transformer and a state-space model, both ways, beside every control: the table in docs/aligners.md.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/mamba.py

The direction of each behaviour is transported through ordinary text (rank 48, centered, all tokens) and through the paper's
calibration (last token of plain prompts, uncentered, rank 16). Every arm takes the strength, of twelve, that shows the
behaviour most often on 40 problems; what it shows on 100 others is reported. The edit is made at the last prompt token, at all
of the prompt, and at all tokens.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from zoo import completed

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.zoo.task import behaviour_of

ALPHAS = (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0)
POSITIONS = ("last_prompt", "prompt", "all")
BEHAVIOURS = ("think", "reverse", "double", "post-training")
PARTNERS = ("small-base", "large-base", "small-gpt2")
POST = {"small-base": "small-post", "large-base": "large-post", "small-mamba": "small-mamba-post"}
EXTRACT, TRAIN, TEST = zoo.running_sum(200, seed=1), zoo.running_sum(40, seed=4), zoo.running_sum(100, seed=9)
TEXT = zoo.text(600, seed=1)
NEW_TOKENS, BATCH = 12, 200
TELL = Console(width=160, highlight=False, markup=False).print


@cache
def model(name: str) -> Any:
    """One of the zoo's."""
    return zoo.load(name)


@cache
def direction_of(name: str, behaviour: str) -> ul.CapabilityDirection:
    """A model's direction for a behaviour: of its prompts with a tag against plain ones, or of its post-trained sibling."""
    locked = ul.Variant(model(name), EXTRACT.direct)
    if behaviour == "post-training":
        unlocked = ul.Variant(model(POST[name]), EXTRACT.direct)
    else:
        unlocked = ul.Variant(model(name), EXTRACT.prompts(behaviour))
    return ul.CapabilityDirection.extract(locked, unlocked, batch_size=BATCH, progress=False)


@cache
def aligner_of(source: str, target: str, paper: bool) -> ul.SubspaceAligner:
    """Through ordinary text, or the paper's calibration."""
    how: dict[str, Any] = {"rank": 16, "centered": False, "positions": "last"} if paper else {"rank": 48, "positions": "all"}
    texts = EXTRACT.direct if paper else TEXT
    return ul.SubspaceAligner(**how).fit(model(source), model(target), texts, batch_size=BATCH, progress=False)


def arms_of(source: str, target: str, behaviour: str) -> dict[str, ul.CapabilityDirection]:
    """The steering directions of each arm, by its name."""
    direction = direction_of(source, behaviour)
    arms = {"text": aligner_of(source, target, paper=False).transport(direction)}
    arms["paper's"] = aligner_of(source, target, paper=True).transport(direction)
    like = arms["own"] = direction_of(target, behaviour)
    arms["random"] = controls.random_like(like, 0)
    arms["anti-mean"] = controls.anti_mean(ul.Variant(model(target), EXTRACT.direct), like, batch_size=BATCH)
    return arms


def written(target: str, prompts: Sequence[str], steps: Tensor, where: str) -> list[list[str]]:
    """The completions of all prompts under each step [step, layer, d_model], alpha times a unit vector, in one batch."""
    ids = ul.Variant(model(target), prompts).tokens.ids
    of_rows = steps.repeat_interleave(len(ids), dim=0)

    def editing(of_layer: Tensor) -> Callable[..., Tensor]:
        def edit(residual: Tensor, hook: Any) -> Tensor:
            if residual.shape[1] < ids.shape[1] and where != "all":
                return residual  # decoding, which stays untouched
            begin = residual.shape[1] - 1 if where == "last_prompt" else 0
            meant = residual[:, begin:]
            norm = meant.norm(dim=-1, keepdim=True)
            turned = meant + norm * of_layer[:, None]
            return torch.cat([residual[:, :begin], norm * turned / turned.norm(dim=-1, keepdim=True)], dim=1)

        return edit

    hooks = [(f"blocks.{layer}.hook_resid_post", editing(of_rows[:, layer])) for layer in range(steps.shape[1])]
    return list(completed(model(target), ids, hooks, len(steps), NEW_TOKENS))


def share(texts: Sequence[str], behaviour: str) -> float:
    """The share of the completions that show the behaviour; post-training makes the model think."""
    wanted = "think" if behaviour == "post-training" else behaviour
    return sum(behaviour_of(text) == wanted for text in texts) / len(texts)


def cells(source: str, target: str, behaviour: str) -> Iterator[tuple[str, list[str]]]:
    """For each place of the edit, the share that each arm shows at its best strength, and that strength."""
    arms = arms_of(source, target, behaviour)
    units = torch.stack([arm.vectors / arm.vectors.norm(dim=-1, keepdim=True) for arm in arms.values()])
    for where in POSITIONS:
        tuned = written(target, TRAIN.direct, torch.cat([alpha * units for alpha in ALPHAS]), where)
        shares = torch.tensor([share(texts, behaviour) for texts in tuned]).view(len(ALPHAS), len(arms))
        best = [ALPHAS[i] for i in shares.argmax(dim=0).tolist()]
        found = written(target, TEST.direct, torch.tensor(best)[:, None, None] * units, where)
        yield (
            where,
            [
                f"{share(texts, behaviour):.0%} ({alpha})" if share(texts, behaviour) else "0%"
                for texts, alpha in zip(found, best, strict=True)
            ],
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partners", nargs="*", default=PARTNERS, choices=PARTNERS)
    parser.add_argument("--behaviours", nargs="*", default=BEHAVIOURS, choices=BEHAVIOURS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("unlock_lens").setLevel(logging.ERROR)  # ranks that texts do not span are capped, which is meant
    TELL("| from and to | behaviour | edit at | text | paper's | own | random | anti-mean |\n|---|---|---|---|---|---|---|---|")
    for partner in asked.partners:
        for source, target in ((partner, "small-mamba"), ("small-mamba", partner)):
            for behaviour in asked.behaviours:
                if behaviour != "post-training" or {source, target} <= POST.keys():
                    for where, shares in cells(source, target, behaviour):
                        TELL("|", " | ".join([f"{source} -> {target}", behaviour, where, *shares]), "|")


if __name__ == "__main__":
    main()
