"""A sweep's arms as a data frame, and its whole report as one HTML page that needs no network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.plots import FIGURES, dose_response
from unlock_lens.evidence.plots.drawing import svg
from unlock_lens.evidence.plots.vocabulary import arm, in_order
from unlock_lens.evidence.report.dose import CAPTION as DOSE
from unlock_lens.evidence.report.dose import in_words
from unlock_lens.evidence.report.judgement import Status, verdict
from unlock_lens.evidence.report.numbers import nats, p_value, points
from unlock_lens.evidence.report.paper import beside_the_paper
from unlock_lens.evidence.results import TRANSFERRED, UNSTEERED, Line, Results, write_whole

if TYPE_CHECKING:
    import pandas as pd

    from unlock_lens.evidence.response import Response

HERE = Path(__file__).parent
TONES: Mapping[Status, str] = {"arrived": "good", "did not arrive": "bad", "did harm": "bad", "not from the source": "bad"}
WIDTHS = {"wide": 500, "narrow": 290}
"""Pixels that each figure is drawn for; the page shows the one that fits."""
FIRST = ("arms", "flips", "strength_curve")
"""Figures that are not folded; the first stands beside the verdict."""
SHOWN = 200
"""Completions that the page shows at once; the others are packed in it."""
COMPLETION = ("prompt", "answer", "before", "after", "was_right", "is_right", "change")
BLANK = {**dict.fromkeys(COMPLETION, ""), "was_right": None, "is_right": None}
COLUMNS = ("label", "role", "accuracy", "low", "high", "n", "seeds", "strict", "cut", "behaviour", "gained", "lost",
           "difference", "difference_low", "difference_high", "p", "kl", "perplexity", "tokens", "tried", "aligner", "rank",
           "alpha")  # fmt: skip


def summary(results: Results) -> pd.DataFrame:
    """The arms of the test split, one row each, in the order of figures and page; what was not measured is missing.

    Of several seeds it is the least flattering one (`Results.arms`). "strict" is the share that is right between the task's
    answer tags, "cut" the share of completions that ran to the budget of new tokens, "behaviour" the share that show the
    swept capability; "difference" and what follows compare with the unsteered target on the same questions; "tried" counts the
    settings that the arm chose among, on train.
    """
    import pandas as pd

    arms = results.arms()
    rows = {name: _row(results, name, arms[name]) for name in in_order(arms)}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))
    frame.index.name = "arm"
    return frame


def write(results: Results, file: str | Path, response: Response | None = None) -> None:
    """Write the report as one self-contained HTML page, which loads nothing from the network.

    Args:
        results: of a sweep, finished or not.
        file: the page.
        response: what `ul.response` found for the same hook; it becomes a section of its own.

    Raises:
        InvalidInput: `file` is a folder, or its folder does not exist.
    """
    file = Path(file)
    if file.is_dir():
        raise InvalidInput(f"{file} is a folder; give a file in it, such as {file / 'report.html'}")
    if not file.parent.is_dir():
        raise InvalidInput(f"there is no folder {file.parent} to write {file.name} into; create it first")
    page = _page(results, response)
    # Half a character and NUL cannot stand in a page; both become the sign of a missing character.
    write_whole(file, page.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd"))


def _row(results: Results, name: str, line: Line) -> dict[str, Any]:
    paired, price, config = line.get("paired") or {}, line.get("price") or {}, line["config"]
    return {
        "label": arm(name).label, "role": arm(name).role, "seeds": len(results.tested()[name]),
        "tried": _tried(results, line),
        **{key: line.get(key) for key in ("accuracy", "low", "high", "n", "tokens")},
        "strict": (line.get("strict") or {}).get("accuracy"), "cut": line.get("cut"),
        "behaviour": (line.get("behaviours") or {}).get(results.capability),
        **{key: paired.get(key) for key in ("gained", "lost", "difference", "p")},
        "difference_low": paired.get("low"), "difference_high": paired.get("high"),
        **{key: price.get(key) for key in ("kl", "perplexity")},
        **{key: config.get(key) for key in ("aligner", "rank", "alpha")},
    }  # fmt: skip


def _tried(results: Results, line: Line) -> int | None:
    """How many settings this arm chose among, on train; None where there was nothing to choose."""
    config = line["config"]
    return sum(other["config"].get("seed", 0) == config.get("seed", 0) for other in results.trained(config["control"])) or None


def _page(results: Results, response: Response | None) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["dated"] = lambda text: str(text)[:16].replace("T", " ")
    environment.filters["percent"], environment.filters["change"] = "{:.1%}".format, points
    css, js = ((HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js"))
    judged, (figures, left_out), completions = verdict(results), _figures(results), _completions(results)
    counted = Counter(each["change"] for each in completions)
    return environment.get_template("page.html.j2").render(
        css=Markup(css), js=Markup(js), policy=Markup(_policy(css, js)), version=version("unlock-lens"),
        name=results.config.get("name") or "Sweep",
        source=results.config.get("source"), target=results.config.get("target"), provenance=results.provenance or {},
        verdict=judged, tone=TONES.get(judged.status, "open"), tiles=list(_tiles(results)), arms=list(_arms(results)),
        main_figure=next((each for each in figures if each["name"] == FIRST[0]), None),
        figures=[each for each in figures if each["name"] != FIRST[0]], left_out=left_out,
        completions=completions[:SHOWN], blank=BLANK, rest=_packed(completions[SHOWN:]),
        changes={"all": len(completions), **{change: counted[change] for change in ("gained", "lost", "unchanged")}},
        response=response and {"sentence": in_words(response), "figure": _drawn(dose_response(response), DOSE)},
        diagnosis=results.diagnosis or {}, benchmarks=results.benchmarks or (),
        facts=list(_facts(results.provenance or {})), config=_yaml(results.config), paper=list(beside_the_paper(results)),
    )  # fmt: skip


def _policy(css: str, js: str) -> str:
    """What the page may do: run its own script and use its own style sheet, known by their hashes, and nothing else."""
    script, style = (base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in (js, css))
    return f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"


def _figures(results: Results) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Figures as the page draws them, and those that cannot be drawn, with the reason."""
    drawn: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    for entry in FIGURES:
        try:
            figure = entry.draw(results)
        except InvalidInput as error:
            left_out.append({"name": entry.name.replace("_", " "), "reason": str(error)})
            continue
        drawn.append({**_drawn(figure, entry.caption), "name": entry.name, "is_first": entry.name in FIRST})
    return drawn, left_out


