"""Where problems come from: drawn, read from files, or loaded from the Hugging Face hub.

`splits` of each raises InvalidInput where a file, a package or the hub is missing, or where there are too few problems.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import random
import re
import runpy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveInt

from unlock_lens.core.inputs import read_records
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.spec import Spec
from unlock_lens.evidence.tasks.problems import Check, Problem, Sizes, Splits, Task, separately, split, unique
from unlock_lens.evidence.tasks.scoring import CHECKS, INSTALL, CheckName, final_answer, last_boxed
from unlock_lens.zoo.family import DIGITS_PER_QUESTION, END, MODULUS, Digits, answer, draw_digits, total
from unlock_lens.zoo.task import BEHAVIOURS, behaviour_of
from unlock_lens.zoo.task import final_answer as final_digit

Subject = Literal[
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus"
]
_AGIEVAL_PROMPT = re.compile(r"\A\s*Q:|\n\s*A:[^\n]*\s*\Z")
"""What AGIEval's own prompt puts around a question."""


class _Source(Spec, ABC):
    answer_tags: tuple[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]] | None = None

    @abstractmethod
    def pools(self, n: int, seed: int) -> tuple[Task, Task | None]:
        """Where extract and train come from, and test, if it has problems of its own; of drawn problems n are enough."""

    def splits(self, sizes: Sizes, seed: int) -> Splits:
        pool, test = (task and self.tagged(task) for task in self.pools(sizes.total, seed))
        assert pool
        return split(pool, sizes, seed, test)

    def tagged(self, task: Task) -> Task:
        return dataclasses.replace(task, answer_tags=self.answer_tags or task.answer_tags)


class RunningSumSpec(_Source):
    """The embedded family's running sums; the template "Q {question} A :" gives its plain prompts.

    Attributes:
        behaviour: by default a completion is right if its final answer is the sum, however it came about; otherwise if it is,
            word for word, what a model with that behaviour writes.

    Raises:
        InvalidInput: `splits` is asked for more problems than there are.
    """

    kind: Literal["running_sum"] = "running_sum"
    behaviour: Literal["think", "reverse", "double"] | None = None

    def pools(self, n: int, seed: int) -> tuple[Task, Task | None]:
        there = MODULUS**DIGITS_PER_QUESTION
        if n > there:
            raise InvalidInput(f"there are {there} running sums, but sizes ask for {n}; ask for fewer")
        rng = random.Random(f"running_sum {seed}")
        drawn: dict[Digits, None] = {}
        while len(drawn) < n:
            drawn[draw_digits(rng)] = None
        problems = tuple(Problem(" ".join(map(str, digits)), self._answer(digits)) for digits in drawn)
        check = CHECKS["exact"] if self.behaviour else _final_digit_is_right
        return Task(self.kind, problems, check, behaviour_of, BEHAVIOURS), None

    def _answer(self, digits: Digits) -> str:
        return answer(digits, self.behaviour).removesuffix(f" {END}") if self.behaviour else str(total(digits))


class JsonlSpec(_Source):
    """Your own problems, one JSON object per line; those of `test_path`, if given, are the test split.

    `question` and `answer` name the fields; an answer is a text or a number.
    """

    kind: Literal["jsonl"] = "jsonl"
    path: Path
    test_path: Path | None = None
    question: str = "question"
    answer: str = "answer"
    check: CheckName = "exact"

    def pools(self, n: int, seed: int) -> tuple[Task, Task | None]:
        return self._read(self.path), self._read(self.test_path) if self.test_path else None

    def _read(self, path: Path) -> Task:
        return Task(str(path), tuple(self._problem(record, place) for record, place in read_records(path)), CHECKS[self.check])

    def _problem(self, record: Mapping[str, Any], place: str) -> Problem:
        question, answer = record.get(self.question), record.get(self.answer)
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = str(answer)
        for name, found in ((self.question, question), (self.answer, answer)):
            if not isinstance(found, str) or not found.strip():
                raise InvalidInput(
                    f"{place} has no text under {name}; it has {', '.join(record) or 'nothing'} "
                    "(set question: and answer: to the fields)"
                )
        problem = Problem(str(question), str(answer))
        # Answers that a check cannot work with are reported now, not after hours of generation; "math" takes any, and its time.
        if self.check != "math":
            try:
                CHECKS[self.check](problem.answer, problem)
            except InvalidInput as error:
                raise InvalidInput(f"{place}: {error}") from error
        return problem


