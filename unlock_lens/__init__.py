"""Give a capability to a model that you have open in TransformerLens or nnsight, by finding it in another model."""

from unlock_lens.alignment import SubspaceAligner
from unlock_lens.diagnostics import Diagnosis, diagnose
from unlock_lens.direction import CapabilityDirection
from unlock_lens.errors import ArtifactError, IncompatibleModel, InvalidInput, UnlockLensError, UnsupportedModel
from unlock_lens.generation import generate
from unlock_lens.identity import ModelIdentity
from unlock_lens.steering import SteeringHook, apply, attached
from unlock_lens.variant import Variant

__all__ = [
    "ArtifactError",
    "CapabilityDirection",
    "Diagnosis",
    "IncompatibleModel",
    "InvalidInput",
    "ModelIdentity",
    "SteeringHook",
    "SubspaceAligner",
    "UnlockLensError",
    "UnsupportedModel",
    "Variant",
    "apply",
    "attached",
    "diagnose",
    "generate",
]
