"""The page in a real browser: it draws everything, offline, without an error, on a desk and on a
phone.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from simulator.report.gallery import plots
from simulator.report.page import FIGURES, render
from simulator.results.folder import Results
from tests.report.windows import DESK, PHONE, on_screens

pytestmark = pytest.mark.xdist_group("pages")  # one browser, and each page rendered once

SIZES = """() => [...document.querySelectorAll('.plot')].map((plot) => {
    const drawn = plot.querySelector('svg.main-svg, canvas');
    const box = drawn ? drawn.getBoundingClientRect() : {width: 0, height: 0};
    return [plot.id, plot.classList.contains('js-plotly-plot'), box.width, box.height];
})"""


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


@pytest.mark.parametrize(
    ("name", "viewport"),
    on_screens(["plain", "many", "hostile", "one request"], {"many", "hostile"}),
)
def test_page_opens_offline_and_draws_everything(open_page, files, runs, name, viewport):
    opened = open_page(files[name], viewport, has_touch=viewport is PHONE)
    assert opened.problems == []
    assert opened.gone_out == []
    sizes = opened.page.evaluate(SIZES)
    assert len(sizes) == expected(runs[name])
    assert [size for size in sizes if not (size[1] and size[2] > 0 and size[3] > 0)] == []
    assert opened.is_as_wide_as_shown


def test_dark_theme_draws_too(open_page, files):
    opened = open_page(files["plain"], DESK, theme="dark")
    opened.page.emulate_media(color_scheme="light")
    opened.page.wait_for_timeout(500)
    assert opened.problems == []


def test_legend_hides_and_shows(open_page, files):
    page = open_page(files["plain"], DESK).page
    button = page.locator(".legend button").first
    card = "document.querySelector('.legend').closest('.card')"
    visible = f"() => {card}.querySelector('.js-plotly-plot').data[0].visible"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate(visible) is False
    button.click()
    assert page.evaluate(visible) is True


def test_a_figure_is_saved_with_its_data(open_page, files):
    page = open_page(files["hostile"], DESK).page
    one_plot = ".card:has(.legend):not(:has(.cell + .cell))"
    card = page.locator(one_plot).first
    card.hover()
    found = {}
    for kind in ("SVG", "CSV"):
        with page.expect_download() as download:
            card.locator(".takes button", has_text=kind).click()
        found[kind] = unquote(Path(download.value.path()).read_text(encoding="utf-8"))
    assert "<svg" in found["SVG"]
    head, *rows = csv.reader(found["CSV"].splitlines())
    assert head[:5] == ["plot", "series", "x", "y", "value"]
    drawn = f"document.querySelector('{one_plot} .js-plotly-plot').data"
    assert len(rows) == page.evaluate(f"() => {drawn}.flatMap(({{ x }}) => [...x]).length") > 0
    assert not [row for row in rows if row[1].startswith(tuple("=+-@"))]


def test_a_pairing_hides_the_counterparts_of_other_measures(open_page, runs, tmp_path):
    plain = runs["plain"]
    names = plain.deployments
    pairs = {names[1]: "quality", names[2]: "memory"}
    entries = {
        name: entry | {"pairing": {"reference": "moe", "equal": pairs[name]}}
        if name in pairs
        else entry
        for name, entry in plain.run["deployments"].items()
    }
    file = tmp_path / "pairs.html"
    file.write_text(render(replace(plain, run=plain.run | {"deployments": entries})), "utf-8")
    page = open_page(file, DESK).page
    headings = page.locator("table.metrics").first.locator("thead th[data-name]")
    shown = lambda: [one.get_attribute("data-name") for one in headings.all() if one.is_visible()]  # noqa: E731
    pressed = page.locator(".legend button[aria-pressed=true]")
    every, num_pressed = shown(), pressed.count()
    assert every == names
    page.get_by_role("button", name="quality").click()
    assert shown() == [name for name in names if pairs.get(name) != "memory"]
    assert page.locator(f'td[data-deployment="{names[2]}"]').first.is_hidden()
    assert 0 < pressed.count() < num_pressed
    page.get_by_role("button", name="all measures").click()
    assert (shown(), pressed.count()) == (every, num_pressed)


def test_hostile_text_is_shown_and_not_run(open_page, files, hostile_name):
    page = open_page(files["hostile"], DESK).page
    assert page.locator("h1").inner_text() == hostile_name
    assert page.locator("script").count() == 3
    assert hostile_name in page.locator(".legend button").first.get_attribute("title")
