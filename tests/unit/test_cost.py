"""Prices of kernels and exchanges on hardware small enough to check by hand."""

import numpy as np
import pytest

from simulator.cost.comm.alpha_beta import AlphaBeta
from simulator.cost.compute._gemm import gemm_s
from simulator.cost.compute.roofline import Roofline
from simulator.data import available_files
from simulator.spec.accelerator import load_accelerator
from simulator.spec.calibration import Calibration, CalibrationFile, GemmFit, OperationFit, load_calibration
from simulator.spec.cluster import load_cluster
from simulator.spec.host import load_any_calibration
from simulator.topology.rails import Rails
from simulator.topology.switch import Switch

NAMED = sorted({load_accelerator(name, "test").calibration for name in available_files("cluster_configs/accelerators")})
FAMILIES = [name for name in NAMED if isinstance(load_any_calibration(name, "test"), CalibrationFile)]
"""Those that hold shares of peaks; a machine's own times are tested with it."""


def model(name="h100-sxm"):
    accelerator = load_accelerator(name, "test")
    return Roofline().prepare(accelerator, load_calibration(accelerator.calibration, "test").on("any"))


def fabric(num_gpus, topology=None):
    cluster, accelerator = load_cluster(f"h100-sxm-{num_gpus}", "test")
    return AlphaBeta().prepare(
        (topology or Rails()).wire(cluster, num_gpus), load_calibration(accelerator.calibration, "test").on("any")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_calibration_that_an_accelerator_names_is_plausible(family):
    calibration = load_calibration(family, "test").on("any")
    kernels = [*calibration.gemm.values(), *calibration.grouped_gemm.values(), *calibration.attention.values()]
    assert all(fit.compute_fraction <= 1 and fit.memory_fraction <= 1 and fit.floor_s < 1e-3 for fit in kernels)
    operations = [*calibration.exchange["low_latency"].values(), *calibration.collective.values()]
    assert all(fit.scale_up_fraction <= 1 and fit.scale_out_fraction <= 1 for fit in operations)
    fits = [*kernels, *operations, calibration.engine]
    assert all(fit.median_error is not None for fit in [*kernels, *operations] if fit.kind == "fitted")
    assert all(fit.median_error is None for fit in fits if fit.kind == "assumed")


def test_a_dtype_without_an_entry_is_priced_by_other():
    fit = GemmFit(kind="assumed", source="test", compute_fraction=0.5, memory_fraction=0.5, floor_s=0.0)
    calibration = load_calibration("hopper", "test").on("any")
    changed = Calibration.model_validate({**dict(calibration), "gemm": {"other": fit}})
    assert changed.matrices("int8") is fit


def test_reading_weights_once_bounds_a_product_with_few_rows():
    # 8,192 x 8,192 bf16 weights are 134 MB; at 0.857 of 3.35 TB/s that is 46.8 us, plus the floor of 2.5 us.
    assert model().gemm_s(np.array([1]), 8192, 8192, "bf16")[0] == pytest.approx(49e-6, rel=0.02)


def test_the_peak_bounds_a_large_product():
    # 2 x 4,096^3 FLOPs at 0.857 of 989.4 TFLOPS are 162.1 us; the 512 tiles of 128 x 256 start and end in 1.4 us each on one of 132
    # multiprocessors, 5.4 us more; the memory's 35 us hide almost wholly behind them; plus the floor of 2.5 us.
    assert model().gemm_s(np.array([4096]), 4096, 4096, "bf16")[0] == pytest.approx(170.8e-6, rel=0.01)


def test_an_operand_that_does_not_fit_the_cache_is_read_for_each_strip_of_the_result():
    roofline = model()
    fit = roofline.calibration.matrices("bf16")
    fitting = gemm_s(roofline.accelerator, fit.model_copy(update={"cache_bytes": 1e9}), np.array([8192.0]), 8192, 8192, "bf16")[0]
    # 134 MB do not fit 50 MB of cache: 14 strips of 547 beyond the first read 1.9 GB more, 630 us at 2.87 TB/s, mostly hidden.
    assert 1.05 < roofline.gemm_s(np.array([8192]), 8192, 8192, "bf16")[0] / fitting < 1.1


def test_rows_are_quantised_in_blocks_of_their_numbers_by_the_multiprocessors():
    fit = GemmFit(
        kind="assumed",
        source="t",
        compute_fraction=1.0,
        memory_fraction=1.0,
        floor_s=0.0,
        quantise_row_s=3e-7,
        quantise_block_s=5e-7,
    )
    h100, plain = load_accelerator("h100-sxm", "test"), fit.model_copy(update={"quantise_row_s": 0.0, "quantise_block_s": 0.0})
    for in_features, blocks in ((128, 1), (2048, 1), (2560, 2)):
        args = (np.array([1320.0]), in_features, 128, "fp8")
        extra = gemm_s(h100, fit, *args)[0] - gemm_s(h100, plain, *args)[0]
        assert extra == pytest.approx(1320 / 132 * (3e-7 + blocks * 5e-7))


def test_no_rows_take_no_time():
    roofline = model()
    assert roofline.gemm_s(np.array([0, 3]), 128, 128, "fp8")[0] == 0
    assert roofline.grouped_gemm_s(np.zeros((2, 4)), 128, 128, "fp8").tolist() == [0, 0]


def test_experts_without_tokens_are_not_read():
    roofline = model()
    few, many = roofline.grouped_gemm_s(np.array([[8.0, 0, 0, 0], [2.0, 2, 2, 2]]), 7168, 4096, "bf16")
    floor_s = roofline.calibration.experts("bf16").floor_s
    # Not quite 4: tiles of one expert alone leave multiprocessors idle.
    assert (many - floor_s) / (few - floor_s) == pytest.approx(4, rel=0.05)


def test_a_thousand_rows_are_priced_at_once():
    rows = np.arange(16_384)
    seconds = model().gemm_s(rows, 4096, 4096, "bf16")
    assert seconds.shape == rows.shape
    assert seconds[777] == model().gemm_s(np.array([777]), 4096, 4096, "bf16")[0]


def test_attention_rates_and_streaming_are_shares_of_the_peaks():
    roofline = model()
    rates = roofline.context_rates("decode")
    assert rates.bytes_per_s == pytest.approx(3.35e12 * roofline.calibration.attention["decode"].memory_fraction)
    assert roofline.stream_s(np.array([3.35e12]))[0] == pytest.approx(1 / roofline.calibration.matrices("bf16").memory_fraction)


def test_an_exchange_with_nothing_to_send_is_free():
    assert fabric(8).exchange("dispatch", np.zeros((8, 8))).alone_s == 0
    assert fabric(8).all_reduce(1e6, (3,)).alone_s == 0
    assert fabric(8).all_reduce(0.0, (0, 1)).alone_s == 0


def test_an_exchange_takes_its_latency_and_its_busiest_link():
    comm = fabric(8)
    bytes_SR = np.zeros((8, 8))
    bytes_SR[0, 1] = bytes_SR[0, 2] = 45e6
    fit = comm.calibration.exchange["low_latency"]["dispatch"]
    assert comm.exchange("dispatch", bytes_SR).alone_s == pytest.approx(fit.latency_s + 90e6 / (450e9 * fit.scale_up_fraction))


def test_latency_grows_with_the_doublings_of_the_nodes():
    comm, fit = fabric(32), load_calibration("hopper", "test").on("any").exchange["low_latency"]["dispatch"]
    assert comm.latency_s("dispatch", 4, 32) == pytest.approx(fit.scale_out_latency_s + 2 * fit.latency_per_doubling_s)
    assert comm.latency_s("dispatch", 1, 8) == pytest.approx(fit.latency_s)


def test_a_ring_sends_nearly_twice_the_data_over_each_link():
    comm = fabric(4, Switch())
    num_bytes = 64e6
    fit: OperationFit = comm.calibration.collective["all_reduce"]
    expected = fit.total_latency_s(1, 4) + 1.5 * num_bytes / (450e9 * fit.scale_up_fraction)
    assert comm.all_reduce(num_bytes, (0, 1, 2, 3)).alone_s == pytest.approx(expected)
