"""What-if questions: each condition changes what it names, and nothing else."""

from pathlib import Path

from simulator.base.frozen import validate
from simulator.config.capacity import Question
from simulator.planner.conditions import Change, apply_conditions, list_recorded_skews
from simulator.planner.space import Ruled, Space
from simulator.planner.traffic import traffic_of
from tests.small_scenario import poisson

HERE = Path()
QUESTION = {
    "name": "small",
    "workload": poisson(4.0, 300, 50, 200),
    "peak_s": 20.0,
    "targets": {"tpot_s": {"p90": 0.05}},
    "models": [{"model": "gpt-oss-20b"}, {"model": "llama-3.1-8b"}],
    "clusters": [{"cluster": "h100-sxm", "max_gpus": 8}],
}


def question(**keys):
    return validate(Question, {**QUESTION, **keys}, "test")


def test_prompts_grow_and_outputs_stay():
    longer = traffic_of(apply_conditions(Change(prompts=4.0), question(), HERE), HERE)
    assert (longer.num_input, longer.num_output) == (1200, 50)


def test_wires_carry_half_and_start_as_late():
    halved = apply_conditions(Change(network=0.5), question(), HERE)
    plans = [
        next(plan for shape, plan in Space(asked, HERE).shapes(0, 0, Ruled()) if shape.ep == 8)
        for asked in (question(), halved)
    ]
    for full, half in zip(*(plan.placement.fabric.links for plan in plans), strict=True):
        assert (half.bytes_per_s, half.latency_s) == (full.bytes_per_s / 2, full.latency_s)
    assert (
        plans[0].placement.cluster.scale_out.bytes_per_s
        == 2 * plans[1].placement.cluster.scale_out.bytes_per_s
    )


def test_skew_is_the_spread_of_popularity():
    doubled = apply_conditions(Change(skew=2.0), question(), HERE)
    drawn = Space(question(), HERE).models[0].routing
    assert doubled.models[0].routing == drawn | {"sigma": 2 * drawn["sigma"]}
    assert doubled.models[1].routing is None


def test_recorded_skew_is_said_to_stay():
    recorded = question(
        models=[{"model": "gpt-oss-20b", "routing": {"kind": "replay", "trace": "x.npz"}}]
    )
    assert list_recorded_skews(recorded, HERE) == ["gpt-oss-20b"]
    assert apply_conditions(Change(skew=2.0), recorded, HERE) == recorded
