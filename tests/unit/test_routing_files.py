"""Files of recorded routing that other tools write: torch.save read without torch, and what is
refused in them.
"""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.config.ffns.moe import MoE
from simulator.policies.routing._sglang import read_sglang
from simulator.policies.routing._torch_file import load_torch_file
from simulator.policies.routing.replay import Replay
from tests.shared import shared_file


def same(ours, theirs):
    import torch

    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.numpy().dtype
        assert np.array_equal(ours, theirs.numpy())
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            same(mine, other)
    else:
        assert ours == theirs


def test_tensors_are_read_as_torch_reads_them(tmp_path, torch):
    base = torch.arange(24, dtype=torch.int32).reshape(4, 6)
    saved = {
        "whole": base,
        "view": base[1:, ::2],
        "turned": base.T,
        "empty": base[:0],
        "scalar": torch.tensor(2.5),
        "flag": None,
    }
    saved["all"] = [
        torch.ones(2, dtype=d)
        for d in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64, torch.half)
    ]
    torch.save(saved, tmp_path / "t.pt")
    same(load_torch_file(tmp_path / "t.pt"), torch.load(tmp_path / "t.pt", weights_only=True))


@pytest.mark.measured
@pytest.mark.parametrize("mode", ["stat", "per_token"])
def test_recorder_samples_are_read_as_torch_reads_them(mode, torch):
    path = shared_file(f"traces/formats/sglang_expert_distribution_recorder_{mode}.pt")
    same(load_torch_file(path), torch.load(path, weights_only=True))


class Harmful:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def archive(path, payload):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("t/data.pkl", payload)
        file.writestr("t/data/0", bytes(8))
    return path


@pytest.mark.parametrize("thing", [Harmful(), Path("x"), np.float64(1.0)])
def test_anything_but_plain_data_and_tensors_is_refused(tmp_path, thing, capsys):
    with pytest.raises(UserError, match=r"refused: it holds a "):
        load_torch_file(archive(tmp_path / "t.pt", pickle.dumps(thing, protocol=2)))
    assert capsys.readouterr().out == ""


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, torch):
    torch.save(torch.zeros(100), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as file:
        payload = file.read("whole/data.pkl")
    with pytest.raises(UserError, match=r"damaged|refused"):
        load_torch_file(archive(tmp_path / "t.pt", payload))


def test_a_damaged_or_foreign_archive_is_refused(tmp_path):
    with pytest.raises(UserError, match="damaged"):
        load_torch_file(archive(tmp_path / "t.pt", b"\x80\x02garbage"))
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("readme", "hello")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        load_torch_file(tmp_path / "other.pt")


# SGLang's recorder: what cannot be used


MAP = np.array([[0, 1]])
TOKENS = {
    "forward_mode": 1,
    "extend_seq_lens": [1],
    "positions": [0],
    "topk_ids_of_layer": np.array([[[0]]]),
}


@pytest.mark.parametrize(
    ("saved", "phase", "message"),
    [
        ({"logical_count": np.ones((3, 1, 2))}, "decode", "phase = 'decode' cannot be told apart"),
        ({"model": {}}, None, "not written by SGLang's expert distribution recorder"),
        ([1, 2], None, "not written by SGLang's expert distribution recorder"),
        (
            {"records": [TOKENS], "last_physical_to_logical_map": MAP},
            "decode",
            "holds no decode pass",
        ),
        ({"records": [], "last_physical_to_logical_map": MAP}, None, "holds no recorded pass"),
        (
            {"records": [{"forward_mode": 1}], "last_physical_to_logical_map": MAP},
            None,
            "a record is not as SGLang's",
        ),
        (
            {
                "records": [{**TOKENS, "topk_ids_of_layer": np.array([[[7]]])}],
                "last_physical_to_logical_map": MAP,
            },
            None,
            "a record is not as SGLang's",
        ),
    ],
)
def test_a_recorders_file_that_cannot_be_used_is_refused(saved, phase, message):
    with pytest.raises(UserError, match=f"dump.pt: {message}"):
        read_sglang(saved, phase, "dump.pt")


def test_counts_of_one_step_are_read_like_the_sum_of_many_and_dense_layers_are_left_out():
    counts = read_sglang({"logical_count": np.array([[0, 0], [3, 1]])}, None, "dump.pt")
    assert counts.count_DLE.tolist() == [[[3.0, 1.0]]]


# Selecting what a file does not hold


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("trace.npz", {"model": "olmoe"}, "model = 'olmoe' cannot be selected"),
        ("trace.npz", {"domain": "law"}, "the recording has no array 'domain'"),
        ("counts.npz", {"phase": "decode"}, "does not tell phases apart"),
        ("counts.npz", {"domain": "law"}, "do not tell domains apart"),
        ("trace.pt", {"domain": "law"}, "this format does not tell domains apart"),
        ("trace.json", {}, "must be a table with"),
        ("domains.npz", {}, "need an array 'domain' with 2 names"),
        ("layers.npz", {"layers": "nearest"}, "names 3 layers but holds 1"),
    ],
)
def test_selecting_what_a_file_does_not_hold_is_refused(tmp_path, name, fields, message):
    np.savez(tmp_path / "trace.npz", ids=np.zeros((2, 5, 1), dtype=np.uint8), num_experts=4)
    np.savez(tmp_path / "counts.npz", counts=np.ones((2, 4)))
    np.savez(tmp_path / "domains.npz", counts=np.ones((2, 2, 4)))
    np.savez(tmp_path / "layers.npz", counts=np.ones((1, 4)), layers=[0, 1, 2])
    (tmp_path / "trace.json").write_text("[1]")
    archive(tmp_path / "trace.pt", pickle.dumps({"logical_count": 1}, protocol=2))
    moe = MoE(kind="moe", num_experts=4, top_k=1, intermediate_size=1)
    with pytest.raises(UserError, match=message):
        Replay(trace=str(tmp_path / name), **fields).prepare(moe, 2, np.random.default_rng(0))


def test_counts_by_domain_in_an_archive_of_arrays(tmp_path):
    np.savez(tmp_path / "c.npz", counts=[[[9, 1, 1]], [[1, 1, 9]]], domain=["law", "code"])
    moe = MoE(kind="moe", num_experts=3, top_k=1, intermediate_size=1)
    router = Replay(trace=str(tmp_path / "c.npz"), domain="code").prepare(
        moe, 1, np.random.default_rng(0)
    )
    assert (
        np.bincount(router.topk_ids(0, np.array([500]), np.random.default_rng(0)).ravel()).argmax()
        == 2
    )
