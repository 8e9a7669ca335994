"""Sweeps: every choice is made on the train split, and reported once on the test split, beside its controls."""

from unlock_lens.sweep.config import SweepConfig
from unlock_lens.sweep.runner import count, grid, run

__all__ = ["SweepConfig", "count", "grid", "run"]
