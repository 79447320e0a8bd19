"""Break-evens: the sparsity from which bytes and time fall, and bytes of sparse data."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.cost.break_even import (
    MOST_SPARSITY,
    Product,
    find_break_even,
    find_speed_up,
    make_pruning,
)
from simulator.work.sparsity import list_storage
from tests.cases import cases
from tests.laws.test_pruned_laws import BY_SPARSITY, model_of
from tests.laws.test_sparse_formats import CODES


@cases(100)
@given(at=st.floats(0, 1), slope=st.floats(0.01, 50))
def test_a_break_even_is_where_the_speed_crosses_one(at, slope):
    found = find_break_even(lambda sparsity: math.exp(slope * (sparsity - at)))
    if at > MOST_SPARSITY:
        assert found is None
    else:
        assert found == pytest.approx(at, abs=1e-9)


@pytest.mark.parametrize(("accelerator", "kernels", "dtype"), BY_SPARSITY)
@pytest.mark.parametrize("tokens", [1, 16, 4096])
def test_products_are_slower_below_a_break_even_and_not_above(accelerator, kernels, dtype, tokens):
    compute, product = model_of(accelerator), Product(tokens, 8192, 4096, dtype)

    def speed_up(sparsity):
        return find_speed_up(compute, product, make_pruning(kernels, sparsity))

    found = find_break_even(speed_up)
    if found is None:
        assert speed_up(MOST_SPARSITY) < 1
        return
    assert speed_up(min(found + 1e-3, MOST_SPARSITY)) >= 1
    assert found == 0.0 or speed_up(max(found - 1e-3, 0.0)) <= 1


@cases(60)
@given(
    shape=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    density=st.floats(0, 1),
    dtype=st.sampled_from([np.float32, np.float16, np.int8]),
    seed=st.integers(0, 2**32),
)
def test_data_takes_the_bytes_of_its_arrays(shape, density, dtype, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < density
    values = rng.integers(1, 99, shape).astype(dtype) * mask
    whole, kept = values.nbytes, int(np.count_nonzero(values))
    for stored in list_storage(*shape, values.itemsize, kept):
        arrays = CODES[stored.format][0](values, mask, stored.index_bits)
        assert stored.num_bytes == sum(one.nbytes for one in arrays)
        assert stored.share == pytest.approx(stored.num_bytes / whole)
        # Below the break-even density fewer bytes, and above it more.
        if kept / values.size < stored.break_even_density * (1 - 1e-9):
            assert stored.num_bytes < whole
        if kept / values.size > stored.break_even_density * (1 + 1e-9):
            assert stored.num_bytes > whole


def test_narrow_indices_are_listed_where_they_reach():
    names = [one.name for one in list_storage(300, 200, 2.0, 100)]
    assert names[:4] == ["csr, 8-bit", "csr, 16-bit", "csr, 32-bit", "csr, 64-bit"]
    assert names[4:7] == ["coo, 16-bit", "coo, 32-bit", "coo, 64-bit"]
    assert BYTES_PER_ELEMENT["bf16"] == 2.0
