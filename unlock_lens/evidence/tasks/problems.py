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
        """The question with normalised white space, which identifies the problem."""
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
        answer_tags: tags before and after a final answer, such as ("<atok>", "</atok>"). A completion is then right if the text
            between them is right, or if it is right as a whole; `strict` only counts the former.
        code_hash: hash of the check's code, so that a sweep notices a change.

    Raises:
        InvalidInput: there are no problems, or one lacks a question or an answer.

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
    answer_tags: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.problems:
            raise InvalidInput(f"the task {self.name} was given no problems; at least one is needed")
        if self.answer_tags is not None and not all(self.answer_tags):
            raise InvalidInput(f"{self.name} has the answer tags {self.answer_tags}; neither may be empty")
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
        strict = self.strict(completions) or [False] * len(self)
        each = zip(completions, self.problems, strict, strict=True)
        return [in_tags or self.check(completion, problem) for completion, problem, in_tags in each]

    def strict(self, completions: Sequence[str]) -> list[bool] | None:
        """Whether what stands between the answer tags of each completion is right; None if the task has no tags."""
        self._check_count(completions)
        if self.answer_tags is None:
            return None
        said = [between(completion, self.answer_tags) for completion in completions]
        return [text is not None and self.check(text, problem) for text, problem in zip(said, self.problems, strict=True)]

    def behaviours(self, completions: Sequence[str]) -> list[str] | None:
        """Which behaviour each completion shows; None if the task does not tell behaviours apart.

        Raises:
            InvalidInput: the numbers of completions and problems differ, or a behaviour is not in `behaviour_names`.
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
            raise InvalidInput(f"the first {n} problems of {self.name} were requested; there are {len(self)}")
        return dataclasses.replace(self, problems=self.problems[:n])

    def _check_count(self, completions: Sequence[str]) -> None:
        if len(completions) != len(self):
            raise InvalidInput(f"{len(completions)} completions were given for {len(self)} problems; give one for each")


def between(text: str, tags: tuple[str, str]) -> str | None:
    """What stands after the last opening tag, up to the closing one or the end, where a stop string may have cut it off."""
    _, opened, after = text.rpartition(tags[0])
    return after.partition(tags[1])[0].strip() if opened else None


class Sizes(Spec):
    """Numbers of problems for making directions, choosing settings, and reporting results.

    Attributes:
        in_order: take the first problems for train and the last for extract (the last one first), instead of drawing them.
    """

    extract: PositiveInt
    train: PositiveInt
    test: PositiveInt
    in_order: bool = False

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
    """Draw disjoint splits (or take them in order), each question once; the test problems from `test`, if it is given."""
    if test is not None:
        _refuse_shared(pool, test, f"{pool.name} and {test.name}")
    if sizes.in_order:
        problems = _enough(pool, sizes.total - (sizes.test if test else 0))
        return separately(pool, pool, test or dataclasses.replace(pool, problems=problems[sizes.train :]), sizes, seed)
    if test is None:
        return Splits(*_drawn(pool, (sizes.extract, sizes.train, sizes.test), seed))
    return Splits(*_drawn(pool, (sizes.extract, sizes.train), seed), *_drawn(test, (sizes.test,), seed))


def separately(extract: Task, train: Task, test: Task, sizes: Sizes, seed: int) -> Splits:
    """The splits of three tasks that share no question, or whose shared ones `sizes` leave out."""
    if not sizes.in_order:
        parts = (extract, sizes.extract), (train, sizes.train), (test, sizes.test)
        return Splits(*(_drawn(task, (count,), seed)[0] for task, count in parts))
    last = _enough(extract, sizes.extract)[-sizes.extract :][::-1]
    first, tested = _enough(train, sizes.train)[: sizes.train], _enough(test, sizes.test)[: sizes.test]
    parts = (extract, last), (train, first), (test, tested)
    return Splits(*(dataclasses.replace(task, problems=problems) for task, problems in parts))


def unique(problems: Sequence[Problem], besides: Sequence[Problem] = ()) -> tuple[Problem, ...]:
    """The problems, each question once, without those whose question is also in `besides`."""
    unwanted = {problem.key for problem in besides}
    return tuple({problem.key: problem for problem in problems if problem.key not in unwanted}.values())


def _drawn(pool: Task, counts: Sequence[int], seed: int) -> list[Task]:
    problems = list(_enough(pool, sum(counts)))
    random.Random(f"split {seed}").shuffle(problems)
    left = iter(problems)
    return [dataclasses.replace(pool, problems=tuple(islice(left, count))) for count in counts]


def _enough(pool: Task, count: int) -> tuple[Problem, ...]:
    """The problems, each question once, if they are as many as are asked for."""
    problems = unique(pool.problems)
    if count > len(problems):
        raise InvalidInput(
            f"{pool.name} has {len(problems)} different questions, and sizes ask for {count} of them; ask for fewer"
        )
    return problems


def _refuse_shared(some: Task, others: Task, names: str) -> None:
    keys = {problem.key for problem in others.problems}
    shared = next((problem for problem in some.problems if problem.key in keys), None)
    if shared:
        raise InvalidInput(f"{names} share the question {shared.question!r}; remove it from one of them")
