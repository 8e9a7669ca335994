"""Give a capability to a model that you have open in TransformerLens or nnsight, by finding it in another model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.direction import CapabilityDirection
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
from unlock_lens.core.generation import generate
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.core.jobs import submit
from unlock_lens.hosts.remote import Remote, Traffic
from unlock_lens.core.steering import SteeringHook, apply, attached
from unlock_lens.core.variant import Variant

if TYPE_CHECKING:
    from unlock_lens.evidence.diagnosis import Diagnosis, diagnose
    from unlock_lens.core.planning import Plan, plan

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


_LATER = {"Diagnosis": "diagnostics", "diagnose": "diagnostics", "Plan": "planning", "plan": "planning"}
_MODULES = ("controls", "evaluation", "interchange", "lens", "zoo")


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for: few programs do, and every one imports this package."""
    if name in _LATER:
        return getattr(import_module(f"unlock_lens.{_LATER[name]}"), name)
    if name in _MODULES:
        return import_module(f"unlock_lens.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("unlock-lens")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
