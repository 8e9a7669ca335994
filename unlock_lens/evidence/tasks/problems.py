"""Problems, the check that says which completions are right, and their splits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any

from pydantic import PositiveInt

from unlock_lens.core.inputs import fill
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.spec import Spec


@dataclass(frozen=True)
class Problem:
    """A question, its answer, and what else a check needs to know (`extra`)."""

    question: str
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def key(self) -> str:
        """The question with its white space evened out: what tells problems apart."""
        return " ".join(self.question.split())


Check = Callable[[str, Problem], bool]
"""Whether a completion is right; pass your own to `Task`."""


@dataclass(frozen=True)
class Task:
    """Problems, and the check that says which completions are right.

    Attributes:
        check: whether a completion is right: one of `unlock_lens.evidence.tasks.CHECKS`, or your own.
        classify: which behaviour a completion shows; None if the task does not tell behaviours apart.
        behaviour_names: all that `classify` may return.
        code_hash: of the code of the check, for a sweep to notice that it changed.

    Raises:
        InvalidInput: no problems, or one without a question or an answer.

    Example:
        >>> from unlock_lens.evidence.tasks import CHECKS, Problem, Task
        >>> task = Task("sums", (Problem("1 + 1?", "2"), Problem("2 + 2?", "4")), CHECKS["number"])
        >>> task.prompts("{question} Answer:")
        ['1 + 1? Answer:', '2 + 2? Answer:']
        >>> task.correct([" It is 2.", " It is 5."])
        [True, False]
    """

    name: str
    problems: tuple[Problem, ...]
    check: Check
    classify: Callable[[str], str] | None = None
    behaviour_names: tuple[str, ...] = ()
    code_hash: str | None = None

    def __post_init__(self) -> None:
        if not self.problems:
            raise InvalidInput(f"the task {self.name} was given no problems; at least one is needed")
        for place, problem in enumerate(self.problems, start=1):
            if not problem.question.strip():
                raise InvalidInput(f"problem {place} of {self.name} has an empty question; leave it out")
            if not problem.answer.strip():
                raise InvalidInput(f"problem {place} of {self.name} has no answer ({problem.question!r}); give one")

    def __len__(self) -> int:
        return len(self.problems)

    @property
    def questions(self) -> list[str]:
        return [problem.question for problem in self.problems]

    @property
    def answers(self) -> list[str]:
        return [problem.answer for problem in self.problems]

    @property
    def hash(self) -> str:
        """A short fingerprint of the questions and answers in their order, and of `code_hash` if there is one."""
        content = [self.questions, self.answers, *([self.code_hash] if self.code_hash else [])]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def prompts(self, template: str) -> list[str]:
        """The template with each question in place of `{question}`, which it must have."""
        return fill(template, self.questions)

    def correct(self, completions: Sequence[str]) -> list[bool]:
        """Whether each completion is right; InvalidInput where there are more or fewer completions than problems."""
        self._check_count(completions)
        return [self.check(completion, problem) for completion, problem in zip(completions, self.problems, strict=True)]

    def behaviours(self, completions: Sequence[str]) -> list[str] | None:
        """Which behaviour each completion shows; None if the task does not tell behaviours apart.

        Raises:
            InvalidInput: another number of completions than of problems, or a behaviour that is not in `behaviour_names`.
        """
        self._check_count(completions)
        if not self.classify:
            return None
        found = [self.classify(completion) for completion in completions]
        if strange := sorted({name for name in found if name not in self.behaviour_names}):
            raise InvalidInput(
                f"classify of {self.name} returns {', '.join(strange)}; behaviour_names has "
                f"{', '.join(self.behaviour_names) or 'nothing'}: name all that it may return"
            )
        return found

    def first(self, n: int) -> Task:
        """The task of the first n problems."""
        if not 1 <= n <= len(self):
            raise InvalidInput(f"the first {n} problems of {self.name} were asked for; there are {len(self)}")
        return dataclasses.replace(self, problems=self.problems[:n])

    def _check_count(self, completions: Sequence[str]) -> None:
        if len(completions) != len(self):
            raise InvalidInput(f"{len(completions)} completions were given for {len(self)} problems; give one for each")


class Sizes(Spec):
    """How many problems directions are made from, settings are chosen on, and results are reported on."""

    extract: PositiveInt
    train: PositiveInt
    test: PositiveInt

    @property
    def total(self) -> int:
        return self.extract + self.train + self.test


@dataclass(frozen=True)
class Splits:
    """Problems for directions, for the choice of settings, and for the reported results: no question is in two."""

    extract: Task
    train: Task
    test: Task

    def __post_init__(self) -> None:
        for (one, some), (other, others) in combinations(vars(self).items(), 2):
            _refuse_shared(some, others, f"{one} and {other}")


def split(pool: Task, sizes: Sizes, seed: int, test: Task | None = None) -> Splits:
    """Draw disjoint splits, each question once; the test problems from `test`, if it is given."""
    if test is None:
        return Splits(*_drawn(pool, (sizes.extract, sizes.train, sizes.test), seed))
    _refuse_shared(pool, test, f"{pool.name} and {test.name}")
    return Splits(*_drawn(pool, (sizes.extract, sizes.train), seed), *_drawn(test, (sizes.test,), seed))


def unique(problems: Sequence[Problem], besides: Sequence[Problem] = ()) -> tuple[Problem, ...]:
    """The problems, each question once, without those whose question is also in `besides`."""
    unwanted = {problem.key for problem in besides}
    return tuple({problem.key: problem for problem in problems if problem.key not in unwanted}.values())


def _drawn(pool: Task, counts: Sequence[int], seed: int) -> list[Task]:
    problems = list(unique(pool.problems))
    if sum(counts) > len(problems):
        raise InvalidInput(
            f"{pool.name} has {len(problems)} different questions, and sizes ask for {sum(counts)} of them; ask for fewer"
        )
    random.Random(f"split {seed}").shuffle(problems)
    left = iter(problems)
    return [dataclasses.replace(pool, problems=tuple(islice(left, count))) for count in counts]


def _refuse_shared(some: Task, others: Task, names: str) -> None:
    keys = {problem.key for problem in others.problems}
    shared = next((problem for problem in some.problems if problem.key in keys), None)
    if shared:
        raise InvalidInput(f"{names} share the question {shared.question!r}; take it out of one of them")
