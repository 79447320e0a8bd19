"""Pages of a simulated training and of a plan of one: they say the numbers of their tables, and the
timeline adds up to the step.
"""

import re
from functools import cache

import pytest

from simulator.commands.plan import plan_training
from simulator.commands.train import train
from simulator.report import training_pages
from simulator.results.training import METRICS
from tests.report.pages import payload_of

pytestmark = pytest.mark.xdist_group("pages")  # one browser, and each page rendered once

TRAINING = {"sequence_tokens": 1024, "global_batch": 32, "total_tokens": 1e10}
MACHINES = {"cluster": "h100-sxm", "num_gpus": 16}


@cache
def trained():
    deployments = [
        MACHINES | {"name": "<MoE & more>", "model": "olmoe-1b-7b", "parallel": {"pp": 2, "ep": 8}},
        MACHINES | {"name": "dense", "model": "llama-3.1-8b", "parallel": {"tp": 2, "pp": 2}},
    ]
    return train({"training": TRAINING, "deployments": deployments})


@cache
def planned():
    return plan_training(
        {
            "training": TRAINING,
            "targets": {"days": 5},
            "models": [{"name": "<MoE>", "model": "olmoe-1b-7b"}],
            "clusters": [{"cluster": "h100-sxm", "max_gpus": 8}],
        }
    )


@cache
def training_step_html():
    return training_pages.render_training_step(trained())


@cache
def training_plan_html():
    return training_pages.render_training_plan(planned())


def test_the_table_says_the_numbers_of_the_summary():
    page, rows = training_step_html(), trained().summary
    for name in METRICS:
        found = re.findall(rf'data-metric="{name}" data-value="([^"]*)"', page)
        if rows[name].notna().any():
            assert [float(value) for value in found] == pytest.approx(
                rows[name].tolist(), nan_ok=True
            )
        else:
            assert not found
    assert "<MoE & more>" not in page
    assert "&lt;MoE &amp; more&gt;" in page
    assert all(note.split("(")[0][:40] in page for note in trained().run["notes"][:1])


def test_the_timeline_of_every_stage_ends_with_the_step():
    plots = payload_of(training_step_html())["plots"]
    timelines = [plot for plot in plots if "start of the step" in str(plot["layout"]["xaxis"])]
    assert len(timelines) == 2
    for plot, step_s in zip(timelines, trained().summary["step_s"], strict=True):
        ends = [
            base + length
            for trace in plot["data"]
            for base, length in zip(trace["base"], trace["x"], strict=True)
        ]
        unit_s = 1e-3 if "(ms)" in str(plot["layout"]["xaxis"]) else 1.0
        assert max(ends) * unit_s == pytest.approx(step_s, rel=1e-6)


def test_the_plan_shows_the_cheapest_split_of_each_number_of_gpus():
    page, answer = training_plan_html(), planned()
    (plot,) = payload_of(page)["plots"]
    best = answer.candidates.drop_duplicates(["model", "cluster", "num_gpus"])
    (line,) = (trace for trace in plot["data"] if trace["type"] == "scatter" and trace.get("name"))
    assert sorted(line["y"]) == pytest.approx(sorted(best["cost"]))
    assert answer.run["verdict"]["headline"].replace("<MoE>", "&lt;MoE&gt;") in page
    assert "global_batch = 32" in page
