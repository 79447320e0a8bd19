"""Laws of dense products, for every entry of every calibration: whatever a fit finds, a price stays
a price.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.data import available_files
from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import CalibrationFile
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.host import load_any_calibration
from simulator.cost.kernels.gemm import Operands, gemm_s, product_s

SLACK = 1 + 1e-12


def entries():
    for name in available_files("cluster_configs/accelerators"):
        accelerator = load_accelerator(name, "test")
        calibration = load_any_calibration(accelerator.calibration, "test")
        if isinstance(calibration, CalibrationFile):
            for fits in calibration.gemm.values():
                yield from (
                    (accelerator, dtype if dtype in BYTES_PER_ELEMENT else "int8", fit)
                    for dtype, fit in fits.items()
                )


priced = st.sampled_from(list(entries()))
sizes = st.integers(1, 70_000)


def one(entry, m, k, n, copies=1):
    accelerator, dtype, fit = entry
    return gemm_s(accelerator, fit, np.array([float(m)]), k, n, dtype, copies)[0]


@given(priced, sizes, sizes, sizes, st.integers(1, 5000))
def test_more_of_anything_never_takes_less_time(entry, m, k, n, more):
    base = one(entry, m, k, n)
    assert base <= one(entry, m + more, k, n) * SLACK
    assert base <= one(entry, m, k + more, n) * SLACK
    assert base <= one(entry, m, k, n + more) * SLACK


@given(priced, sizes, sizes, sizes)
def test_nothing_beats_the_peaks(entry, m, k, n):
    accelerator, dtype, _ = entry
    assert one(entry, m, k, n) >= 2.0 * m * k * n / accelerator.flops_per_s(dtype)
    assert (
        one(entry, m, k, n)
        >= (k * n * BYTES_PER_ELEMENT[dtype] + 2.0 * m * n) / accelerator.memory_bytes_per_s
    )


@given(priced, st.integers(1, 4096), st.integers(1, 8192), st.integers(1, 8192), st.integers(2, 64))
def test_copies_in_one_kernel_cost_no_more_than_kernels_one_after_the_other(entry, m, k, n, copies):
    assert one(entry, m, k, n) <= one(entry, m, k, n, copies) * SLACK
    assert one(entry, m, k, n, copies) <= copies * one(entry, m, k, n) * SLACK


@given(priced, st.lists(st.tuples(st.integers(0, 9000), sizes, sizes), min_size=1, max_size=5))
def test_a_mixture_of_shapes_is_priced_like_each_alone(entry, shapes):
    accelerator, dtype, fit = entry
    m, k, n = np.array(shapes, dtype=float).T
    together = product_s(accelerator, fit, m, k, n, Operands.from_format(accelerator, dtype))
    np.testing.assert_allclose(together, [one(entry, *shape) for shape in shapes], rtol=1e-12)
    assert np.isfinite(together).all()
    assert ((together == 0) == (m == 0)).all()


@pytest.mark.parametrize("rows", [64, 128])
def test_the_next_larger_tile_takes_longer_where_columns_are_few(rows):
    accelerator = load_accelerator("h100-sxm", "test")
    fit = load_any_calibration("hopper", "test").choose_engine("any").matrices("fp8")
    deep = one((accelerator, "fp8", fit), rows + 1, 65_536, 128) / one(
        (accelerator, "fp8", fit), rows, 65_536, 128
    )
    assert 1.5 < deep < 2


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "fp8_block"])
@pytest.mark.parametrize("rows", [1, 8, 16])
def test_few_rows_are_read_as_fast_as_memory_is_where_tensor_cores_are_slow(dtype, rows):
    # H20 has a fifth more bandwidth than H100 and 15 % of its FLOP/s, for fewer multiplications
    # than bytes take.
    seconds = []
    for name in ("h20-sxm", "h100-sxm"):
        accelerator = load_accelerator(name, "test")
        fit = (
            load_any_calibration(accelerator.calibration, "test")
            .choose_engine("any")
            .matrices(dtype)
        )
        seconds.append(one((accelerator, dtype, fit), rows, 8192, 8192))
    assert seconds[0] < seconds[1]
