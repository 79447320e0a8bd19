"""Pruned deployments end to end: run on an accelerator, and searched beside whole models and
mixtures of experts.
"""

import json
from pathlib import Path

import pytest

from simulator.base.frozen import validate
from simulator.config.capacity import Question
from simulator.planner.evaluations import row_of
from simulator.planner.handover import commands, scenario_text
from simulator.planner.search import search
from simulator.planner.space import Ruled, Space
from simulator.planner.store import Store
from tests.small_scenario import poisson

HERE = Path()
TWO_FOUR = {"kind": "two_four"}
REQUESTS = """
[workload.requests]
num_requests = 60
arrivals = { kind = "poisson", rate_per_s = 20.0 }
lengths = { kind = "fixed", num_input = 512, num_output = 64 }
"""
WHOLE = """
[[deployments]]
name = "whole"
model = "llama-3.1-8b"
cluster = "h100-sxm-1"
weight_dtype = "fp8"
"""
PRUNED = WHOLE.replace("whole", "pruned") + 'pruning = { kind = "two_four" }\n'


def test_a_pruned_deployment_runs_on_an_accelerator_and_says_what_its_speed_rests_on(
    moesim, tmp_path
):
    (tmp_path / "pruned.toml").write_text(REQUESTS + WHOLE + PRUNED, encoding="utf-8")
    code, out, err = moesim("run", "pruned.toml", "--out", "result")
    assert code == 0, out + err
    facts = json.loads((tmp_path / "result" / "run.json").read_text(encoding="utf-8"))[
        "deployments"
    ]
    whole, pruned = facts["whole"], facts["pruned"]
    assert pruned["memory"]["weights_bytes"] < whole["memory"]["weights_bytes"]
    assert pruned["kv_tokens"] > whole["kv_tokens"]
    row = next(row for row in pruned["assumptions"] if row["what"] == "pruned matrices")
    assert row["kind"] == "fitted"
    assert "arXiv:2603.05232" in row["source"]
    assert any("quality is not simulated" in warning for warning in pruned["warnings"])
    assert not any(row["what"] == "pruned matrices" for row in whole["assumptions"])


def question(**keys):
    table = {
        "name": "small",
        "workload": poisson(40.0, 1024, 64, 200),
        "targets": {"tpot_s": {"p90": 0.03}, "ttft_s": {"p90": 1.0}},
        "models": [{"model": "llama-3.1-8b", "weight_dtypes": ["bf16"], "prunings": [TWO_FOUR]}],
        "clusters": [{"cluster": "h100-sxm", "max_gpus": 8}],
        "space": {"tp": [1, 2], "token_budgets": [2048], "disaggregate": False},
    }
    return validate(Question, {**table, **keys}, "test")


def test_the_pruned_model_is_found_at_least_as_cheap_where_its_kernels_are_faster(tmp_path):
    found = search(question(), HERE, Store(tmp_path), workers=1)
    best = {}
    for one in found.evaluations:
        best.setdefault(found.space.kind(one.candidate.shape), one)
    pruned, dense = (row_of(found, best[kind]) for kind in ("pruned", "dense"))
    assert pruned.cost_per_hour <= dense.cost_per_hour
    assert pruned.model == "llama-3.1-8b (2:4)"
    assert 'kind = "two_four"' in scenario_text(found, [best["pruned"]])
    assert "(2:4)" in " ".join(commands(found, best["pruned"])[0].not_expressed)


def test_a_question_s_models_are_tried_whole_and_pruned_with_scores_of_their_own():
    models = [
        {"model": "llama-3.1-8b", "quality": 70.0, "pruned_quality": 60.0, "prunings": [TWO_FOUR]},
        {"model": "olmoe-1b-7b"},
    ]
    space = Space(question(models=models), HERE)
    assert [
        (model.name, one.quality) for model, one in zip(space.models, space.variants, strict=True)
    ] == [
        ("llama-3.1-8b", 70.0),
        ("olmoe-1b-7b", None),
        ("llama-3.1-8b (2:4)", 60.0),
    ]
    kinds = {
        space.kind(shape): plan.spec.pruning
        for number in range(3)
        for shape, plan in space.shapes(number, 0, Ruled())
    }
    assert kinds.keys() == {"dense", "MoE", "pruned"}
    assert kinds["pruned"].kind == "two_four"
    assert kinds["dense"] is None


@pytest.mark.parametrize(("least", "left"), [(65.0, [0]), (50.0, [0, 2])])
def test_what_is_below_the_least_quality_or_has_no_score_is_ruled_out(least, left):
    models = [
        {"model": "llama-3.1-8b", "quality": 70.0, "pruned_quality": 60.0, "prunings": [TWO_FOUR]},
        {"model": "llama-2-7b"},
    ]
    space, ruled = Space(question(models=models, limits={"min_quality": least}), HERE), Ruled()
    assert [number for number in range(3) if list(space.shapes(number, 0, ruled))] == left
    assert any("quality score" in reason for reason in ruled.counts)
