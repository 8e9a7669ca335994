"""Problems and the checks that say which completions are right: drawn, read from files, or loaded from the hub."""

from unlock_lens.evidence.tasks.problems import Check, Problem, Sizes, Splits, Task
from unlock_lens.evidence.tasks.scoring import CHECKS
from unlock_lens.evidence.tasks.specs import (
    AgiEvalMathSpec,
    Gsm8kSpec,
    HubSpec,
    JsonlSpec,
    MathSpec,
    PythonSpec,
    ReasoningGymSpec,
    RunningSumSpec,
    SeparateSpec,
    TaskSpec,
)

__all__ = [
    "CHECKS", "AgiEvalMathSpec", "Check", "Gsm8kSpec", "HubSpec", "JsonlSpec", "MathSpec", "Problem", "PythonSpec",
    "ReasoningGymSpec", "RunningSumSpec", "SeparateSpec", "Sizes", "Splits", "Task", "TaskSpec",
]  # fmt: skip
