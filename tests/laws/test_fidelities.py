"""One model, three fidelities: messages bound and confirm ranks, ranks confirm the table."""

import numpy as np
import pytest
import simpy

from simulator.base.plugins import available
from simulator.engine.by_ranks import finish_step, run_step
from simulator.engine.fabric import FluidWires, MessageWires
from simulator.engine.timeline import run_plan
from simulator.results.metrics import latencies
from simulator.results.phases import STEP_PHASES
from simulator.step.operations import step_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch

pytestmark = pytest.mark.shipped_draws


def wires_of(plan, env, fidelity):
    return FluidWires(env) if fidelity == "rank" else MessageWires(env, plan.placement.fabric)


def exchange_s(plan, exchange, fidelity):
    env = simpy.Environment()
    env.run(wires_of(plan, env, fidelity).carry(exchange))
    return env.now


def step_s(plan, program, fidelity):
    env = simpy.Environment()
    return finish_step(
        env, run_step(env, wires_of(plan, env, fidelity), program, plan.placement.layout.num_ranks)
    ).duration_s


def decode_batch(tokens_d, context=200):
    new = tuple(np.ones(n, dtype=np.int64) for n in tokens_d)
    context_tokens = tuple(np.full(n, context, dtype=np.int64) for n in tokens_d)
    return Batch(
        new, context_tokens, tuple(np.ones(n, dtype=np.bool_) for n in tokens_d), np.array(tokens_d)
    )


@pytest.mark.parametrize("num_ranks", [4, 8, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("topology", available("topology"))
def test_messages_confirm_ranks_whatever_the_topology_the_dispatch_and_the_skew(
    tiny, topology, num_ranks
):
    for dispatch in available("dispatch"):
        for routing in ({"kind": "uniform"}, {"kind": "lognormal", "sigma": 1.5}):
            plan = tiny.plan(
                "moe",
                attention_dp=num_ranks,
                ep=num_ranks,
                dispatch={"kind": dispatch},
                routing=routing,
            )
            plan = tiny.on(plan, cluster=tiny.cluster(16, 4), topology={"kind": topology})
            step = Prices(plan.placement, 64).expert_step(0, np.full(num_ranks, 64), 0)
            for exchange in (step.dispatch, step.combine):
                by_rank, by_message = (
                    exchange_s(plan, exchange, fidelity) for fidelity in ("rank", "message")
                )
                assert by_rank == pytest.approx(exchange.alone_s, rel=1e-9)
                assert by_message >= exchange.alone_s * (1 - 1e-9)
                assert by_rank == pytest.approx(by_message, rel=0.05), (dispatch, routing)


@pytest.mark.parametrize("topology", available("topology"))
def test_messages_confirm_ranks_for_whole_steps(tiny, topology):
    for split in ({"attention_dp": 8, "ep": 8}, {"tp": 2, "attention_dp": 4, "ep": 8}):
        plan = tiny.on(
            tiny.plan("moe", **split), cluster=tiny.cluster(16, 4), topology={"kind": topology}
        )
        for tokens_d in (
            [40] * plan.placement.layout.attention_dp,
            [60] + [20] * (plan.placement.layout.attention_dp - 1),
        ):
            program = step_operations(Prices(plan.placement, 64), decode_batch(tokens_d), 0)
            assert step_s(plan, program, "rank") == pytest.approx(
                step_s(plan, program, "message"), rel=0.05
            )


def measure(record):
    times = latencies(record.requests)
    busy_s = record.steps["duration_s"].sum()
    return np.array(
        [busy_s, times["ttft_s"].mean(), times["tpot_s"].mean(), times["e2e_s"].quantile(0.9)]
    )


def agree(plan, trace):
    records = [run_plan(plan, trace, fidelity) for fidelity in ("rank", "step")]
    for record in records:
        phases_s = record.steps[[f"{phase}_s" for phase in STEP_PHASES]].sum(axis=1)
        assert phases_s.to_numpy() == pytest.approx(record.steps["duration_s"].to_numpy(), rel=1e-6)
        assert (record.steps["wait_s"] > -1e-9).all()
    by_rank, by_step = records
    assert measure(by_step) == pytest.approx(measure(by_rank), rel=0.02)
    assert by_step.read_bytes == pytest.approx(by_rank.read_bytes, rel=0.05)
    assert by_step.load_imbalance == pytest.approx(by_rank.load_imbalance, rel=0.05, nan_ok=True)


def test_ranks_confirm_the_table_where_requests_arrive_in_between(tiny):
    agree(tiny.plan("moe", attention_dp=4, ep=4), tiny.trace(num_requests=80, rate_per_s=400))


@pytest.mark.slow
def test_ranks_confirm_the_table_for_a_shipped_model(tiny):
    plan = tiny.plan("mixtral-8x7b", cluster="h100-sxm-8", attention_dp=8, ep=8)
    agree(
        plan, tiny.trace(num_requests=60, rate_per_s=40_000, longest_input=1000, longest_output=12)
    )