def _drawn(figure: Any, caption: str) -> dict[str, Any]:
    from markupsafe import Markup

    drawings = {name: Markup(svg(figure, width)) for name, width in WIDTHS.items()}
    return {"name": "dose_response", "title": figure.layout.title.text, "caption": caption, **drawings}


def _tiles(results: Results) -> Iterator[dict[str, str]]:
    """The numbers that a reader looks for first."""
    arms = results.arms()
    for name in (UNSTEERED, TRANSFERRED):
        if name in arms:
            line = arms[name]
            interval = f"{line['low']:.1%} to {line['high']:.1%}, n = {line['n']}"
            yield {"label": f"right, {arm(name).label}", "value": f"{line['accuracy']:.1%}", "note": interval}
    main = arms.get(TRANSFERRED, {})
    if paired := main.get("paired"):
        interval = f"{points(paired['low'])} to {points(paired['high'])}, {p_value(paired['p'])}"
        yield {"label": "gain in points, paired", "value": points(paired["difference"]), "note": interval}
        flips = f"+{paired['gained']} / \u2212{paired['lost']}"
        yield {"label": "answers gained / lost", "value": flips, "note": "on the same questions"}
    if price := main.get("price"):
        perplexity = f"nats per token; perplexity {price['perplexity_unsteered']:.3g} to {price['perplexity']:.3g}"
        yield {"label": "price, unrelated text", "value": nats(price["kl"]), "note": perplexity}


def _arms(results: Results) -> Iterator[dict[str, Any]]:
    """The rows of the table, in words."""
    arms = results.arms()
    has_tags = any(line.get("strict") for line in arms.values())
    for name in in_order(arms):
        row = _row(results, name, arms[name])
        seeds = f"{'worst' if name == TRANSFERRED else 'best'} of {row['seeds']} seeds" if row["seeds"] > 1 else ""
        cells = _cells(row, results.capability or "behaviour", has_tags)
        yield {**row, "meaning": arm(name).meaning, "seeds": seeds, "cells": list(cells)}


def _cells(row: Mapping[str, Any], behaviour: str, has_tags: bool) -> Iterator[tuple[str, str]]:
    """What the table says of an arm: the name of each column, and a text."""

    def said(value: Any, form: str) -> str:
        return "\u2013" if value is None else form.format(value)

    yield "right", said(row["accuracy"], "{:.1%}")
    yield "95% interval", f"{row['low']:.1%} to {row['high']:.1%}"
    if has_tags:
        yield "in the tag", said(row["strict"], "{:.1%}")
    yield behaviour, said(row["behaviour"], "{:.1%}")
    compared = row["difference"] is not None
    yield "gained / lost", f"+{row['gained']} / \u2212{row['lost']}" if compared else "\u2013"
    interval = [points(row[key]) for key in ("difference", "difference_low", "difference_high")] if compared else []
    yield "points (95%)", "{} ({} to {})".format(*interval) if compared else "\u2013"
    yield "KL, nats per token", said(row["kl"] and nats(row["kl"]), "{}")
    yield "tokens", said(row["tokens"], "{:.1f}")
    yield "settings tried", said(row["tried"], "{}")
    yield "rank", said(row["rank"], "{}")
    yield "alpha", said(row["alpha"], "{:g}")


def _completions(results: Results) -> list[dict[str, Any]]:
    """Each test question with what the target wrote before and after; none where either was not kept."""
    before, after = (results.arms().get(name) or {} for name in (UNSTEERED, TRANSFERRED))
    if not (before.get("completions") and after.get("completions")):
        return []
    problems: Sequence[Mapping[str, str]] = (results.problems or {}).get("test") or [{}] * len(before["completions"])
    columns = (problems, before["completions"], after["completions"], before["right"], after["right"])
    return [
        {
            "prompt": problem.get("prompt", ""), "answer": problem.get("answer", ""), "before": old, "after": new,
            "was_right": bool(was), "is_right": bool(now), "change": ("lost", "unchanged", "gained")[now - was + 1],
        }
        for problem, old, new, was, now in zip(*columns, strict=True)
    ]  # fmt: skip


def _packed(completions: Sequence[Mapping[str, Any]]) -> str:
    """Completions that the page's script unpacks when a reader asks for them: base64 of gzip of JSON; "" for none."""
    if not completions:
        return ""
    rows = [[each[key] for key in COMPLETION] for each in completions]
    return base64.b64encode(gzip.compress(json.dumps(rows).encode("ascii"), compresslevel=6, mtime=0)).decode("ascii")


def _facts(told: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping as pairs of a name and a text."""
    for key, value in told.items():
        name = f"{under}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _facts(value, f"{name}: ")
        elif value not in (None, ""):
            yield name, str(value)


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(
        json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )
