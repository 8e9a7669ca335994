"""Give a capability to a model that you have open in TransformerLens or nnsight, by finding it in another model."""

from typing import TYPE_CHECKING, Any

from unlock_lens.alignment import SubspaceAligner
from unlock_lens.direction import CapabilityDirection
from unlock_lens.errors import (
    ArtifactError,
    DeadlineExceeded,
    IncompatibleModel,
    InvalidInput,
    JobsRunning,
    RemoteError,
    RemoteFailure,
    RequestRefused,
    ServerUnreachable,
    UnlockLensError,
    UnsupportedModel,
)
from unlock_lens.generation import generate
from unlock_lens.identity import ModelIdentity
from unlock_lens.jobs import submit
from unlock_lens.remote import Remote, Traffic
from unlock_lens.steering import SteeringHook, apply, attached
from unlock_lens.variant import Variant

if TYPE_CHECKING:
    from unlock_lens.diagnostics import Diagnosis, diagnose
    from unlock_lens.planning import Plan, plan

__all__ = [
    "ArtifactError",
    "CapabilityDirection",
    "DeadlineExceeded",
    "Diagnosis",
    "IncompatibleModel",
    "InvalidInput",
    "JobsRunning",
    "ModelIdentity",
    "Plan",
    "Remote",
    "RemoteError",
    "RemoteFailure",
    "RequestRefused",
    "ServerUnreachable",
    "SteeringHook",
    "SubspaceAligner",
    "Traffic",
    "UnlockLensError",
    "UnsupportedModel",
    "Variant",
    "apply",
    "attached",
    "diagnose",
    "generate",
    "plan",
    "submit",
]


def __getattr__(name: str) -> Any:
    """Forecast and plan are imported when they are first asked for: few programs do, and every one imports this package."""
    if name in ("Diagnosis", "diagnose"):
        from unlock_lens import diagnostics

        return getattr(diagnostics, name)
    if name in ("Plan", "plan"):
        from unlock_lens import planning

        return getattr(planning, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
