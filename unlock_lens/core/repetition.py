"""Completions that have become garbage under steering: they repeat themselves at once."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from unlock_lens.core.steering import SteeringHook
from unlock_lens.errors import caution

RATIO = 2.4
"""How much text may be compressed before it counts as repetition: the limit of Whisper's decoding (arXiv:2212.04356)."""
_BEGINNING, _SHORTEST = 200, 60
"""The part of a completion that is looked at, in characters, and the least that tells anything, in bytes."""


def repeats(text: str) -> bool:
    """Whether a text is a few words over and over, such as "out out out out"; one of under 60 bytes never is."""
    beginning = text[:_BEGINNING].encode(errors="replace")
    return len(beginning) >= _SHORTEST and len(beginning) / len(zlib.compress(beginning)) > RATIO


def caution_of_garbage(completions: Sequence[str], hooks: Sequence[SteeringHook]) -> None:
    """Warn where at least half of the steered completions repeat themselves from their beginning on."""
    broken = [text for text in completions if repeats(text)]
    if not hooks or 2 * len(broken) < max(len(completions), 1):
        return
    wide = any(hook.positions in ("generated", "all") for hook in hooks)
    way_out = "positions='last_prompt' or fewer layers, or a weaker alpha" if wide else "a weaker alpha, or fewer layers"
    caution(
        f"{len(broken)} of {len(completions)} steered completions repeat themselves, such as {broken[0][:40]!r}: the edit is "
        f"probably too strong. Try {way_out}"
    )
