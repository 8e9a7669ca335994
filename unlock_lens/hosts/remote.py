"""Remote: on which server a model runs, how long to wait, and what is returned (docs/remote.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from unlock_lens.errors import InvalidInput


@dataclass
class Traffic:
    """Counts of what was sent to servers and returned.

    Attributes:
        requests: number of collected requests, whoever sent them.
        up: bytes of the requests' payloads.
        down: bytes of their results.
        seconds: from sending to result, summed over requests.
    """

    requests: int = 0
    up: int = 0
    down: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Remote:
    """How nnsight models run on an NDIF server; pass it as `remote=`, where True means `Remote()`.

    Attributes:
        host: the server's URL; None is nnsight's own setting (NDIF, or the environment's NDIF_HOST).
        deadline: seconds for a whole request: queue, loading the model, and running.
        patience: seconds to wait for one answer of the server before giving up.
        batches: batches per request; None is all of them, or 8 with `resume=`.
        axes: principal axes returned for each layer, where a rank alone does not determine how many are needed.
        positions: calibration tokens whose scores are returned, a seeded sample if there are more; axes always come from
            all tokens.
        trusted: whether you named the host yourself. The API key is sent to a host from a config file only if nnsight's own
            settings have the same host.
        half: whether axes and scores are returned in float16.
        traffic: counts requests and bytes.

    Raises:
        InvalidInput: a number is not positive, or the host is not a URL.
    """

    host: str | None = None
    deadline: float = 3600.0
    patience: float = 60.0
    batches: int | None = None
    axes: int = 128
    positions: int = 4096
    half: bool = False
    trusted: bool = True
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    def __post_init__(self) -> None:
        kinds = {"deadline": "number", "patience": "number"} | dict.fromkeys(("batches", "axes", "positions"), "whole number")
        for name, kind in kinds.items():
            number = getattr(self, name)
            if number is not None and not (number > 0 and (kind == "number" or isinstance(number, int))):
                raise InvalidInput(f"Remote({name}={number}) was given; a positive {kind} is needed")
        if self.host is not None:
            if not self.host.startswith(("http://", "https://")):
                raise InvalidInput(f"the host {self.host!r} was given; give its URL, http://..., or remote=True for NDIF")
            object.__setattr__(self, "host", self.host.rstrip("/"))  # nnsight's server answers 403 to a double slash


Where = bool | str | Remote
"""As users say it: False, True or "ndif", "local", a host's URL, or a `Remote`."""


def remote_of(where: Where) -> Remote | Literal["local"] | None:
    """None for this machine, "local" for this machine as NDIF would run it, or the server."""
    if isinstance(where, Remote):
        return where
    if where == "local":
        return "local"
    if isinstance(where, str) and where != "ndif":  # as the command line says it
        return Remote(where)
    return Remote() if where else None
