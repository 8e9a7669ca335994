"""Ready-made sweeps: the embedded family's, and the paper's three experiments."""

from __future__ import annotations

from pathlib import Path

from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.sweep.config import SweepConfig


def load(name: str) -> SweepConfig:
    """A recipe: the paper's "cot", "post-training", "icl"; the embedded family's "cot-zoo", "post-training-zoo", "zoo", "demo".

    "own" is one to begin with, whose models and problems are to be replaced.

    Raises:
        InvalidInput: the recipe is unknown.
    """
    file = path(name)
    if not file.is_file():
        known = sorted(other.stem for other in file.parent.glob("*.yaml"))
        raise InvalidInput(f"there is no recipe {name!r}; take one of {', '.join(known)}")
    return SweepConfig.load(file)


def path(name: str) -> Path:
    """The recipe's file, to copy and change."""
    return Path(__file__).parent / f"{name}.yaml"


def smallest() -> SweepConfig:
    """The embedded family's sweep at one rank and strength on few problems, which takes seconds, for examples and tests."""
    whole = load("zoo").model_dump(mode="json")
    few = {"extract": 100, "train": 20, "test": 100}
    grid = {"aligner": ["text"], "n": [100], "rank": [48], "alpha": [0.5]}
    controls = {"controls": ["random", "anti_mean", "shuffled"], "control_seeds": 1, "nulls": 19}
    return SweepConfig.parse({**whole, "sizes": few, "grid": grid, **controls, "others": []})
