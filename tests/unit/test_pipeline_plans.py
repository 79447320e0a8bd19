"""Pipelines in plans: which are tried, that the analytical price is what the engine does, and how
servers are started.
"""

import itertools
from pathlib import Path

import pytest

from simulator.base.frozen import validate
from simulator.config.capacity import Question
from simulator.planner import space as rules
from simulator.planner.space import Ruled, Space
from tests.small_scenario import poisson
from tests.unit.test_serving_commands import flags, launched


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
@pytest.mark.parametrize(("tp", "gpus"), [(8, 16), (2, 8)])
def test_stages_are_a_flag_of_every_engine(engine, tp, gpus):
    given = launched(engine, (tp, 1, 1), gpus, "qwen3-32b", pp=2, replicas=1)
    lines = [flags(one.command) for one in given]
    names = {
        "vllm": ("--tensor-parallel-size", "--pipeline-parallel-size"),
        "sglang": ("--tp-size", "--pp-size"),
        "trtllm": ("--tp_size", "--pp_size"),
    }[engine]
    assert {tuple(line[name] for name in names) for line in lines} == {(str(tp), "2")}
    nodes = max(1, tp * 2 // 8)
    assert len(given) == (1 if engine == "trtllm" else nodes)
    if engine == "trtllm":
        assert ("--ntasks 16" in given[0].command) == (nodes > 1)
        assert lines[0]["--max_batch_size"] == "128"  # of each stage
    if engine == "vllm" and nodes > 1:
        assert [line["--node-rank"] for line in lines] == ["0", "1"]
        assert ["--headless" in line for line in lines] == [False, True]
        assert {line["--master-addr"] for line in lines} == {"node0"}
        assert not any(word.startswith("--data-parallel") for line in lines for word in line)
