"""``moesim execute`` of a training scenario, and the times that its simulated step rests on."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from simulator.base.errors import UserError
from simulator.base.writing import toml_text
from simulator.cli import app
from simulator.commands import execute_training as command
from simulator.results.training import STEP_PARTS
from simulator.scenario.jobs import SCENARIOS, load_job
from tests.runtime.processes import descendants

TIMED = 3


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(command, "TIMED_STEPS", TIMED)


@pytest.fixture
def scenario(real):
    """A tiny mixture on two ranks, and a dense model on one."""
    here = {
        "cluster": "this-machine",
        "dtype": "fp32",
        "dispatch_dtype": "fp32",
        "dispatch": {"kind": "per_rank"},
        "zero": 0,
        "overlap_gradients": False,
    }
    mixture = {
        "name": "mixture",
        "model": str(real.folder / real.model(num_experts=8, top_k=2)),
        "num_gpus": 2,
        "parallel": {"ep": 2},
        "micro_batch": 2,
        "routing": {"kind": "uniform"},
    }
    dense = {"name": "dense", "model": str(real.folder / real.model()), "num_gpus": 1}
    return {
        "name": "tiny",
        "seed": 3,
        "training": {"sequence_tokens": 16, "global_batch": 8},
        "deployments": [mixture | here, dense | here],
    }


def test_steps_are_trained_measured_and_simulated(few_steps, scenario, tmp_path):
    loaded = load_job(scenario, SCENARIOS)
    trained = command.execute_training(loaded, folder=tmp_path / "out", backend="in_process")
    assert trained.deployments == ["mixture", "dense"]
    for name, exchanges in (("mixture", 4), ("dense", 0)):
        facts = trained.run["deployments"][name]
        assert facts["gradient_error"] < 1e-5
        assert facts["exchanges"] == exchanges
        assert len(facts["loss"]) == command.CHECKED_STEPS + TIMED
        measured, simulated = (trained.find_steps(name, kind) for kind in ("measured", "simulated"))
        assert (len(measured), len(simulated)) == (TIMED, 1)
        for rows in (measured, simulated):
            total = rows[list(STEP_PARTS)].sum(axis=1)
            assert np.allclose(total, rows["step_s"])
        ratio, low, high = trained.find_ratio(name)
        assert 0 < low <= ratio <= high
    assert trained.find_steps("dense", "measured")["dispatch"].eq(0).all()
    assert trained.find_steps("mixture", "measured")[["dispatch", "gradients"]].gt(0).all(axis=None)
    written = pd.read_csv(tmp_path / "out" / "steps.csv")
    assert np.allclose(written["step_s"], trained.steps["step_s"])
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["deployments"]["mixture"]["exchanges"] == 4
    assert len(trained.list_findings()) == 2


def test_the_command_trains_over_ray_and_leaves_no_process(few_steps, scenario, tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(toml_text(scenario, "a test"))
    arguments = ["execute", str(file), "--deployment", "mixture", "--out", str(tmp_path / "out")]
    before = list_raylets()
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert list_raylets() <= before


def list_raylets():
    return {pid for pid, command in descendants(os.getpid()) if "raylet" in command}


def test_unknown_deployments_are_refused(scenario):
    with pytest.raises(UserError, match=r"--deployment other: .* choose one of: dense, mixture"):
        command.execute_training(
            load_job(scenario, SCENARIOS), backend="in_process", names=["other"]
        )
