"""Pipelines in plans: which are tried, that the closed form is what the engine does, and how
servers are started.
"""

import itertools
import shlex
from pathlib import Path

import numpy as np
import pytest

from simulator.base.frozen import validate
from simulator.config.capacity import Question
from simulator.engine.timeline import run_plan
from simulator.planner import space as rules
from simulator.planner.analytical import Curve
from simulator.planner.crossover import make_fixed_traffic
from simulator.planner.launch import list_commands
from simulator.planner.space import Ruled, Space
from simulator.workload.traces import RequestTrace
from tests.parts import freeze
from tests.single_steps import take_apart
from tests.small_scenario import poisson


def question(models=("llama-3.1-70b",), clusters=("h100-sxm",), **space):
    table = {
        "name": "pipelines",
        "seed": 1,
        "workload": poisson(6.0, 500, 60, 80),
        "targets": {"ttft_s": {"p90": 2.0}, "tpot_s": {"p90": 0.1}},
        "models": [{"model": name} for name in models],
        "clusters": [{"cluster": name, "max_gpus": 32} for name in clusters],
        "space": {
            "token_budgets": [2048],
            "redundant_experts": [0.0],
            "overlap": ["none"],
            "disaggregate": False,
            **space,
        },
    }
    return validate(Question, table, "test")


def splits(asked, model=0, machines=0):
    ruled = Ruled()
    found = {
        (shape.tp, shape.attention_dp, shape.pp)
        for shape, _ in Space(asked, Path()).shapes(model, machines, ruled)
    }
    return (
        {(tp, pp) for tp, dp, pp in found if pp > 1},
        ruled.counts,
        {dp for _, dp, pp in found if pp > 1},
    )


def test_stages_are_tried_over_nodes_and_where_tensor_parallelism_ends():
    tried, reasons, beside = splits(question(models=("gpt-oss-20b",), attention_dp=[1, 2]))
    assert tried == {(8, 2), (8, 4)}
    assert beside == {1}
    for reason in (
        rules.STAGES_BESIDE_DP,
        rules.STAGES_IN_A_NODE,
        rules.STAGES_OVER_NODES,
    ):
        assert reasons[reason] > 0
    # Over PCIe, stages pay inside a node too.
    tried, reasons, _ = splits(question(models=("qwen3-32b",), clusters=("l40s",)))
    assert {(1, 2), (1, 4), (2, 2), (2, 4), (4, 2)} <= tried
    assert rules.STAGES_IN_A_NODE not in reasons
    tried, _, _ = splits(question(models=("qwen3-32b",), tp=[1, 2]))
    assert tried == {(2, 2), (2, 4)}
    assert splits(question(pp=[1]))[0] == set()
    tried, reasons, _ = splits(
        question(models=("gpt-oss-20b",), tp=[8], pp=[1, 30], max_gpus_per_replica=512)
    )
    assert not tried
    assert reasons[rules.STAGES] > 0


