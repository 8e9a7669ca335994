"""The report as people meet it: opened from a file, in a real browser, on a desk and on a phone, by day and by night."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps import sweep
from unlock_lens import plots, report
from unlock_lens.evidence.results import Results

pytestmark = pytest.mark.browser

DESK, PHONE = (1200, 800), (360, 740)
LOOKS = [(DESK, "dark"), (PHONE, "light"), (PHONE, "dark")]
RESULTS = sweep(n=100)
Open = Callable[..., AbstractContextManager[Any]]

# Every piece of text that can be seen, with its size, its box and its contrast to what is painted beneath it.
TEXTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).slice(0, 3).map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const beneath = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((channels(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.textContent.trim() || parent.closest("script, style, noscript, .skip")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    const style = getComputedStyle(parent);
    if (!box.width || style.visibility === "hidden") continue;
    const svg = parent.closest("svg");
    const [one, other] = [luminance(svg ? style.fill : style.color), luminance(beneath(parent))].sort((a, b) => b - a);
    const figure = parent.closest("figure");
    found.push({
      text: node.textContent.trim(), size: parseFloat(style.fontSize), contrast: (one + 0.05) / (other + 0.05),
      box: [box.left, box.top, box.right, box.bottom], plot: svg && figure ? figure.id : null,
      cell: !!parent.closest(".heatmaplayer, .hm"), marks: !!parent.closest(".plot .textpoint, .plot .bartext"),
      tilted: /rotate\\((?!0[,)]|-?90)/.test(parent.closest("[transform]")?.getAttribute("transform") ?? ""),
      swatch: node.textContent.includes("\\u25a0"), scrolls: !!parent.closest(".scroll"),
    });
  }
  return found;
}"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    report.write(RESULTS, file)
    return file


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Open:
    """Opens the report and waits for its figures; complaints and requests are kept on the page's `heard`."""

    @contextmanager
    def open_page(
        size: tuple[int, int] = DESK, scheme: str = "light", file: Path = page_file, scripts: bool = True
    ) -> Generator[Any, None, None]:
        page = browser.new_page(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, java_script_enabled=scripts
        )
        page.heard = {"console": [], "errors": [], "requests": []}
        page.on("console", lambda message: page.heard["console"].append(message.text))
        page.on("pageerror", lambda error: page.heard["errors"].append(str(error)))
        page.on("request", lambda request: page.heard["requests"].append(request.url))
        page.goto(file.as_uri())
        page.wait_for_load_state("load")
        yield page
        page.close()

    return open_page


@pytest.mark.parametrize(("size", "scheme"), [pytest.param(DESK, "light", marks=pytest.mark.quick), *LOOKS])
def test_it_opens_without_a_complaint_or_a_request(opened: Open, page_file: Path, size: tuple[int, int], scheme: str) -> None:
    with opened(size, scheme) as page:
        page.wait_for_timeout(200)
        assert page.heard == {"console": [], "errors": [], "requests": [page_file.as_uri()]}
        assert page.title() == "think, large to small · arrived · unlock-lens"


@pytest.mark.parametrize("size", [pytest.param(DESK, marks=pytest.mark.quick), PHONE])
def test_every_figure_is_drawn(opened: Open, size: tuple[int, int]) -> None:
    with opened(size) as page:
        drawn = page.eval_on_selector_all(
            ".js-plotly-plot",
            """plots => plots.map(plot => {
                const box = plot.querySelector("svg.main-svg").getBoundingClientRect();
                const marks = [...plot.querySelectorAll(".plot path, .plot image, .plot .point")];
                return { figure: plot.closest("figure").id, width: box.width, height: box.height, traces: plot.data.length,
                         marks: marks.filter(mark => mark.getBoundingClientRect().width > 0).length };
            })""",
        )
        assert [each["figure"] for each in drawn] == [f"figure-{entry.name}" for entry in plots.FIGURES]
        for each in drawn:
            assert each["width"] > 250, each
            assert each["height"] > 150, each
            assert each["marks"] >= each["traces"] * 0.5 >= 0.5, each


