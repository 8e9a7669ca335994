"""Figures of a sweep: each takes `Results` and returns a plotly figure; one whose data was not measured raises InvalidInput.

`FIGURES` lists them in the order in which a report shows them, each with a sentence that says how to read it. Beside them,
`cross_validation` draws how an aligner's rank and ridge were chosen, and `dose_response` what `ul.response` found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unlock_lens.evidence.plots.accuracy import arms, flips, frontier, strength_curve
from unlock_lens.evidence.plots.behaviour import lengths, sharpening, specificity
from unlock_lens.evidence.plots.dose import dose_response
from unlock_lens.evidence.plots.geometry import cross_validation, heat_maps, spectra, transform_error

__all__ = [
    "FIGURES", "Entry", "arms", "cross_validation", "dose_response", "flips", "frontier", "heat_maps", "lengths", "sharpening",
    "specificity", "spectra", "strength_curve", "transform_error",
]  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A figure of the report, with a sentence that says how to read it."""

    draw: Callable[..., Any]
    caption: str

    @property
    def name(self) -> str:
        return self.draw.__name__


FIGURES = (
    Entry(arms, "Bars are 95% Wilson intervals. Open circles are other seeds, and the dotted line is the unsteered target."),
    Entry(flips, "A good transfer turns many wrong answers right and few right answers wrong."),
    Entry(strength_curve, "The strength was chosen here, on questions that are not reported. The band is the 95% interval."),
    Entry(specificity, "Framed cells are the behaviours that were wanted. They should be dark, and the rest of each row pale."),
    Entry(lengths, "A changed behaviour shows in the length of the completions, whether or not the answers are right."),
    Entry(sharpening, "The dashed line meets the curve at the number of samples that one steered answer is worth."),
    Entry(frontier, "The framed cell was chosen. A wide dark area means that the result does not depend on that choice."),
    Entry(
        transform_error,
        "Mean over layers, on tokens that the map was not fitted to. Panels use different tokens: compare within one.",
    ),
    Entry(spectra, "The faster a line falls, the fewer dimensions the layer uses, and the lower the rank that suffices."),
    Entry(heat_maps, "No map can carry over a direction that the calibration text does not span."),
)
