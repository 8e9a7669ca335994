"""The report as people meet it: opened from a file, in a real browser, on a desk and on a phone, by day and by night."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps import SCRIPT, sweep
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
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    found.push({
      size: parseFloat(style.fontSize) * scale,
      text: node.textContent.trim(), contrast: (one + 0.05) / (other + 0.05),
      box: [box.left, box.top, box.right, box.bottom], plot: svg && figure ? figure.id : null,
      cell: parent.getAttribute("pointer-events") === "none", tilted: parent.hasAttribute("transform"),
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
    """Opens the report and all that is folded in it; complaints, dialogs and requests are kept on the page's `heard`."""

    @contextmanager
    def open_page(
        size: tuple[int, int] = DESK, scheme: str = "light", file: Path = page_file, scripts: bool = True, fold: bool = False
    ) -> Generator[Any, None, None]:
        page = browser.new_page(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, java_script_enabled=scripts
        )
        page.heard = {"console": [], "errors": [], "requests": [], "dialogs": []}
        page.on("dialog", lambda dialog: (page.heard["dialogs"].append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: page.heard["console"].append(message.text))
        page.on("pageerror", lambda error: page.heard["errors"].append(str(error)))
        page.on("request", lambda request: page.heard["requests"].append(request.url))
        page.goto(file.as_uri())
        page.wait_for_load_state("load")
        if not fold:
            page.eval_on_selector_all("details", "all => all.forEach((each) => each.setAttribute('open', ''))")
        yield page
        page.close()

    return open_page


@pytest.mark.parametrize(("size", "scheme"), [pytest.param(DESK, "light", marks=pytest.mark.quick), *LOOKS])
def test_it_opens_without_a_complaint_or_a_request(opened: Open, page_file: Path, size: tuple[int, int], scheme: str) -> None:
    with opened(size, scheme) as page:
        page.wait_for_timeout(200)
        assert page.heard == {"console": [], "errors": [], "requests": [page_file.as_uri()], "dialogs": []}
        assert page.title() == "think, large to small · arrived · unlock-lens"


@pytest.mark.parametrize("size", [pytest.param(DESK, marks=pytest.mark.quick), PHONE])
def test_every_figure_is_drawn_once_and_as_wide_as_its_card(opened: Open, size: tuple[int, int]) -> None:
    with opened(size) as page:
        drawn = figures(page)
        assert [each["figure"] for each in drawn] == [f"figure-{entry.name}" for entry in plots.FIGURES]
        for each in drawn:
            assert each["width"] > 250, each
            assert each["height"] > 100, each
            assert each["marks"] >= 3, each
        page.set_viewport_size({"width": 500, "height": 800})
        assert all(each["width"] == pytest.approx(min(each["room"], 400), abs=2) for each in figures(page))


def test_only_the_figures_that_decide_are_unfolded(opened: Open) -> None:
    with opened(fold=True) as page:
        assert page.locator("figure:visible").evaluate_all("all => all.map(f => f.id)") == [
            "figure-arms", "figure-flips", "figure-strength_curve",
        ]  # fmt: skip


def test_a_mark_tells_its_value_under_the_pointer(opened: Open) -> None:
    with opened() as page:
        bar = page.locator("#figure-flips .wide rect[data-tip]").first
        page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        bar.scroll_into_view_if_needed()
        page.wait_for_timeout(200)  # scrolling hides what is told of another mark
        bar.hover()
        page.locator(".tip").wait_for(state="visible")
        told = page.inner_text(".tip")
        assert "naive target" in told
        assert "wrong to right" in told
        page.mouse.move(1, 1)
        assert page.locator(".tip").is_hidden()


@pytest.mark.parametrize("change", ["all", "gained", "lost", "unchanged"])
def test_the_filter_shows_the_right_completions_and_counts_them(opened: Open, change: str) -> None:
    wanted = [str(i + 1) for i, each in enumerate(changes()) if change in ("all", each)]
    with opened() as page:
        page.check(f"input[value={change}]", force=True)
        assert shown(page) == wanted
        assert page.inner_text("output") == f"{len(wanted)} of 100 shown"


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
        assert page.inner_text("output") == "0 of 100 shown"
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
        assert page.inner_text("output") == "0 of 100 shown"


@pytest.mark.parametrize("size", [PHONE, (768, 1024), DESK])
def test_the_page_never_scrolls_sideways(opened: Open, size: tuple[int, int]) -> None:
    with opened(size) as page:
        assert page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [size[0], size[0]]
        outside = [t["text"] for t in page.evaluate(TEXTS) if t["box"][0] < 0 or t["box"][2] > size[0] + 0.5]
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
            if text["contrast"] < 4.5 and not text["cell"]  # cells: tests/evidence/test_plots.py
        ]
        assert faint == []


