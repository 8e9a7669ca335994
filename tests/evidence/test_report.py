"""The page and the table hold all that a sweep says, whatever it left out."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.sweeps import SCRIPT, save, sweep
from unlock_lens import report
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence.benchmarks import TaskPrice
from unlock_lens.evidence.response import Response
from unlock_lens.evidence.results import Results


def test_a_model_contrast_is_called_post_trained(tmp_path: Path) -> None:
    results = sweep(12)
    contrast = {**results.config, "capability": {"name": "think", "target_unlocked": "large-post"}}
    found = Results(contrast, results.lines)
    assert report.summary(found).loc["post_trained", "label"] == "post-trained"
    assert "post-trained 100.0%" in str(report.verdict(found))
    report.write(found, tmp_path / "report.html")
    assert "the target&#39;s own unlocked model" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report.summary(results).loc["prompted", "label"] == "prompted"


def test_the_summary_has_a_row_an_arm() -> None:
    results = sweep()
    found = report.summary(results)
    assert list(found.index[:4]) == ["transferred", "unsteered", "prompted", "own"]
    for name, line in results.arms().items():
        assert found.loc[name, "accuracy"] == line["accuracy"]
    assert found.loc["random", "seeds"] == 3
    assert found.loc["random", "role"] == "rival"
    assert math.isnan(found.loc["unsteered", "gained"])
    assert report.summary(sweep(n=12, without={"test"})).empty


def test_the_page_is_whole_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    report.write(sweep(n=100), file)
    page = file.read_text(encoding="utf-8")
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert len(page) < 500_000
    assert not re.search(r'<(script|link|img|iframe)[^>]*\s(src|href)="?http', page)
    assert "default-src 'none'" in page
    assert "<title>think, large to small · arrived · unlock-lens</title>" in page
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_completions_are_text_not_markup(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    results = sweep(n=12)
    report.write(Results({**results.config, "name": SCRIPT}, results.lines, results.problems), file)
    page = file.read_text(encoding="utf-8")
    assert SCRIPT not in page
    assert page.count("&lt;script&gt;document.title") == 5  # two completions, the title, the heading and the config


def test_names_in_figures_are_text_not_markup(tmp_path: Path) -> None:
    results = sweep(n=12)
    lines = [{**line, "behaviours": {SCRIPT: 1.0}} for line in results.lines]
    report.write(Results(results.config, tuple(lines)), tmp_path / "report.html")
    assert SCRIPT not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "without",
    [("test",), ("controls",), ("behaviours",), ("price",), ("sharpening",), ("geometry",), ("problems",), ("diagnosis",),
     ("provenance",), ("paired", "price", "sharpening", "behaviours", "controls", "geometry", "problems", "provenance")],
)  # fmt: skip
def test_the_page_copes_with_what_is_switched_off(tmp_path: Path, without: tuple[str, ...]) -> None:
    file = tmp_path / "report.html"
    report.write(sweep(n=12, without=without), file)
    page = file.read_text(encoding="utf-8")
    assert ("left out for lack of data" in page) == bool(
        {"test", "behaviours", "sharpening", "geometry", "paired"} & set(without)
    )
    assert "None" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_a_loaded_sweep_gives_the_same_page(tmp_path: Path) -> None:
    results = sweep(n=12)
    report.write(results, tmp_path / "made.html")
    report.write(Results.load(save(results, tmp_path / "sweep")), tmp_path / "loaded.html")
    pages = [
        re.sub(r"The whole config.*?</pre>", "", (tmp_path / f"{name}.html").read_text(), flags=re.DOTALL)
        for name in ("made", "loaded")
    ]
    assert pages[0] == pages[1]  # but for the order of the config's keys


def test_benchmarks_in_the_folder_are_in_the_report(tmp_path: Path) -> None:
    price = TaskPrice("mmlu", "acc", 200, 0.25, 0.23, -0.02, (-0.05, 0.01), 3, 7)
    folder = save(replace(sweep(n=12), benchmarks=[price.to_json()]), tmp_path / "sweep")
    report.write(Results.load(folder), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'href="#benchmarks"' in page
    row = re.search(r'<th scope="row">mmlu</th>.*', page)
    assert row is not None
    assert re.findall(r">([^<>]+)</td>", row[0]) == ["acc", "200", "25.0%", "23.0%", "\u22122.0 (\u22125.0 to +1.0)", "3 / 7"]


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    file.write_text("the last report")
    monkeypatch.setattr("os.replace", _full_disk)
    with pytest.raises(OSError, match="disk"):
        report.write(sweep(n=12), file)
    assert file.read_text() == "the last report"


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="folder"):
        report.write(sweep(n=12), tmp_path)


def test_the_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none.*report\.html"):
        report.write(sweep(n=12), tmp_path / "none" / "report.html")


def test_of_several_seeds_the_least_flattering_counts() -> None:
    results = sweep()
    line = results.arms()["transferred"]
    worse = {**line, "config": {**line["config"], "seed": 1}, "accuracy": 0.5}
    both = Results(results.config, (*results.lines, worse))
    assert both.arms()["transferred"]["accuracy"] == 0.5
    assert len(both.tested()["transferred"]) == 2
    rivals = both.tested()["random"]
    assert both.arms()["random"]["accuracy"] == max(each["accuracy"] for each in rivals)


def _full_disk(*_: object) -> None:
    raise OSError("no room left on the disk")


def test_a_sweep_in_short_is_what_its_report_says() -> None:
    """The numbers of the table and the verdict, for the key that a hook is saved as."""
    results = sweep(n=100)
    found, table = report.evidence(results), report.summary(results)
    assert (found.n, found.verdict) == (100, report.verdict(results).status)
    assert found.gain == pytest.approx(table.loc["transferred", "accuracy"] - table.loc["unsteered", "accuracy"])
    assert found.price == table.loc["transferred", "kl"]
    rivals = table[table["role"] == "rival"]
    assert found.controls == pytest.approx(
        dict(zip(rivals["label"], rivals["accuracy"] - table.loc["unsteered", "accuracy"], strict=True))
    )


@pytest.mark.parametrize(("without", "lacking"), [({"test"}, "unfinished"), ({"price"}, "has no price")])
def test_half_the_evidence_does_not_travel(without: set[str], lacking: str) -> None:
    with pytest.raises(InvalidInput, match=lacking):
        report.evidence(sweep(n=12, without=without))


def response(shares: list[float], own: Response | None = None) -> Response:
    """A curve of five strengths, its price growing with them."""
    table = pd.DataFrame(
        {"share": shares, "low": [share - 0.1 for share in shares], "high": [share + 0.1 for share in shares],
         "kl": [0.0, 0.01, 0.05, 0.2, 0.9], "kl_worst": [0.0, 0.1, 0.3, 1.0, 4.0]},
        index=pd.Index([0.0, 0.1, 0.2, 0.4, 0.8], name="alpha"),
    )  # fmt: skip
    rises = max(shares) > 0.5
    return Response(table, 0.15 if rises else None, (0.1, 0.2) if rises else None, (0.2, 0.4) if rises else None, own)


def test_a_dose_response_is_a_section_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    report.write(sweep(n=12), file)
    assert 'id="response"' not in file.read_text(encoding="utf-8")
    own = replace(response([0.0, 0.2, 0.9, 0.95, 0.3]), ec50=0.3)
    report.write(sweep(n=12), file, response([0.0, 0.2, 0.9, 0.95, 0.3], own))
    page = file.read_text(encoding="utf-8")
    assert 'href="#response"' in page
    assert 'id="figure-dose_response"' in page
    for told in (
        "alpha 0.15 (EC50; 95% interval 0.1 to 0.2)",
        "alpha 0.2 to 0.4",
        "costs 0.2 nats per token",
        "is 0.5 times that",
    ):
        assert told in page


def test_a_behaviour_that_does_not_come_is_reported_as_that(tmp_path: Path) -> None:
    report.write(sweep(n=12), tmp_path / "report.html", response([0.0, 0.0, 0.05, 0.0, 0.0]))
    assert "at most 5% of the completions, so it has no EC50" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_half_characters_do_not_break_the_page(tmp_path: Path) -> None:
    results = sweep(n=12)
    report.write(replace(results, config={**results.config, "name": "half \ud83d, NUL \0"}), tmp_path / "report.html")
    assert "<h1>half \ufffd, NUL \ufffd</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_fifty_thousand_completions_take_seconds_and_are_all_in_the_page(tmp_path: Path) -> None:
    """The first 200 as text; the others packed. Bounded by work that does not depend on the machine: the size of the page."""
    file = tmp_path / "report.html"
    results = many(sweep(n=100), 500)
    report.write(results, file)
    page = file.read_text(encoding="utf-8")
    assert "200 of 50,000 shown" in page
    assert page.count("<li class") == 201  # and the empty one that others are made of
    assert len(page) < 2_500_000
    packed = re.search(r'id="rest">([^<]+)<', page)
    assert packed
    rows = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert len(rows) == 49_800
    assert rows[-1][3] == results.arms()["transferred"]["completions"][-1]


def many(results: Results, times: int) -> Results:
    """The same sweep with its test questions repeated, and its completions numbered."""

    def more(line: Any) -> Any:
        if line["split"] == "train":
            return line
        grown = {key: list(line[key]) * times for key in ("right", "lengths", "completions") if key in line}
        if "completions" in grown:
            grown["completions"] = [f"Question {i}, step by step: {text}" for i, text in enumerate(grown["completions"])]
        return {**line, **grown, "n": line["n"] * times}

    assert results.problems
    problems = {**results.problems, "test": [*results.problems["test"]] * times}
    return replace(results, lines=tuple(map(more, results.lines)), problems=problems)
