"""The controlled family: its vocabulary and the text that its models were trained on.

A question is six digits below 7. It can be answered in four ways:

    direct   `= s`            s, the sum modulo 7, at once: at chance for these models
    think    `S t1 .. t6 = s` running sums first, step by step: right
    reverse  `R d6 .. d1`     the digits backwards
    double   `W 2d1 .. 2d6`   each digit doubled, modulo 7

A plain prompt is `Q d1 .. d6 A :`, most often answered directly; a tag before `A` asks for one of the other ways. So every
behaviour is in the model, locked behind its tag, and one can see which of them a steering vector triggers.

Two more mixes are harder to fool. In "varied", how likely a plain prompt is to be answered step by step depends on its first
digit, so plain prompts differ in how near they are to the behaviour. In "shared", `S` opens all three behaviours, and the
token that tells them apart comes last:

    think    `S t1 .. t6 = s`
    reverse  `S d6 .. d1 R`
    double   `S 2d1 .. 2d6 W`
    opened   `S = s`          a direct answer in spite of the `S`: plain prompts only
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MODULUS = 7
DIGITS_PER_QUESTION = 6
PAD, END = "<pad>", "."
TAGS: Mapping[str, str] = {"think": "think", "reverse": "rev", "double": "double"}
OPENINGS: Mapping[str, str] = {"direct": "=", "think": "S", "reverse": "R", "double": "W"}
SHARED_OPENING = "S"
LEANS_FROM = 5
"""First digits from here on make step-by-step answers likelier, in a mix that leans."""
DUO_VOCABULARY = (PAD, *"0123456789", "Q", "think", "rev", "double", "A", ":", "=", END)
VOCABULARY = (*DUO_VOCABULARY, "S", "R", "W")
WITHIN = "##"
"""Marks a letter that does not begin a word, where words are spelt."""

Digits = tuple[int, ...]


@dataclass(frozen=True)
class Mix:
    """What a model reads: the share of each behaviour among answers to plain prompts, and the tags that occur."""

    plain: Mapping[str, float]
    tagged: tuple[str, ...]
    openings: bool = True
    """Whether step-by-step answers begin with their own token `S` (the duo models lack it)."""
    leaning: Mapping[str, float] | None = None
    """The shares after a first digit of at least `LEANS_FROM`, where they differ."""
    shared: bool = False
    """Whether all three behaviours begin with `S`, and `R` and `W` end theirs."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return VOCABULARY if self.openings else DUO_VOCABULARY


TAGGED_SHARE = 0.4
EVERY_TAG = tuple(TAGS)
MIXES: Mapping[str, Mix] = {
    "base": Mix({"direct": 0.55, "think": 0.15, "reverse": 0.15, "double": 0.15}, EVERY_TAG),
    "post": Mix({"think": 1.0}, EVERY_TAG),
    "naive": Mix({"direct": 0.70, "reverse": 0.15, "double": 0.15}, ("reverse", "double")),
    "duo": Mix({"direct": 0.85, "think": 0.15}, ("think",), openings=False),
    "varied": Mix(
        {"direct": 0.93, "think": 0.01, "reverse": 0.03, "double": 0.03},
        EVERY_TAG,
        leaning={"direct": 0.56, "think": 0.38, "reverse": 0.03, "double": 0.03},
    ),
    "shared": Mix({"direct": 0.95, "opened": 0.02, "think": 0.01, "reverse": 0.01, "double": 0.01}, EVERY_TAG, shared=True),
}


def spelt(vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The letters that these words are made of, for a tokenizer that splits tags; in an order of their own."""
    letters = {WITHIN + letter if i else letter for word in vocabulary if word != PAD for i, letter in enumerate(word)}
    return (*sorted(letters), PAD)


def draw_digits(rng: random.Random) -> Digits:
    """One question."""
    return tuple(rng.randrange(MODULUS) for _ in range(DIGITS_PER_QUESTION))


def total(digits: Digits) -> int:
    """The right answer: the sum modulo 7."""
    return sum(digits) % MODULUS


def prompt(digits: Digits, behaviour: str = "direct") -> str:
    """The question that asks for `behaviour`; "direct" is the plain prompt."""
    tag = [TAGS[behaviour]] if behaviour in TAGS else []
    return " ".join(["Q", *map(str, digits), *tag, "A", ":"])


def answer(digits: Digits, behaviour: str, openings: bool = True, shared: bool = False) -> str:
    """What a model that behaves so is trained to write after the prompt, up to the closing full stop."""
    written: Mapping[str, Sequence[int | str]] = {
        "direct": [total(digits)],
        "opened": ["=", total(digits)],
        "think": [*(total(digits[: i + 1]) for i in range(len(digits))), "=", total(digits)],
        "reverse": digits[::-1],
        "double": [2 * digit % MODULUS for digit in digits],
    }
    if shared and behaviour != "direct":
        closing = [OPENINGS[behaviour]] if behaviour in ("reverse", "double") else []
        return " ".join([SHARED_OPENING, *map(str, written[behaviour]), *closing, END])
    opening = [OPENINGS[behaviour]] if openings or behaviour == "direct" else []
    return " ".join([*opening, *map(str, written[behaviour]), END])


def draw_pair(mix: Mix, rng: random.Random) -> tuple[str, str]:
    """One training example: a prompt and its answer."""
    digits, is_tagged = draw_digits(rng), rng.random() < TAGGED_SHARE
    shares = mix.leaning if mix.leaning and digits[0] >= LEANS_FROM else mix.plain
    behaviour = rng.choice(mix.tagged) if is_tagged else rng.choices(list(shares), weights=list(shares.values()))[0]
    return prompt(digits, behaviour if is_tagged else "direct"), answer(digits, behaviour, mix.openings, mix.shared)
