"""Shared experts beside the dispatch, and exchanges in chunks: what they hide, what they cannot,
and that all fidelities agree on it.
"""

import numpy as np
import pytest

from simulator.engine.timeline import run_plan
from simulator.step.operations import step_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch, Busy
from tests.laws.test_overlap import batch_of, step_s

EP4, EP8, EP16 = ({"attention_dp": n, "ep": n} for n in (4, 8, 16))
WAYS = {
    "shared experts": {"overlap": "shared_experts"},
    "two chunks": {"exchange_chunks": 2},
    "eight chunks": {"exchange_chunks": 8},
    "both": {"overlap": "shared_experts", "exchange_chunks": 4},
}
BATCHES = [(2, ()), (64, ()), (3, (700,)), (0, (1500, 1500))]
each_way = pytest.mark.parametrize("way", WAYS)


def uneven_batch(plan, seed):
    """Decodes and prompts of different numbers on each data-parallel rank."""
    rng = np.random.default_rng(seed)
    new, is_decode = [], []
    for _ in range(plan.placement.layout.attention_dp):
        decodes, prompts = int(rng.integers(0, 40)), rng.integers(1, 900, int(rng.integers(0, 3)))
        new.append(np.append(np.ones(decodes + 1, dtype=np.int64), prompts))
        is_decode.append(np.arange(len(new[-1])) <= decodes)
    contexts = tuple(np.where(flags, 400, 0) for flags in is_decode)
    return Batch(tuple(new), contexts, tuple(is_decode), np.array(list(map(len, new))))


def computing_of(plan, batch):
    """Seconds of each rank's computation in a step, without what exchanges keep from its GPU."""
    program = step_operations(Prices(plan.placement, int(batch.tokens_d.max())), batch, 0)
    exchanging = ("dispatch", "combine")
    return sum(
        one.seconds_R for one in program if isinstance(one, Busy) and one.phase not in exchanging
    )


@each_way
@pytest.mark.parametrize("network_speed", [1.0, 0.1])
@pytest.mark.parametrize("split", [EP4, EP16], ids=["one node", "two nodes"])
@pytest.mark.parametrize("batch", [*BATCHES, 1, 2])
def test_a_step_is_never_slower_than_without_and_never_shorter_than_a_part(
    tiny, way, network_speed, split, batch
):
    keys = {**split, "network_speed": network_speed}
    alone, beside = (tiny.plan("latent-moe", **keys, **more) for more in ({}, WAYS[way]))
    batch = batch_of(alone, *batch) if isinstance(batch, tuple) else uneven_batch(alone, batch)
    alone_s, beside_s = step_s(alone, batch), step_s(beside, batch)
    assert beside_s <= alone_s * (1 + 1e-9)
    computing_R = computing_of(beside, batch)
    assert computing_R == pytest.approx(computing_of(alone, batch))
    assert beside_s >= computing_R.max() * (1 - 1e-9)
    program = step_operations(Prices(beside.placement, int(batch.tokens_d.max())), batch, 0)
    exchanges = [one.exchanges[0] for one in program if hasattr(one, "exchanges")]
    busy_L = sum(one.busy_s for one in exchanges if one.busy_s.size)
    assert beside_s >= busy_L.max() * (1 - 1e-9)


@pytest.mark.parametrize(("decodes", "prompts"), BATCHES)
def test_more_chunks_hide_more(tiny, decodes, prompts):
    """Towards the longer of computing and exchanging in each layer."""
    plans = [tiny.plan("moe", **EP8, network_speed=0.1, exchange_chunks=n) for n in (1, 2, 4, 16)]
    batch = batch_of(plans[0], decodes, prompts)
    seconds = [step_s(plan, batch) for plan in plans]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < seconds[0]


@each_way
@pytest.mark.parametrize(("decodes", "prompts"), [(16, ()), (2, (300,))])
def test_messages_and_fluids_agree(tiny, way, decodes, prompts):
    plan = tiny.plan("latent-moe", **EP4, num_layers=2, network_speed=0.1, **WAYS[way])
    batch = batch_of(plan, decodes, prompts)
    assert step_s(plan, batch) == pytest.approx(step_s(plan, batch, "message"), rel=0.05)


@each_way
@pytest.mark.parametrize("network_speed", [pytest.param(1.0, marks=pytest.mark.soak), 0.1])
def test_the_table_is_what_ranks_take(tiny, way, network_speed):
    plan = tiny.plan("latent-moe", **EP8, network_speed=network_speed, **WAYS[way])
    trace = tiny.trace(40, 80.0, longest_input=400, longest_output=16)
    table, ranks = (
        run_plan(plan, trace, one).steps["duration_s"].sum() for one in ("step", "rank")
    )
    assert table == pytest.approx(ranks, rel=0.02)
