"""What `ul.response` found, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlock_lens.evidence.response import Response

CAPTION = "Above, the share of completions that show the behaviour, with its 95% interval; the cross is the EC50."


def in_words(found: Response) -> str:
    """Where the behaviour sets in, at which strengths nearly all completions show it, and how the target's own compares."""
    if found.ec50 is None or found.ec50_interval is None:
        return f"The behaviour comes in at most {found.table['share'].max():.0%} of the completions, so it has no EC50."
    low, high = found.ec50_interval
    said = [f"Half of the effect is reached at alpha {found.ec50:.3g} (EC50; 95% interval {low:.3g} to {high:.3g})."]
    if found.window is None:
        said.append(
            f"No strength that was tried shows the behaviour in 90% of completions (most: {found.table['share'].max():.0%})."
        )
    else:
        said.append(
            f"At least 90% of completions show the behaviour from alpha {found.window[0]:.3g} to {found.window[1]:.3g}."
        )
    if "kl" in found.table:
        best = found.table["share"].idxmax()
        said.append(
            f"At alpha {best:.3g}, where most do, it costs {found.table['kl'][best]:.2g} nats per token of unrelated text."
        )
    if found.ratio is not None:
        said.append(f"Its EC50 is {found.ratio:.2g} times that of the target's own direction.")
    return " ".join(said)
