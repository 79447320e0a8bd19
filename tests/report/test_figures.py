"""What every figure must keep, whichever figures there are."""

from __future__ import annotations

import re
from dataclasses import replace
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from simulator.base import plugins
from simulator.base.columns import Picked
from simulator.base.errors import UserError
from simulator.commands.report import load_results, write_results
from simulator.report import page, style
from simulator.report.figures.latency import quantiles
from simulator.report.figures.over_time import mean_in_bins, peak_in_bins
from simulator.report.figures.waterfall import TokenWaterfall
from simulator.report.gallery import Figure, FigureCards, make_figures, plots
from simulator.report.page import FIGURES
from simulator.results.explanation_text import LEAST_SHOWN
from simulator.results.folder import Results
from simulator.results.verdict import short_names
from tests.report.pages import payload_of

pytestmark = pytest.mark.xdist_group("pages")  # runs are simulated and pages rendered once


@pytest.fixture(params=FIGURES, ids=lambda figure: type(figure).__name__)
def figure(request: pytest.FixtureRequest) -> Figure:
    return request.param


def test_figure_introduces_itself(figure):
    assert figure.title
    assert figure.title[0].isupper()
    assert figure.section
    assert figure.definition.endswith(".")
    assert "\n" not in figure.definition
    assert figure.absent.endswith(".")
    assert figure.width in ("full", "half", "quarter")
    assert isinstance(figure.order, int)


def test_every_file_has_a_figure_and_orders_differ():
    files = {type(figure).__module__.rpartition(".")[2] for figure in FIGURES}
    assert files == set(plugins.available("report.figures"))
    orders = [figure.order for figure in FIGURES]
    assert orders == sorted(set(orders))


@pytest.mark.parametrize("names", [[], ["One", "Two"]])
def test_a_file_without_a_figure_is_refused(names):
    file = ModuleType("own_figures")
    file.__file__ = "own_figures.py"
    for name in [*names, "_Hidden"]:
        made = type(name, (Figure,), {"__module__": "own_figures", "draw": lambda *_: None})
        setattr(file, name, made)
    file.helper, file.Figure = dict, Figure
    if names:
        assert [type(figure).__name__ for figure in make_figures(file)] == names
    else:
        with pytest.raises(UserError, match=r"^own_figures.py: must define "):
            make_figures(file)


class Broken(Figure[Results]):
    """A figure of a user's own that cannot draw."""

    title, section, definition, absent, order = "Own", "Own", "What it draws.", "No.", 5

    def __init__(self, drawn):
        self.drawn = drawn

    def draw(self, results):
        return self.drawn()


@pytest.mark.parametrize("drawn", [lambda: {}["no such column"], lambda: "a text", lambda: {"": 1}])
def test_a_figure_that_fails_is_told_in_a_line_and_loses_nothing(
    drawn, runs, page_of, tmp_path, monkeypatch
):
    whole = page_of("plain")
    monkeypatch.setattr(page, "FIGURES", [Broken(drawn), *FIGURES])
    with pytest.warns(RuntimeWarning, match=r"^figure 'Own' is not drawn: \w+Error: .+$"):
        report = write_results(runs["plain"], tmp_path / "run")
    assert load_results(tmp_path / "run").deployments == runs["plain"].deployments
    made = report.read_text(encoding="utf-8")
    assert "<b>Own</b>: is not drawn, " in made
    assert payload_of(made) == payload_of(whole)


def test_figure_draws_a_full_run(figure, runs):
    assert plots(figure, runs["plain"])


def test_a_heading_says_what_its_figure_shows(runs):
    """Of plots that have the number in them: the most that any curve reaches, and a distribution's
    point.
    """
    run = runs["plain"]
    by_title = {figure.title: figure for figure in FIGURES}
    short = short_names(run)
    for title in ("Requests in flight", "Queue length"):
        found, drawn = by_title[title].find(run), by_title[title].draw(run)
        for name, label in style.labels(run).items():
            curves = [np.nanmax(one.y) for one in drawn.data if one.name == label]
            assert max(curves) == pytest.approx(found.facts["values"][short[name]]), (title, name)
    for title in ("Time to first token", "Time per output token"):
        found, drawn = by_title[title].find(run), by_title[title].draw(run)
        for trace in drawn.data:
            name = next((one for one in short if style.labels(run)[one] == trace.name), None)
            if name is not None and len(trace.x) > 2:
                shown = np.interp(0.9, trace.y, trace.x) / found.facts["values"][short[name]]
                assert min(abs(shown / unit - 1) for unit in (1, 1e3, 1e6)) < 0.05, title


def test_a_queue_that_is_always_empty_is_a_sentence(runs):
    idle = replace(
        runs["plain"],
        steps={
            name: Picked(steps, steps["waiting"].to_numpy() == 0)
            for name, steps in runs["plain"].steps.items()
        },
    )
    cards = FigureCards()
    cards.draw([figure for figure in FIGURES if figure.title == "Queue length"], idle)
    assert [str(one.reason) for one in cards.missing] == ["No request waits"]


