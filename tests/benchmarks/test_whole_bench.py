"""The whole command on sizes that are soon done: its table, its files and its page add up."""

import csv
import dataclasses
import json
from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest

from tests.benchmarks.__main__ import measure_all, parse_arguments
from tests.benchmarks.clock import cpu_s
from tests.benchmarks.collect import choose
from tests.benchmarks.effort import QUICK
from tests.benchmarks.files import write_files
from tests.benchmarks.rows import UNITS, fit_exponent
from tests.benchmarks.scenarios import serving, start_up, whole_run

TINY = dataclasses.replace(
    QUICK,
    name="tiny",
    share=0.001,
    rounds=1,
    requests=(64, 128),
    replicas=(1, 2),
    ranks=(8, 16),
    layers=(4, 5),
    steps=(("rank", 8), ("message", 8)),
    run_requests=(10, 20),
    base="before",
)


class StandIn:
    """An earlier revision that takes a second for anything."""

    def serve(self, case):
        return 1.0


@pytest.fixture(scope="module")
def tiny_bench():
    """What the whole command finds on sizes that are soon done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "start_revision", lambda name: nullcontext(StandIn()))
        patch.setattr(serving, "repeated_cpu_s", cpu_s)
        run_once = cache(whole_run.run_scenario)  # the same run three times over
        for scenario in (start_up, whole_run):
            patch.setattr(scenario, "run_scenario", run_once)
        return measure_all(TINY, None)


@pytest.fixture(scope="module")
def folder(tiny_bench, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    write_files(tiny_bench, out, out / "history.jsonl")
    return out


@pytest.mark.slow
@pytest.mark.xdist_group("bench")
def test_every_scenario_finds_rows_with_units(tiny_bench):
    assert {row.kind for row in tiny_bench.rows} == set(choose(None))
    assert {row.unit for row in tiny_bench.rows} <= set(UNITS)
    named = [(row.name, row.measure, row.beside) for row in tiny_bench.rows]
    assert len(set(named)) == len(named)
    for row in tiny_bench.rows:
        assert row.name
        assert row.measure
        assert row.value is None or np.isfinite(row.value)
        assert (row.value is None) <= bool(row.note)


@pytest.mark.slow
@pytest.mark.xdist_group("bench")
def test_the_table_adds_up(folder):
    with (folder / "bench.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    beside = [row for row in rows if row["ratio"]]
    assert len(beside) == sum(asked.case.replicas < serving.HOPELESS for asked in serving.CASES)
    for row in beside:
        own, other = float(row["value"]), float(row["beside_value"])
        quotient = own / other if row["better"] == "higher" else other / own
        assert float(row["ratio"]) == pytest.approx(quotient, rel=1e-4)


@pytest.mark.slow
@pytest.mark.xdist_group("bench")
def test_the_files_say_the_same(tiny_bench, folder):
    known = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    assert [row["value"] for row in known["rows"]] == [row.value for row in tiny_bench.rows]
    assert known["machine"]["cores"] >= 1
    assert known["versions"].keys() >= {"python", "numpy", "numba", "simpy"}
    exponents = {row["name"]: row["value"] for row in known["rows"] if row["kind"] == "growth"}
    assert {growth["along"] for growth in known["growths"]} == {
        "requests",
        "replicas",
        "ranks",
        "layers",
    }
    for growth in known["growths"]:
        sizes, values = zip(*growth["points"], strict=True)
        found = exponents[f"{growth['name']}, over {growth['along']}"]
        assert found == pytest.approx(fit_exponent(sizes, values))


@pytest.mark.slow
@pytest.mark.xdist_group("bench")
def test_the_page_names_every_row(tiny_bench, folder):
    page = (folder / "bench.html").read_text(encoding="utf-8")
    for row in tiny_bench.rows:
        assert f"<td>{row.name}<span" in page


def test_an_unknown_scenario_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--only", "none"])
    assert "serving" in capsys.readouterr().err