@pytest.mark.parametrize(
    ("cluster", "split", "sequences"),
    [
        ("h100-sxm-16", {"tp": 8, "pp": 2}, 64),
        ("h100-sxm-16", {"tp": 4, "pp": 4}, 32),
        ("l40s-8", {"tp": 2, "pp": 3}, 16),
    ],
)
def test_the_closed_form_is_what_the_engine_does(cluster, split, sequences):
    table = {
        "name": "a",
        "model": "qwen3-32b",
        "cluster": cluster,
        "parallel": split,
        "replicas": 1,
        "weight_dtype": "fp8",
    }
    table["scheduling"] = {"kind": "chunked", "token_budget": 2048}
    plan = freeze(table, 1)
    held = sequences * split["pp"]
    trace = RequestTrace(
        np.zeros(3 * held),
        np.full(3 * held, 600),
        np.full(3 * held, 200),
        "alike",
        concurrency=held,
    )
    steps = take_apart(run_plan(plan, trace).steps)
    middle = steps.iloc[len(steps) // 4 : -len(steps) // 4]
    curve, at = (
        Curve(plan, make_fixed_traffic(600, 200), 2048),
        (np.array([float(sequences)]), np.array([sequences / 200]), 600.0),
    )
    assert curve.step_s(*at)[0] == pytest.approx(middle["duration_s"].mean(), rel=0.12)


def test_a_slower_table_is_slower_on_the_way_between_stages_too(tiny):
    from simulator.engine.table import make_table, slow_table
    from simulator.engine.timeline import serve

    plan, trace = tiny.plan("dense", tp=2, pp=2), tiny.trace(1, 50.0, 60, 20)

    def durations(factor):
        served = serve(
            plan, trace, fill=lambda pool, _: slow_table(make_table(pool.prices), factor)
        )
        return served.steps_of("both")["duration_s"].to_numpy()

    assert durations(2.0) == pytest.approx(2 * durations(1.0))


def test_sizes_formats_and_places_of_a_question_reach_its_deployments():
    asked = question(
        models=("gpt-oss-20b",),
        tp=[1],
        attention_dp=[1, 2],
        max_sequences=[64, 256],
        placements=["contiguous", "eplb"],
    )
    asked = asked.model_copy(
        update={
            "models": (asked.models[0].model_copy(update={"dispatch_dtypes": ("fp8", "bf16")}),)
        }
    )
    space = Space(asked, Path())
    shapes = [shape for shape, _ in space.shapes(0, 0, Ruled())]
    specs = [space.spec(shape, None) for shape in shapes]
    assert {spec.scheduling["max_sequences"] for spec in specs} == {64, 256}
    spread = [
        spec for spec in specs if (spec.parallel.ep or 1) > 1 and spec.parallel.attention_dp > 1
    ]
    assert {(spec.dispatch_dtype, spec.placement["kind"]) for spec in spread} == set(
        itertools.product(("fp8", "bf16"), ("contiguous", "eplb"))
    )
    assert {spec.dispatch_dtype for spec in specs if spec not in spread} == {None}
    assert len({space.text(shape) for shape in shapes}) == len(shapes)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize(("split", "gpus"), [({"tp": 8, "pp": 2}, 16), ({"tp": 2, "pp": 2}, 8)])
def test_stages_are_a_flag_of_every_engine(engine, split, gpus):
    table = {
        "name": "a",
        "model": "qwen3-32b",
        "cluster": f"h100-sxm-{gpus}",
        "parallel": split,
        "replicas": 1,
        "engine": engine,
    }
    table["scheduling"] = {"kind": "chunked", "token_budget": 2048, "max_sequences": 256}
    plan = freeze(table, 1)
    given = list_commands(plan, "qwen3-32b", 3000, 4000)
    words = [shlex.split(one.command.splitlines()[-1]) for one in given]
    tp, pp, sequences = {
        "vllm": ("--tensor-parallel-size", "--pipeline-parallel-size", ("--max-num-seqs", 256)),
        "sglang": ("--tp-size", "--pp-size", ("--max-running-requests", 256)),
        "trtllm": ("--tp_size", "--pp_size", ("--max_batch_size", 128)),
    }[engine]
    for line in words:
        flags = dict(itertools.pairwise(line))
        assert (flags[tp], flags[pp]) == (str(split["tp"]), "2")
        assert flags[sequences[0]] == str(sequences[1])
    nodes = max(1, split["tp"] * 2 // 8)
    assert len(given) == (1 if engine == "trtllm" else nodes)
    if engine == "vllm" and nodes > 1:
        assert [dict(itertools.pairwise(line))["--node-rank"] for line in words] == ["0", "1"]
        assert ["--headless" in line for line in words] == [False, True]
        addresses = [dict(itertools.pairwise(line))["--master-addr"] for line in words]
        assert addresses == ["node0", "node0"]
        assert not any(word.startswith("--data-parallel") for line in words for word in line)
    if engine == "trtllm" and nodes > 1:
        assert dict(itertools.pairwise(words[0]))["--ntasks"] == "16"
