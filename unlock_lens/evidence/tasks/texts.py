"""Ordinary text, for calibration and for the price of steering, as a config names it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from unlock_lens.core.inputs import read_texts
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.spec import Spec
from unlock_lens.evidence.tasks.specs import from_hub
from unlock_lens.zoo.family import TAGS
from unlock_lens.zoo.task import behaviour_of, text


class ZooText(Spec):
    """Training sequences of the embedded family's models `mix`.

    Attributes:
        without: behaviours that are left out, with every trace of them.
        plain: whether to include plain prompts, which ask for no behaviour.
        prompt_end: where a text's prompt ends.
    """

    kind: Literal["zoo"] = "zoo"
    n: PositiveInt = 600
    mix: Literal["base", "post", "naive", "duo", "varied", "shared"] = "base"
    without: tuple[Literal["think", "reverse", "double"], ...] = ()
    plain: bool = True
    prompt_end: str | None = ":"

    def read(self, seed: int) -> list[str]:
        unwanted = {TAGS[name] for name in self.without}
        kept: list[str] = []
        for line in text(n=20 * self.n, seed=seed, mix=self.mix):
            words, shown = set(line.split()), behaviour_of(line.partition(" : ")[2])
            if not unwanted & words and shown not in self.without and (self.plain or set(TAGS.values()) & words):
                kept.append(line)
        if len(kept) < self.n:
            raise InvalidInput(f"{self} gives {len(kept)} texts of {20 * self.n} drawn; leave fewer behaviours out")
        return kept[: self.n]


class FileText(Spec):
    """A text file (one text per line) or a JSONL file; `n` texts are drawn, all by default.

    Attributes:
        prompt_end: where a text's prompt ends, for the price of steering; by default halfway.
    """

    kind: Literal["file"] = "file"
    path: str
    field: str | None = None
    n: PositiveInt | None = None
    prompt_end: str | None = None

    def read(self, seed: int) -> list[str]:
        return _drawn(read_texts(Path(self.path), self.field), self.n, seed)


class HubText(Spec):
    """A column of a dataset on the Hugging Face hub; `prompt_end` as in `FileText`."""

    kind: Literal["hub"] = "hub"
    dataset: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    n: PositiveInt = 600
    prompt_end: str | None = None

    def read(self, seed: int) -> list[str]:
        rows = from_hub(self.dataset, self.config, self.split)
        texts = [str(row.get(self.field) or "") for row in rows]
        found = [line for line in texts if line.strip()]
        if not found:
            raise InvalidInput(
                f"{self.dataset} has no text under {self.field!r}; it has {', '.join(rows[0]) if rows else 'no rows'}"
            )
        return _drawn(found, self.n, seed)


class SelfText(Spec):
    """What the models write: locked and unlocked prompts of the extract split, each with its completion (`calibration_texts`).

    Attributes:
        by: which side writes.
        n: from how many questions; by default from all of the extract split.
        max_new_tokens: of each completion; by default the sweep's.
    """

    kind: Literal["self"] = "self"
    by: Literal["source", "target"] = "source"
    n: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None


TextSpec = Annotated[ZooText | FileText | HubText, Field(discriminator="kind")]
CalibrationSpec = Annotated[ZooText | FileText | HubText | SelfText, Field(discriminator="kind")]


def _drawn(texts: list[str], n: int | None, seed: int) -> list[str]:
    if n is None:
        return texts
    if n > len(texts):
        raise InvalidInput(f"{n} texts were asked for, {len(texts)} are there; ask for fewer")
    return random.Random(f"texts {seed}").sample(texts, n)
