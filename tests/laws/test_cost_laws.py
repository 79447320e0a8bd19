"""Laws of pricing: more work never takes less time, better hardware never more, names of ranks do
not matter.
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import load_calibration
from simulator.config.cluster import load_cluster
from simulator.cost.comm import Vectors
from simulator.cost.comm.alpha_beta import AlphaBeta
from simulator.cost.compute.roofline import Roofline
from simulator.policies.messages import Messages
from simulator.policies.topology.rails import Rails
from simulator.policies.topology.switch import Switch

ACCELERATORS = [
    load_accelerator(name, "test")
    for name in ("h100-sxm", "b200-sxm", "rtx-4090", "mi300x", "apple-m4-max")
]
SLACK = 1 + 1e-12

accelerators = st.sampled_from(ACCELERATORS)
dtypes = st.sampled_from(["bf16", "fp8", "nvfp4", "int4", "fp32"])
rows = st.integers(1, 20_000)
features = st.integers(16, 20_000)
groups = st.lists(st.integers(0, 3000), min_size=2, max_size=16)


def prepare(accelerator):
    return Roofline().prepare(
        accelerator, load_calibration(accelerator.calibration, "test").choose_engine("any")
    )


def one(model, num_rows, in_features, out_features, dtype):
    return model.gemm_s(np.array([num_rows]), in_features, out_features, dtype)[0]


@given(accelerators, dtypes, groups, features, features, st.data())
def test_more_tokens_for_an_expert_never_take_less_time(
    accelerator, dtype, counts, in_features, out_features, data
):
    model = prepare(accelerator)
    fewer = np.array([counts], dtype=float)
    more = fewer.copy()
    more[0, data.draw(st.integers(0, len(counts) - 1))] += data.draw(st.integers(1, 3000))
    args = (in_features, out_features, dtype)
    assert model.grouped_gemm_s(fewer, *args)[0] <= model.grouped_gemm_s(more, *args)[0] * SLACK


@given(accelerators, dtypes, groups, features, features)
def test_experts_have_no_order_and_ranks_no_influence_on_each_other(
    accelerator, dtype, counts, in_features, out_features
):
    model = prepare(accelerator)
    forward = np.array(counts, dtype=float)
    both = model.grouped_gemm_s(
        np.stack([forward, forward[::-1]]), in_features, out_features, dtype
    )
    alone = model.grouped_gemm_s(forward[None], in_features, out_features, dtype)
    np.testing.assert_allclose(both, alone[0], rtol=1e-12)


@given(
    accelerators, dtypes, st.lists(st.integers(0, 5000), min_size=1, max_size=5), features, features
)
def test_sorting_more_rows_or_seeing_more_choices_never_takes_less_time(
    accelerator, dtype, counts, hidden, width
):
    model = prepare(accelerator)
    rows = np.sort(np.array(counts, dtype=float))
    alone = model.expert_moves_s(
        rows, rows, np.ones(len(rows), dtype=np.int64), hidden, width, dtype
    )
    among = model.expert_moves_s(
        rows, rows * 8, np.ones(len(rows), dtype=np.int64), hidden, width, dtype
    )
    assert (np.diff(alone) >= 0).all()
    assert (among >= alone).all()


@given(accelerators, dtypes, rows, features, features, st.floats(1, 4), st.floats(1, 4))
def test_faster_hardware_is_never_slower(
    accelerator, dtype, num_rows, in_features, out_features, flops, memory
):
    rates = {
        key: rate * flops
        for key, rate in accelerator
        if key.endswith("_flops_per_s") and rate is not None
    }
    faster = accelerator.model_copy(
        update={**rates, "memory_bytes_per_s": accelerator.memory_bytes_per_s * memory}
    )
    args = (num_rows, in_features, out_features, dtype)
    assert one(prepare(faster), *args) <= one(prepare(accelerator), *args) * SLACK


def wired(num_gpus, topology):
    cluster, accelerator = load_cluster(f"h100-sxm-{num_gpus}", "test")
    calibration = load_calibration(accelerator.calibration, "test").choose_engine("any")
    return AlphaBeta().prepare(topology.wire(cluster, num_gpus), calibration, accelerator)


@given(
    st.sampled_from([2, 8, 16]),
    st.sampled_from([Rails(), Switch()]),
    st.sampled_from(["dispatch", "combine"]),
    st.integers(0, 99),
)
def test_an_exchange_is_never_faster_than_its_busiest_link_at_peak(
    num_gpus, topology, operation, seed
):
    comm = wired(num_gpus, topology)
    bytes_SR = np.random.default_rng(seed).exponential(1e6, (num_gpus, num_gpus)) * (
        1 - np.eye(num_gpus)
    )
    peaks = np.array([link.bytes_per_s for link in comm.fabric.links])
    assert (
        comm.exchange(operation, Messages.from_matrix(bytes_SR)).alone_s
        >= (comm.fabric.sum_by_link(Messages.from_matrix(bytes_SR)) / peaks).max()
    )


@given(
    st.sampled_from(["dispatch", "combine"]),
    st.sampled_from(["low_latency", "normal"]),
    st.integers(0, 99),
)
def test_what_a_rank_sends_and_gets_crosses_its_own_card(operation, kernels, seed):
    """Kernels that post to their own card do not spread a busy rank's traffic over its node, as
    NCCL does.
    """
    comm = wired(16, Rails())
    bytes_SR = np.random.default_rng(seed).exponential(1e6, (16, 16)) * (1 - np.eye(16))
    bytes_SR[3] *= 8.0
    vectors = Vectors(kernels, 7392.0, np.full(16, 128.0), 256)
    node_R = comm.fabric.node_R
    across_SR = bytes_SR * (node_R[:, None] != node_R[None, :])
    peak = min(link.bytes_per_s for link in comm.fabric.links if link.kind == "scale_out")
    busiest = max(across_SR.sum(axis=1).max(), across_SR.sum(axis=0).max())
    assert (
        comm.exchange(operation, Messages.from_matrix(bytes_SR), vectors).alone_s >= busiest / peak
    )


@given(st.sampled_from(["dispatch", "combine"]), st.floats(0.1, 1.0))
def test_an_older_library_is_never_faster_and_only_between_nodes(operation, rate):
    cluster, accelerator = load_cluster("h100-sxm-16", "test")
    calibration = load_calibration(accelerator.calibration, "test").choose_engine("sglang")
    vectors = Vectors("normal", 7392.0, np.full(16, 4096.0), 256)
    older = AlphaBeta(dispatch_rate=rate, combine_rate=rate)
    for num_ranks in (8, 16):
        fabric = Rails().wire(cluster, num_ranks)
        bytes_SR = np.full((num_ranks, num_ranks), 1e7) * (1 - np.eye(num_ranks))
        here = vectors._replace(tokens_R=vectors.tokens_R[:num_ranks])
        new_s, old_s = (
            way.prepare(fabric, calibration, accelerator)
            .exchange(operation, Messages.from_matrix(bytes_SR), here)
            .alone_s
            for way in (AlphaBeta(), older)
        )
        assert old_s == new_s if num_ranks == 8 else old_s >= new_s


@given(st.floats(1e8, 1e10))
def test_rings_cross_nodes_by_all_their_cards(num_bytes):
    comm = wired(16, Rails())
    peak = min(link.bytes_per_s for link in comm.fabric.links if link.kind == "scale_out")
    least_s = 2 * 15 / 16 * num_bytes / peak  # through one card
    whole_s = comm.all_reduce(num_bytes, tuple(range(16))).alone_s
    assert least_s / 8 <= whole_s < least_s
    assert comm.all_reduce(num_bytes, (0, 8)).alone_s >= num_bytes / peak  # a card on each side


@given(st.permutations(range(8)), st.integers(0, 99))
def test_ranks_of_a_switch_can_be_renamed(order, seed):
    comm = wired(8, Switch())
    bytes_SR = np.random.default_rng(seed).exponential(1e6, (8, 8)) * (1 - np.eye(8))
    renamed = bytes_SR[np.ix_(order, order)]
    assert np.isclose(
        comm.exchange("dispatch", Messages.from_matrix(bytes_SR)).alone_s,
        comm.exchange("dispatch", Messages.from_matrix(renamed)).alone_s,
        rtol=1e-12,
    )


@given(st.sampled_from([2, 4, 8]), st.floats(1, 1e9), st.floats(1, 1e9))
def test_an_all_reduce_of_more_bytes_or_more_ranks_never_takes_less_time(
    num_ranks, num_bytes, more
):
    comm, ranks = wired(8, Rails()), tuple(range(num_ranks))
    base = comm.all_reduce(num_bytes, ranks).alone_s
    assert base <= comm.all_reduce(num_bytes + more, ranks).alone_s
    assert comm.all_reduce(num_bytes, (0, 1)).alone_s <= base * SLACK
