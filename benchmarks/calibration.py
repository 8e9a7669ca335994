"""What calibration texts must hold for a capability to arrive, what arrives without it, and what needs no source at all.

Think, reverse and double move both ways between the sizes of the base family (models of two training seeds, 12 transfers) and
of the varied family (6). Every row chooses its strength among the same five on 40 problems and reports 100 others; a transfer
has arrived when at least 90% of the completions show the wanted behaviour. "noise" counts, among as many Gaussian source
directions moved by the same map, those that arrive.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py --markdown
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from aligner_bench import ARRIVED, BATCH, Bench, cosine, model
from aligner_cases import CAPABILITIES, Transfer
from aligner_tables import Table
from rich.console import Console
from torch import Tensor
from tqdm.auto import tqdm

import unlock_lens as ul
from unlock_lens import controls, zoo
from unlock_lens.core import read
from unlock_lens.core.differences import mean_state
from unlock_lens.evidence.evaluation import Outcome
from unlock_lens.zoo.family import OPENINGS, TAGS, VOCABULARY

PAIRS = [
    (f"{a}-{mix}", f"{b}-{mix}") for mix in ("base", "base-2", "varied") for a, b in (("large", "small"), ("small", "large"))
]
NOISE = 2
"""Gaussian sources for each transfer and row."""
LAST_ALPHAS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Strengths of an edit of the last layer alone, which has to outweigh the stream that is there."""
Told = dict[str, Any]


@dataclass(frozen=True)
class Read:
    """What a map may be calibrated on, for one transfer."""

    text: list[str]
    locked: list[str]
    unlocked: list[str]
    others: list[str]
    """Prompts that ask for the other capabilities."""
    capability: str

    def asking(self, text: str) -> bool:
        """Whether a text's prompt asks for the capability that is moved."""
        return TAGS[self.capability] in text.split()

    def showing(self, text: str) -> bool:
        """Whether a text's answer shows it."""
        return text.split(" : ")[1].startswith(OPENINGS[self.capability])

    @property
    def pairs(self) -> list[str]:
        """Locked and unlocked prompts in turn."""
        return [prompt for pair in zip(self.locked, self.unlocked, strict=True) for prompt in pair]

    @property
    def unseen(self) -> list[str]:
        """Text that neither asks for the capability nor shows it."""
        return [text for text in self.text if not (self.asking(text) or self.showing(text))]


@dataclass(frozen=True)
class Row:
    """One kind of calibration: which texts, and what else the aligner is told."""

    name: str
    texts: Callable[[Read], list[str]]
    options: dict[str, Any] = field(default_factory=dict)
    every_rank: bool = False
    """Whether the rank, too, is chosen among the paper's."""


def _plain(text: str) -> bool:
    return not any(tag in text.split() for tag in TAGS.values())


def _asked(text: str) -> str:
    return text.split(" : ")[0] + " :"


def _shuffled_words(texts: Sequence[str]) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.sample(words := text.split(), len(words))) for text in texts]


def _random_words(texts: Sequence[str]) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(VOCABULARY[1:], k=len(text.split()))) for text in texts]


SEEN = [
    Row("text and both sides' prompts (a sweep's default)", lambda read: read.text + read.pairs),
    Row("both sides' prompts alone", lambda read: read.pairs),
    *(Row(f"both sides' prompts, {n} of them", lambda read, n=n: read.pairs[:n]) for n in (6, 30, 100)),
    Row("asked, not shown: prompts, and text with direct answers",
        lambda read: read.pairs + [text for text in read.text if text.split(" : ")[1].startswith("=")]),
    Row("one unlocked prompt in ten, last tokens, rank 2",
        lambda read: read.locked[:180] + read.unlocked[180:], {"rank": 2, "positions": "last"}),
    Row("text alone", lambda read: read.text),
    *(Row(f"text alone, {n} of 600", lambda read, n=n: read.text[:n]) for n in (6, 30, 100)),
    Row("both sides' prompts, words shuffled in each", lambda read: _shuffled_words(read.pairs)),
    Row("random words", lambda read: _random_words(read.text)),
]  # fmt: skip
UNSEEN = [
    Row("shown, not asked: text with plain prompts alone", lambda read: [text for text in read.text if _plain(text)]),
    Row("shown, others asked", lambda read: [text for text in read.text if not read.asking(text)] + read.locked + read.others),
    Row("locked prompts, all tokens", lambda read: read.locked),
    Row("locked prompts, last token, uncentered, best of 4 ranks (the paper's)", lambda read: read.locked,
        {"rank": 64, "positions": "last", "centered": False}, every_rank=True),
    Row("neither asked nor shown", lambda read: read.unseen),
    *(
        Row(f"neither, but the others asked and shown: {name}", lambda read: read.unseen + read.locked + read.others, options)
        for name, options in (
            ("the default", {}), ("rank 8", {"rank": 8}), ("rank 16", {"rank": 16}), ("rank 32", {"rank": 32}),
            ("ridge", {"method": "ridge"}), ("ridge, penalty 0.1", {"method": "ridge", "ridge": 0.1}),
            ("Procrustes", {"method": "procrustes"}), ("cca, rank 16", {"method": "cca", "rank": 16}),
        )
    ),
]  # fmt: skip
PAPER_RANKS = (1, 4, 16, 64)


