"""A shipped plan with nothing kept from before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.clock import run_moesim
from tests.benchmarks.effort import Effort
from tests.benchmarks.rows import Row

ORDER = 60
OPT_IN = True
PLAN = "azure_conv"


def measure(effort: Effort, tell: Callable[[str], None]) -> Iterator[Row]:
    """One process, an empty cache."""
    name = f"moesim plan {PLAN}, empty cache"
    tell(name)
    with tempfile.TemporaryDirectory() as folder:
        caches = ("--cache", Path(folder) / "cache", "--out", Path(folder) / "out")
        spent = run_moesim("plan", PLAN, "--workers", "1", *caches)
    yield Row("plan", name, "CPU time", "s", spent.cpu_s)
    yield Row("plan", name, "wall time", "s", spent.wall_s)
    yield Row("plan", name, "peak memory", "B", float(spent.peak_bytes))
