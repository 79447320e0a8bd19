"""Damaged files are read or refused, and nothing else comes of them: small files that ship, with
bytes changed.
"""

import gzip
import io
import json
import lzma
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.base.reading import read_toml
from simulator.commands.check import check as check_file
from simulator.commands.schema import FILES
from simulator.config.calibration import read_calibration
from simulator.config.ffns.moe import MoE
from simulator.lab.validation.tables import read_table
from simulator.policies.routing.replay import Replay
from simulator.workload.reading import read_trace
from tests.cases import cases
from tests.unit.torch_files import torch_members
from tests.unit.trace_texts import BENCH

LARGEST = 3000
FOLDERS = ("workloads/models", "workloads/laws", "cluster_configs/accelerators")
"""Checking others draws as many requests, or links as many GPUs, as they say, which a changed digit
makes a million."""
TABLE = b'gpu,gemm_dtype,m,n,k,latency_ms,note\nh100,bfloat16,4096,4096,04096,0.20,"as it stood, 1e-3"\nh100,fp8,1,4096,,0.0150,\n'
DESCRIPTIONS = {
    "workloads": "scenario",
    "workloads/plans": "plan",
    "workloads/requests": "workload",
    "workloads/models": "model",
    "workloads/laws": "law",
    "cluster_configs": "cluster",
    "cluster_configs/accelerators": "accelerator",
    "cluster_configs/calibration": "calibration",
}
"""What the files of a folder are validated as."""
SPELLINGS = (
    b"9" * 5000,
    b"[" * 5000,
    b"{a=" * 400,
    b"a." * 2000,
    b"k" * 5000,
    b"9223372036854775808",
    b"-1",
    b"0",
    b"1e308",
    b"nan",
    b"inf",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b"[[]]",
    b"\n",
    b"=",
    b'"',
    b"\\",
    b"#",
    b"\xff",
    b"\0",
)


def files():
    found = [path for folder in FOLDERS for path in available_files(folder).values()]
    return {
        str(path): path
        for path in found
        if path.suffix == ".toml" and path.stat().st_size <= LARGEST
    }


def described():
    found = {
        f"{folder}/{name}": (path, FILES[kind])
        for folder, kind in DESCRIPTIONS.items()
        for name, path in available_files(folder).items()
    }
    assert len(found) > 60
    return found


def numpy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


IDS = np.array([[[0, 1], [2, 3], [1, 3]], [[3, 0], [0, 2], [2, 1]]])
PASS = {
    "forward_mode": 1,
    "extend_seq_lens": [2, 1],
    "positions": [0, 1, 0],
    "topk_ids_of_layer": IDS,
}
SLOTS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
ROWS = [f"{t},{layer},{e},7" for layer in (0, 1) for t in range(3) for e in IDS[layer, t]]
RECORDINGS = {
    "ids.npz": {
        "ids.npy": numpy_bytes(IDS),
        "seq_lens.npy": numpy_bytes(np.array([2, 1])),
        "domain.npy": numpy_bytes(np.array(["law", "code"])),
        "layers.npy": numpy_bytes(np.array([0, 1])),
        "num_experts.npy": numpy_bytes(np.array(4)),
    },
    "counts.npz": {"counts.npy": numpy_bytes(np.ones((2, 4)))},
    "ids.npy": numpy_bytes(IDS),
    "counts.json": json.dumps({"counts": [[1, 2, 3, 4]] * 2, "layers": [0, 1]}).encode(),
    "models.json": json.dumps({"models": {"a": {"law": [[1, 2, 3, 4]] * 2}}}).encode(),
    "ids.pt": torch_members(IDS),
    "named.pt": torch_members({"ids": IDS, "num_experts": 4}),
    "passes.pt": torch_members({"records": [PASS], "last_physical_to_logical_map": SLOTS}),
    "count.pt": torch_members({"logical_count": np.ones((2, 4), np.int64)}),
    "ids.csv": "\n".join(["token,layer,expert,sequence", *ROWS]).encode(),
}
"""Small recordings of every kind, as bytes or as the members of an archive."""
MOE = MoE(kind="moe", num_experts=4, top_k=2, intermediate_size=1)


def parquet_bytes(**columns):
    import pyarrow as pa
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


MOONCAKE = {"timestamp": 7, "input_length": 20, "output_length": 1, "hash_ids": [1]}
LOG = b"created_at,prompt_tokens,completion_tokens\n2024-01-01T00:00:00Z,5,6\n1704067200,7,8\n"
SERVEGEN = {
    "chunk-0-trace.csv": b"0,0.01,1.5,Gamma,1,1\n600,0.02,1,,,\n",
    "chunk-0-dataset.json": b'{"0": {"input_tokens": "{5: 0.5, 9: 0.5}", "output_tokens": "{3: 1}"}}',
}
TRACES = {
    "log.csv": LOG,
    "log.csv.gz": gzip.compress(LOG),
    "log.csv.xz": lzma.compress(LOG),
    "azure.csv": b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,3,4\n" * 2,
    "table.csv": b"arrival_s,num_input,num_output,prefix_block_tokens,prefix_ids\n5,20,1,16,0 1\n",
    "log.jsonl": b'{"created": 1, "usage": {"prompt_tokens": 5, "completion_tokens": 6}}\n' * 3,
    "mooncake.jsonl": json.dumps(MOONCAKE).encode() + b"\n",
    "bench.json": json.dumps(BENCH).encode(),
    "burst.csv": b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    b"5,ChatGPT,472,18,490,Conversation log\n",
    "pairs.csv": b"num_prefill_tokens,num_decode_tokens\n3772,54\n",
    "arrived.csv": b"arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,3772,54\n",
    "chats.jsonl": b'{"chat_id": 1, "timestamp": 0.5, "input_length": 20, "output_length": 5, '
    b'"hash_ids": [0, 1]}\n',
    "toks.jsonl": b'{"input_toks": 2358, "output_toks": 531, "arrival_time_ns": 46926808}\n',
    "prompts.jsonl": b'{"prompt": "what is what", "output_tokens": 531}\n',
    "texts.json": b'[{"conversations": [{"value": "why"}, {"value": "because"}]}]',
}
"""Small request traces, one for each way of reading."""


