"""Tables that come in parts are the same however many parts there are."""

import pickle

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base import columns
from simulator.base.columns import Picked, Spool, StoredColumns, list_frames, read_whole
from simulator.base.errors import UserError
from simulator.results.results_folder import read_long, write_long
from tests.cases import cases

OUTCOMES = ["finished", "lost", "unfinished"]


def make_part(rng, count):
    codes = rng.integers(0, 3, count).astype("int8")
    at_s = rng.random(count)
    at_s[codes == 2] = np.nan
    return pd.DataFrame(
        {
            "request": rng.integers(0, 1 << 60, count),
            "at_s": at_s,
            "outcome": pd.Categorical.from_codes(codes, pd.Index(OUTCOMES)),
        }
    )


def spool(parts):
    found = Spool()
    for part in parts:
        found.add(lambda part=part: part)
    return found.close()


def check_same(table, whole):
    assert len(table) == len(whole)
    for name in ("request", "at_s"):
        np.testing.assert_array_equal(table[name], whole[name])
        assert table[name].dtype == whole[name].dtype
    for outcome in OUTCOMES:
        is_own = [(one["outcome"] == outcome).to_numpy() for one in (table, whole)]
        assert np.array_equal(*is_own)


@cases(30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 1 << 30))
def test_a_table_is_the_same_in_however_many_parts_it_comes(counts, seed):
    rng = np.random.default_rng(seed)
    parts = [make_part(rng, count) for count in counts]
    table, whole = spool(parts), pd.concat(parts, ignore_index=True)
    check_same(table, whole)
    check_same(read_whole(table), whole)
    check_same(pickle.loads(pickle.dumps(table)), whole)
    is_own = rng.random(len(whole)) < 0.5
    check_same(Picked(table, is_own), whole[is_own].reset_index(drop=True))
    assert sum(len(part) for part in list_frames(table)) == len(whole)


def test_one_part_stays_in_memory():
    part = make_part(np.random.default_rng(0), 5)
    assert spool([part]) is part


def test_a_full_disk_is_told_with_the_way_out(monkeypatch):
    part = make_part(np.random.default_rng(0), 5)
    with open("/dev/full", "wb+", buffering=0) as full:
        monkeypatch.setattr(columns, "_open_unnamed", lambda: full)
        with pytest.raises(UserError, match=r"has no room .*let TMPDIR name a folder that has"):
            spool([part, part])


@pytest.mark.parametrize("num_parts", [1, 3])
def test_each_deployment_gets_its_own_rows_back(tmp_path, num_parts):
    rng = np.random.default_rng(1)
    tables = {name: [make_part(rng, 7) for _ in range(num_parts)] for name in ("a", "b, c", "1")}
    write_long({name: spool(parts) for name, parts in tables.items()}, tmp_path / "long.parquet")
    found = read_long(tmp_path / "long.parquet", list(tables))
    assert list(found) == list(tables)
    for name, parts in tables.items():
        check_same(found[name], pd.concat(parts, ignore_index=True))
    assert isinstance(found["a"], StoredColumns) == (num_parts > 1)
    whole = pd.read_parquet(tmp_path / "long.parquet")
    assert list(whole) == ["deployment", "request", "at_s", "outcome"]


def test_damage_that_shows_when_a_column_is_read_is_told(tmp_path):
    path, part = tmp_path / "long.parquet", make_part(np.random.default_rng(1), 1000)
    write_long({"a": spool([part, part])}, path)
    data = bytearray(path.read_bytes())
    place = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    found = read_long(path, ["a"])
    with pytest.raises(UserError, match=r"long.parquet: damaged, or not a Parquet file"):
        found["a"]["request"]


def test_a_deployment_without_rows_gets_none_back(tmp_path):
    part = make_part(np.random.default_rng(1), 7)
    tables = {"a": spool([part, part, part]), "none": part.iloc[:0]}
    write_long(tables, tmp_path / "long.parquet")
    found = read_long(tmp_path / "long.parquet", list(tables))
    assert (len(found["a"]), len(found["none"])) == (21, 0)


def test_row_groups_of_several_deployments_are_told_apart(tmp_path):
    """Other programs may write row groups of several deployments."""
    table = make_part(np.random.default_rng(2), 12)
    table.insert(0, "deployment", ["a", "b"] * 6)
    table.to_parquet(tmp_path / "long.parquet", row_group_size=3)
    found = read_long(tmp_path / "long.parquet", ["a", "b"])
    check_same(found["b"], table.iloc[1::2].reset_index(drop=True))
