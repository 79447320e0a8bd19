"""Damaged files are read or refused, and nothing else comes of them: small files that ship, with
bytes changed.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.commands.check import check_file
from simulator.validation.tables import read_table
from tests.cases import cases

LARGEST = 3000
FOLDERS = ("workloads/models", "cluster_configs/accelerators")
"""Checking others draws as many requests, or wires as many GPUs, as they say, which a changed digit
makes a million."""
TABLE = b'gpu,gemm_dtype,m,n,k,latency_ms,note\nh100,bfloat16,4096,4096,04096,0.20,"as it stood, 1e-3"\nh100,fp8,1,4096,,0.0150,\n'
SPELLINGS = (
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
@cases(10)
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
