"""The page of a recording made by training: it says the numbers that it is given."""

import numpy as np
import pandas as pd
import pytest

from simulator.base.formats import TIMES
from simulator.report.training_pages import render_training as render
from tests.report.pages import payload_of

pytestmark = pytest.mark.xdist_group("pages")  # one browser, and each page rendered once

MODELS = ["mixture of experts", "dense, same total", "<dense & small>"]
ABOVE = {"loss": 0.2, "half_width": 0.1}
HEADLINE = "After 10 s the mixture of experts reached a loss of 2.00 nats a byte."


def training_page() -> str:
    curve = pd.DataFrame(
        [
            {
                "run": run,
                "seed": seed,
                "model": name,
                "tokens": 1000 * step,
                "seconds": (1.5 + place) * step,
                "held_out_loss": 5.5 - step - 0.1 * place + 0.02 * seed,
            }
            for run, names in (("same tokens", MODELS), ("same time", MODELS[1:]))
            for place, name in enumerate(names)
            for seed in range(2)
            for step in range(4)
        ]
    )
    outcomes = pd.DataFrame(
        {
            "model": MODELS,
            "num_parameters": [3_400_000, 3_400_000, 700_000],
            "num_active_parameters": [700_000, 3_400_000, 700_000],
            "learning_rate": [3e-3, 6e-3, 3e-3],
            "tokens": 3000,
            "step_s": [0.045, 0.075, 0.105],
            "step_band_s": [(0.04, 0.06), (0.07, 0.08), (0.1, 0.2)],
            "simulated_step_s": [0.03, None, 0.1],
            "above_moe": [ABOVE, {"loss": -0.1, "half_width": 0.05}, ABOVE],
            "same_time_above_moe": [ABOVE, ABOVE, {"loss": 0.3, "half_width": None}],
            "num_seeds": 2,
            "num_reached": [2, 2, 0],
            "time_to_moe_loss": [None, {"ratio": 1.5, "low": 1.4, "high": 1.7}, None],
            "seconds": [4.5, 7.5, 10.5],
            "held_out_loss": [2.5, 2.4, 2.3],
            "same_time_tokens": [3000, 1800, 1300],
            "same_time_loss": [2.5, 2.7, 2.8],
            "seconds_to_moe_loss": [4.5, 7.0, None],
        }
    )
    trials = pd.DataFrame(
        [
            {"model": name, "learning_rate": rate, "steps": 10, "held_out_loss": 3.0 - 100 * rate}
            for name in MODELS
            for rate in (3e-3, 6e-3)
        ]
    )
    loads = {
        name: np.random.default_rng(0).exponential(size=(4, 16))
        for name in ("all domains", "tests & <more>")
    }
    loads["tests & <more>"][0, 0] = 0.0
    return render(HEADLINE, ["One run."], outcomes, trials, curve, loads, {"Provenance": "a test"})


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
        "<td>1.50</td>",
        "40 ms to 60 ms",
        "-0.100 ± 0.050",
        "1.40 to 1.70 times the mixture&#39;s",
        "<strong>2.400</strong>",
        "&lt;dense &amp; small&gt;",
    ):
        assert said in page
    assert "<dense" not in page
    assert "tests & <more>" not in page
    payload = payload_of(page)
    assert [len(plot["data"]) for plot in payload["plots"]] == [5, 5, 1, 1]
    assert payload["plots"][0]["data"][0]["name"] == MODELS[0]