class ReasoningGymSpec(_Source):
    """Problems of one of reasoning-gym's procedural datasets.

    A completion is right if the dataset's own `score_answer` gives its final answer (`tasks.scoring.final_answer`) the full
    score of 1.0: partial credit does not count.

    Attributes:
        options: of its configuration, such as {"min_terms": 3}.
        check: a check to use instead of the dataset's own.

    Source: Stojanovski et al., "Reasoning Gym", arXiv:2505.24760.
    """

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str
    options: dict[str, Any] = Field(default_factory=dict)
    check: CheckName | None = None

    def pools(self, n: int, seed: int) -> tuple[Task, Task | None]:
        # Ten times as many, because some datasets repeat questions; they draw a problem when it is asked for.
        dataset = self._open(seed, size=10 * n)
        found: dict[str, Problem] = {}
        for entry in dataset:
            problem = Problem(entry["question"], entry["answer"] or "", {"metadata": entry["metadata"]})
            found[problem.key] = problem
            if len(found) == n:
                break
        check = CHECKS[self.check] if self.check else _scored_by(dataset)
        return Task(f"{self.kind}/{self.dataset}", tuple(found.values()), check), None

    def _open(self, seed: int, size: int) -> Any:
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise InvalidInput(f"reasoning-gym is not installed; {INSTALL}") from error
        if self.dataset not in DATASETS:
            near = difflib.get_close_matches(self.dataset, DATASETS, n=1, cutoff=0)[0]
            raise InvalidInput(f"reasoning-gym has no dataset {self.dataset!r}; the nearest is {near}")
        # Its datasets draw problem i with seed + i: neighbouring seeds would share most problems.
        apart = random.Random(f"reasoning_gym {seed}").randrange(2**31)
        try:
            return create_dataset(self.dataset, seed=apart, size=size, **self.options)
        except (AssertionError, TypeError, ValueError) as error:
            raise InvalidInput(f"reasoning-gym's {self.dataset} does not take the options {self.options}: {error}") from error


class PythonSpec(_Source):
    """Your own problems, check and behaviours: the `Task` called `name` in a Python file, which is run.

    Raises:
        InvalidInput: `splits` finds no file, one that fails, no `Task` of that name in it, or too few problems.
    """

    kind: Literal["python"] = "python"
    path: Path
    name: str = "task"

    def pools(self, n: int, seed: int) -> tuple[Task, Task | None]:
        if not self.path.is_file():
            raise InvalidInput(f"there is no file {self.path}; give the Python file that defines {self.name}")
        try:
            found = runpy.run_path(str(self.path)).get(self.name)
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            raise InvalidInput(f"{self.path} failed when it was run ({type(error).__name__}: {error}); fix it") from error
        if not isinstance(found, Task):
            given = "nothing" if found is None else f"a {type(found).__name__}"
            raise InvalidInput(
                f"{self.path} defines {given} as {self.name}; a Task is needed (unlock_lens.evidence.tasks.Task)"
            )
        code = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        return dataclasses.replace(found, code_hash=code), None


class Gsm8kSpec(_Source):
    """Grade school word problems (openai/gsm8k); extract and train come from its train split, test from its test split.

    Source: Cobbe et al., arXiv:2110.14168.
    """

    kind: Literal["gsm8k"] = "gsm8k"

    def pools(self, n: int, seed: int) -> tuple[Task, Task | None]:
        return _native(self.kind, self._read("train"), self._read("test"), "number")

    def _read(self, part: str) -> list[Problem]:
        rows = from_hub("openai/gsm8k", "main", part)
        return [Problem(row["question"], row["answer"].rpartition("####")[2].strip()) for row in rows]


class MathSpec(_Source):
    """Competition problems (EleutherAI/hendrycks_math); extract and train come from its train split, test from its test split.

    Attributes:
        subjects: all seven by default.
        levels: of difficulty, 1 to 5; all by default.

    Source: Hendrycks et al., arXiv:2103.03874.
    """

    kind: Literal["math"] = "math"
    subjects: Annotated[tuple[Subject, ...], Field(min_length=1)] = get_args(Subject)
    levels: tuple[Annotated[int, Field(ge=1, le=5)], ...] = ()

    def pools(self, n: int, seed: int) -> tuple[Task, Task | None]:
        return _native(self.kind, self._read("train"), self._read("test"), "math")

    def _read(self, part: str) -> list[Problem]:
        wanted = {f"Level {level}" for level in self.levels}
        rows = [row for subject in self.subjects for row in from_hub("EleutherAI/hendrycks_math", subject, part)]
        kept = [row for row in rows if not wanted or row["level"] in wanted]
        return [Problem(row["problem"], last_boxed(row["solution"]) or "") for row in kept]


