"""Sweeps: every choice is made on the train split, and reported once on the test split, with its controls."""

from unlock_lens.evidence.sweep.config import SweepConfig
from unlock_lens.evidence.sweep.runner import count, grid, run

__all__ = ["SweepConfig", "count", "grid", "run"]
