"""Whole runs of the command, report included: seconds, memory, and what a request takes of both."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.clock import Spent, run_moesim
from tests.benchmarks.effort import Effort
from tests.benchmarks.rows import Row

ORDER = 40
OPT_IN = False
SCENARIO = """
name = "benchmark"
seed = 1
[workload.requests]
num_requests = {num_requests}
arrivals = {{ kind = "poisson", rate_per_s = 22.0 }}
lengths = {{ kind = "fixed", num_input = 1024, num_output = 256 }}
[[deployments]]
name = "dense"
model = "llama-3.1-8b"
cluster = "h100-sxm-1"
"""
MILLION, MILLION_S, MILLION_BYTES = 1_000_000, 15.0, 1.2e9
"""CPU seconds and peak memory that were asked for a million requests when the engine got one clock
(decision 14)."""


def run_scenario(num_requests: int, **environment: str) -> Spent:
    """``moesim run`` of generated requests on one GPU."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "scenario.toml"
        path.write_text(SCENARIO.format(num_requests=num_requests), encoding="utf-8")
        return run_moesim("run", path, "--out", Path(name) / "out", **environment)


def list_rows(
    scenario: str, name: str, spent: Spent, most_s: float | None, most_bytes: float | None
) -> Iterator[Row]:
    """What a run took, beside the CPU seconds and the bytes that were asked for, if any were."""
    yield Row(scenario, name, "CPU time", "s", spent.cpu_s, target=most_s)
    yield Row(scenario, name, "wall time", "s", spent.wall_s)
    yield Row(scenario, name, "peak memory", "B", float(spent.peak_bytes), target=most_bytes)


def measure(effort: Effort, tell: Callable[[str], None]) -> Iterator[Row]:
    """Two sizes, and what lies between them."""
    found = {}
    for count in effort.run_requests:
        name = f"moesim run, {count:,} requests"
        tell(name)
        found[count] = spent = run_scenario(count)
        is_million = count == MILLION
        targets = (MILLION_S, MILLION_BYTES) if is_million else (None, None)
        yield from list_rows("whole_run", name, spent, *targets)
    (few, least), (many, most) = found.items()
    between = f"from {few:,} to {many:,} requests"
    yield Row(
        "whole_run",
        "moesim run",
        "memory of a request",
        "B/request",
        (most.peak_bytes - least.peak_bytes) / (many - few),
        note=f"peak memory, {between}",
    )
    yield Row(
        "whole_run",
        "moesim run",
        "CPU time of a request",
        "s",
        (most.cpu_s - least.cpu_s) / (many - few),
        note=between,
    )