def test_figures_follow_the_system_from_day_to_night_and_back(opened: Open) -> None:
    ink = "getComputedStyle(document.querySelector('svg .text')).fill"
    with opened() as page:
        by_day = page.evaluate(ink)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(ink) != by_day
        page.emulate_media(color_scheme="light")
        assert page.evaluate(ink) == by_day


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_no_two_texts_of_a_figure_overlap_and_none_is_cut_off(opened: Open, size: tuple[int, int]) -> None:
    with opened(size) as page:
        plain = [text for text in page.evaluate(TEXTS) if text["plot"] and not text["cell"] and not text["tilted"]]
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
        if one["plot"] == other["plot"] and overlap(one["box"], other["box"]) > 1.5
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


PAYLOADS = [
    SCRIPT, "</script><script>alert(2)</script>",
    "</style><script>alert(1)</script>", "</template><img src=x onerror=alert(1)>",
    "<!--<script>", "]]><svg onload=alert(1)>", "javascript:alert(1)", "{{ 7 * 7 }}{% raw %}", "\"' onmouseover=alert(1) x=\"",
    "<iframe src=https://example.org></iframe>", "<style>*{display:none}</style>", "<base href=//example.org>",
    "<form action=//example.org><button>go</button></form>", "<meta http-equiv=refresh content=0>",
    "&lt;b&gt;&#0;", "%{x}<br><b>",
    "\u202egnp.exe", "half \ud83d of a smile", "\x00\x07\x1b[31m", "</pre></li></ol></textarea><plaintext>", "constructor",
    "__proto__",
]  # fmt: skip


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without"])
def test_hostile_texts_are_shown_as_text(opened: Open, tmp_path: Path, scripts: bool) -> None:
    """Completions, questions, answers, names of models and behaviours, and everything in config and provenance."""
    file = tmp_path / "hostile.html"
    report.write(hostile(), file)
    with opened(DESK, "light", file, scripts) as page:
        page.wait_for_timeout(300)
        assert page.heard == {"console": [], "errors": [], "requests": [file.as_uri()], "dialogs": []}
        foreign = (
            "body :is(img, iframe, base, meta, plaintext, textarea, object, style), form[action], [onerror], [onmouseover]"
        )
        assert page.locator(foreign).count() == 0
        assert page.locator("script:not([type])").count() == 1
        pieces = page.eval_on_selector_all("[data-part]", "all => all.map((part) => part.textContent)")
        drawn = page.eval_on_selector_all("#figure-specificity text", "all => all.map((text) => text.textContent)")
        for payload in PAYLOADS:
            assert pieces.count(readable(payload)) >= 4  # question, answer, before, after
            assert readable(payload) in drawn
        assert page.locator("#verdict").is_visible()
        assert readable(PAYLOADS[0]) in page.inner_text(".sub")


def test_the_policy_stops_what_is_not_the_pages_own(opened: Open, tmp_path: Path, page_file: Path) -> None:
    """Script, handler, style, picture and link to a script that somehow came in are refused by the browser."""
    planted = (
        "<script>document.title = 'broken'</script><img src=https://example.org/x.png onerror=\"document.title = 'broken'\">"
        "<script src=https://example.org/x.js></script><p style='position: fixed' id=planted>x</p></main>"
    )
    file = tmp_path / "planted.html"
    file.write_text(page_file.read_text(encoding="utf-8").replace("</main>", planted, 1), encoding="utf-8")
    with opened(DESK, "light", file) as page:
        page.wait_for_timeout(200)
        assert page.title() != "broken"
        refused = "\n".join(line for line in page.heard["console"] if "Content Security Policy" in line)
        assert all(what in refused for what in ("inline script", "event handler", "inline style", "x.js", "x.png"))
        assert page.evaluate("getComputedStyle(document.querySelector('#planted')).position") == "static"


