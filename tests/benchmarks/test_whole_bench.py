"""The whole command on sizes that are soon done: its table and its files add up."""

import csv
import dataclasses
import json
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
)


@pytest.fixture(scope="module")
def tiny_bench():
    """What the whole command finds on sizes that are soon done."""
    with pytest.MonkeyPatch.context() as patch:
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
    named = [(row.name, row.measure) for row in tiny_bench.rows]
    assert len(set(named)) == len(named)
    for row in tiny_bench.rows:
        assert row.name
        assert row.measure
        assert np.isfinite(row.value)


@pytest.mark.slow
@pytest.mark.xdist_group("bench")
def test_the_files_say_the_same(tiny_bench, folder):
    known = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    values = [row.value for row in tiny_bench.rows]
    assert [row["value"] for row in known["rows"]] == values
    with (folder / "bench.csv").open(encoding="utf-8") as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == pytest.approx(values, 1e-5)
    (line,) = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert [row["value"] for row in json.loads(line)["figures"]] == values
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


def test_an_unknown_scenario_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--only", "none"])
    assert "serving" in capsys.readouterr().err