class AgiEvalMathSpec(_Source):
    """AGIEval's 1,000 MATH problems (hails/agieval-math), which have a test split alone: all three splits are drawn from it.

    Source: Zhong et al., arXiv:2304.06364.
    """

    kind: Literal["agieval_math"] = "agieval_math"

    def pools(self, n: int, seed: int) -> tuple[Task, Task | None]:
        rows = from_hub("hails/agieval-math", None, "test")
        problems = tuple(Problem(_AGIEVAL_PROMPT.sub("", row["query"]).strip(), row["answer"]) for row in rows)
        return Task(self.kind, problems, CHECKS["math"]), None


class HubSpec(_Source):
    """Problems of any dataset on the Hugging Face hub, of one of its splits.

    Attributes:
        config: of the dataset, where it has several.
        question, answer: names of its columns.
        n: how many of its rows, from the first; all by default.

    Raises:
        InvalidInput: `splits` finds no such columns, or too few problems.
    """

    kind: Literal["hub"] = "hub"
    dataset: str
    config: str | None = None
    split: str = "test"
    question: str = "question"
    answer: str = "answer"
    check: CheckName = "exact"
    n: PositiveInt | None = None

    def pools(self, n: int, seed: int) -> tuple[Task, Task | None]:
        rows = from_hub(self.dataset, self.config, self.split)[: self.n]
        missing = {self.question, self.answer} - set(rows[0] if rows else ())
        if missing:
            there = ", ".join(rows[0]) if rows else "no rows"
            raise InvalidInput(
                f"{self.dataset} has no {', '.join(sorted(missing))}; it has {there} (set question: and answer:)"
            )
        problems = tuple(Problem(str(row[self.question]), str(row[self.answer])) for row in rows)
        return Task(self.dataset, problems, CHECKS[self.check]), None


OneTask = Annotated[
    RunningSumSpec | JsonlSpec | PythonSpec | ReasoningGymSpec | Gsm8kSpec | MathSpec | AgiEvalMathSpec | HubSpec,
    Field(discriminator="kind"),
]


class SeparateSpec(Spec):
    """Another task for each split: directions from one, settings chosen on others, results reported on yet another.

    Questions that a later split has too are left out of the earlier one.

    Attributes:
        train: one task, or several whose problems are put together; they need the same check.

    Raises:
        InvalidInput: `splits` finds train tasks that differ in check or tags, or too few problems.
    """

    kind: Literal["separate"] = "separate"
    extract: OneTask
    train: Annotated[tuple[OneTask, ...], Field(min_length=1)]
    test: OneTask

    def splits(self, sizes: Sizes, seed: int) -> Splits:
        test = self._pool(self.test, sizes, seed, of_test=True)
        chosen = [self._pool(spec, sizes, seed + 1 + i) for i, spec in enumerate(self.train)]
        if len({(task.check, task.answer_tags) for task in chosen}) > 1:
            raise InvalidInput(f"the train tasks {', '.join(task.name for task in chosen)} differ in check or tags; give one")
        together = [problem for task in chosen for problem in task.problems]
        train = dataclasses.replace(
            chosen[0], name=" + ".join(task.name for task in chosen), problems=unique(together, test.problems)
        )
        extract = self._pool(self.extract, sizes, seed + 1 + len(chosen))
        besides = (*train.problems, *test.problems)
        extract = dataclasses.replace(extract, problems=unique(extract.problems, besides))
        return separately(extract, train, test, sizes, seed)

    def _pool(self, spec: OneTask, sizes: Sizes, seed: int, of_test: bool = False) -> Task:
        pool, test = spec.pools(sizes.total, seed)
        return spec.tagged(test if of_test and test else pool)


TaskSpec = Annotated[OneTask | SeparateSpec, Field(discriminator="kind")]


def _final_digit_is_right(completion: str, problem: Problem) -> bool:
    return problem.answer in (final_digit(completion), completion.strip())


def _scored_by(dataset: Any) -> Check:
    def check(completion: str, problem: Problem) -> bool:
        entry = {"question": problem.question, "answer": problem.answer, **problem.extra}
        try:
            return dataset.score_answer(final_answer(completion), entry) == 1.0
        except (AttributeError, LookupError, TypeError, ValueError):
            # Some datasets, such as prime_factorization, stumble over text that they cannot read.
            return False

    return check


def from_hub(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    """The rows of a dataset on the Hugging Face hub."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InvalidInput(f"datasets is not installed, which {dataset} needs; {INSTALL}") from error
    try:
        return [dict(row) for row in load_dataset(dataset, config, split=split)]
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{dataset} ({split}) could not be loaded from the hub: {error}; check name and connection, or use your own file"
        ) from error


def _native(name: str, train: list[Problem], test: list[Problem], check: CheckName) -> tuple[Task, Task]:
    # A benchmark that repeats a test question in its train split is used without the latter.
    pool = Task(f"{name} (train)", unique(train, besides=test), CHECKS[check])
    return pool, Task(f"{name} (test)", tuple(test), CHECKS[check])
