"""A table for the command, for every test that meets it as a user does."""

import pytest

GEMM = """gpu,gemm_dtype,m,n,k,latency_ms,note
h100,bfloat16,4096,4096,04096,0.20,"as it stood, 1e-3"
h100,bfloat16,1,4096,4096,0.0150,
rubin,bfloat16,4096,4096,4096,0.1,
h100,unheard_of,4096,4096,4096,0.2,
h100,bfloat16,,4096,4096,0.2,
h100,bfloat16,many,4096,4096,0.2,
h100,bfloat16,-4,4096,4096,0.2,
"""
"""Kernels as somebody measured them: two rows that can be answered, and five that cannot."""


@pytest.fixture
def gemm_table(tmp_path, monkeypatch):
    """The text of ``gemm.csv``, which lies in the folder of the test."""
    monkeypatch.delenv("MOESIM_MEASUREMENTS", raising=False)
    (tmp_path / "gemm.csv").write_text(GEMM)
    return GEMM
