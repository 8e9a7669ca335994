"""Move a capability from one language model into another that you have open in TransformerLens or nnsight."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.consensus import consensus, path_cosine
from unlock_lens.core.direction import CapabilityDirection
from unlock_lens.core.gates import Gate
from unlock_lens.core.generation import generate
from unlock_lens.core.jobs import submit
from unlock_lens.core.keys import Evidence
from unlock_lens.core.steering import SteeringHook, apply, attached
from unlock_lens.core.transfer import calibration_texts, transfer
from unlock_lens.core.variant import Variant
from unlock_lens.errors import (
    ArtifactError,
    DeadlineExceeded,
    DiskError,
    IncompatibleModel,
    InvalidInput,
    JobsRunning,
    MissingPackage,
    RemoteError,
    RemoteFailure,
    RequestRefused,
    ServerUnreachable,
    UnlockLensError,
    UnsupportedModel,
)
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.hosts.remote import Remote, Traffic

if TYPE_CHECKING:
    from unlock_lens import interchange, zoo
    from unlock_lens.core.plan import Plan, plan
    from unlock_lens.evidence import (
        benchmarks,
        controls,
        distributions,
        evaluation,
        lens,
        plots,
        recipes,
        report,
        results,
        statistics,
        sweep,
        tasks,
    )
    from unlock_lens.evidence.diagnosis import Diagnosis, diagnose
    from unlock_lens.evidence.response import Response, response
    from unlock_lens.evidence.strength import Strength, calibrated, strength

__all__ = [
    "ArtifactError",
    "CapabilityDirection",
    "DeadlineExceeded",
    "Diagnosis",
    "DiskError",
    "Evidence",
    "Gate",
    "IncompatibleModel",
    "InvalidInput",
    "JobsRunning",
    "MissingPackage",
    "ModelIdentity",
    "Plan",
    "Remote",
    "RemoteError",
    "RemoteFailure",
    "RequestRefused",
    "Response",
    "ServerUnreachable",
    "SteeringHook",
    "Strength",
    "SubspaceAligner",
    "Traffic",
    "UnlockLensError",
    "UnsupportedModel",
    "Variant",
    "apply",
    "attached",
    "benchmarks",
    "calibrated",
    "calibration_texts",
    "consensus",
    "controls",
    "diagnose",
    "distributions",
    "evaluation",
    "generate",
    "interchange",
    "lens",
    "path_cosine",
    "plan",
    "plots",
    "recipes",
    "report",
    "response",
    "results",
    "statistics",
    "strength",
    "submit",
    "sweep",
    "tasks",
    "transfer",
    "zoo",
]

_EVIDENCE = (
    "benchmarks", "controls", "distributions", "evaluation", "lens", "plots", "recipes", "report", "results", "statistics",
    "sweep", "tasks",
)  # fmt: skip
_MODULES = {name: f"unlock_lens.evidence.{name}" for name in _EVIDENCE} | {
    "interchange": "unlock_lens.interchange",
    "zoo": "unlock_lens.zoo",
}
_NAMES = {
    "Diagnosis": "unlock_lens.evidence.diagnosis",
    "diagnose": "unlock_lens.evidence.diagnosis",
    "Response": "unlock_lens.evidence.response",
    "response": "unlock_lens.evidence.response",
    "Strength": "unlock_lens.evidence.strength",
    "calibrated": "unlock_lens.evidence.strength",
    "strength": "unlock_lens.evidence.strength",
    "Plan": "unlock_lens.core.plan",
    "plan": "unlock_lens.core.plan",
}


def __getattr__(name: str) -> Any:
    """Names that are imported when they are first used, because most programs need few of them."""
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("unlock-lens")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