class Ablation:
    """Measures rows and arms without a source over all transfers."""

    def __init__(self, seed: int) -> None:
        self.bench = Bench(seed)
        self.transfers = [Transfer(*pair, capability) for pair in PAIRS for capability in CAPABILITIES]

    def measured(self, progress: bool = True) -> Iterator[Told]:
        """One line for each row and transfer."""
        rows = [(group, row) for group, of in (("seen", SEEN), ("unseen", UNSEEN)) for row in of]
        for transfer in tqdm(self.transfers, disable=not progress):
            material = self._read(transfer)
            for group, row in rows:
                yield {"group": group, "row": row.name, "mix": transfer.mix, **self._row(row, transfer, material)}
            named = "no text: through both unembeddings, last layer"
            yield {"group": "unseen", "row": named, "mix": transfer.mix, **self._through_heads(transfer)}
            for name, told in self._without_source(transfer, material):
                yield {"group": "no source", "row": name, "mix": transfer.mix, **told}

    def _read(self, transfer: Transfer) -> Read:
        extract, others = self.bench.tasks["extract"], [name for name in CAPABILITIES if name != transfer.capability]
        asked = [prompt for name in others for prompt in extract.prompts(name)]
        text = zoo.text(600, 100 * (self.bench.seed + 1) + 50, transfer.mix)
        return Read(text, extract.direct, extract.prompts(transfer.capability), asked, transfer.capability)

    def _row(self, row: Row, transfer: Transfer, material: Read) -> Told:
        source = self.bench.direction(transfer.source, transfer.capability)
        aligner = ul.SubspaceAligner(**row.options)
        models = model(transfer.source), model(transfer.target)
        fitted = aligner.fit(*models, row.texts(material), batch_size=BATCH, progress=False)
        ranks = [rank for rank in PAPER_RANKS if rank <= fitted.rank_] if row.every_rank else [fitted.rank_]
        tried = [self.bench.steered(fitted.at_rank(rank).transport(source), transfer) for rank in ranks]
        own = self.bench.direction(transfer.target, transfer.capability)
        noise = [fitted.transport(controls.random_like(source, seed)) for seed in range(NOISE)]
        return {
            **max(tried, key=lambda told: told["wanted"]),
            "cosine": cosine(fitted.transport(source), own),
            "noise": [self.bench.steered(direction, transfer)["wanted"] for direction in noise],
        }

    def _without_source(self, transfer: Transfer, material: Read) -> Iterator[tuple[str, Told]]:
        own = self.bench.direction(transfer.target, transfer.capability)
        yield "the target's own direction", self.bench.steered(own, transfer)
        yield (
            "its states before the opening token, less those before `=`, from the text",
            self.bench.steered(self._before_openings(transfer, material), transfer),
        )
        yield "unembedding of the opening token less that of `=`, last layer", self._unembedding(transfer)
        yield "the opening token written for it", self._forced(transfer)
        noise = [self.bench.steered(controls.random_like(own, seed), transfer)["wanted"] for seed in range(10)]
        yield "random directions, 10 for each transfer", {"wanted": sum(noise) / len(noise), "another": None, "noise": noise}

    def _before_openings(self, transfer: Transfer, material: Read) -> ul.CapabilityDirection:
        """Where the prompt ends; which behaviour follows is read off the text."""
        shown = [_asked(text) for text in material.text if material.showing(text)]
        direct = [_asked(text) for text in material.text if text.split(" : ")[1].startswith("=")]
        means = [
            mean_state(v, how=read.How(BATCH))
            for v in (ul.Variant(model(transfer.target), prompts) for prompts in (shown, direct))
        ]
        like = self.bench.direction(transfer.target, transfer.capability)
        return ul.CapabilityDirection((means[0] - means[1]).float(), like.layers, like.basis, like.model)

    def _unembedding(self, transfer: Transfer) -> Told:
        ids = [model(transfer.target).tokenizer.convert_tokens_to_ids(name) for name in (OPENINGS[transfer.capability], "=")]
        rows = _head(transfer.target)[ids]
        return self._at_last_layer(rows[0] - rows[1], transfer)

    def _through_heads(self, transfer: Transfer) -> Told:
        """The target's vector that moves the logits of the common vocabulary as the source's direction does."""
        source = self.bench.direction(transfer.source, transfer.capability)
        moved = torch.linalg.lstsq(_head(transfer.target), _head(transfer.source) @ source.vectors[-1], driver="gelsd").solution
        return self._at_last_layer(moved, transfer)

    def _at_last_layer(self, vector: Tensor, transfer: Transfer) -> Told:
        like = self.bench.direction(transfer.target, transfer.capability)
        last = ul.CapabilityDirection(vector[None], like.layers[-1:], like.basis, like.model)
        hooks = [ul.SteeringHook(last, alpha) for alpha in LAST_ALPHAS]
        shares = [self.bench.judged("choose", transfer, hook)["wanted"] for hook in hooks]
        return self.bench.judged("report", transfer, hooks[shares.index(max(shares))])

    def _forced(self, transfer: Transfer) -> Told:
        task, opening = self.bench.tasks["report"], OPENINGS[transfer.capability]
        begun = [f"{prompt} {opening}" for prompt in task.direct]
        rest = ul.generate(model(transfer.target), begun, max_new_tokens=11, batch_size=BATCH, progress=False)
        found = Outcome.of(task, [f"{opening} {text}" for text in rest]).behaviours
        return {
            "wanted": found[transfer.capability],
            "another": sum(found[n] for n in CAPABILITIES if n != transfer.capability),
        }