def test_plots_have_units_and_leave_theme_and_legend_to_the_page(figure, run):
    for heading, plot in plots(figure, run).items():
        layout = plot.to_dict()["layout"]
        for name, axis in layout.items():
            if (
                not re.fullmatch(r"[xy]axis\d*", name)
                or axis.get("visible") is False
                or axis.get("showticklabels") is False
            ):
                continue
            title = axis.get("title", {}).get("text", "")
            shown = [
                *axis.get("ticktext", []),
                *([axis["tickformat"]] if "tickformat" in axis else []),
            ]
            has_units = shown and all(re.search(r"(\d\s[a-z%]+|%)$", one) for one in shown)
            assert title, f"{heading} {name}"
            assert has_units or re.search(r"\S.* \([^()]+\)$", title), (
                f"{heading} {name}: {title!r} lacks a unit"
            )
        assert plot.layout.height, heading
        assert not plot.layout.showlegend
        assert (
            sum(len(trace.x) if getattr(trace, "x", None) is not None else 0 for trace in plot.data)
            < 5000
        )


def test_a_deployment_has_one_colour_everywhere(figure, runs):
    run = runs["plain"]
    colour_of = {style.labels(run)[name]: colour for name, colour in style.colours(run).items()}
    for plot in plots(figure, run).values():
        for trace in plot.data:
            if trace.name in colour_of:
                assert (trace.line if trace.type == "scatter" else trace.marker).color == colour_of[
                    trace.name
                ]


def test_a_rumoured_model_is_marked_in_every_label(runs):
    assert style.labels(runs["many"])["a rumoured one"] == "a rumoured one (rumoured)"


def test_quantiles_thin_a_long_run_and_keep_its_ends():
    x, share = quantiles(np.random.default_rng(0).lognormal(size=140_000))
    assert len(x) < 500
    assert (share[0], share[-1]) == (0, 1)
    assert np.all(np.diff(x) >= 0)


def test_bins_do_not_hide_peaks():
    """Two replicas, against a look at every hundredth of a second."""
    rng = np.random.default_rng(5)
    frames = []
    for replica in (0, 1):
        start_s = np.cumsum(rng.integers(5, 30, 40)) / 100
        frames.append(
            pd.DataFrame(
                {
                    "replica": replica,
                    "start_s": start_s,
                    "duration_s": np.r_[np.diff(start_s), 0.2] * rng.choice([1.0, 0.4], 40),
                    "waiting": rng.integers(0, 50, 40),
                }
            )
        )
    steps = pd.concat(frames, ignore_index=True)
    end_s = float((steps["start_s"] + steps["duration_s"]).max())
    edges_s = np.linspace(0, end_s, 12)
    looked_s = np.arange(0, end_s, 0.001) + 0.0005
    level = sum(
        row["waiting"]
        * ((looked_s > row["start_s"]) & (looked_s < row["start_s"] + row["duration_s"]))
        for _, row in steps.iterrows()
    )
    places = np.searchsorted(edges_s, looked_s, "right") - 1
    seen = np.array([level[places == place].max() for place in range(11)])
    peak = peak_in_bins(steps, steps["waiting"].to_numpy(float), edges_s)
    assert peak == pytest.approx(seen)
    assert (peak >= mean_in_bins(steps, steps["waiting"].to_numpy(float), edges_s) - 1e-9).all()


def test_binning_keeps_the_area(runs: dict[str, Results]):
    steps = next(iter(runs["plain"].steps.values()))
    end_s = float((steps["start_s"] + steps["duration_s"]).max())
    edges_s = np.linspace(0, end_s, 41)
    area = float(
        (mean_in_bins(steps, steps["running"].to_numpy(float), edges_s) * np.diff(edges_s)).sum()
    )
    assert area == pytest.approx(float((steps["running"] * steps["duration_s"]).sum()))


def test_the_waterfall_comes_first_and_its_bars_lead_from_nothing_to_all(runs):
    assert type(FIGURES[0]) is TokenWaterfall
    run = runs["plain"]
    drawn = plots(FIGURES[0], run)
    assert list(drawn) == run.deployments
    for name, plot in drawn.items():
        own, of_prompts = plot.data
        begins, ends = np.array(own.base), np.add(of_prompts.base, of_prompts.x)
        assert begins[0] == 0
        np.testing.assert_allclose(of_prompts.base, np.add(own.base, own.x))
        np.testing.assert_allclose(begins[1:], ends[:-1])
        waterfall = run.run["explanation"][name]["waterfalls"][0]
        least = 1e3 * LEAST_SHOWN * waterfall["token_s"]  # too small to be seen
        assert ends[-1] == pytest.approx(1e3 * waterfall["token_s"], abs=least)
        prompts = 1e3 * sum(waterfall["prompts"].values())
        assert sum(of_prompts.x) == pytest.approx(prompts, abs=least)