def test_figures_are_as_wide_as_their_cards_after_a_resize(opened: Open) -> None:
    with opened(DESK) as page:
        page.set_viewport_size({"width": 500, "height": 800})
        page.wait_for_timeout(800)
        over = page.eval_on_selector_all(
            ".plot",
            "plots => plots.map(p => Math.abs(p.querySelector('svg.main-svg').getBoundingClientRect().width - p.clientWidth))",
        )
        assert max(over) <= 1


@pytest.mark.parametrize("change", ["all", "gained", "lost", "unchanged"])
def test_the_filter_shows_the_right_completions_and_counts_them(opened: Open, change: str) -> None:
    wanted = [str(i + 1) for i, each in enumerate(changes()) if change in ("all", each)]
    with opened() as page:
        page.check(f"input[value={change}]", force=True)
        assert shown(page) == wanted
        assert page.inner_text("output") == f"{len(wanted)} of 24 shown"


def test_the_search_box_narrows_what_the_filter_shows(opened: Open) -> None:
    line = RESULTS.arms()["transferred"]
    needle = line["completions"][5]
    found = [str(i + 1) for i, text in enumerate(line["completions"]) if needle in text and changes()[i] == "gained"]
    with opened() as page:
        page.check("input[value=gained]", force=True)
        page.fill("input[type=search]", f"  {needle.upper()} ")
        assert shown(page) == found
        page.fill("input[type=search]", "nothing of the kind")
        assert shown(page) == []
        assert page.inner_text("output") == "0 of 24 shown"
        page.fill("input[type=search]", "")
        assert len(shown(page)) == changes().count("gained")


def test_the_filter_works_from_the_keyboard(opened: Open) -> None:
    with opened() as page:
        page.focus("input[value=all]")
        page.keyboard.press("ArrowRight")
        assert len(shown(page)) == changes().count("gained")
        assert page.evaluate("getComputedStyle(document.querySelector('input[value=gained] + span')).outlineStyle") == "solid"
        page.keyboard.press("Tab")
        page.keyboard.type("no such text")
        page.keyboard.press("Enter")  # which must not reload the page
        assert page.inner_text("output") == "0 of 24 shown"


@pytest.mark.parametrize("size", [PHONE, (768, 1024), DESK])
def test_the_page_never_scrolls_sideways(opened: Open, size: tuple[int, int]) -> None:
    with opened(size) as page:
        assert page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [size[0], size[0]]
        outside = [
            t["text"] for t in page.evaluate(TEXTS) if not t["scrolls"] and (t["box"][0] < 0 or t["box"][2] > size[0] + 0.5)
        ]
        assert outside == []


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_no_text_is_too_small(opened: Open, size: tuple[int, int]) -> None:
    with opened(size) as page:
        texts = page.evaluate(TEXTS)
        assert len([text for text in texts if text["plot"]]) > 150
        assert [(text["text"], text["size"]) for text in texts if text["size"] < 12] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_background(opened: Open, scheme: str) -> None:
    with opened(DESK, scheme) as page:
        faint = [
            (text["text"], round(text["contrast"], 2))
            for text in page.evaluate(TEXTS)
            if text["contrast"] < 4.5 and not text["cell"] and not text["swatch"]  # cells: tests/evidence/test_plots.py
        ]
        assert faint == []


