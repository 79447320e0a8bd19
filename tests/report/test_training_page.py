"""The page of a recording made by training: it says the numbers that it is given, and draws them
offline.
"""

import numpy as np
import pandas as pd
import pytest

from simulator.report.training_page import render
from simulator.results.formats import TIMES
from tests.report.pages import payload_of
from tests.report.windows import DESK, PHONE

pytestmark = pytest.mark.xdist_group("pages")  # one browser, and each page rendered once

MODELS = ["mixture of experts", "dense, same total", "<dense & small>"]
HEADLINE = "After 10 s the mixture of experts reached a loss of 2.00 nats a byte."


def training_page() -> str:
    curve = pd.DataFrame(
        [
            {
                "run": run,
                "model": name,
                "tokens": 1000 * step,
                "seconds": (1.5 + place) * step,
                "held_out_loss": 5.5 - step - 0.1 * place,
            }
            for run, names in (("same tokens", MODELS), ("same time", MODELS[1:]))
            for place, name in enumerate(names)
            for step in range(4)
        ]
    )
    outcomes = pd.DataFrame(
        {
            "model": MODELS,
            "num_parameters": [3_400_000, 3_400_000, 700_000],
            "num_active_parameters": [700_000, 3_400_000, 700_000],
            "tokens": 3000,
            "seconds": [4.5, 7.5, 10.5],
            "held_out_loss": [2.5, 2.4, 2.3],
            "same_time_tokens": [3000, 1800, 1300],
            "same_time_loss": [2.5, 2.7, 2.8],
            "seconds_to_moe_loss": [4.5, 7.0, None],
        }
    )
    loads = {
        name: np.random.default_rng(0).exponential(size=(4, 16))
        for name in ("all domains", "tests & <more>")
    }
    loads["tests & <more>"][0, 0] = 0.0
    return render(HEADLINE, ["One run."], outcomes, curve, loads, {"Provenance": "a test"})


@pytest.fixture(scope="module")
def page() -> str:
    return training_page()


def test_it_says_the_numbers_and_escapes_the_names(page):
    for said in (
        HEADLINE,
        "One run.",
        "a test",
        "not reached",
        f"4.5 s (1.00{TIMES})",
        "2.400",
        "2.700",
        "1,300",
        "&lt;dense &amp; small&gt;",
    ):
        assert said in page
    assert "<dense" not in page
    assert "tests & <more>" not in page
    payload = payload_of(page)
    assert [len(plot["data"]) for plot in payload["plots"]] == [5, 5, 1, 1]
    assert payload["plots"][0]["data"][0]["name"] == MODELS[0]


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_opens_offline_and_draws_everything(open_page, page, tmp_path, viewport):
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    shown = open_page(file, viewport)
    assert shown.problems == []
    opened = shown.page
    assert opened.locator(".js-plotly-plot").count() == 4
    assert shown.is_as_wide_as_shown
    if viewport is DESK:
        assert opened.evaluate(
            "(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.scroll'))"
        ), "a table that must be scrolled"
    buttons = opened.locator(".legend button")
    assert buttons.count() == 2 * len(MODELS)
    buttons.last.click()
    visible = opened.evaluate(
        "document.querySelectorAll('.js-plotly-plot')[1].data.map((trace) => trace.visible)"
    )
    assert visible[-1] is False
