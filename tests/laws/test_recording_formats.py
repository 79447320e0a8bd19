"""A recording means the same choices in whatever file it is kept."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.errors import UserError
from simulator.config.ffns.moe import MoE
from simulator.policies.routing._trace_files import read_trace
from tests.cases import cases
from tests.unit.torch_files import torch_archive


@st.composite
def recordings(draw):
    """``ids_LTK`` of a few sequences."""
    layers, top_k = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    seq_lens = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    ids_LTK = rng.random((layers, sum(seq_lens), 6)).argsort(axis=2)[:, :, :top_k]
    return ids_LTK, np.array(seq_lens)


def rows_of(ids_LTK, seq_lens):
    """Columns of the table, in the order of ``ids_LTK``."""
    layer, token, _ = np.indices(ids_LTK.shape)
    sequence_T = np.repeat(np.arange(len(seq_lens)), seq_lens)
    columns = {"token": token, "layer": layer, "expert": ids_LTK, "sequence": sequence_T[token]}
    return {name: values.ravel() for name, values in columns.items()}


def csv_text(columns):
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return "\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)])


def read(path, ids_LTK):
    layers, _, top_k = ids_LTK.shape
    moe = MoE(kind="moe", num_experts=6, top_k=top_k, intermediate_size=1)
    return read_trace(path, moe, layers, None, None, None)


@cases(25)
@given(recording=recordings(), seed=st.integers(0, 99))
def test_every_file_of_ids_holds_the_same_tokens(recording, seed, tmp_path_factory):
    import pyarrow as pa
    from pyarrow import parquet

    ids_LTK, seq_lens = recording
    folder = tmp_path_factory.mktemp("recordings")
    np.savez(folder / "ids.npz", ids=ids_LTK, seq_lens=seq_lens)
    wanted = read(folder / "ids.npz", ids_LTK)
    columns = rows_of(ids_LTK, seq_lens)
    # Rows may come in any order, but a token's experts keep theirs.
    group = np.random.default_rng(seed).permutation(ids_LTK.shape[0] * ids_LTK.shape[1])
    order = np.argsort(np.repeat(group, ids_LTK.shape[2]), kind="stable")
    mixed = {name: values[order] for name, values in columns.items()}
    torch_archive(folder / "ids.pt", {"ids": ids_LTK, "seq_lens": seq_lens})
    (folder / "ids.csv").write_text(csv_text(mixed))
    (folder / "ids.csv.gz").write_bytes(gzip.compress(csv_text(columns).encode()))
    parquet.write_table(pa.table({**mixed, "weight": mixed["expert"] / 7}), folder / "ids.parquet")
    for name in ("ids.pt", "ids.csv", "ids.csv.gz", "ids.parquet"):
        found = read(folder / name, ids_LTK)
        np.testing.assert_array_equal(found.ids_LTK, wanted.ids_LTK, err_msg=name)
        np.testing.assert_array_equal(found.sequence_T, wanted.sequence_T, err_msg=name)


def test_a_bare_tensor_is_read_whichever_axis_comes_first(tmp_path):
    ids_LTK = np.array([[[0, 1], [2, 3], [4, 5]], [[5, 4], [3, 2], [1, 0]]])
    for name, saved in (("l.pt", ids_LTK), ("t.pt", ids_LTK.transpose(1, 0, 2))):
        np.testing.assert_array_equal(
            read(torch_archive(tmp_path / name, saved), ids_LTK).ids_LTK, ids_LTK
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "token,layer\n0,0\n",
            r"missing column 'expert'.*a row for each expert.*has: token, layer",
        ),
        ("token,layer,expert\n", "holds no recorded token"),
        ("token,layer,expert\n0,0,1\n0,0,2\n1,0,3\n", r"token \d has more or fewer experts"),
        ("token,layer,expert\n0,0,1\n0,1,2\n1,0,3\n1,0,4\n", "in layer 0 than other tokens"),
        ("token,layer,expert\n0,0,x\n", "damaged, or not a recording.*invalid value 'x'"),
        ("token,layer,expert\n0,0,\n", "column expert must be whole numbers in every row"),
        ("token,layer,expert\n0,0,1\n", "recorded with top-1, but the model uses top-2"),
    ],
)
def test_a_table_that_is_no_recording_is_refused(tmp_path, text, message):
    from simulator.policies.routing.replay import Replay

    (tmp_path / "ids.csv").write_text(text)
    moe = MoE(kind="moe", num_experts=6, top_k=2, intermediate_size=1)
    with pytest.raises(UserError, match=message):
        Replay(trace=str(tmp_path / "ids.csv")).prepare(moe, 1, np.random.default_rng(0))


def test_a_table_of_ids_has_no_phases(tmp_path):
    with pytest.raises(UserError, match="phase = 'decode' cannot be selected: a table of ids"):
        read_trace(
            tmp_path / "ids.parquet",
            MoE(kind="moe", num_experts=6, top_k=2, intermediate_size=1),
            1,
            None,
            None,
            "decode",
        )