def test_figures_follow_the_system_from_day_to_night_and_back(opened: Open) -> None:
    ink = "getComputedStyle(document.querySelector('.xtick text')).fill"
    cell = "document.querySelector('#figure-specificity .plot').data[0].colorscale[0][1]"
    with opened() as page:
        by_day = page.evaluate(f"[{ink}, {cell}]")
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(800)
        by_night = page.evaluate(f"[{ink}, {cell}]")
        assert all(one != other for one, other in zip(by_day, by_night, strict=True))
        page.emulate_media(color_scheme="light")
        page.wait_for_timeout(800)
        assert page.evaluate(f"[{ink}, {cell}]") == by_day


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_no_two_texts_of_a_figure_overlap_and_none_is_cut_off(opened: Open, size: tuple[int, int]) -> None:
    with opened(size) as page:
        plain = [
            text for text in page.evaluate(TEXTS) if text["plot"] and not any(text[k] for k in ("cell", "swatch", "tilted"))
        ]
        cards = page.eval_on_selector_all(
            "figure", "all => all.map(f => [f.id, f.getBoundingClientRect().left, f.getBoundingClientRect().right])"
        )
    bounds = {name: (left, right) for name, left, right in cards}
    cut = [t["text"] for t in plain if t["box"][0] < bounds[t["plot"]][0] or t["box"][2] > bounds[t["plot"]][1]]
    assert cut == []
    clashes = [
        (one["plot"], one["text"], other["text"])
        for i, one in enumerate(plain)
        for other in plain[:i]
        if one["plot"] == other["plot"] and not one["marks"] and not other["marks"] and overlap(one["box"], other["box"]) > 1.5
    ]
    assert clashes == []


def test_it_is_a_document_that_can_be_walked_through(opened: Open) -> None:
    with opened() as page:
        levels = page.eval_on_selector_all("h1, h2, h3, h4, h5", "all => all.map(h => Number(h.tagName[1]))")
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        unlabelled = page.eval_on_selector_all(
            "section, nav, form, [role=region], [role=img]",
            """all => all.filter(
                e => !e.getAttribute('aria-label') && !document.getElementById(e.getAttribute('aria-labelledby'))
            ).length""",
        )
        assert unlabelled == 0
        missing = page.eval_on_selector_all(
            "nav a", "all => all.filter(a => !document.querySelector(a.getAttribute('href'))).length"
        )
        assert missing == 0


def test_completions_run_no_script(opened: Open) -> None:
    with opened() as page:
        assert "<script>document.title = 'broken'</script>" in page.inner_text(".completions li:first-child pre")
        assert page.title() != "broken"
        assert page.locator(".completions img").count() == 0


def test_without_javascript_all_is_there_but_the_figures(opened: Open) -> None:
    with opened(scripts=False) as page:
        assert page.locator(".completions li:visible").count() == 24
        assert page.locator("noscript").first.is_visible()


def test_it_prints_black_on_white_and_within_the_paper(opened: Open) -> None:
    with opened(DESK, "dark") as page:
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill") == "rgb(70, 80, 92)"
        widths = page.eval_on_selector_all("svg.main-svg", "all => all.map(svg => svg.getBoundingClientRect().width)")
        assert max(widths) <= 620
        assert page.locator(".filter").is_hidden()


def test_a_report_with_little_in_it_opens_as_well(opened: Open, tmp_path: Path) -> None:
    file = tmp_path / "little.html"
    little = sweep(n=12, without={"test", "geometry", "diagnosis", "provenance", "problems"})
    report.write(little, file)
    with opened(PHONE, "dark", file) as page:
        assert page.heard["console"] + page.heard["errors"] == []
        assert page.locator(".js-plotly-plot").count() == 2
        assert "unfinished" in page.inner_text("#verdict").lower()
    report.write(Results(little.config, little.lines[:1]), file)
    with opened(DESK, "light", file) as page:
        assert page.heard["console"] + page.heard["errors"] == []


def changes() -> list[str]:
    before, after = (RESULTS.arms()[name]["right"] for name in ("unsteered", "transferred"))
    return [("lost", "unchanged", "gained")[now - was + 1] for was, now in zip(before, after, strict=True)]


def shown(page: Any) -> list[str]:
    return page.eval_on_selector_all(
        ".completions > li", "all => all.filter(e => e.offsetHeight > 0).map(e => e.getAttribute('value'))"
    )


def overlap(one: list[float], other: list[float]) -> float:
    """How deep two boxes lie in each other, in pixels."""
    return min(min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1]))
