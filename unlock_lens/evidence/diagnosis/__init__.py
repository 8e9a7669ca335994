"""A forecast before a long run: will this direction, through this map, unlock the target? (docs/diagnosis.md)."""

from unlock_lens.evidence.diagnosis.forecast import Diagnosis, diagnose
from unlock_lens.evidence.diagnosis.layers import LayerDiagnosis
from unlock_lens.evidence.diagnosis.probe import Probe

__all__ = ["Diagnosis", "LayerDiagnosis", "Probe", "diagnose"]
