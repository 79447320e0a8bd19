"""Files that claim, or unpack to, far more than they are, and what is no file at all: refused in
one line with the size, the bound and what would do, before anything large is made.
"""

import gzip
import io
import lzma
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from simulator.base import unpacking
from simulator.base.errors import UserError
from simulator.base.partial import take_abandoned
from simulator.base.reading import open_file, read_json, read_toml
from simulator.base.unpacking import unpack
from simulator.commands.catalogue import list_kinds
from simulator.config.ffns.moe import MoE
from simulator.policies.routing.replay import Replay
from tests.unit.torch_files import torch_archive

MOE = MoE(kind="moe", num_experts=4, top_k=2, intermediate_size=1)
ZEROS = bytes(3 << 20)


def replay(path):
    return Replay(trace=str(path)).prepare(MOE, 2, np.random.default_rng(0))


@pytest.fixture
def small_bound(monkeypatch):
    monkeypatch.setattr(unpacking, "_FREE_BYTES", 1 << 20)


def zipped(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("trace.csv", data)
    return file.getvalue()


def xz(data):
    return lzma.compress(data, preset=0)


def zstd(data):
    import pyarrow as pa

    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("pack", [gzip.compress, xz, zipped, zstd])
def test_packed_files_are_unpacked_up_to_a_bound(tmp_path, pack, small_bound):
    path = tmp_path / "trace.csv.packed"
    path.write_bytes(pack(b"num_input,num_output\n1,2\n"))
    assert unpack(path) == b"num_input,num_output\n1,2\n"
    path.write_bytes(pack(ZEROS))
    with pytest.raises(UserError, match=r"unpacks to more than 1 MiB.*unpack it and name"):
        unpack(path)
    path.write_bytes(pack(os.urandom(5 << 18)))
    assert len(unpack(path)) == 5 << 18


def strided(*shape):
    """An array of one value that claims to be as large as this."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.int64), shape, (0,) * len(shape))


def test_strided_tensors_may_not_be_larger_than_their_file_allows(tmp_path, monkeypatch):
    path = torch_archive(tmp_path / "t.pt", strided(1 << 17, 1 << 17, 1))
    assert path.stat().st_size < 1000
    with pytest.raises(UserError, match=r"makes 128 GiB.*may make 64 MiB together; save tensors"):
        replay(path)
    monkeypatch.setattr(unpacking, "_FREE_BYTES", 1 << 20)
    with pytest.raises(UserError, match="may make 1 MiB together"):
        replay(torch_archive(tmp_path / "t.pt", {"ids": [strided(1 << 16)] * 3}))


def test_a_pickle_that_asks_for_room_is_refused(tmp_path):
    path = tmp_path / "t.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t/data.pkl", b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".")
    with pytest.raises(UserError, match="numbers more values than it holds"):
        replay(path)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 1 << 40, 2), "its header claims .* but 8 bytes follow"),
        ((1 << 62, 1 << 62, 4), "its header claims .* but 8 bytes follow"),
        ((2, 4, 2), "its header claims .* but 8 bytes follow"),
        ((2, 10**15, 0), "holds no recorded token|but 8 bytes follow"),
    ],
)
def test_a_numpy_header_may_not_claim_more_than_follows(tmp_path, shape, said):
    header = {"descr": "<i8", "fortran_order": False, "shape": shape}
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header)
    (tmp_path / "ids.npy").write_bytes(content.getvalue() + bytes(8))
    with zipfile.ZipFile(tmp_path / "ids.npz", "w") as archive:
        archive.write(tmp_path / "ids.npy", "ids.npy")
    for name in ("ids.npy", "ids.npz"):
        with pytest.raises(UserError, match=said):
            replay(tmp_path / name)


def test_an_archive_of_zeros_is_refused_by_what_it_claims(tmp_path, small_bound):
    np.savez_compressed(tmp_path / "ids.npz", ids=np.zeros((2, 10**6, 2), np.int8))
    with pytest.raises(UserError, match=r"claims 3.815 MiB, and a file of .* may hold 1 MiB"):
        replay(tmp_path / "ids.npz")


def test_an_archive_that_claims_too_little_is_not_unpacked_whole(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "ids.npz", ids=np.zeros((2, 10**7, 2), np.int8))
    content = bytearray((tmp_path / "ids.npz").read_bytes())
    at = content.rindex(b"PK\x01\x02") + 24  # the size in the archive's directory
    content[at : at + 4] = struct.pack("<I", 200)
    (tmp_path / "ids.npz").write_bytes(content)
    asked = []
    decompressor = zipfile._get_decompressor

    class Watched:
        def __init__(self, *args):
            self._own = decompressor(*args)

        def decompress(self, data, most):
            asked.append(most)
            return self._own.decompress(data, most)

        def __getattr__(self, name):
            return getattr(self._own, name)

    monkeypatch.setattr(zipfile, "_get_decompressor", Watched)
    with pytest.raises(UserError, match=r"ids\.npz"):
        replay(tmp_path / "ids.npz")
    assert 0 < max(asked) <= 1 << 20


def test_a_parquet_file_of_equal_values_is_refused(tmp_path, small_bound):
    import pyarrow as pa
    from pyarrow import parquet

    column = np.zeros(10**6, np.int64)
    table = pa.table({"token": column, "layer": column, "expert": column})
    parquet.write_table(table, tmp_path / "ids.parquet")
    with pytest.raises(UserError, match=r"claims 22\.89 MiB, and a file of .* may hold 1\.228 MiB"):
        replay(tmp_path / "ids.parquet")


def test_a_sparse_file_is_refused_by_its_size(tmp_path):
    for name in ("huge.npy", "huge.toml"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"has 1024 GiB, and at most 4 GiB are read"):
        replay(tmp_path / "huge.npy")
    with pytest.raises(UserError, match="at most 64 MiB are read"):
        read_toml(tmp_path / "huge.toml")


# What is no file


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    for reader in (open_file, read_toml, read_json, unpack, replay):
        with pytest.raises(UserError, match=r"pipe\.toml: (is a pipe|unknown kind of recording)"):
            reader(tmp_path / "pipe.toml")
    with pytest.raises(UserError, match="/dev/zero: is a device"):
        open_file(Path("/dev/zero"))


@pytest.mark.parametrize("pipe", ["data.npy", "run/run.json", "past.jsonl"])
def test_no_command_waits_for_a_pipe(moesim, tmp_path, pipe):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / pipe)
    commands = {
        "data.npy": ("sparsity", "--data", "data.npy"),
        "run/run.json": ("report", "run"),
        "past.jsonl": ("validate", "--history", "past.jsonl"),
    }
    code, _, err = moesim(*commands[pipe])
    assert code == 2
    assert len(err.splitlines()) == 1


def test_a_pipe_in_place_of_a_lock_is_not_waited_for(tmp_path):
    (tmp_path / "p-1").mkdir()
    os.mkfifo(tmp_path / "p-1" / "moesim.lock")
    with take_abandoned("p-", tmp_path) as found:
        assert found == []


@pytest.mark.parametrize(
    "command",
    [
        ("run", "mixtral_vs_llama2", "--out", "link"),
        ("trace", "generate", "sharegpt-like", "link.csv"),
        ("new", "scenario", "link.toml"),
        ("new", "routing", "link"),
    ],
)
def test_a_link_to_nothing_is_not_followed(moesim, tmp_path, command):
    links = [tmp_path / name for name in ("link", "link.csv", "link.toml", "my_package/link.py")]
    links[-1].parent.mkdir()
    for link in links:
        link.symlink_to(tmp_path / "nowhere" / "else")
    code, _, err = moesim(*command)
    assert (code, err.count("\n")) == (2, 1)
    assert "is a link to" in err or "is there already" in err
    assert len(list(tmp_path.iterdir())) == len(links)
    assert all(link.is_symlink() for link in links)


def test_names_that_no_file_can_have(tmp_path):
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(UserError) as refusal:
            read_toml(tmp_path / name)
        assert len(str(refusal.value)) < 1000
        assert "\0" not in str(refusal.value)


def test_one_broken_file_does_not_hide_the_others(tmp_path, moesim):
    for family in ("workloads/models", "cluster_configs"):
        (tmp_path / family).mkdir(parents=True)
        (tmp_path / family / "dangling.toml").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "workloads" / "pipe.toml")
    (tmp_path / "workloads" / "broken.toml").write_text("a = [[")
    found = list_kinds()
    assert "the link points to nothing" in found["models"]["dangling"]
    assert "the link points to nothing" in found["clusters"]["dangling"]
    assert "is a pipe" in found["scenarios"]["pipe"]
    assert "not valid TOML" in found["scenarios"]["broken"]
    assert "mixtral-8x7b" in found["models"]
    assert "h100-sxm-N" in found["clusters"]
    code, _, err = moesim("check", "workloads/pipe.toml")
    assert (code, len(err.strip().splitlines())) == (2, 1)


# What parsers do not bear


DIGITS, DEEP = "a number of thousands of digits", "nested deeper than 100 levels"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "a = " + "9" * 5000, DIGITS),
        ("a.toml", "a = " + "9" * 30, "a must be a whole number of at most 64 bits, got 9999"),
        ("a.toml", "a = " + "[" * 9000, DEEP),
        ("a.toml", "a = " + "{b = " * 300 + "1" + "}" * 300, DEEP),
        ("a.toml", "[" + ".".join("a" * 2000) + "]", DEEP),
        ("a.json", '{"a": ' + "9" * 5000 + "}", "thousands of digits"),
        ("a.json", '{"a": ' + "[" * 90000, "deeper than 100 levels"),
        ("a.json", '{"a": ' * 200 + "1" + "}" * 200, "deeper than 100 levels"),
    ],
    ids=lambda text: text[:12],
)
def test_absurd_numbers_and_nesting(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        (read_toml if name == "a.toml" else read_json)(tmp_path / name)


def test_what_a_message_repeats_is_cut():
    message = str(UserError(f"a.toml: unknown key '{'k' * 5000}'; did you mean 'key'?"))
    assert len(message) < 400
    assert message.startswith("a.toml: unknown key 'kkk")
    assert message.endswith("did you mean 'key'?")
    assert len(str(UserError("many words " * 5000))) == 4000
    assert str(UserError("two\nlines \x1b[31m")) == r"two\nlines \x1b[31m"
    assert pickle.loads(pickle.dumps(UserError("a\nb"))).args == (r"a\nb",)


@pytest.mark.parametrize("kind", ["1", "[]", "{}", "1979-05-27", "true", None])
def test_a_kind_that_is_no_text(tmp_path, moesim, kind):
    (tmp_path / "s.toml").write_text(
        '[workload]\nrequests = "azure-conv"\nnum_requests = 5\n'
        '[[deployments]]\nname = "moe"\nmodel = "mixtral-8x7b"\ncluster = "h100-sxm-8"\n'
        'weight_dtype = "fp8"\nparallel = { attention_dp = 8, ep = 8 }\n'
        f"routing = {{ {f'kind = {kind}' if kind else 'knd = 1'} }}\n"
    )
    code, _, err = moesim("check", "s.toml")
    assert code == 2
    assert "[routing]: missing key 'kind'; choose one of" in err
