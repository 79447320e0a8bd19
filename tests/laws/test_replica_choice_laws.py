"""Copies of experts: every pair goes to one copy of its expert, as each policy says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.errors import UserError
from simulator.base.plugins import available, build
from simulator.deployment.conditions import shrink_placement
from simulator.engine.experts_table import spread_tokens
from simulator.engine.timeline import run_plan
from simulator.policies.placement import Placed
from simulator.policies.recovery import Loss
from simulator.policies.replica_choice import Origins
from simulator.step.prices import Prices
from simulator.work.slots import SlotMap
from tests.cases import cases
from tests.replicas_by_loops import choose_by_loops

KINDS = available("replica_choice")


@st.composite
def batches(draw):
    """Slots of experts on ranks in nodes, and tokens some of whose pairs are dropped."""
    experts, extra = draw(st.integers(1, 9)), draw(st.integers(0, 12))
    ranks, per_node = draw(st.sampled_from([(1, 1), (4, 4), (6, 2), (5, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    expert_P = rng.permutation([*range(experts), *rng.integers(0, experts, extra)])
    rank_P = rng.integers(0, ranks, len(expert_P))
    tokens, top_k = draw(st.integers(0, 40)), int(rng.integers(1, experts + 1))
    ids_TK = rng.random((tokens, experts)).argsort(axis=1)[:, :top_k]
    ids_TK[rng.random(ids_TK.shape) < draw(st.sampled_from([0.0, 0.4]))] = -1
    node_R = np.arange(ranks) // per_node
    return expert_P, rank_P, node_R, ids_TK, rng.integers(0, ranks, tokens)


def choose(kind, batch, chosen=None, first_token=0):
    """Slots of tokens, by default of all of them."""
    expert_P, rank_P, node_R, ids_TK, rank_T = batch
    policy = build("replica_choice", {"kind": kind}, "test")
    placed = Placed(expert_P[None], rank_P[None], len(node_R))
    slots = SlotMap(placed, 0, int(expert_P.max()) + 1, policy, node_R)
    chosen = slice(None) if chosen is None else chosen
    return slots.slots(ids_TK[chosen], rank_T[chosen], first_token)


@cases(60)
@given(batches(), st.sampled_from(KINDS), st.integers(0, 50))
def test_slots_are_those_of_a_direct_choice(batch, kind, first_token):
    policy = build("replica_choice", {"kind": kind}, "test")
    slot_TK = choose(kind, batch, first_token=first_token)
    origins = Origins(first_token + np.arange(len(batch[3])), batch[4], batch[4])
    assert np.array_equal(slot_TK, choose_by_loops(policy, *batch[:4], origins))


def test_the_least_loaded_copy_is_more_even_than_turns():
    """Of 64 experts 16 have a second copy elsewhere; popularity is skewed."""
    rng = np.random.default_rng(3)
    expert_P = np.concatenate([np.arange(64), np.arange(16)])
    rank_P = np.concatenate([np.arange(64) // 8, (np.arange(16) + 4) % 8])
    keys = rng.gumbel(size=(4000, 64)) + np.linspace(2, 0, 64)
    ids_TK = np.argsort(-keys, axis=1)[:, :4]
    batch = (expert_P, rank_P, np.zeros(8, np.int64), ids_TK, np.arange(4000) % 8)
    busiest = {
        kind: np.bincount(rank_P[choose(kind, batch)].ravel()).max()
        for kind in ("turns", "least_loaded")
    }
    assert busiest["least_loaded"] < 0.9 * busiest["turns"]


SPLIT = {"attention_dp": 4, "ep": 4, "placement": {"kind": "biased", "num_slots": 28}}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_priced_by_the_slots_of_their_own_tokens(tiny, kind):
    """Up to the pool's tokens, a step's pairs by rank are those of a direct choice."""
    plan = tiny.plan("moe", replica_choice={"kind": kind}, **SPLIT)
    layout, experts = plan.placement.layout, plan.placement.experts
    tokens_d = spread_tokens(300, 1.5, layout.attention_dp)
    step = Prices(plan.placement, 512).expert_step(1, tokens_d, 7)
    expert_P, rank_P = experts.placed.expert_LP[1], experts.placed.rank_LP[1]
    rank_T = np.repeat(np.arange(4), tokens_d)
    ids_TK = experts.topk_ids_LTK[1, 7:307].astype(np.int64)
    node_R = plan.placement.fabric.node_R
    origins = Origins(np.arange(300), rank_T, rank_T)
    slot_TK = choose_by_loops(experts.replica_choice, expert_P, rank_P, node_R, ids_TK, origins)
    assert step.pairs_R.tolist() == np.bincount(rank_P[slot_TK].ravel(), minlength=4).tolist()


def test_experts_that_are_everywhere_do_not_travel_to_the_nearest_copy(tiny):
    sent = {}
    for kind in ("turns", "nearest"):
        keys = {**SPLIT, "placement": {"kind": "biased", "num_slots": 64}}
        plan = tiny.plan(
            "moe", replica_choice={"kind": kind}, dispatch={"kind": "per_rank"}, **keys
        )
        step = Prices(plan.placement, 512).expert_step(1, spread_tokens(300, 1.0, 4), 7)
        sent[kind] = step.dispatch.bytes_SR.sum()
    assert sent["nearest"] < 0.2 * sent["turns"]


@pytest.mark.parametrize("kind", KINDS)
def test_fidelities_agree(tiny, kind):
    plan = tiny.plan("moe", replica_choice={"kind": kind}, **SPLIT)
    trace = tiny.trace(24, 100.0, 300, 8)
    ends = [
        run_plan(plan, trace, fidelity).requests["finish_s"].max()
        for fidelity in ("step", "rank", "message")
    ]
    assert ends[0] == pytest.approx(ends[1], rel=0.03)
    assert ends[2] == pytest.approx(ends[1], rel=0.05)


def test_choices_that_wait_for_each_other_are_refused(tiny):
    overflow = {"kind": "capacity", "factor": 1.0, "per": "rank"}
    with pytest.raises(UserError, match="wait for each other"):
        tiny.plan("moe", replica_choice={"kind": "least_loaded"}, overflow=overflow, **SPLIT)
    tiny.plan("moe", replica_choice={"kind": "nearest"}, overflow=overflow, **SPLIT)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_chosen_among_the_ranks_that_are_left(tiny, kind):
    """A replica that goes on without a rank sends every pair to one that lives, spilled or not."""
    spilling = {"kind": "least_loaded", "threshold": 1.0, "least_pairs": 1}
    plan = tiny.plan("moe", replica_choice={"kind": kind}, spilling=spilling, **SPLIT)
    lost_D, experts = np.arange(4) == 2, plan.placement.experts
    load_LE = np.ones((len(experts.placed.expert_LP), plan.placement.model.moe.num_experts))
    placed = build("recovery", {"kind": "elastic"}, "test").shrink(
        Loss(lost_D, experts.placed, load_LE)
    )
    step = Prices(shrink_placement(plan, ~lost_D, placed), 512).expert_step(1, np.full(3, 80), 0)
    assert step.pairs_R.shape == (3,)
    assert step.pairs_R.sum() == 240 * plan.placement.model.moe.top_k
    assert step.dispatch.bytes_SR.shape == (3, 3)
