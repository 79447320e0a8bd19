"""A long run whose replicas nothing joins: the same bytes with one process and many, also where
one is lost.
"""

import filecmp
import os
import pickle
import signal
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from simulator.commands import deployments
from simulator.commands.run import run as run_scenario
from simulator.engine.shards import merge_shards, serve_shard, split_replicas
from simulator.engine.timeline import serve
from simulator.parallel.workers import Workers
from simulator.planner.uncertainty.run_bands import StepTables
from simulator.results.folder import LONG_TABLES, SHORT_TABLES
from simulator.scenario.jobs import load_scenario
from tests.laws.test_windows import check_same
from tests.small_scenario import small_scenario

PATIENCE_S = 300.0
"""Ray has started a process by then, however busy the machine is."""
APART = 'replicas = 2\nbalancing = { kind = "random" }'


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(small_scenario("stdlib-moe", 4, more=APART))
    return load_scenario(str(path), ["workload.num_requests=40"])


def split_short(monkeypatch):
    """Shards of few requests."""
    monkeypatch.setattr(deployments, "_SHARD_REQUESTS", 20)


def check_equal(one, other):
    for name in SHORT_TABLES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    for name in LONG_TABLES:
        for deployment, own in getattr(one, name).items():
            pd.testing.assert_frame_equal(own, getattr(other, name)[deployment], check_exact=True)
    for key in ("bands", "verdict", "deployments", "notes"):
        assert one.run[key] == other.run[key]


def test_a_run_in_shards_is_the_run_of_the_whole(scenario, monkeypatch):
    whole = run_scenario(scenario)
    split_short(monkeypatch)
    told = []
    check_equal(whole, run_scenario(scenario, progress=lambda *said: told.append(said)))
    done = [done for name, done, _, *_ in told if name == "own"]
    assert done == sorted(done)
    assert done[-1] == 40


def test_a_step_of_ranks_is_not_split(scenario, monkeypatch):
    split_short(monkeypatch)
    monkeypatch.setattr(deployments, "split_replicas", None)
    assert run_scenario(scenario, fidelity="rank").run["fidelity"] == "rank"


@pytest.mark.ray
def test_shards_write_the_same_bytes_with_one_process_and_two(scenario, monkeypatch, tmp_path):
    split_short(monkeypatch)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, workers in zip(folders, (1, 2), strict=True):
        run_scenario(scenario, workers=workers).write(folder)
    names = [path.name for path in folders[0].iterdir() if path.suffix in (".csv", ".parquet")]
    assert {"requests.parquet", "steps.parquet", "summary.csv"} <= set(names)
    assert filecmp.cmpfiles(*folders, names, shallow=False) == (names, [], [])


def test_tables_are_handed_on_empty_since_they_may_be_filled_meanwhile(tiny):
    tables = StepTables()
    plan = tiny.plan("moe", attention_dp=4, ep=4, num_layers=2)
    serve(plan, tiny.trace(4), fill=tables.slow(1.0))
    assert pickle.dumps(tables) == pickle.dumps(StepTables())


def serve_or_die(folder, home, shard):
    """Serve a shard, in a process of Ray's only to die behind it."""
    served = serve_shard(shard, lambda _: None, StepTables().slow(1.0))
    if os.getpid() != home:
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    begun = time.monotonic()
    while not (folder / "died").exists() and time.monotonic() < begun + PATIENCE_S:
        time.sleep(0.05)
    return served


@pytest.mark.slow
@pytest.mark.xdist_group("ray-apart")
def test_a_shard_whose_process_is_lost_is_served_again(tiny, tmp_path, ray):
    plan = tiny.plan("dense", replicas=4, num_layers=2, balancing={"kind": "round_robin"})
    trace = tiny.trace(60)
    shards = split_replicas(plan, trace, 4)
    with Workers(2) as pool, pytest.warns(RuntimeWarning, match="was lost, and others do its work"):
        served = pool.map(partial(serve_or_die, Path(tmp_path), os.getpid()), shards)
    assert (tmp_path / "died").exists()
    check_same(serve(plan, trace), merge_shards(plan, trace, shards, served))
