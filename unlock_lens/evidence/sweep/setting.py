"""One configuration of a sweep."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

UNSTEERED, NAIVE, NAIVE_UNSTEERED = "unsteered", "naive", "naive_unsteered"


@dataclass(frozen=True)
class Setting:
    """One configuration of a sweep; None where a part does not apply (a baseline has no alpha)."""

    capability: str
    control: str | None = None
    seed: int = 0
    aligner: str | None = None
    n: int | None = None
    aggregate: Literal["mean", "pca"] | None = None
    position: int | None = None
    layer_map: str | None = None
    layers: str | None = None
    rank: int | None = None
    operation: Literal["norm_preserving", "add", "ablate"] | None = None
    positions: Literal["last_prompt", "prompt", "generated", "all"] | None = None
    alpha: float | None = None
    method: Literal["unlock", "ridge", "procrustes", "rrr", "cca"] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
