"""Sparse formats take the bytes of matrices that are really stored so, and read back."""

import csv

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import sparse

from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.sparsity import (
    FORMATS,
    INDEX_WIDTHS,
    INDEXED,
    Unstructured,
    find_footprint,
    find_index_bits,
    stored_bytes,
)
from tests.cases import cases
from tests.shared import shared_file

VALUES = (np.int8, np.float16, np.float32, np.float64)


@st.composite
def matrices(draw):
    """A matrix in a number format with some values kept, its mask, and an index width."""
    rows, columns = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = rng.random((rows, columns)) < draw(st.floats(0, 1))
    values = rng.integers(1, 100, (rows, columns)).astype(draw(st.sampled_from(VALUES)))
    return values * mask, mask, draw(st.sampled_from(INDEX_WIDTHS))


def unsigned(bits):
    return np.dtype(f"uint{bits}")


def store_csr(matrix, mask, bits):
    starts = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    start_type = np.int64 if bits == 64 else np.int32
    return matrix[mask], np.nonzero(mask)[1].astype(unsigned(bits)), starts.astype(start_type)


def read_csr(shape, values, columns, starts):
    found = np.zeros(shape, values.dtype)
    found[np.repeat(np.arange(shape[0]), np.diff(starts)), columns] = values
    return found


def store_coo(matrix, mask, bits):
    return matrix[mask], *(one.astype(unsigned(bits)) for one in np.nonzero(mask))


def read_coo(shape, values, rows, columns):
    found = np.zeros(shape, values.dtype)
    found[rows, columns] = values
    return found


def store_bitmask(matrix, mask, bits):
    return matrix[mask], np.packbits(mask)


def read_bitmask(shape, values, packed):
    found = np.zeros(shape, values.dtype)
    found[np.unpackbits(packed, count=found.size).view(bool).reshape(shape)] = values
    return found


def tiles(shape, rows, columns):
    return [
        (slice(r, r + rows), slice(c, c + columns))
        for r in range(0, shape[0], rows)
        for c in range(0, shape[1], columns)
    ]


def store_tiled_csl(matrix, mask, bits):
    places = [np.flatnonzero(mask[tile]).astype(np.uint16) for tile in tiles(mask.shape, 128, 64)]
    starts = np.cumsum([0, *(len(one) for one in places)]).astype(np.int32)
    values = [matrix[tile][mask[tile]] for tile in tiles(mask.shape, 128, 64)]
    return np.concatenate(values), np.concatenate(places), starts


def read_tiled_csl(shape, values, places, starts):
    found = np.zeros(shape, values.dtype)
    for tile, first, end in zip(tiles(shape, 128, 64), starts, starts[1:], strict=False):
        own = np.zeros(found[tile].shape, values.dtype)
        own.flat[places[first:end]] = values[first:end]
        found[tile] = own
    return found


def store_bitmap(matrix, mask, bits):
    grown = np.pad(mask, [(0, -size % 8) for size in mask.shape])
    masks = [np.packbits(grown[tile]).view(np.uint64) for tile in tiles(grown.shape, 8, 8)]
    groups = [int(mask[group].sum()) for group in tiles(mask.shape, 64, 64)]
    values = [matrix[tile][mask[tile]] for tile in tiles(mask.shape, 8, 8)]
    return np.concatenate(values), np.concatenate(masks), np.cumsum([0, *groups]).astype(np.int32)


def read_bitmap(shape, values, masks, starts):
    grown, first = np.zeros([size + -size % 8 for size in shape], values.dtype), 0
    for tile, mask in zip(tiles(grown.shape, 8, 8), masks, strict=True):
        own = np.unpackbits(np.array([mask]).view(np.uint8)).view(bool).reshape(8, 8)
        kept = int(own.sum())
        tiled = np.zeros((8, 8), values.dtype)
        tiled[own] = values[first : first + kept]
        grown[tile], first = tiled, first + kept
    return grown[: shape[0], : shape[1]]


CODES = {
    "csr": (store_csr, read_csr),
    "coo": (store_coo, read_coo),
    "bitmask": (store_bitmask, read_bitmask),
    "tiled_csl": (store_tiled_csl, read_tiled_csl),
    "bitmap": (store_bitmap, read_bitmap),
}


