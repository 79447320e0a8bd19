"""Laws of offloaded experts: a GPU that holds all pays nothing, less memory and slower ways never
cost less, and a price is bounded by the bytes that travel.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import run
from simulator.config.deployment import DeploymentSpec
from simulator.cost.offload import ExpertSize, OffloadRates, copy_s, offloaded_s
from simulator.deployment.plan import make_plan
from simulator.step.prices import Prices
from simulator.work.expert_cache import CacheUses, replay_cache, spread_streams
from tests.cases import cases
from tests.contracts.processes import PROJECT

SPEC = {
    "name": "offloaded",
    "model": "stdlib-moe",
    "cluster": "desktop-rtx-4090",
    "weight_dtype": "bf16",
}
SCHEDULING = {"kind": "chunked", "token_budget": 64, "max_sequences": 4}
EXPERTS = 16
COUNTS = st.lists(st.integers(0, 40), min_size=4, max_size=4)
SIZE = ExpertSize(1e8, 4e8)
RATES = OffloadRates(26e9, 2e-5, 70e9, 1e12)


def plan_of(offload):
    spec = DeploymentSpec.model_validate({**SPEC, "offload": offload})
    return make_plan(spec, 3, "test", PROJECT)


def priced(plan, num_tokens):
    """Seconds of the experts of every layer in a step, ``[L]``."""
    prices = Prices(plan.placement, 64)
    tokens_d = np.array([num_tokens])
    layers = range(plan.placement.model.num_moe_layers)
    steps = prices.experts.steps(tokens_d, [(layer, 0) for layer in layers])
    return np.array([float(step.experts_R[0]) for step in steps])


@pytest.mark.parametrize("num_tokens", [1, 5, 40])
@pytest.mark.parametrize("kind", ["lru", "popularity"])
def test_a_gpu_that_holds_all_experts_pays_nothing(kind, num_tokens):
    whole = priced(plan_of(None), num_tokens)
    held = plan_of({"slots": EXPERTS, "caching": {"kind": kind}})
    assert held.placement.offload.replay(num_tokens).hit_rate == 1.0
    assert priced(held, num_tokens) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("num_tokens", [1, 7])
@pytest.mark.parametrize("uploads", [None, 0])
def test_more_slots_never_cost_more(uploads, num_tokens):
    offload = {"caching": {"kind": "popularity"}, "uploads": uploads}
    sums = [
        priced(plan_of({**offload, "slots": slots}), num_tokens).sum()
        for slots in (0, 2, 5, 11, EXPERTS)
    ]
    assert sums == sorted(sums, reverse=True)
    assert sums[0] > sums[-1]


@pytest.mark.parametrize("num_tokens", [1, 31, 32, 60])
def test_large_steps_bring_what_small_ones_compute_where_it_lies(num_tokens):
    hot = {"slots": 4, "caching": {"kind": "popularity"}}
    either = priced(plan_of({**hot, "uploads": 0, "bring_from_tokens": 32}), num_tokens)
    computed, brought = (
        priced(plan_of({**hot, "uploads": uploads}), num_tokens) for uploads in (0, None)
    )
    assert not np.allclose(computed, brought)
    assert either == pytest.approx(brought if num_tokens >= 32 else computed, rel=1e-12)


@pytest.mark.parametrize("num_tokens", [1, 3, 32, 50])
def test_a_price_is_of_a_direct_replay_of_the_plans_own_choices(num_tokens):
    plan = plan_of({"slots": 4})
    own = plan.placement.offload
    uses = own.replay(num_tokens)
    tokens = {50: 54}.get(num_tokens, num_tokens)  # rounded, with four sizes for each doubling
    ids_SLX = spread_streams(own.ids_LTK, tokens)
    plain = replay_cache(own.rules, ids_SLX, own.earlier_LTK, EXPERTS)
    behind = len(ids_SLX) // 4
    assert np.array_equal(uses.held_SL, plain.held_SL[behind:])
    assert (uses.pairs_SL == num_tokens * 2).all()
    pool = plan.placement.experts.topk_ids_LTK
    counted, drawn = (
        [np.bincount(ids.ravel(), minlength=EXPERTS) for ids in every]
        for every in (own.ids_LTK, pool)
    )
    assert np.array_equal(counted, drawn)  # the same tokens, neighbours side by side


def uses_of(held, uploaded, below, ahead):
    held, uploaded, below, ahead = (np.array([one]) for one in (held, uploaded, below, ahead))
    used = held + uploaded + below + ahead
    return CacheUses(used, held, ahead, uploaded, below, ahead + 1, 3 * used, 3 * below)


@cases(80)
@given(COUNTS, COUNTS, COUNTS, COUNTS, st.floats(0, 1), st.floats(0, 1))
def test_seconds_lie_between_what_is_busiest_and_the_sum_of_all(
    held, uploaded, below, ahead, gpu_s, beside_s
):
    uses = uses_of(held, uploaded, below, ahead)
    found = offloaded_s(uses, gpu_s, beside_s, SIZE, RATES)
    copied = copy_s(uses.uploaded_SL, SIZE, RATES)
    assert (found >= copied).all()
    read = uses.below_SL * (SIZE.weight_bytes / RATES.read_bytes_per_s)
    assert (found >= read).all()
    on_gpu = gpu_s * (1 - uses.below_SL / np.maximum(uses.used_SL, 1))
    assert (found >= on_gpu - 1e-12).all()
    asked = copy_s(uses.uploaded_SL + uses.ahead_SL, SIZE, RATES)
    shared = (uses.below_SL + uses.uploaded_SL) * (SIZE.weight_bytes / RATES.read_bytes_per_s)
    computed = uses.below_pairs_SL * (SIZE.pair_flops / RATES.flops_per_s)
    most = on_gpu + asked + shared + computed + 2 * RATES.latency_s
    assert (found <= most + 1e-12).all()


def asked_late(uses):
    """The same uses, with nothing fetched ahead."""
    nothing = np.zeros_like(uses.ahead_SL)
    asked = uses.uploaded_SL + uses.ahead_SL
    return uses._replace(uploaded_SL=asked, ahead_SL=nothing, fetched_SL=nothing)


@cases(80)
@given(COUNTS, COUNTS, COUNTS, COUNTS, st.floats(0, 1), st.floats(0, 1))
def test_fetching_ahead_never_costs_and_moves_no_more_than_the_link_idles(
    held, uploaded, below, ahead, gpu_s, beside_s
):
    uses = uses_of(held, uploaded, below, ahead)
    no_processor = RATES._replace(flops_per_s=0.0)
    with_it, without = (
        offloaded_s(one, gpu_s, beside_s, SIZE, no_processor) for one in (uses, asked_late(uses))
    )
    assert (with_it <= without + 1e-12).all()  # a wrong guess gives way, and costs nothing
    copied = copy_s(uses.uploaded_SL + uses.ahead_SL, SIZE, no_processor)
    idle = np.roll(without - copied, 1, axis=1) + beside_s
    assert (with_it >= copied - idle - 1e-9).all()  # the link has no more time than that


@cases(60)
@given(COUNTS, COUNTS, COUNTS, COUNTS, st.sampled_from(OffloadRates._fields), st.floats(1.01, 100))
def test_slower_ways_never_cost_less(held, uploaded, below, ahead, slower, factor):
    uses = uses_of(held, uploaded, below, ahead)
    value = getattr(RATES, slower)
    slow = RATES._replace(**{slower: value * factor if slower == "latency_s" else value / factor})
    before, after = (offloaded_s(uses, 1e-3, 1e-4, SIZE, rates) for rates in (RATES, slow))
    # One layer may gain what the one before it loses: its link idles while a processor is slow.
    assert after.sum() >= before.sum() - 1e-12
    late = asked_late(uses)
    before, after = (offloaded_s(late, 1e-3, 1e-4, SIZE, rates) for rates in (RATES, slow))
    assert (after >= before - 1e-15).all()


def test_what_was_fetched_ahead_is_hidden_by_what_the_layer_before_computes():
    # Two held, two fetched ahead with one in vain beside them; of the layer before, all are held.
    held, ahead = np.array([[4, 2]]), np.array([[0, 2]])
    nothing, used = np.zeros((1, 2), dtype=np.int64), held + ahead
    uses = CacheUses(used, held, ahead, nothing, nothing, np.array([[0, 3]]), used, nothing)
    one_s = SIZE.weight_bytes / RATES.copy_bytes_per_s
    three_s = 3 * one_s + RATES.latency_s
    enough = offloaded_s(uses, 0.01, three_s - 0.01, SIZE, RATES)[0, 1]
    assert enough == pytest.approx(0.01)
    # In half of that time half of each has come: one whole expert is left to be asked for, and a
    # half of the GPU's work that waits for two is a quarter.
    half = offloaded_s(uses, 0.01, three_s / 2 - 0.01, SIZE, RATES)[0, 1]
    assert half == pytest.approx(max(0.0075, one_s + RATES.latency_s) + 0.0025)


def test_a_batch_of_sequences_brings_more_than_one_and_less_than_each_by_itself():
    plan = plan_of({"slots": 4})
    uses = {tokens: plan.placement.offload.replay(tokens) for tokens in (1, 2, 4, 8)}
    brought = [one.uploaded_SL.mean() for one in uses.values()]
    assert brought == sorted(brought)
    for tokens, one in zip(uses, brought, strict=True):
        assert one <= tokens * brought[0] * 1.05


def test_the_gpus_memory_holds_its_slots_and_two_experts_on_their_way():
    sizes = {slots: plan_of({"slots": slots}).serving.capacity for slots in (0, 3, 8)}
    weights = [sizes[slots].weights_bytes for slots in sizes]
    model = plan_of(None).placement.model
    expert = model.moe.num_expert_parameters(model.hidden_size) * 2 * model.num_moe_layers
    assert np.diff(weights) == pytest.approx([3 * expert, 5 * expert])
    whole = plan_of(None).serving.capacity.weights_bytes
    two = 2 * expert / model.num_moe_layers
    assert weights[0] == pytest.approx(whole - EXPERTS * expert + two)
    assert sizes[0].kv_bytes > sizes[8].kv_bytes


@pytest.mark.parametrize("offload", [{"slots": 4}, {"slots": 6, "uploads": 1}])
def test_ranks_confirm_the_table(offload):
    plan = plan_of(offload)
    results = [
        run(
            {
                "workload": {
                    "num_requests": 12,
                    "requests": {
                        "arrivals": {"kind": "poisson", "rate_per_s": 40.0},
                        "lengths": {"kind": "fixed", "num_input": 40, "num_output": 30},
                    },
                },
                "deployments": [{**SPEC, "offload": offload, "scheduling": SCHEDULING}],
            },
            fidelity=fidelity,
        )
        for fidelity in ("rank", "step")
    ]
    by_rank, by_step = (one.summary.iloc[0] for one in results)
    assert plan.placement.offload.replay(1).hit_rate < 1
    for name in ("tpot_p50_s", "ttft_p50_s", "duration_s"):
        assert by_step[name] == pytest.approx(by_rank[name], rel=0.02)
