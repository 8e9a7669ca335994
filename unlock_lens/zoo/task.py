"""Running sums: the problems, and how completions are judged."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlock_lens.errors import InvalidInput
from unlock_lens.zoo.family import MIXES, Digits, draw_digits, draw_pair, prompt, total

BEHAVIOURS = ("direct", "think", "reverse", "double", "other")

# Form alone: whether what is written is also right, `correct` says. The duo models think without the opening S; in the
# shared ones R and W come last.
_FORMS: Mapping[str, re.Pattern[str]] = {
    "direct": re.compile(r"= \d"),
    "think": re.compile(r"(S )?(\d ){6}= \d"),
    "reverse": re.compile(r"R( \d){6}|S( \d){6} R"),
    "double": re.compile(r"W( \d){6}|S( \d){6} W"),
}
_FINAL_ANSWER = re.compile(r"= (\d)")


@dataclass(frozen=True)
class Task:
    """Problems of the family: four prompts for each question, and its answer.

    Example:
        >>> from unlock_lens import zoo
        >>> task = zoo.running_sum(n=1, seed=0)
        >>> task.direct, task.answers
        (['Q 3 2 0 6 0 2 A :'], ['6'])
    """

    questions: tuple[Digits, ...]

    @property
    def direct(self) -> list[str]:
        """Plain prompts, which base models answer at once and at chance."""
        return self.prompts("direct")

    @property
    def think(self) -> list[str]:
        """Prompts that ask for running sums first."""
        return self.prompts("think")

    @property
    def reverse(self) -> list[str]:
        """Prompts that ask for the digits backwards."""
        return self.prompts("reverse")

    @property
    def double(self) -> list[str]:
        """Prompts that ask for each digit doubled."""
        return self.prompts("double")

    def prompts(self, behaviour: str) -> list[str]:
        """The questions with the tag of one behaviour ("direct": no tag)."""
        return [prompt(digits, behaviour) for digits in self.questions]

    @property
    def answers(self) -> list[str]:
        """The sum modulo 7 of each question."""
        return [str(total(digits)) for digits in self.questions]

    @property
    def behaviour_names(self) -> tuple[str, ...]:
        """All that `behaviours` may return."""
        return BEHAVIOURS

    def correct(self, completions: Sequence[str]) -> list[bool]:
        """Whether the final answer (the digit after the last `=`) of each completion is right.

        Raises:
            InvalidInput: the numbers of completions and questions differ.
        """
        self._check_count(completions)
        return [final_answer(completion) == answer for completion, answer in zip(completions, self.answers, strict=True)]

    def behaviours(self, completions: Sequence[str]) -> list[str]:
        """Which of `BEHAVIOURS` the form of each completion shows; "other" if none.

        Raises:
            InvalidInput: the numbers of completions and questions differ.
        """
        self._check_count(completions)
        return [behaviour_of(completion) for completion in completions]

    def _check_count(self, completions: Sequence[str]) -> None:
        if len(completions) != len(self.questions):
            raise InvalidInput(
                f"{len(completions)} completions were given for a task of {len(self.questions)} questions; give one for each"
            )


def final_answer(completion: str) -> str | None:
    """The digit after the last `=`, if there is one."""
    found = _FINAL_ANSWER.findall(completion)
    return found[-1] if found else None


def behaviour_of(completion: str) -> str:
    """Which of `BEHAVIOURS` a completion has the form of; "other" where it is none of them."""
    body = completion.strip().removesuffix(".").strip()
    return next((name for name, form in _FORMS.items() if form.fullmatch(body)), "other")


def running_sum(n: int = 200, seed: int = 0) -> Task:
    """`n` problems drawn with `seed`.

    Raises:
        InvalidInput: n is below 1.
    """
    _check_n(n)
    rng = random.Random(f"running_sum {seed}")
    return Task(tuple(draw_digits(rng) for _ in range(n)))


def text(n: int = 600, seed: int = 0, mix: str = "base") -> list[str]:
    """`n` sequences of ordinary text, prompt and answer, as the models of `mix` read it.

    Mixes are "base", "post", "naive", "duo", "varied" and "shared".

    Raises:
        InvalidInput: n is below 1, or the mix is unknown.

    Example:
        >>> from unlock_lens import zoo
        >>> zoo.text(n=1)
        ['Q 4 4 1 4 4 5 double A : W 1 1 2 1 1 3 .']
    """
    _check_n(n)
    if mix not in MIXES:
        raise InvalidInput(f"there is no mix {mix!r}; use one of {', '.join(MIXES)}")
    rng = random.Random(f"text {seed}")
    return [" ".join(draw_pair(MIXES[mix], rng)) for _ in range(n)]


def _check_n(n: int) -> None:
    if n < 1:
        raise InvalidInput(f"n = {n} was given; at least 1 is needed")