@pytest.mark.parametrize("name", FORMATS)
@cases(60)
@given(case=matrices())
def test_a_format_takes_the_bytes_of_arrays_that_read_back_as_the_matrix(name, case):
    matrix, mask, bits = case
    assume(find_index_bits(name, *matrix.shape) <= bits)
    store, read = CODES[name]
    arrays = store(matrix, mask, bits)
    np.testing.assert_array_equal(read(matrix.shape, *arrays), matrix)
    footprint = find_footprint(name, *matrix.shape, bits)
    counted = arrays[0].nbytes + footprint.index_bytes(int(mask.sum()))
    assert counted == sum(one.nbytes for one in arrays)


@cases(40)
@given(case=matrices())
def test_csr_and_coo_take_the_bytes_of_scipy_s_arrays(case):
    matrix, mask, _ = case
    assume(matrix.dtype != np.float16)  # which SciPy has no sparse arrays of
    kept, shape = int(mask.sum()), matrix.shape
    csr, coo = sparse.csr_array(matrix), sparse.coo_array(matrix)
    assert csr.indices.dtype == csr.indptr.dtype == coo.coords[0].dtype == np.int32
    csr_bytes = csr.indices.nbytes + csr.indptr.nbytes
    assert find_footprint("csr", *shape, 32).index_bytes(kept) == csr_bytes
    coo_bytes = sum(one.nbytes for one in coo.coords)
    assert find_footprint("coo", *shape, 32).index_bytes(kept) == coo_bytes


@pytest.mark.parametrize("name", FORMATS)
@cases(60)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    bits=st.sampled_from(INDEX_WIDTHS),
    value_bytes=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
)
def test_break_even_divides_what_takes_less_from_what_takes_more(name, shape, bits, value_bytes):
    footprint, places = find_footprint(name, *shape, bits), shape[0] * shape[1]
    density = footprint.break_even_density(places, value_bytes)
    assert 0 <= density <= 1
    for kept in range(places + 1):
        stored = kept * value_bytes + footprint.index_bytes(kept)
        assert stored < places * value_bytes or kept >= density * places * (1 - 1e-12)
        assert stored >= places * value_bytes or kept <= density * places * (1 + 1e-12)


@cases(60)
@given(case=matrices(), share=st.floats(0, 0.9999))
def test_more_sparsity_never_takes_more_bytes_and_wider_indices_never_fewer(case, share):
    shape = case[0].shape
    for name in INDEXED:
        found = [
            stored_bytes(
                Unstructured(kind="unstructured", sparsity=s, format=name, index_bits=bits),
                *shape,
                2.0,
            )
            for s, bits in ((share, 16), (share / 2, 16), (share / 2, 32), (share / 2, 64))
        ]
        assert found == sorted(found)


def test_storage_equals_the_ratios_of_the_published_table():
    """Rows ``storage ...`` of ``sparsity.csv``: ratios to the whole matrix, without row starts."""
    with shared_file("measurements/published/sparsity.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["case"].startswith("storage ")]
    checked = 0
    for row in rows:
        words = row["case"].split()
        if "@" not in row["case"]:
            continue
        share = float(row["case"].split("@")[1].rstrip("%")) / 100
        value_bytes = 1.0 if " 8-bit" in row["case"] else 2.0
        bits = 16 if "int16" in row["case"] else 32
        pruning = Unstructured(
            kind="unstructured", sparsity=share, format=words[1].lower(),
            index_bits=bits if words[1] in ("CSR", "COO") else 32,
        )  # fmt: skip
        ratio = stored_bytes(pruning, 16384, 16384, value_bytes) / (16384**2 * value_bytes)
        assert ratio == pytest.approx(float(row["value"]), abs=1.1e-3), row["case"]
        checked += 1
    assert checked == 24


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"index_bits": 24}, r"index_bits \(24\) must be 8, 16, 32 or 64"),
        ({"format": "bitmask", "index_bits": 16}, "bitmask has none, leave it out"),
    ],
)
def test_an_index_that_no_format_has_is_refused(keys, said):
    with pytest.raises(UserError, match=said):
        validate(Unstructured, {"kind": "unstructured", "sparsity": 0.5, **keys}, "test")
