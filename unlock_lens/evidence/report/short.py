"""A sweep in short: the evidence that travels with a key."""

from __future__ import annotations

from unlock_lens.core.keys import Evidence
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.plots.vocabulary import arm
from unlock_lens.evidence.report.comparisons import gain, rivals_of
from unlock_lens.evidence.report.judgement import verdict
from unlock_lens.evidence.results import TRANSFERRED, UNSTEERED, Results


def evidence(results: Results) -> Evidence:
    """What a finished sweep shows, as a key tells it: `steer.proven(report.evidence(results))`.

    The controls are the rivals that the verdict compares the transfer with, each by its best seed.

    Raises:
        InvalidInput: an unfinished sweep, one without controls, one that did not keep its answers or did not measure its price.
    """
    judged = verdict(results)
    if judged.status == "unfinished":
        raise InvalidInput(f"{judged.headline} Finish it first: a key does not go out with half its evidence")
    arms = results.arms()
    main, base = arms[TRANSFERRED], arms[UNSTEERED]
    paired = gain(main, base)
    controls = {arm(rival.name).label: rival.line["accuracy"] - base["accuracy"] for rival in rivals_of(arms)}
    missing = {"answers": paired, "price": main.get("price"), "controls": controls}
    if lacking := [name for name, of in missing.items() if not of]:
        raise InvalidInput(f"this sweep has no {', no '.join(lacking)}; a key needs all, so run it with them")
    assert paired is not None
    task = f"{results.capability or 'the capability'}: {results.config.get('name') or 'a sweep'}"
    interval = (float(paired["low"]), float(paired["high"]))
    return Evidence(task, main["n"], float(paired["difference"]), interval, main["price"]["kl"], controls, judged.status)
