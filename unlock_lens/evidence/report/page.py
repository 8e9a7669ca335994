"""A sweep's arms as a data frame, and its whole report as one HTML page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.plots.vocabulary import arm, in_order
from unlock_lens.evidence.report.judgement import Status, verdict
from unlock_lens.evidence.report.numbers import nats, p_value, points
from unlock_lens.evidence.report.paper import beside_the_paper
from unlock_lens.evidence.results import TRANSFERRED, UNSTEERED, Line, Results, write_whole

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).parent
TONES: Mapping[Status, str] = {"arrived": "good", "did not arrive": "bad", "did harm": "bad", "not from the source": "bad"}
TITLE_SPACE = 34  # pixels: the page sets titles as headings of its own
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


def write(results: Results, file: str | Path) -> None:
    """Write the report as one self-contained HTML page, which loads nothing from the network.

    Raises:
        InvalidInput: `file` is a folder, or its folder does not exist.
    """
    file = Path(file)
    if file.is_dir():
        raise InvalidInput(f"{file} is a folder; give a file in it, such as {file / 'report.html'}")
    if not file.parent.is_dir():
        raise InvalidInput(f"there is no folder {file.parent} to write {file.name} into; create it first")
    write_whole(file, _page(results))


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


def _page(results: Results) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["nats"] = nats
    environment.filters["dated"] = lambda text: str(text)[:16].replace("T", " ")
    environment.filters["percent"], environment.filters["change"] = "{:.1%}".format, points
    own = {name: Markup((HERE / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    judged, (figures, left_out), rows = verdict(results), _figures(results), list(_arms(results))
    return environment.get_template("page.html.j2").render(
        **own, plotly=Markup(get_plotlyjs()), version=version("unlock-lens"), name=results.config.get("name") or "Sweep",
        source=results.config.get("source"), target=results.config.get("target"), provenance=results.provenance or {},
        verdict=judged, tone=TONES.get(judged.status, "open"), tiles=list(_tiles(results)), arms=rows,
        figures=figures, left_out=left_out, completions=_completions(results), diagnosis=results.diagnosis or {},
        benchmarks=results.benchmarks or (),
        facts=list(_facts(results.provenance or {})), config=_yaml(results.config), capability=results.capability,
        tagged=any(row["strict"] is not None for row in rows), paper=list(beside_the_paper(results)),
    )  # fmt: skip


def _figures(results: Results) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Figures as the page draws them, and those that cannot be drawn, with the reason."""
    from unlock_lens.evidence.plots import FIGURES

    drawn: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    for entry in FIGURES:
        try:
            spec = json.loads(entry.draw(results).to_json())
        except InvalidInput as error:
            left_out.append({"name": entry.name.replace("_", " "), "reason": str(error)})
            continue
        layout, title = spec["layout"], spec["layout"].pop("title")["text"]
        top = layout.get("margin", {}).get("t", 48)
        layout.update(height=layout["height"] - TITLE_SPACE, margin={"t": top - TITLE_SPACE})
        drawn.append({"name": entry.name, "title": title, "caption": entry.caption, "spec": spec})
    return drawn, left_out


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
    for name in in_order(arms):
        row = _row(results, name, arms[name])
        seeds = f"{'worst' if name == TRANSFERRED else 'best'} of {row['seeds']} seeds" if row["seeds"] > 1 else ""
        yield {**row, "name": name, "meaning": arm(name).meaning, "seeds": seeds}


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
