"""What ``--explain`` names, run by hand, gives what was printed."""

import json

import pytest

from simulator import UserError, load_scenario, run
from simulator.commands import explain
from simulator.config.calibration.engine import UNSAID
from simulator.explanation.changes import list_changes
from simulator.results.explained import Queue
from simulator.results.explanation_text import find_help, read_explanation
from tests.parts import freeze
from tests.small_scenario import poisson

SHARED = {
    "cluster": "h100-sxm-8",
    "replicas": 1,
    "scheduling": {"kind": "chunked", "token_budget": 256, "max_sequences": 16},
    "engine": f"vllm@{UNSAID}",  # whose own time leaves something to gain
}
SPREAD = {"parallel": {"attention_dp": 4, "ep": 4}, "routing": {"kind": "lognormal", "sigma": 1.5}}
SCENARIO = {
    "name": "small",
    "workload": poisson(60.0, 64, 24, 40),
    "deployments": [
        {"name": "dense", "model": "llama-3.1-8b", **SHARED},
        {"name": "MoE", "model": "olmoe-1b-7b", **SHARED, **SPREAD},
    ],
}


@pytest.mark.slow
def test_what_is_printed_is_what_a_run_by_hand_gives(monkeypatch):
    monkeypatch.setattr(explain, "MOST_REQUESTS", 20)
    results = run(SCENARIO, explain=True)
    json.dumps(results.run["explanation"], allow_nan=False)
    changes = read_explanation(results.run)["MoE"].changes
    assert changes.stretch == ["workload.num_requests=20"]

    def by_hand(overrides):
        summary = run(load_scenario(SCENARIO, [*changes.stretch, *overrides])).summary
        return float(summary.set_index("deployment")[changes.metric]["MoE"])

    assert by_hand([]) == changes.value
    tried = [one for one in changes.tried if one.value is not None]
    assert len(tried) > 4
    for one in (tried[0], tried[-1]):
        value = by_hand(one.overrides)
        assert value == one.value
        assert one.gain == 1 - value / changes.value
    gains = [one.gain for one in tried]
    assert gains == sorted(gains, reverse=True)


def test_changes_say_what_they_need_of_an_engine():
    plan = freeze(SCENARIO["deployments"][1], 1)
    needs = {one.text: one.needs for one in list_changes(plan, 0, Queue(0.0, "none"))}
    assert needs["exchanges in 4 chunks"] == "exchange_chunks"
    assert needs["two-batch overlap"] == "two_batch"
    assert needs["links twice as fast"] is None


def test_what_is_refused_says_why():
    table = {**SCENARIO, "deployments": [{**SCENARIO["deployments"][1], "memory_fraction": 0.1}]}
    table["workload"] = {**SCENARIO["workload"], "num_requests": 10}
    changes = read_explanation(run(table, explain=True).run)["MoE"].changes
    refused = [one for one in changes.tried if "does not fit" in one.reason]
    assert refused
    assert all(one.value is None for one in refused)
    with pytest.raises(UserError, match="does not fit"):
        run(load_scenario(table, refused[0].overrides))
    assert "Not simulated: " in "\n".join(map(str, find_help(changes)))


def test_a_sweep_is_not_explained(moesim):
    code, _, err = moesim("run", "mixtral_vs_llama2", "--explain", "--seeds", "2")
    assert code == 2
    assert "--explain explains one run" in err
