"""Laws of counted and priced work: pairs are conserved, skew and splits do what they must, PyTorch
counts the same FLOPs.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base import plugins
from simulator.engine.experts_table import spread_tokens
from simulator.step.operations import step_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch, Busy
from simulator.work.flops import matmul_flops_per_token, served_flops
from tests.cases import cases

QUICK = cases(25)
SPREAD = {"attention_dp": 4, "ep": 4}
SLACK = 1 + 1e-12


def batch_of(new, context=0):
    new = [np.array(row, dtype=np.int64) for row in new]
    held = [np.full(len(row), context, dtype=np.int64) for row in new]
    decodes = [(row == 1) & (context > 0) for row in new]
    return Batch(
        tuple(new), tuple(held), tuple(decodes), np.array([len(row) for row in new], dtype=np.int64)
    )


def step_s(plan, batch):
    """In closed form: ranks meet at exchanges, and each exchange has the links to itself."""
    ready_R = np.zeros(plan.placement.layout.num_ranks)
    for operation in step_operations(Prices(plan.placement, 2048), batch, 0):
        if isinstance(operation, Busy):
            ready_R = ready_R + operation.seconds_R
        else:
            for group, exchange in zip(operation.groups, operation.exchanges, strict=True):
                ready_R[list(group)] = ready_R[list(group)].max() + exchange.alone_s
    return float(ready_R.max())


new_tokens = st.lists(st.lists(st.integers(1, 300), max_size=6), min_size=4, max_size=4).filter(any)
factor = st.floats(1, 8)


@QUICK
@given(new_tokens, st.integers(0, 2000), factor, factor, factor)
def test_better_hardware_never_slows_a_step(tiny, new, context, wires, memory, flops):
    plan, batch = tiny.plan("moe", **SPREAD), batch_of(new, context)
    wire, old = plan.placement.cluster.scale_up, plan.placement.accelerator
    cluster = plan.placement.cluster.model_copy(
        update={"scale_up": wire.model_copy(update={"bytes_per_s": wire.bytes_per_s * wires})}
    )
    rates = {
        key: rate * flops for key, rate in old if key.endswith("_flops_per_s") and rate is not None
    }
    accelerator = old.model_copy(
        update={**rates, "memory_bytes_per_s": old.memory_bytes_per_s * memory}
    )
    assert step_s(tiny.on(plan, cluster, accelerator), batch) <= step_s(plan, batch) * SLACK


@QUICK
@given(new_tokens, st.integers(0, 3), st.integers(1, 200))
def test_more_tokens_never_make_a_dense_step_cheaper(tiny, new, rank, more):
    plan = tiny.plan("dense", attention_dp=4)
    longer = [[*row, more] if d == rank else row for d, row in enumerate(new)]
    assert step_s(plan, batch_of(new)) <= step_s(plan, batch_of(longer)) * SLACK


@QUICK
@given(st.integers(1, 150), st.integers(1, 100), st.integers(0, 5000))
def test_more_tokens_never_make_routed_experts_cheaper(tiny, tokens, more, offset):
    """On one rank, where a longer step's tokens hold the shorter one's: every expert has at least
    as many.
    """
    prices = Prices(tiny.plan("moe").placement, 256)
    fewer, larger = (
        prices.expert_step(0, np.array([n]), offset) for n in (tokens, min(256, tokens + more))
    )
    assert fewer.experts_R[0] <= larger.experts_R[0] * SLACK
    assert fewer.read_bytes <= larger.read_bytes


@pytest.mark.parametrize("tokens", [4, 64, 1024, 4096])
def test_skew_never_lowers_the_slowest_ranks_pairs(tiny, tokens):
    busiest = []
    for sigma in (0.0, 1.0, 2.0):
        plan = tiny.plan("moe", routing={"kind": "lognormal", "sigma": sigma}, **SPREAD)
        prices = Prices(plan.placement, 4096)
        layers = range(plan.placement.model.num_moe_layers)
        steps = [
            prices.expert_step(layer, spread_tokens(tokens, 1.0, 4), 997 * draw)
            for layer in layers
            for draw in range(8)
        ]
        busiest.append(np.mean([step.pairs_R.max() for step in steps]))
    assert busiest[0] <= busiest[1] * 1.02  # means of 32 draws
    assert busiest[1] <= busiest[2] * 1.02


@pytest.mark.parametrize(
    ("tp", "attention_dp", "ep"), [(1, 4, 4), (4, 1, 4), (4, 1, 1), (2, 4, 2), (2, 2, 4), (1, 3, 3)]
)
@pytest.mark.parametrize("placement", plugins.available("placement"))
def test_pairs_are_conserved_however_experts_are_placed_and_split(
    tiny, tp, attention_dp, ep, placement
):
    plan = tiny.plan("moe", tp=tp, attention_dp=attention_dp, ep=ep, placement={"kind": placement})
    prices, moe = Prices(plan.placement, 8192), plan.placement.model.moe
    for total in (1, 5, 777, 4096, 9000):
        step = prices.expert_step(1, spread_tokens(total, 1.5, attention_dp), 123)
        pairs = step.pairs_R.sum() / plan.placement.layout.moe_tp
        # Beyond the pool the tokens of each slot are scaled and rounded: half a token each.
        assert abs(pairs - total * moe.top_k) <= (0 if total <= 4096 else moe.num_experts / 2)
        parts = step.experts_R.reshape(ep, -1)
        assert (parts == parts[:, :1]).all()


@pytest.mark.parametrize("dispatch", plugins.available("dispatch"))
def test_bytes_follow_from_tokens_whatever_the_split(tiny, dispatch):
    """What a rank sends it gets back; the larger number format makes the way back dearer, and no
    rank writes to itself.
    """
    plan = tiny.plan(
        "moe", tp=2, attention_dp=4, ep=2, dispatch={"kind": dispatch}, dispatch_dtype="fp8"
    )
    step = Prices(plan.placement, 512).expert_step(0, np.array([50, 0, 7, 300]), 0)
    ratio = step.combine.bytes_SR.sum() / step.dispatch.bytes_SR.sum()
    assert ratio == pytest.approx(
        2.0 / (1 + 4 / 128)
    )  # fp8 travels with a scale of 4 bytes for 128 numbers
    np.testing.assert_allclose(step.combine.bytes_SR, step.dispatch.bytes_SR.T * ratio)
    assert not np.diagonal(step.dispatch.bytes_SR).any()
    assert not step.dispatch.bytes_SR[2:4].any()  # the data-parallel rank without tokens sends none


def test_half_of_each_expert_does_half_the_work(tiny):
    whole, halves = (
        Prices(tiny.plan("moe", attention_dp=4, ep=ep).placement, 512).expert_step(
            0, np.full(4, 64), 0
        )
        for ep in (4, 2)
    )
    assert halves.pairs_R.sum() == 2 * whole.pairs_R.sum()
    assert halves.read_bytes == pytest.approx(
        whole.read_bytes, rel=0.05
    )  # twice the experts, each half


@pytest.mark.parametrize("rows", [[[700]], [[64, 5]], [[1] * 32]])
def test_a_model_with_one_expert_costs_what_the_dense_one_costs(tiny, rows):
    """But for the router and for sorting tokens by expert; on the whole step within 10 %, most of
    it the router's launch.
    """
    one, dense, batch = tiny.plan("one-expert"), tiny.plan("dense"), batch_of(rows, 100)
    prices, num_tokens = Prices(one.placement, 1024), batch.tokens_d
    step = prices.expert_step(0, num_tokens, 0)
    pairs_R = num_tokens.astype(float)
    sorting_s = float(
        one.placement.compute.expert_moves_s(
            pairs_R, pairs_R, np.array([1]), 1024, 2048, one.placement.precision.experts, 1
        )[0]
    )
    products_s = float(step.experts_R[0]) - sorting_s
    assert products_s == pytest.approx(
        Prices(dense.placement, 1024).ffn_s["dense"][num_tokens[0]], rel=1e-9
    )
    extra_s = one.placement.model.num_moe_layers * (prices.ffn_s["one"][num_tokens[0]] + sorting_s)
    assert step_s(one, batch) - extra_s == pytest.approx(step_s(dense, batch), rel=1e-9)
    assert step_s(one, batch) == pytest.approx(step_s(dense, batch), rel=0.1)


@QUICK
@given(
    st.sampled_from(["dense", "moe", "sliding-moe", "latent-moe", "state-moe", "compressed-moe"]),
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 12), st.integers(0, 59)),
        min_size=1,
        max_size=4,
    ),
)
def test_served_flops_are_those_of_every_token_in_turn(tiny, name, lengths):
    model = tiny.model(name)
    requests = [
        (num_input, num_output, min(cached, num_input - 1))
        for num_input, num_output, cached in lengths
    ]
    wanted = 0.0
    for num_input, num_output, cached in requests:
        for t in range(cached + 1, num_input + num_output):
            wanted += matmul_flops_per_token(model, with_head=False)
            for mixer_name, _ in model.layer_names:
                mixer = model.mixers[mixer_name]
                wanted += mixer.recurrent_flops_per_token()
                for term in mixer.context_terms():
                    seen = min(t / term.compression, term.window or float("inf"))
                    wanted += seen * (
                        term.prefill_flops_per_pair
                        if t <= num_input
                        else term.decode_flops_per_pair
                    )
        wanted += num_output * 2.0 * model.vocab_size * model.hidden_size
    assert served_flops(model, *np.array(requests).T.copy()) == pytest.approx(wanted, rel=1e-12)
