"""Benchmarks of the Hugging Face hub, loaded with `datasets`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.spec import Spec
from unlock_lens.evidence.tasks.problems import Problem, Sizes, Splits, Task, split, unique
from unlock_lens.evidence.tasks.scoring import CHECKS, CheckName, last_boxed

Subject = Literal[
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus"
]
_AGIEVAL_PROMPT = re.compile(r"\A\s*Q:|\n\s*A:[^\n]*\s*\Z")
"""What AGIEval's own prompt puts around a question."""
INSTALL = "pip install 'unlock-lens[tasks]'"


class Gsm8kSpec(Spec):
    """Grade school word problems (openai/gsm8k); extract and train come from its train split, test from its test split.

    Raises:
        InvalidInput: `datasets` is not installed, the hub cannot be reached, or `splits` is asked for too many problems.

    Source: Cobbe et al., arXiv:2110.14168.

    Example:
        >>> from unlock_lens.evidence.tasks import Gsm8kSpec
        >>> Gsm8kSpec().kind
        'gsm8k'
    """

    kind: Literal["gsm8k"] = "gsm8k"

    def splits(self, sizes: Sizes, seed: int) -> Splits:
        return _native(self.kind, self._read("train"), self._read("test"), "number", sizes, seed)

    def _read(self, part: str) -> list[Problem]:
        rows = from_hub("openai/gsm8k", "main", part)
        return [Problem(row["question"], row["answer"].rpartition("####")[2].strip()) for row in rows]


class MathSpec(Spec):
    """Competition problems (EleutherAI/hendrycks_math); extract and train come from its train split, test from its test split.

    Attributes:
        subjects: all seven by default.
        levels: of difficulty, 1 to 5; all by default.

    Raises:
        InvalidInput: `datasets` is not installed, the hub cannot be reached, or `splits` is asked for too many problems.

    Source: Hendrycks et al., arXiv:2103.03874.

    Example:
        >>> hard = MathSpec(subjects=("geometry", "precalculus"), levels=(4, 5))
    """

    kind: Literal["math"] = "math"
    subjects: Annotated[tuple[Subject, ...], Field(min_length=1)] = get_args(Subject)
    levels: tuple[Annotated[int, Field(ge=1, le=5)], ...] = ()

    def splits(self, sizes: Sizes, seed: int) -> Splits:
        return _native(self.kind, self._read("train"), self._read("test"), "math", sizes, seed)

    def _read(self, part: str) -> list[Problem]:
        wanted = {f"Level {level}" for level in self.levels}
        rows = [row for subject in self.subjects for row in from_hub("EleutherAI/hendrycks_math", subject, part)]
        kept = [row for row in rows if not wanted or row["level"] in wanted]
        return [Problem(row["problem"], last_boxed(row["solution"]) or "") for row in kept]


class AgiEvalMathSpec(Spec):
    """AGIEval's 1,000 MATH problems (hails/agieval-math), which have a test split alone: all three splits are drawn from it.

    Raises:
        InvalidInput: `datasets` is not installed, the hub cannot be reached, or `splits` is asked for too many problems.

    Source: Zhong et al., arXiv:2304.06364.

    Example:
        >>> from unlock_lens.evidence.tasks import AgiEvalMathSpec
        >>> AgiEvalMathSpec().kind
        'agieval_math'
    """

    kind: Literal["agieval_math"] = "agieval_math"

    def splits(self, sizes: Sizes, seed: int) -> Splits:
        rows = from_hub("hails/agieval-math", None, "test")
        problems = tuple(Problem(_AGIEVAL_PROMPT.sub("", row["query"]).strip(), row["answer"]) for row in rows)
        return split(Task(self.kind, problems, CHECKS["math"]), sizes, seed)


def from_hub(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    """The rows of a dataset on the Hugging Face hub.

    Raises:
        InvalidInput: `datasets` is not installed, there is no such dataset, or the hub cannot be reached.
    """
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


def _native(name: str, train: list[Problem], test: list[Problem], check: CheckName, sizes: Sizes, seed: int) -> Splits:
    # A benchmark that repeats a test question in its train split is used without the latter.
    pool = Task(f"{name} (train)", unique(train, besides=test), CHECKS[check])
    return split(pool, sizes, seed, Task(f"{name} (test)", tuple(test), CHECKS[check]))
