"""A page of every kind is one small file that talks to nobody: what it weighs, what it offers, and
what it says where it cannot draw.
"""

import gzip
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs_version

from simulator import report
from simulator.lab.report import scoreboard
from simulator.report import execution, page, plan_page
from simulator.results.answer import Answer
from simulator.results.answer.folder import PlanResults
from tests.report import made_up_executions, plan_answers, small_runs
from tests.report.pages import MOST_BYTES, payload_of, unpacked
from tests.report.test_scoreboard import board
from tests.report.test_training_page import training_page
from tests.report.test_training_step_page import training_plan_html, training_step_html
from tests.report.windows import PHONE, on_screens

pytestmark = pytest.mark.xdist_group("pages")  # one browser, and each page rendered once

KINDS = {
    "run": lambda: page.render(small_runs.plain()),
    "execution": lambda: execution.render(made_up_executions.CASES["all"]()),
    "plan": lambda: plan_page.render(
        PlanResults(plan_answers.RUN, Answer.model_validate(plan_answers.answer()))
    ),
    "validation": lambda: scoreboard.render(board()),
    "training": training_page,
    "training step": training_step_html,
    "training plan": training_plan_html,
}
SHOWN = {
    "execution": KINDS["execution"],
    "hostile": lambda: execution.render(made_up_executions.CASES["hostile"]()),
    "many ranks": lambda: execution.render(made_up_executions.CASES["many ranks"]()),
    "training": training_page,
}
"""Pages that no other test opens on a desk and on a phone."""
A4_PIXELS = 718
"""Width of A4 less margins of 10 mm, in the pixels of a style sheet."""
HARMLESS = {"Download plot as a PNG", "Zoom", "Reset axes"}
"""Buttons of Plotly's toolbar that do all their work here."""


@pytest.fixture(scope="module")
def pages():
    return {kind: make() for kind, make in KINDS.items()}


@pytest.fixture(scope="module")
def files(pages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for kind, text in pages.items():
        (folder / f"{kind}.html").write_text(text, encoding="utf-8")
    return {kind: folder / f"{kind}.html" for kind in pages}


@pytest.fixture
def opened(browser, files):
    """Open a page in a window of its own, with or without what it hopes for, and note what goes
    wrong.
    """
    contexts = []

    def open_page(kind, before="", **options):
        contexts.append(browser.new_context(**options))
        found = contexts[-1].new_page()
        found.problems = []
        found.add_init_script(before)
        found.on("console", lambda said: found.problems.append(said.text))
        found.on("pageerror", lambda error: found.problems.append(str(error)))
        found.goto(files[kind].as_uri())
        return found

    yield open_page
    for context in contexts:
        context.close()


def test_the_script_is_of_the_plotly_that_the_figures_are_made_with():
    """Another Plotly.js than the Python package's may not know what figures ask of it; patches of
    one release are alike.
    """
    file = Path(report.__file__).parent / "assets/plotly-cartesian.min.js.gz"
    release = ".".join(get_plotlyjs_version().split(".")[:2])
    with gzip.open(file, "rt", encoding="utf-8") as script:
        assert f"plotly.js (cartesian - minified) v{release}." in script.read(200)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_small(pages, kind):
    assert len(pages[kind].encode()) <= MOST_BYTES


def test_what_a_page_carries_is_whole_and_cannot_end_its_element(pages):
    asset = Path(report.__file__).parent / "assets/plotly-cartesian.min.js.gz"
    plotly = gzip.decompress(asset.read_bytes()).decode()
    is_whole = unpacked(pages["run"], "plotly") == plotly  # pytest's comparison takes minutes
    assert is_whole
    assert "Licensed under the MIT license" in plotly[:300]
    assert len(payload_of(pages["run"])["plots"]) > 10
    is_same = pages["run"] == KINDS["run"]()  # without pytest's comparison, which takes minutes
    assert is_same


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_on_a_page_leads_off_the_machine_and_it_prints_its_figures_whole(
    open_page, pages, files, kind
):
    opened = open_page(files[kind])
    check_toolbars(opened, len(payload_of(pages[kind])["plots"]))
    check_print(opened.page)


@pytest.mark.parametrize(("kind", "viewport"), on_screens(SHOWN, SHOWN))
def test_a_page_draws_all_on_a_desk_and_on_a_phone(open_page, tmp_path, kind, viewport):
    text, file = SHOWN[kind](), tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    opened = open_page(file, viewport, has_touch=viewport is PHONE)
    assert opened.problems == []
    assert opened.gone_out == []
    assert opened.page.locator(".js-plotly-plot").count() == len(payload_of(text)["plots"])
    assert opened.is_as_wide_as_shown


def check_toolbars(opened, num_plots):
    """Buttons of figures do their work on the page, and nothing else leads away."""
    found = opened.page
    assert found.locator(".js-plotly-plot svg.main-svg").count() >= num_plots > 0
    titles = found.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)"
    )
    assert set(titles) <= HARMLESS
    assert titles
    assert found.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].every(({ _context: c }) => "
        "!c.plotlyServerURL && !c.showSendToCloud && !c.showLink && !c.displaylogo)"
    )
    leading = "form, iframe, object, embed, base, a[href]:not([href^='#']), [src]:not(img)"
    assert found.locator(leading).count() == 0
    found.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].forEach((button) => button.click())"
    )
    found.wait_for_timeout(500)
    assert opened.gone_out == []
    assert found.locator(".plotly-cloud-dialog").count() == 0


def check_print(found):
    """Figures fit on paper, which is narrower than the window, and no event of a window tells them
    so.
    """
    found.emulate_media(media="print")
    found.evaluate(f"document.body.style.width = '{A4_PIXELS}px'")
    assert found.evaluate(
        """[...document.querySelectorAll('.js-plotly-plot')].every((plot) => {
            const svg = plot.querySelector('svg.main-svg').getBoundingClientRect();
            const room = plot.getBoundingClientRect();
            return plot.checkVisibility() && svg.height > 30 && svg.right <= room.right + 1;
        })"""
    )
    assert len(found.pdf()) > 30_000


def test_the_pages_policy_lets_no_form_and_no_picture_out(opened):
    found = opened("run")
    found.evaluate(
        """() => {
          const form = document.createElement("form");
          form.action = "https://example.org/";
          document.body.append(form);
          form.submit();
          new Image().src = "https://example.org/i.png";
        }"""
    )
    for _ in range(50):  # a busy browser tells of both later
        found.wait_for_timeout(100)
        blocked = [problem for problem in found.problems if "Content Security Policy" in problem]
        if len(blocked) == 2:
            break
    assert len(blocked) == 2
    assert any("form-action" in problem for problem in blocked)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("delete globalThis.DecompressionStream", "This browser cannot unpack the figures"),
        (
            "globalThis.DecompressionStream = class { constructor() { throw Error('no gzip'); } }",
            "The figures could not be drawn (no gzip)",
        ),
    ],
)
def test_a_browser_that_cannot_unpack_is_told_so(opened, before, said):
    found = opened("run", before)
    found.wait_for_selector("[role=alert]")
    assert found.locator("[role=alert]").inner_text().startswith(said)
    assert found.locator("h1").is_visible()
    assert found.locator(".js-plotly-plot").count() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_without_scripts_the_page_says_so_and_can_be_read(opened, kind):
    found = opened(kind, java_script_enabled=False)
    assert "Scripts are off" in found.locator("[role=alert]").first.inner_text()
    assert found.locator("h1").is_visible()
    assert found.locator("td").count() > 5
    assert found.problems == []