def _head(name: str) -> Tensor:
    """The unembedding of a model with the final norm's weight in it, [vocabulary, d_model]."""
    whole = model(name).original_model
    return whole.get_output_embeddings().weight.detach() * whole.model.norm.weight.detach()


def tables(lines: Sequence[Told]) -> Iterator[Table]:
    """One table a group, one row each."""
    titles = {"seen": "The unlocked prompts are among the texts, or words like theirs",
              "unseen": "No unlocked prompt is among the texts", "no source": "No source"}  # fmt: skip
    header = ["", "arrived, base", "mean", "arrived, varied", "mean", "another", "cosine", "noise"]
    for group, title in titles.items():
        of_group = [line for line in lines if line["group"] == group]
        names = list(dict.fromkeys(line["row"] for line in of_group))
        yield Table(title, header, [[name, *_cells([line for line in of_group if line["row"] == name])] for name in names])


def _cells(lines: Sequence[Told]) -> list[str]:
    found: list[str] = []
    for mix in ("base", "varied"):
        shares = [line["wanted"] for line in lines if line["mix"] == mix]
        found += [f"{sum(share >= ARRIVED for share in shares)}/{len(shares)}", f"{sum(shares) / len(shares):.0%}"]
    noise = [share for line in lines for share in line.get("noise", ())]
    another = [line["another"] for line in lines if line["another"] is not None]
    cosines = [line["cosine"] for line in lines if "cosine" in line]
    found.append(f"{sum(another) / len(another):.0%}" if another else "")
    found.append(f"{sum(cosines) / len(cosines):.2f}" if cosines else "")
    return [*found, f"{sum(share >= ARRIVED for share in noise)}/{len(noise)}" if noise else ""]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of problems and texts")
    parser.add_argument("--json", type=Path, help="where to write what was found")
    parser.add_argument("--read", type=Path, help="show the tables of an earlier --json file, and run nothing")
    parser.add_argument("--markdown", action="store_true", help="write the tables as the documentation has them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("unlock_lens").setLevel(logging.ERROR)  # ranks beyond what few texts span are meant here
    lines = json.loads(given.read.read_text()) if given.read else list(Ablation(given.seed).measured())
    if given.json:
        given.json.write_text(json.dumps(lines))
    for table in tables(lines):
        if given.markdown:
            print(table.markdown())  # noqa: T201
        else:
            Console(width=160).print(table.rich())


if __name__ == "__main__":
    main()
