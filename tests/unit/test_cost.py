"""Prices of kernels and exchanges on hardware small enough to check by hand."""

import numpy as np
import pytest

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import (
    Calibration,
    CalibrationFile,
    CollectiveFit,
    GemmFit,
    ProtocolFit,
    load_calibration,
)
from simulator.config.calibration.communication import Load
from simulator.config.cluster import load_cluster
from simulator.config.host import load_any_calibration
from simulator.cost.comm import Vectors
from simulator.cost.comm.alpha_beta import AlphaBeta
from simulator.cost.compute.roofline import Roofline
from simulator.cost.kernels.gemm import gemm_s
from simulator.policies.messages import Messages
from simulator.policies.topology.rails import Rails
from simulator.policies.topology.switch import Switch

NAMED = sorted(
    {
        load_accelerator(name, "test").calibration
        for name in available_files("cluster_configs/accelerators")
    }
)
FAMILIES = [
    name for name in NAMED if isinstance(load_any_calibration(name, "test"), CalibrationFile)
]
"""Those that hold shares of peaks; a machine's own times are tested with it."""
SHARES = {"compute_fraction": 0.5, "memory_fraction": 0.5, "floor_s": 0.0}
FIT = GemmFit(kind="assumed", source="test", **SHARES)


def model(name="h100-sxm"):
    accelerator = load_accelerator(name, "test")
    return Roofline().prepare(
        accelerator, load_calibration(accelerator.calibration, "test").choose_engine("any")
    )


