"""Queries of MLPerf Inference's language benchmarks:
``workloads/validation/mlperf.toml``.
"""

from __future__ import annotations

from functools import cache

from pydantic import Field

from simulator.base.data import find_file
from simulator.base.frozen import Frozen, validate
from simulator.base.quantities import Duration, Sequences, TokenBudget
from simulator.base.reading import read_toml
from simulator.workload.lengths.lognormal import LogNormal


class Benchmark(Frozen):
    """Queries that every submission of one benchmark serves."""

    lengths: LogNormal
    ttft_s: Duration | None = None
    """99th percentile of the time to first token that the server scenario allows."""
    tpot_s: Duration | None = None
    """99th percentile of the time per output token that the server scenario allows."""
    max_sequences: Sequences = 1024
    token_budget: TokenBudget = 8192
    source: str = Field(min_length=1)


class Benchmarks(Frozen):
    """The file."""

    title: str
    benchmarks: dict[str, Benchmark]


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Benchmarks by the name that results give them, without what follows it (``llama2-70b`` for
    ``llama2-70b-99.9``).
    """
    path = find_file("workloads/validation", "mlperf", "MLPerf")
    return validate(Benchmarks, read_toml(path), str(path)).benchmarks
