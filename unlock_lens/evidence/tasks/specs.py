"""Where problems come from: drawn, read from files, or loaded from the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import random
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from unlock_lens.core.inputs import read_records
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.spec import Spec
from unlock_lens.evidence.tasks.hub import INSTALL, AgiEvalMathSpec, Gsm8kSpec, MathSpec
from unlock_lens.evidence.tasks.problems import Check, Problem, Sizes, Splits, Task, split
from unlock_lens.evidence.tasks.scoring import CHECKS, CheckName, final_answer
from unlock_lens.zoo.family import DIGITS_PER_QUESTION, END, MODULUS, Digits, answer, draw_digits, total
from unlock_lens.zoo.task import BEHAVIOURS, behaviour_of
from unlock_lens.zoo.task import final_answer as final_digit


class RunningSumSpec(Spec):
    """The embedded family's running sums; the template "Q {question} A :" gives its plain prompts.

    Attributes:
        behaviour: None: a completion is right whose final answer is the sum, however it came. Otherwise one is right that is
            what a model showing that behaviour writes, word by word.

    Raises:
        InvalidInput: `splits` is asked for more problems than there are.

    Source: docs/evidence.md.

    Example:
        >>> task = RunningSumSpec().splits(Sizes(extract=2, train=1, test=1), seed=0).extract
        >>> task.prompts("Q {question} A :"), task.answers
        (['Q 2 3 2 0 4 0 A :', 'Q 0 5 0 4 2 4 A :'], ['4', '1'])
    """

    kind: Literal["running_sum"] = "running_sum"
    behaviour: Literal["think", "reverse", "double"] | None = None

    def splits(self, sizes: Sizes, seed: int) -> Splits:
        there = MODULUS**DIGITS_PER_QUESTION
        if sizes.total > there:
            raise InvalidInput(f"there are {there} running sums, and sizes ask for {sizes.total} of them; ask for fewer")
        rng = random.Random(f"running_sum {seed}")
        drawn: dict[Digits, None] = {}
        while len(drawn) < sizes.total:
            drawn[draw_digits(rng)] = None
        problems = tuple(Problem(" ".join(map(str, digits)), self._answer(digits)) for digits in drawn)
        check = CHECKS["exact"] if self.behaviour else _final_digit_is_right
        return split(Task(self.kind, problems, check, behaviour_of, BEHAVIOURS), sizes, seed)

    def _answer(self, digits: Digits) -> str:
        return answer(digits, self.behaviour).removesuffix(f" {END}") if self.behaviour else str(total(digits))


class JsonlSpec(Spec):
    """Your own problems, one JSON object a line; those of `test_path`, if it is given, are for the test alone.

    Attributes:
        path: the file.
        test_path: a file whose problems are the test split.
        question: name of the field that holds the question.
        answer: name of the field that holds the answer, a text or a number.
        check: how completions are checked.

    Raises:
        InvalidInput: `splits` finds no file, a line without question or answer, an answer that the check cannot work with, or
            too few problems.

    Source: docs/evidence.md.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "sums.jsonl")
        >>> count = file.write_text('{"question": "1 + 1?", "answer": 2}\\n{"question": "2 + 2?", "answer": 4}\\n'
        ...                         '{"question": "3 + 3?", "answer": 6}')
        >>> JsonlSpec(path=file, check="number").splits(Sizes(extract=1, train=1, test=1), seed=0).test.answers
        ['4']
    """

    kind: Literal["jsonl"] = "jsonl"
    path: Path
    test_path: Path | None = None
    question: str = "question"
    answer: str = "answer"
    check: CheckName = "exact"

    def splits(self, sizes: Sizes, seed: int) -> Splits:
        return split(self._read(self.path), sizes, seed, self._read(self.test_path) if self.test_path else None)

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
                    "(say with question: and answer: which fields to read)"
                )
        problem = Problem(str(question), str(answer))
        # Answers that a check cannot work with are told here, not after hours of generation; "math" takes any, and its time.
        if self.check != "math":
            try:
                CHECKS[self.check](problem.answer, problem)
            except InvalidInput as error:
                raise InvalidInput(f"{place}: {error}") from error
        return problem


class ReasoningGymSpec(Spec):
    """Problems of one of reasoning-gym's procedural datasets.

    A completion is right if the dataset's own `score_answer` gives its final answer (`tasks.scoring.final_answer`) the full
    score of 1.0: partial credit is no right answer. `check` takes another check in its place.

    Attributes:
        dataset: its name, such as "chain_sum".
        options: of its configuration, such as {"min_terms": 3}.
        check: a check in place of the dataset's own.

    Raises:
        InvalidInput: `splits` finds no reasoning-gym, no such dataset, or options that it does not take.

    Source: Stojanovski et al., "Reasoning Gym", arXiv:2505.24760.

    Example:
        >>> spec = ReasoningGymSpec(dataset="chain_sum", options={"max_terms": 3})
        >>> task = spec.splits(Sizes(extract=1, train=1, test=1), seed=0).test
        >>> task.correct([f"So the answer is {task.answers[0]}."])
        [True]
    """

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str
    options: dict[str, Any] = Field(default_factory=dict)
    check: CheckName | None = None

    def splits(self, sizes: Sizes, seed: int) -> Splits:
        # Ten times as many, because some datasets repeat questions; they draw a problem when it is asked for.
        dataset = self._open(seed, size=10 * sizes.total)
        found: dict[str, Problem] = {}
        for entry in dataset:
            problem = Problem(entry["question"], entry["answer"] or "", {"metadata": entry["metadata"]})
            found[problem.key] = problem
            if len(found) == sizes.total:
                break
        check = CHECKS[self.check] if self.check else _scored_by(dataset)
        return split(Task(f"{self.kind}/{self.dataset}", tuple(found.values()), check), sizes, seed)

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


class PythonSpec(Spec):
    """Your own problems, check and behaviours: a `Task` in a Python file, which is run. Splits are drawn from its problems.

    Attributes:
        path: the file.
        name: what the task is called in it.

    Raises:
        InvalidInput: `splits` finds no file, one that fails, no `Task` of that name in it, or too few problems.

    Source: docs/evidence.md.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "mine.py")
        >>> count = file.write_text("from unlock_lens.evidence.tasks import Problem, Task\\n"
        ...                         "problems = tuple(Problem(f'{i} + 1?', str(i + 1)) for i in range(9))\\n"
        ...                         "task = Task('sums', problems, lambda completion, problem: problem.answer in completion)")
        >>> PythonSpec(path=file).splits(Sizes(extract=2, train=1, test=1), seed=0).test.correct(["perhaps 1 or 2 or 3 or 4"])
        [True]
    """

    kind: Literal["python"] = "python"
    path: Path
    name: str = "task"

    def splits(self, sizes: Sizes, seed: int) -> Splits:
        if not self.path.is_file():
            raise InvalidInput(f"there is no file {self.path}; give the Python file that defines {self.name}")
        try:
            found = runpy.run_path(str(self.path)).get(self.name)
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            raise InvalidInput(f"{self.path} failed when it was run ({type(error).__name__}: {error}); mend it") from error
        if not isinstance(found, Task):
            given = "nothing" if found is None else f"a {type(found).__name__}"
            raise InvalidInput(
                f"{self.path} defines {given} as {self.name}; a Task is needed (unlock_lens.evidence.tasks.Task)"
            )
        code = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        return split(dataclasses.replace(found, code_hash=code), sizes, seed)


TaskSpec = Annotated[
    RunningSumSpec | JsonlSpec | PythonSpec | ReasoningGymSpec | Gsm8kSpec | MathSpec | AgiEvalMathSpec,
    Field(discriminator="kind"),
]


def _final_digit_is_right(completion: str, problem: Problem) -> bool:
    return final_digit(completion) == problem.answer


def _scored_by(dataset: Any) -> Check:
    def check(completion: str, problem: Problem) -> bool:
        entry = {"question": problem.question, "answer": problem.answer, **problem.extra}
        try:
            return dataset.score_answer(final_answer(completion), entry) == 1.0
        except (AttributeError, LookupError, TypeError, ValueError):
            # Some datasets, such as prime_factorization, stumble over text that they cannot read.
            return False

    return check
