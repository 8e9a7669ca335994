"""Planning: what an extraction, a calibration and a generation on a server will cost, from the models' configs alone."""

from unlock_lens.core.planning.plans import plan
from unlock_lens.core.planning.steps import Plan, Step

__all__ = ["Plan", "Step", "plan"]
