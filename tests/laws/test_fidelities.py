"""One model at three levels of detail: how far apart they may be, and what none may break."""

import numpy as np
import pytest
import simpy

from simulator import plugins
from simulator.engine.cluster import run_plan
from simulator.engine.fabric import FluidWires
from simulator.engine.message import MessageWires
from simulator.engine.rank import finish_step, run_step
from simulator.metrics import latencies
from simulator.price import Prices
from simulator.program import Batch
from simulator.records import STEP_PHASES
from simulator.spec.cluster import load_cluster

RANK_TO_MESSAGE = 0.05
STEP_TO_RANK = 0.02

LAYOUTS = {
    "experts over data-parallel ranks": ("moe", {"attention_dp": 8, "ep": 8}),
    "experts over tensor-parallel ranks": ("moe", {"tp": 4, "ep": 4}),
    "both": ("moe", {"tp": 2, "attention_dp": 4, "ep": 8}),
    "experts split": ("moe", {"tp": 4}),
    "split and spread": ("moe", {"attention_dp": 4, "ep": 2}),
    "dense": ("dense", {"tp": 2}),
    "latent attention": ("latent-moe", {"attention_dp": 4, "ep": 4}),
    "sliding windows": ("sliding-moe", {"attention_dp": 2, "ep": 2}),
    "recurrent": ("state-moe", {"attention_dp": 2, "ep": 2}),
    "compressed attention": ("compressed-moe", {"attention_dp": 2, "ep": 2}),
    "two nodes": ("latent-moe", {"attention_dp": 16, "ep": 16}),
}


def carried_s(wires_of, exchange):
    env = simpy.Environment()
    env.run(wires_of(env).carry(exchange))
    return env.now


@pytest.mark.parametrize("dispatch", plugins.available("dispatch"))
@pytest.mark.parametrize("cluster", ["h100-sxm-16", "h100-sxm-leafspine-32", "gb200-nvl72", "l40s-8", "mi300x-8"])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_an_exchange_of_fluids_is_one_of_messages(tiny, cluster, dispatch, sigma):
    spec, _ = load_cluster(cluster, "test")
    ranks = min(16, spec.num_gpus)
    routing = {"kind": "lognormal", "sigma": sigma}
    plan = tiny.plan("moe", attention_dp=ranks, ep=ranks, cluster=cluster, routing=routing, dispatch={"kind": dispatch})
    step = Prices(plan, 512).expert_step(0, np.full(ranks, 64), 0)
    for exchange in (step.dispatch, step.combine):
        fluid_s = carried_s(FluidWires, exchange)
        message_s = carried_s(lambda env: MessageWires(env, plan.fabric), exchange)
        assert fluid_s == pytest.approx(exchange.alone_s)
        assert message_s >= exchange.alone_s * (1 - 1e-9)
        assert fluid_s == pytest.approx(message_s, rel=RANK_TO_MESSAGE)


def decode_batch(num_dp, sequences, context=300):
    new = tuple(np.ones(sequences, dtype=np.int64) for _ in range(num_dp))
    contexts = tuple(np.full(sequences, context, dtype=np.int64) for _ in range(num_dp))
    flags = tuple(np.ones(sequences, dtype=np.bool_) for _ in range(num_dp))
    return Batch(new, contexts, flags, np.full(num_dp, sequences, dtype=np.int64))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_ranks_is_one_of_messages(tiny, layout):
    model, parallel = LAYOUTS[layout]
    plan = tiny.plan(model, **parallel)
    prices = Prices(plan, 512)
    program = prices.program(decode_batch(plan.layout.attention_dp, 24), 0)
    times = {}
    for name, wires_of in (("rank", FluidWires), ("message", lambda env: MessageWires(env, plan.fabric))):
        env = simpy.Environment()
        times[name] = finish_step(env, run_step(env, wires_of(env), program, plan.layout.num_ranks))
        assert times[name].duration_s == pytest.approx(env.now)
    assert times["rank"].duration_s == pytest.approx(times["message"].duration_s, rel=RANK_TO_MESSAGE)


def figures(record):
    latency = latencies(record.requests)
    return {
        "busy": record.steps["duration_s"].sum(),
        "ttft": latency["ttft_s"].mean(),
        "tpot": latency["tpot_s"].mean(),
        "e2e p90": latency["e2e_s"].quantile(0.9),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_trace_at_step_fidelity_is_one_at_rank_fidelity(tiny, layout):
    model, parallel = LAYOUTS[layout]
    plan, trace = tiny.plan(model, **parallel), tiny.trace(80, rate_per_s=100.0)
    step, rank = run_plan(plan, trace, "step"), run_plan(plan, trace, "rank")
    wanted, found = figures(rank), figures(step)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=STEP_TO_RANK), name
    if plan.experts is not None:
        assert step.load_imbalance == pytest.approx(rank.load_imbalance, rel=0.05)
    assert step.read_bytes == pytest.approx(rank.read_bytes, rel=0.05)


def test_a_shipped_model_at_step_fidelity_is_one_at_rank_fidelity(tiny):
    plan = tiny.plan("mixtral-8x7b", attention_dp=8, ep=8, weight_dtype="fp8")
    trace = tiny.trace(100, rate_per_s=20.0, longest_input=2000, longest_output=16)
    wanted, found = figures(run_plan(plan, trace, "rank")), figures(run_plan(plan, trace, "step"))
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=STEP_TO_RANK), name


@pytest.mark.parametrize("fidelity", ["step", "rank", "message"])
def test_phases_add_up_to_the_step(tiny, fidelity):
    steps = run_plan(tiny.plan("moe", attention_dp=4, ep=4), tiny.trace(12, longest_output=5), fidelity).steps
    phases = steps[[f"{phase}_s" for phase in STEP_PHASES]]
    assert (phases.to_numpy() >= -1e-12).all()
    assert phases.sum(axis=1).to_numpy() == pytest.approx(steps["duration_s"].to_numpy())
