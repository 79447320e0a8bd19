"""Two-batch overlap: what it hides, what it cannot, and that all fidelities agree on it."""

import dataclasses

import numpy as np
import pytest
import simpy
from hypothesis import example, given
from hypothesis import strategies as st

from simulator.cost.comm import Exchange
from simulator.engine.by_ranks import finish_step, run_step
from simulator.engine.experts_table import Lockstep
from simulator.engine.fabric import FluidWires, MessageWires
from simulator.policies.messages import Messages
from simulator.step.operations import step_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch, Busy, Finish, Start, Together
from tests.cases import cases
from tests.parts import change_plan

SPLITS = {
    "one node": ("moe", {"attention_dp": 8, "ep": 8}),
    "two nodes": ("moe", {"attention_dp": 16, "ep": 16}),
    "tensor-parallel attention": ("moe", {"tp": 2, "attention_dp": 4, "ep": 8}),
    "latent attention, shared experts": ("latent-moe", {"attention_dp": 4, "ep": 4}),
    "recurrent hybrid": ("state-moe", {"attention_dp": 4, "ep": 4}),
}


def batch_of(plan, decodes, prompts=(), context=400):
    """The same on every data-parallel rank."""
    dp = plan.placement.layout.attention_dp
    new = np.array([1] * decodes + list(prompts), dtype=np.int64)
    is_decode = np.array([True] * decodes + [False] * len(prompts))
    return Batch(
        (new,) * dp,
        (np.where(is_decode, context, 0),) * dp,
        (is_decode,) * dp,
        np.full(dp, len(new)),
    )


def step_s(plan, batch, fidelity="rank"):
    prices = Prices(plan.placement, int(batch.tokens_d.max()))
    env = simpy.Environment()
    wires = FluidWires(env) if fidelity == "rank" else MessageWires(env, plan.placement.fabric)
    return finish_step(
        env,
        run_step(env, wires, step_operations(prices, batch, 0), plan.placement.layout.num_ranks),
    ).duration_s


def free_wires(plan):
    """The same plan on links that take no time."""

    class Free:
        def exchanges(self, *args):
            return [
                dataclasses.replace(way, latency_s=0.0, busy_s=np.zeros(0), held_s=0.0)
                for way in plan.placement.comm.exchanges(*args)
            ]

    return change_plan(plan, comm=Free())


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("decodes", "prompts"), [(2, ()), (64, ()), (3, (700,)), (0, (1500, 1500))]
)
def test_overlap_is_bounded_by_what_it_computes_and_by_what_it_exchanges(
    tiny, split, decodes, prompts
):
    model, parallel = SPLITS[split]
    plan = tiny.plan(model, overlap="two_batch", **parallel)
    batch = batch_of(plan, decodes, prompts)
    program = step_operations(Prices(plan.placement, int(batch.tokens_d.max())), batch, 0)
    computing_R = sum(op.seconds_R for op in program if isinstance(op, Busy))
    links = [op.exchanges[0].busy_s for op in program if isinstance(op, Start)]
    took_s = step_s(plan, batch)
    assert took_s >= computing_R.max() * (1 - 1e-9)
    assert took_s >= sum(links).max() * (1 - 1e-9)
    alone_s = [op.exchanges[0].alone_s for op in program if isinstance(op, Start | Together)]
    slowest_s = [op.seconds_R.max() for op in program if isinstance(op, Busy)]
    assert took_s <= (sum(alone_s) + sum(slowest_s)) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("decodes", "prompts"), [(1, ()), (2, ()), (64, ()), (300, ()), (3, (700,)), (0, (1500,))]
)
def test_with_free_exchanges_halves_never_win(tiny, decodes, prompts):
    # One expert, split over all ranks: where ranks have equal work, halves have no waiting to hide.
    whole, overlapped = (
        free_wires(tiny.plan("one-expert", attention_dp=4, ep=1, overlap=kind))
        for kind in ("none", "two_batch")
    )
    batch = batch_of(whole, decodes, prompts)
    assert step_s(overlapped, batch) >= step_s(whole, batch) * (1 - 1e-9)


def test_a_step_that_cannot_be_cut_runs_as_without_overlap(tiny):
    parallel = {"attention_dp": 4, "ep": 4}
    whole, overlapped = (
        tiny.plan("moe", overlap=kind, **parallel) for kind in ("none", "two_batch")
    )
    assert step_s(overlapped, batch_of(whole, 1)) == step_s(whole, batch_of(whole, 1))


@pytest.mark.parametrize("split", ["one node", "two nodes", "latent attention, shared experts"])
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_all_ranks_in_one_process_take_the_times_of_a_process_each(tiny, split, tokens):
    model, parallel = SPLITS[split]
    for overlap in ("none", "two_batch"):
        plan = tiny.plan(model, overlap=overlap, **parallel)
        program = step_operations(Prices(plan.placement, 64), batch_of(plan, tokens), 5)
        env = simpy.Environment()
        times = finish_step(
            env, run_step(env, FluidWires(env), program, plan.placement.layout.num_ranks)
        )
        assert Lockstep(program, plan.placement.layout.num_ranks).run() == pytest.approx(
            times.phases, rel=1e-9, abs=1e-15
        )


exchanges = st.builds(
    lambda latency_s, busy_s, stagger_s: Exchange(
        latency_s, np.array(busy_s), Messages.empty(), stagger_s
    ),
    st.sampled_from([0.0, 0.3]),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=2),
    st.sampled_from([0.0, 0.1]),
)
parts = st.lists(
    st.one_of(
        st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=3, max_size=3),
        st.tuples(exchanges, st.booleans()),
        st.integers(0, 3),
    ),
    max_size=12,
)
"""What three ranks compute, what they exchange and whether they wait for it, and which of what they
have started they wait for then.
"""


def program_of(parts):
    program, started, everyone = [], [], (tuple(range(3)),)
    for part in parts:
        if isinstance(part, list):
            program.append(Busy("dense", 0, np.array(part)))
        elif isinstance(part, int):
            program += [Finish(started.pop(part % len(started)))] if started else []
        elif part[1]:
            program.append(Together("combine", 0, everyone, part[:1]))
        else:
            started.append(Start("dispatch", 0, everyone, part[:1], len(program)))
            program.append(started[-1])
    return program + [Finish(start) for start in started]


LONG, SHORT, EMPTY = (
    Exchange(0.0, np.array([busy_s, 0.0]), Messages.empty()) for busy_s in (3.0, 1.0, 0.0)
)


@cases(100)
@given(parts)
@example([(LONG, False), (EMPTY, True), (SHORT, True)])
def test_they_do_whatever_is_under_way_at_once(parts):
    """Among it exchanges that carry nothing."""
    program, env = program_of(parts), simpy.Environment()
    times = finish_step(env, run_step(env, FluidWires(env), program, 3))
    found = Lockstep(program, 3).run()
    assert found == pytest.approx(dict.fromkeys(found, 0.0) | times.phases, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("split", ["one node", "tensor-parallel attention"])
def test_messages_confirm_ranks(tiny, split):
    model, parallel = SPLITS[split]
    plan = tiny.plan(model, overlap="two_batch", **parallel)
    batch = batch_of(plan, 64)
    assert step_s(plan, batch) == pytest.approx(step_s(plan, batch, "message"), rel=0.05)
