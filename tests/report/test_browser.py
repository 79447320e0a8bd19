"""The page in a real browser: it draws everything, offline, without an error, on a desk and on a
phone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulator.report.gallery import plots
from simulator.report.page import FIGURES
from simulator.results.folder import Results

pytestmark = pytest.mark.xdist_group("pages")  # one browser, and each page rendered once

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SIZES = """() => [...document.querySelectorAll('.plot')].map((plot) => {
    const drawn = plot.querySelector('svg.main-svg, canvas');
    const box = drawn ? drawn.getBoundingClientRect() : {width: 0, height: 0};
    return [plot.id, plot.classList.contains('js-plotly-plot'), box.width, box.height];
})"""


class Opened:
    """A page opened offline, with what went wrong."""

    def __init__(self, browser: Any, file: Path, viewport: dict[str, int], **options: Any) -> None:
        self.context = browser.new_context(viewport=viewport, **options)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console",
            lambda message: self.problems.append(message.text) if message.type != "log" else None,
        )
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)


@pytest.fixture(scope="module")
def files(runs, page_of, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    for number, name in enumerate(runs):
        made[name] = folder / f"{number}.html"
        made[name].write_text(page_of(name), encoding="utf-8")
    return made


def expected(run: Results) -> int:
    return sum(len(plots(figure, run)) for figure in FIGURES)


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", ["plain", "many", "hostile", "one request", "no steps"])
def test_page_opens_offline_and_draws_everything(browser, files, runs, name, viewport):
    opened = Opened(browser, files[name], viewport, has_touch=viewport is PHONE)
    assert opened.problems == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    sizes = opened.page.evaluate(SIZES)
    assert len(sizes) == expected(runs[name])
    assert [size for size in sizes if not (size[1] and size[2] > 0 and size[3] > 0)] == []
    scrolled, shown = opened.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scrolled <= shown
    opened.context.close()


def test_dark_theme_draws_too(browser, files):
    opened = Opened(browser, files["plain"], DESK, color_scheme="dark")
    opened.page.emulate_media(color_scheme="light")
    opened.page.wait_for_timeout(500)
    assert opened.problems == []
    opened.context.close()


def test_legend_hides_and_shows(browser, files):
    opened = Opened(browser, files["plain"], DESK)
    button = opened.page.locator(".legend button").first
    visible = "() => document.querySelector('.js-plotly-plot').data[0].visible"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert opened.page.evaluate(visible) is False
    button.click()
    assert opened.page.evaluate(visible) is True
    opened.context.close()


def test_hostile_text_is_shown_and_not_run(browser, files, hostile_name):
    opened = Opened(browser, files["hostile"], DESK)
    assert opened.page.locator("h1").inner_text() == hostile_name
    assert opened.page.locator("script").count() == 3
    assert hostile_name in opened.page.locator(".legend button").first.get_attribute("title")
    opened.context.close()
