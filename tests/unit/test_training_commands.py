"""Training: what a run and a plan say agrees, and which options the command line refuses."""

import tomllib

import pytest

from simulator.commands.plan import plan_training
from simulator.commands.train import train

TRAINING = """
name = "small"
[training]
sequence_tokens = 512
global_batch = 8
total_tokens = 1e9
[[deployments]]
name = "MoE"
model = "olmoe-1b-7b"
cluster = "h100-sxm"
num_gpus = 4
parallel = { pp = 2, ep = 2 }
[[deployments]]
name = "dense"
dense_of = { model = "olmoe-1b-7b", equal = "active_params" }
cluster = "h100-sxm"
num_gpus = 4
parallel = { tp = 2, cp = 2 }
later = []
"""
QUESTION = """
name = "small"
[training]
sequence_tokens = 512
global_batch = 4
total_tokens = 1e9
[targets]
days = 3
[[models]]
model = "olmoe-1b-7b"
[[clusters]]
cluster = "h100-sxm"
max_gpus = 2
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "small.toml").write_text(TRAINING)
    (tmp_path / "question.toml").write_text(QUESTION)


def test_options_of_serving_are_refused_by_name(moesim, files):
    for option in (("--explain",), ("--fidelity", "rank"), ("--workers", "2")):
        code, _, err = moesim("run", "small.toml", *option)
        assert code == 2
        assert "leave it out" in err
    code, _, err = moesim("run", "small.toml", "--seeds", "2")
    assert (code, "training scenario" in err and "without a sweep" in err) == (2, True)
    code, _, err = moesim("plan", "question.toml", "--workers", "2")
    assert (code, "a plan of training does not take it" in err) == (2, True)


def test_what_a_plan_of_training_recommends_trains_as_it_says():
    answer = plan_training(tomllib.loads(QUESTION))
    trained = train(tomllib.loads(answer.recommended)).summary.iloc[0]
    planned = answer.candidates.iloc[0]
    for figure in ("days", "cost", "tokens_per_s_per_gpu", "memory_bytes"):
        assert trained[figure] == pytest.approx(planned[figure], rel=1e-9)
    assert planned["days_low"] < planned["days"] < planned["days_high"]
    assert planned["days"] <= 3


def test_days_hours_and_cost_of_a_training_add_up():
    results = train(tomllib.loads(TRAINING))
    for _, row in results.summary.iterrows():
        assert row["gpu_hours"] == pytest.approx(24 * 4 * row["days"])
        assert row["tokens_per_s"] == pytest.approx(4 * row["tokens_per_s_per_gpu"])
        assert row["step_s"] * row["tokens_per_s"] == pytest.approx(8 * 512)
        assert row["days"] * 86400 >= 0.999 * row["tokens"] / row["tokens_per_s"]
    costs = results.summary["cost"] / results.summary["gpu_hours"]
    assert costs.nunique() == 1 or costs.max() == pytest.approx(costs.min())
    assert results.verdict["headline"].startswith("dense trains most tokens/s")