def fabric(num_gpus, topology=None):
    cluster, accelerator = load_cluster(f"h100-sxm-{num_gpus}", "test")
    calibration = load_calibration(accelerator.calibration, "test").choose_engine("any")
    return AlphaBeta().prepare(
        (topology or Rails()).wire(cluster, num_gpus), calibration, accelerator
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_calibration_that_an_accelerator_names_is_plausible(family):
    calibration = load_calibration(family, "test").choose_engine("any")
    kernels = [
        *calibration.gemm.values(),
        *calibration.grouped_gemm.values(),
        *calibration.attention.values(),
    ]
    assert all(
        fit.compute_fraction <= 1 and fit.memory_fraction <= 1 and fit.floor_s < 1e-3
        for fit in kernels
    )
    exchanges = [fit for kernels in calibration.exchange.values() for fit in kernels.values()]
    assert all(fit.scale_up_fraction <= 1 and fit.scale_out_fraction <= 1 for fit in exchanges)
    protocols = [way for fit in calibration.collective.values() for way in fit.protocols.values()]
    assert all(way.fraction <= 1 for way in protocols)
    operations = [*exchanges, *calibration.collective.values()]
    fits = [*kernels, *operations, calibration.engine]
    assert all(
        fit.median_error is not None for fit in [*kernels, *operations] if fit.kind == "fitted"
    )
    assert all(fit.median_error is None for fit in fits if fit.kind == "assumed")


def test_a_dtype_without_an_entry_is_priced_by_other():
    fit = FIT
    calibration = load_calibration("hopper", "test").choose_engine("any")
    changed = Calibration.model_validate({**dict(calibration), "gemm": {"other": fit}})
    assert changed.matrices("int8") is fit


def test_reading_weights_once_bounds_a_product_with_few_rows():
    # 8,192 x 8,192 bf16 weights are 134 MB; at 0.857 of 3.35 TB/s that is 46.8 us, plus the floor
    # of 2.5 us.
    assert model().gemm_s(np.array([1]), 8192, 8192, "bf16")[0] == pytest.approx(49e-6, rel=0.02)


def test_the_peak_bounds_a_large_product():
    # 2 x 4,096^3 FLOPs at 0.857 of 989.4 TFLOPS are 162.1 us; the 512 tiles of 128 x 256 start and
    # end in 1.4 us each on one of 132 multiprocessors, 5.4 us more; the memory's 35 us hide almost
    # wholly behind them; plus the floor of 2.5 us.
    assert model().gemm_s(np.array([4096]), 4096, 4096, "bf16")[0] == pytest.approx(
        170.8e-6, rel=0.01
    )


def test_an_operand_that_does_not_fit_the_cache_is_read_for_each_strip_of_the_result():
    roofline = model()
    fit = roofline.calibration.matrices("bf16")
    larger = fit.model_copy(update={"cache_bytes": 1e9})
    shape = (np.array([8192.0]), 8192, 8192, "bf16")
    fitting = gemm_s(roofline.accelerator, larger, *shape)[0]
    # 134 MB do not fit 50 MB of cache: 14 strips of 547 beyond the first read 1.9 GB more, 630 us
    # at 2.87 TB/s, mostly hidden.
    assert 1.05 < roofline.gemm_s(np.array([8192]), 8192, 8192, "bf16")[0] / fitting < 1.1


def test_rows_are_quantised_in_blocks_of_their_numbers_by_the_multiprocessors():
    fit = FIT.model_copy(update={"quantise_row_s": 3e-7, "quantise_block_s": 5e-7})
    h100 = load_accelerator("h100-sxm", "test")
    for in_features, blocks in ((128, 1), (2048, 1), (2560, 2)):
        args = (np.array([1320.0]), in_features, 128, "fp8")
        extra = gemm_s(h100, fit, *args)[0] - gemm_s(h100, FIT, *args)[0]
        assert extra == pytest.approx(1320 / 132 * (3e-7 + blocks * 5e-7))


def test_an_exchange_with_nothing_to_send_is_free():
    assert fabric(8).exchange("dispatch", Messages.from_matrix(np.zeros((8, 8)))).alone_s == 0
    assert fabric(8).all_reduce(1e6, (3,)).alone_s == 0
    assert fabric(8).all_reduce(0.0, (0, 1)).alone_s == 0


def test_multiprocessors_that_copy_hide_behind_wires_or_the_other_way_round():
    comm, vector_bytes = fabric(8), 7392.0
    copies_SR = 1000.0 * (1 - np.eye(8))
    vectors = Vectors("normal", vector_bytes, np.full(8, 2000.0), 256)
    fit = comm.calibration.exchange["normal"]["dispatch"]
    wires_s = 7000 * vector_bytes / (450e9 * fit.scale_up_fraction)
    copying_s = (
        2000 * fit.token_s + 7000 * (fit.copy_s + fit.copy_byte_s * vector_bytes)
    ) / fit.num_sms
    start_s = fit.latency_s + fit.latency_per_byte_s * vector_bytes + fit.latency_per_expert_s * 256
    priced = comm.exchange("dispatch", Messages.from_matrix(copies_SR * vector_bytes), vectors)
    assert priced.alone_s == pytest.approx(start_s + (copying_s**3 + wires_s**3) ** (1 / 3))
    assert priced.held_s == pytest.approx(priced.alone_s * fit.num_sms / 132)


@pytest.mark.parametrize("way", ["sends", "receives"])
def test_the_busiest_ranks_crossing_copies_count_whether_it_sends_or_receives_them(way):
    """One rank and the eight of the other node: it has eight times the crossing copies of each."""
    comm, vector_bytes = fabric(16), 7392.0
    copies_SR = np.zeros((16, 16))
    copies_SR[0, 8:] = 1000.0
    copies_SR = copies_SR if way == "sends" else copies_SR.T
    fit = comm.calibration.exchange["normal"]["combine"]
    assert fit.crossing_byte_s > 0
    load = Load(0.0, 8000.0, 8000.0, vector_bytes, 256, num_nodes=2)
    wires_s = 8000 * vector_bytes / (50e9 * fit.scale_out_fraction)
    carry_s = fit.overlapped_s(fit.copying_s(load, 132), wires_s)
    priced = comm.exchange(
        "combine",
        Messages.from_matrix(copies_SR * vector_bytes),
        Vectors("normal", vector_bytes, np.zeros(16), 256),
    )
    expected_s = fit.start_s(load) + fit.announce_s(load, carry_s, 132) + carry_s
    assert priced.alone_s == pytest.approx(float(expected_s))
    assert priced.is_direct, "kernels of the GPU's own post to its own card"


def test_kernels_that_no_calibration_knows_are_refused():
    with pytest.raises(
        UserError, match="no exchange kernels 'low_latncy'; did you mean 'low_latency'"
    ):
        fabric(8).exchange(
            "dispatch",
            Messages.from_matrix(np.ones((8, 8))),
            Vectors("low_latncy", 1.0, np.ones(8), 8),
        )


def test_gathering_all_tokens_is_a_collective_that_skew_does_not_shorten():
    comm = fabric(8)
    even = np.full((8, 8), 1e6) * (1 - np.eye(8))
    skewed = even.copy()
    skewed[1:] /= 10
    vectors = Vectors("collective", 1e3, np.ones(8), 8)
    priced = comm.exchange("dispatch", Messages.from_matrix(even), vectors).alone_s
    assert comm.exchange(
        "dispatch", Messages.from_matrix(skewed), vectors
    ).alone_s == pytest.approx(priced)
    start_s, carry_s = comm.calibration.collective["all_gather"].parts_s(8e6, 8, 1.0, 450e9)
    assert priced == pytest.approx(float(start_s + carry_s))


def test_an_all_reduce_is_the_faster_of_the_engines_own_and_nccls():
    comm = fabric(4, Switch())
    known = comm.calibration.collective
    for num_bytes in (1e3, 1e5, 1e6, 64e6, 1e9):
        both = [
            sum(known[name].parts_s(num_bytes, 4, 2.0, 450e9))
            for name in ("all_reduce", "custom_all_reduce")
        ]
        assert comm.all_reduce(num_bytes, (0, 1, 2, 3)).alone_s == pytest.approx(float(min(both)))


def test_prompts_are_served_by_kernels_that_expand_where_those_that_were_timed_absorb():
    calibration = load_calibration("hopper", "test").choose_engine("sglang")
    timed = calibration.attention_fit("prefill", "bf16", is_latent=True)
    served = calibration.attention_fit("prefill", "bf16", is_latent=True, is_served=True)
    assert timed.absorbs
    assert not served.absorbs
    decode = calibration.attention_fit("decode", "bf16", is_latent=True)
    assert calibration.attention_fit("decode", "bf16", is_latent=True, is_served=True) is decode
    assert load_calibration("hopper", "test").choose_engine("vllm").expanded == {}


def test_a_library_that_is_not_known_between_domains_has_the_whole_of_their_wires():
    way = ProtocolFit(latency_s=1e-6, latency_per_rank_s=1e-7, fraction=0.5)
    fit = CollectiveFit(kind="assumed", source="test", protocols={"ring": way})
    sizes, everyone = np.array([1e3, 1e6, 1e9]), tuple(range(16))
    unknown_s, whole_s, half_s = (
        fabric(16)._parts_s(
            fit.model_copy(update={"scale_out_fraction": share}), "all_gather", sizes, everyone
        )[2]
        for share in (None, 1.0, 0.5)
    )
    assert whole_s.min() > 0
    np.testing.assert_array_equal(unknown_s, whole_s)
    np.testing.assert_allclose(half_s, 2 * whole_s)