def test_many_completions_are_shown_on_demand(opened: Open, tmp_path: Path) -> None:
    """The first are in the page, the others are packed in it; search, filters and counts know them all."""
    file = tmp_path / "many.html"
    results = hostile(1500)
    report.write(results, file)
    assert file.stat().st_size < 2_000_000
    line = results.arms()["transferred"]
    with opened(DESK, "light", file) as page:
        assert len(shown(page)) == 200
        assert page.inner_text("output") == "200 of 1,500 shown"
        page.click(".more")
        page.wait_for_function("document.querySelectorAll('.completions > li').length === 400")
        assert shown(page)[-1] == "400"
        assert page.inner_text("output") == "400 of 1,500 found are shown; 1,500 in all"
        page.fill("input[type=search]", "completion 1234 ")
        page.wait_for_function("document.querySelectorAll('.completions > li').length === 1")
        assert shown(page) == ["1235"]
        packed = page.eval_on_selector(".completions [data-part=after]", "part => part.textContent")
        assert packed == line["completions"][1234]
        assert page.heard["console"] + page.heard["errors"] + page.heard["dialogs"] == []
        page.fill("input[type=search]", "")
        page.check("input[value=gained]", force=True)
        gained = sum(now > was for was, now in zip(results.arms()["unsteered"]["right"], line["right"], strict=True))
        page.wait_for_function("document.querySelector('output').textContent.includes('found')")
        assert page.inner_text("output") == f"200 of {gained:,} found are shown; 1,500 in all"


def test_without_javascript_all_but_the_packed_completions_is_there(opened: Open) -> None:
    with opened(scripts=False, fold=True) as page:
        assert page.locator(".completions li:visible").count() == 100
        assert page.locator("figure svg:visible").count() == 3


def test_it_prints_black_on_white_with_all_that_is_folded(opened: Open) -> None:
    with opened(DESK, "dark", fold=True) as page:
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.querySelector('svg .text')).fill") == "rgb(85, 96, 110)"
        assert page.locator("details:not([open])").count() == 0
        assert page.locator(".filter").is_hidden()
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.locator("details[open]").count() == 0


def test_a_report_with_little_in_it_opens_as_well(opened: Open, tmp_path: Path) -> None:
    file = tmp_path / "little.html"
    little = sweep(n=12, without={"test", "geometry", "diagnosis", "provenance", "problems"})
    report.write(little, file)
    with opened(PHONE, "dark", file) as page:
        assert page.heard["console"] + page.heard["errors"] == []
        assert page.locator("figure").count() == 2
        assert "unfinished" in page.inner_text("#verdict").lower()
    report.write(Results(little.config, little.lines[:1]), file)
    with opened(DESK, "light", file) as page:
        assert page.heard["console"] + page.heard["errors"] == []


def hostile(n: int = len(PAYLOADS)) -> Results:
    """A sweep of this many problems whose every text is hostile."""

    def texts(kind: str) -> list[str]:
        return [PAYLOADS[i] if i < len(PAYLOADS) else f"{kind} {i} {PAYLOADS[i % len(PAYLOADS)]}" for i in range(n)]

    made = sweep(n=n)
    behaviours = {payload: 1 / len(PAYLOADS) for payload in PAYLOADS}
    lines = [
        {**line, "behaviours": behaviours, **({"completions": texts("completion")} if "completions" in line else {})}
        for line in made.lines
    ]
    spoken = {payload: payload for payload in PAYLOADS}
    config = {**made.config, "name": PAYLOADS[0], "source": PAYLOADS[0], "target": PAYLOADS[1], "notes": spoken}
    problems = {"test": [{"prompt": text, "answer": text} for text in texts("question")]}
    told = {"task": PAYLOADS[0], "models": spoken}
    return Results(config, tuple(lines), problems, made.geometry, {"verdict": PAYLOADS[0], "reasons": PAYLOADS}, None, told)


def readable(text: str) -> str:
    """What a browser makes of a text: the sign of a character that is missing, for what stands for none."""
    return text.replace("\ud83d", "\ufffd").replace("\x00", "\ufffd")


def figures(page: Any) -> list[dict[str, Any]]:
    """The drawings that can be seen."""
    return page.eval_on_selector_all(
        "figure svg",
        """all => all.filter((svg) => svg.getBoundingClientRect().width).map((svg) => ({
            figure: svg.closest("figure").id,
            width: svg.getBoundingClientRect().width, height: svg.getBoundingClientRect().height,
            room: svg.closest(".plot").clientWidth, marks: svg.querySelectorAll("[data-tip]").length,
        }))""",
    )


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
