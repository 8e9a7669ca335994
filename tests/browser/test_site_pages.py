"""The documentation site as people meet it: served, in a real browser, on a desk and on a phone, by day and by night."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

import pytest

from tests.docs.test_site import ROOT, build

pytestmark = pytest.mark.browser

DESK, PHONE = (1280, 800), (390, 840)
LOOKS = [(DESK, "light"), (DESK, "dark"), (PHONE, "light"), (PHONE, "dark")]
Open = Callable[..., AbstractContextManager[Any]]

# Text of the picture: its size on the screen, and its contrast to the page beneath.
PICTURE_TEXTS = """() => {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).slice(0, 3)
      .map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const svg = document.querySelector("svg.picture");
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  return [...svg.querySelectorAll("text, tspan")].map((text) => {
    const style = getComputedStyle(text);
    const [one, other] = [luminance(style.fill), paper].sort((a, b) => b - a);
    return { text: text.textContent, size: parseFloat(style.fontSize) * scale, contrast: (one + 0.05) / (other + 0.05) };
  });
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pages are closed while their pictures are still on the way."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def base(site: Path) -> Generator[str, None, None]:
    server = Server(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def pages(site: Path) -> list[str]:
    """Where each page is, from the root."""
    files = [file.relative_to(site).as_posix() for file in site.rglob("index.html")]
    return sorted(file.removesuffix("index.html") for file in files)


@pytest.fixture
def opened(browser: Any, base: str) -> Open:
    """Opens a page of the site; complaints, and requests that leave it, are kept on the page's `heard`."""

    @contextmanager
    def open_page(name: str = "", size: tuple[int, int] = DESK, scheme: str = "light") -> Generator[Any, None, None]:
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page.heard = []
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        inside = (base, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(inside) or page.heard.append(request.url))
        page.goto(base + name)
        page.wait_for_load_state("load")
        yield page
        page.close()

    return open_page


@pytest.mark.parametrize(("size", "scheme"), [LOOKS[0], LOOKS[3]], ids=["desk by day", "phone by night"])
def test_pages_open_without_a_complaint_and_do_not_scroll_sideways(
    opened: Open, pages: list[str], size: tuple[int, int], scheme: str
) -> None:
    assert len(pages) > 30
    found: dict[str, Any] = {}
    for name in pages:
        with opened(name, size, scheme) as page:
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if page.heard or over > 0:
                found[name] = (page.heard, over)
    assert found == {}


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_the_picture_can_be_read(opened: Open, size: tuple[int, int], scheme: str) -> None:
    with opened("", size, scheme) as page:
        picture = page.locator("svg.picture")
        assert picture.is_visible()
        assert picture.bounding_box()["width"] > 320
        texts = page.evaluate(PICTURE_TEXTS)
        assert len(texts) > 20
        assert [text for text in texts if text["contrast"] < 4.5 or text["size"] < 9] == []


def test_the_switch_changes_the_scheme_and_it_stays(opened: Open, base: str) -> None:
    with opened("", DESK, "light") as page:
        assert page.locator("body").get_attribute("data-md-color-scheme") == "default"
        page.locator("label[title='Switch to dark mode']").click()
        assert page.locator("body").get_attribute("data-md-color-scheme") == "slate"
        page.goto(base + "method/")
        assert page.locator("body").get_attribute("data-md-color-scheme") == "slate"


def test_search_finds_a_class(opened: Open) -> None:
    with opened() as page:
        page.locator("input.md-search__input").click()
        page.keyboard.type("SteeringHook")
        page.locator(".md-search-result__link[href*='reference/steering']").first.wait_for(timeout=20_000)


def test_all_links_within_the_site_are_answered(opened: Open, base: str, pages: list[str]) -> None:
    to: set[str] = set()
    for name in pages:
        with opened(name) as page:
            to |= {
                urldefrag(link)[0] for link in page.eval_on_selector_all("a[href], link[href]", "all => all.map(a => a.href)")
            }
    inside = sorted(link for link in to if link.startswith(base))
    assert len(inside) >= len(pages)
    with opened() as page:
        assert [link for link in inside if page.request.get(link).status != 200] == []
