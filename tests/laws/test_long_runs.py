"""A run whose tables memory does not hold at once says the same as one whose tables it does."""

import numpy as np
import pandas as pd
import pytest

from simulator.base.columns import StoredColumns
from simulator.commands.run import run as run_scenario
from simulator.engine import loop_state, result_rows
from simulator.report.page import render
from simulator.results.folder import Results
from simulator.scenario.jobs import load_scenario
from tests.small_scenario import small_scenario

POOLS = """replicas = 1
prefill = { parallel = { tp = 4 }, replicas = 1 }
"""
LOSS = 'failures = [{ kind = "kill", at_s = 0.06, gpu = 0, restart_s = 0.02 }]\n'


def write_run(path, out, monkeypatch, rows):
    if rows:
        monkeypatch.setattr(loop_state, "ROWS", rows)
        monkeypatch.setattr(result_rows, "HELD_ROWS", 0)
    results = run_scenario(load_scenario(path, ["workload.num_requests=60"]))
    results.write(out)
    return results


@pytest.mark.parametrize(("more", "ranks"), [("", 8), (LOSS, 4), (POOLS, 4)])
def test_a_run_in_parts_says_the_same(tmp_path, monkeypatch, more, ranks):
    path = tmp_path / "small.toml"
    path.write_text(small_scenario("stdlib-moe", ranks, more=more))
    monkeypatch.setattr(result_rows, "_LOG_ROWS", 16)
    whole = write_run(path, tmp_path / "whole", monkeypatch, None)
    parts = write_run(path, tmp_path / "parts", monkeypatch, 8)
    assert isinstance(parts.requests["own"], StoredColumns)
    assert isinstance(parts.steps["own"], StoredColumns)
    pd.testing.assert_frame_equal(whole.summary, parts.summary, rtol=1e-12)
    pd.testing.assert_frame_equal(whole.frame("token_time"), parts.frame("token_time"), rtol=1e-9)
    assert whole.run["verdict"] == parts.run["verdict"]
    bands = [pd.DataFrame(one.run["bands"]["deployments"]["own"]) for one in (whole, parts)]
    pd.testing.assert_frame_equal(*bands, rtol=1e-9)
    again = Results.read(tmp_path / "parts")
    assert isinstance(again.requests["own"], StoredColumns)
    if not more:
        assert len(render(again)) == pytest.approx(len(render(whole)), rel=0.02)
    tables = [pd.read_parquet(tmp_path / name / "requests.parquet") for name in ("whole", "parts")]
    pd.testing.assert_frame_equal(*(table.astype({"outcome": str}) for table in tables))
    steps = [
        pd.read_parquet(tmp_path / name / "steps.parquet")
        .astype({"pool": str, "limited_by": str})
        .sort_values("replica", kind="stable", ignore_index=True)
        for name in ("whole", "parts")
    ]
    pd.testing.assert_frame_equal(*steps)
    assert np.diff(tables[1]["request"]).min() == 1
