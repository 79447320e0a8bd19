"""The page of ``moesim execute``: every number is on it, and faults are marked."""

from __future__ import annotations

import csv
import json
import re
from typing import Any

import pytest

from simulator.base.errors import UserError
from simulator.report.execution import FIGURES, render
from simulator.results.executed import BUSY, SUMMARY_COLUMNS, find_load
from tests.report.made_up_executions import CASES, HOSTILE, MOE, TOTAL, make
from tests.report.pages import Cells, payload_of

pytestmark = pytest.mark.xdist_group("pages")  # one browser, and each page rendered once


def plots_of(page: str) -> list[dict[str, Any]]:
    return payload_of(page)["plots"]


def test_a_busy_machine_is_said_on_the_page():
    calm, busy = make([MOE, TOTAL], others=BUSY / 2), make([MOE, TOTAL], others=0.6)
    assert find_load(calm) is None
    assert find_load(busy).facts["share"] == 0.6
    assert str(find_load(busy)) in " ".join(Cells(render(busy)).words)


@pytest.mark.parametrize("name", CASES)
def test_every_number_of_the_summary_is_on_the_page(execution_page_of, executions, name, tmp_path):
    run = executions[name]
    page = execution_page_of(name)
    run.summary.to_csv(tmp_path / "summary.csv", index=False)
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = {(row["deployment"], row["kind"]): row for row in csv.DictReader(file)}
    cells = Cells(page).cells
    numbers = set(SUMMARY_COLUMNS) - {"deployment", "kind"}
    assert {(c["data-deployment"], c["data-kind"], c["data-metric"]) for c in cells} == {
        (*key, n) for key in rows for n in numbers
    }
    for cell in cells:
        assert float(cell["data-value"]) == float(
            rows[cell["data-deployment"], cell["data-kind"]][cell["data-metric"]]
        )
    assert page.startswith("<!doctype html>")
    assert page.count("<script") == 3


def test_names_are_escaped(execution_page_of):
    page = execution_page_of("hostile")
    assert "<script>alert" not in page
    assert "<b>bold</b>" not in page.split("<script")[0]
    assert HOSTILE in "".join(Cells(page).words)


def test_faults_are_told_and_marked(execution_page_of, executions):
    page = execution_page_of("faults")
    words = "".join(Cells(page).words)
    for said in ("rank 1 died", "node 0 <died>", "2.50 s", "0 1"):
        assert said in words
    assert page.index(">Faults<") < page.index(">Step by step<")
    crosses = [
        trace for plot in plots_of(page) for trace in plot["data"] if trace.get("name") == "fault"
    ]
    assert [trace["x"] for trace in crosses] == [[4], [8]]
    own = executions["faults"].steps
    took_s = own[
        (own["deployment"] == "MoE, 2 ranks") & (own["source"] == "measured") & (own["number"] == 4)
    ]["duration_s"]
    assert crosses[0]["y"] == pytest.approx(took_s.to_list(), rel=1e-9) or crosses[0][
        "y"
    ] == pytest.approx([1e3 * took_s.iloc[0]])


def test_ranks_that_were_lost_and_experts_that_moved_are_marked(execution_page_of):
    page = execution_page_of("changes")
    assert "3 ranks went on" in page
    traces = [trace for plot in plots_of(page) for trace in plot["data"]]
    (cross,) = (trace for trace in traces if trace.get("name") == "fault")
    assert cross["x"] == [4]
    assert cross["customdata"][0][:2] == ["3 ranks went on", "375 ms"]
    (line,) = (
        trace
        for trace in traces
        if (trace.get("line") or {}).get("dash") == "dot"
        and trace.get("hovertemplate") == "%{customdata}"
    )
    assert line["x"][:2] == [11.5, 11.5]
    assert line["customdata"][0] == "12 copies of experts, 4.2 MB in 10 ms: 1.50 to 1.10"


def test_calibration_of_another_machine_is_a_warning(execution_page_of):
    other = {
        "calibration": {"title": "That machine", "machine": "Xeon, 64 cores", "source": "a test"}
    }
    page = render(make([TOTAL], **other))
    assert re.search(
        r'<p class="notice">The prediction rests on times of another machine \(Xeon, 64 cores\)',
        page,
    )
    none = render(make([TOTAL], calibration={"title": "H100", "machine": None, "source": ""}))
    assert 'class="notice">The prediction rests on H100, not on times of the machine' in none
    assert 'class="notice"' not in execution_page_of("all")


def test_timelines_stay_small_and_measured_stands_above_predicted(execution_page_of):
    page = execution_page_of("many ranks")
    timelines = [
        plot
        for plot in plots_of(page)
        if str(plot["layout"]["xaxis"]["title"]["text"]).startswith("Time since")
    ]
    assert len(timelines) == 6
    for plot in timelines:
        labels, places = plot["layout"]["yaxis"]["ticktext"], plot["layout"]["yaxis"]["tickvals"]
        assert labels[:2] == ["0 measured", "0 predicted"]
        assert places == sorted(places)
        assert len(labels) == 32
    assert "of 40 layers, 16 of 24 ranks" in page
    assert len(page) < 9e6


def test_every_figure_has_a_caption_and_titled_axes(executions):
    for figure in FIGURES:
        assert figure.definition.endswith(".")
        for plot in figure.draw(executions["all"]).values():
            assert re.search(r"\((\S.*)\)$", plot.layout.xaxis.title.text)


def test_folder_is_written_read_and_reported_again(executions, tmp_path, capsys):
    from simulator.cli.run import report

    executions["faults"].write(tmp_path / "one", render)
    page = tmp_path / "one" / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    report([tmp_path / "one"])
    assert Cells(page.read_text(encoding="utf-8")).cells == Cells(before).cells
    capsys.readouterr()
    report([tmp_path / "one"], tmp_path / "page.html", as_json=True)
    assert (
        json.loads(capsys.readouterr().out)["verdict"]["headline"]
        == executions["faults"].verdict["headline"]
    )
    (tmp_path / "run").mkdir()
    with pytest.raises(
        UserError, match=r"of moesim execute, and .*run of moesim run; name one such folder alone"
    ):
        report([tmp_path / "one", tmp_path / "run"])
    with pytest.raises(UserError, match=r"of moesim execute; name one such folder alone"):
        report([tmp_path / "one", tmp_path / "one"])
    (tmp_path / "one" / "steps.parquet").unlink()
    with pytest.raises(UserError, match=r"steps\.parquet: no such file"):
        report([tmp_path / "one"])