def read_any(path):
    trace = read_trace(path)
    assert trace.num_requests
    assert (trace.num_input >= 1).all()
    assert (trace.num_output >= 1).all()
    assert (np.diff(trace.arrival_s) >= 0).all()


def replay(path):
    router = Replay(trace=str(path)).prepare(MOE, 2, np.random.default_rng(0))
    router.topk_ids(1, np.array([3, 2]), np.random.default_rng(0))


def packed(members, name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, own in members.items():
            archive.writestr(member, content if member == name else own)
    return file.getvalue()


@st.composite
def damaged(draw, content):
    """The content with one to four stretches replaced by other bytes, by stretches of its own, or
    by what is easily mistaken.
    """
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 1, 1, 2, 5, 20, 200]))
        own = draw(st.integers(0, len(content)))
        new = draw(
            st.one_of(
                st.sampled_from(SPELLINGS),
                st.binary(max_size=4),
                st.just(content[own : own + 30]),
                st.just(b""),
            )
        )
        content = content[:start] + new + content[end:]
    return content


def read(reader, path, content):
    """Read the content, or be told in one line which file is wrong."""
    path.write_bytes(content)
    check_refusal(reader, path)


def check_refusal(reader, path):
    refusal = None
    try:
        reader(path)
    except UserError as error:
        refusal = str(error)
    assert refusal is None or (path.name in refusal and len(refusal.splitlines()) == 1), refusal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@pytest.mark.parametrize("name", sorted(files()), ids=lambda name: "/".join(name.split("/")[-2:]))
@cases(5, soak=100)
@given(data=st.data())
def test_a_damaged_specification(name, data, folder):
    original = files()[name]
    read(
        lambda path: check_file(str(path), []),
        folder / original.name,
        data.draw(damaged(original.read_bytes())),
    )


@cases(100)
@given(content=damaged(TABLE))
def test_a_damaged_table(folder, content):
    read(read_table, folder / "table.csv", content)


@pytest.mark.parametrize("name", sorted(described()))
@cases(3, soak=50)
@given(data=st.data())
def test_a_damaged_description(name, data, folder):
    original, kind = described()[name]

    def check(path):
        table = read_calibration(path) if kind is FILES["calibration"] else read_toml(path)
        validate(kind, table, str(path))

    read(check, folder / original.name, data.draw(damaged(original.read_bytes())))


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_recordings_themselves_are_read(name, folder):
    content = RECORDINGS[name]
    path = folder / name
    path.write_bytes(packed(content, None, b"") if isinstance(content, dict) else content)
    replay(path)


@pytest.mark.parametrize("name", RECORDINGS)
@cases(30, soak=600)
@given(data=st.data())
def test_a_damaged_recording(name, data, folder):
    content = RECORDINGS[name]
    if isinstance(content, dict) and data.draw(st.booleans()):
        member = data.draw(st.sampled_from(sorted(content)))
        new = packed(content, member, data.draw(damaged(content[member])))
    elif isinstance(content, dict):
        new = data.draw(damaged(packed(content, None, b"")))
    else:
        new = data.draw(damaged(content))
    read(replay, folder / name, new)


@pytest.mark.parametrize("name", TRACES)
@cases(25, soak=500)
@given(data=st.data())
def test_a_damaged_trace(name, data, folder):
    read(read_any, folder / name, data.draw(damaged(TRACES[name])))


@cases(20, soak=400)
@given(data=st.data(), member=st.sampled_from(sorted(SERVEGEN)), is_folder=st.booleans())
def test_a_damaged_archive_of_clients(data, member, is_folder, folder):
    contents = {**SERVEGEN, member: data.draw(damaged(SERVEGEN[member]))}
    clients = folder / "clients"
    clients.mkdir(exist_ok=True)
    for name, content in contents.items():
        (clients / name).write_bytes(content)
    if is_folder:
        check_refusal(read_any, clients)
        return
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in contents:
            archive.add(clients / name, name)
    content = file.getvalue()
    damage = data.draw(st.booleans())
    read(read_any, folder / "clients.tar", data.draw(damaged(content)) if damage else content)


@cases(60)
@given(data=st.data())
def test_a_damaged_parquet_file(data, folder):
    trace = parquet_bytes(
        ts=["2024-01-01", "2024-01-02"], prompt_tokens=[1, 2], output_tokens=[3, 4]
    )
    read(read_any, folder / "log.parquet", data.draw(damaged(trace)))
    ids = parquet_bytes(token=[0, 0, 0, 0], layer=[0, 0, 1, 1], expert=[0, 1, 2, 3])
    read(replay, folder / "ids.parquet", data.draw(damaged(ids)))
