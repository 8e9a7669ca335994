"""What the paper reports of an experiment, beside what was found here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unlock_lens.evidence.plots.vocabulary import arm
from unlock_lens.evidence.results import Results


def beside_the_paper(results: Results) -> Iterator[dict[str, Any]]:
    """One row for each figure that the config carries (`paper_reports`), as texts; figures read by eye are marked with ~.

    "here" is empty where the figure is of another test set, or the arm was not run.
    """
    arms = results.arms()
    for told in results.config.get("paper_reports") or ():
        line = arms.get(told["arm"]) if told.get("of") is None else None
        yield {
            "of": told.get("of") or "this test set",
            "label": arm(told["arm"]).label,
            "paper": f"{'~' if told.get('about') else ''}{told['right']:g}%",
            "here": f"{line['accuracy']:.1%} ({line['low']:.1%} to {line['high']:.1%}, n = {line['n']})" if line else "",
        }
