"""A whole run of ten million requests, report included: more than memory would hold at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.benchmarks.effort import Effort
from tests.benchmarks.rows import Row
from tests.benchmarks.scenarios.whole_run import list_rows, run_scenario

ORDER = 45
OPT_IN = True
REQUESTS, MOST_S, MOST_BYTES = 10_000_000, 150.0, 1.5e9
"""CPU seconds and peak memory that were asked for when requests came to be served in windows
(decision 15)."""


def measure(effort: Effort, tell: Callable[[str], None]) -> Iterator[Row]:
    """One process."""
    count = effort.take(REQUESTS)
    name = f"moesim run, {count:,} requests"
    tell(name)
    targets = (MOST_S, MOST_BYTES) if count == REQUESTS else (None, None)
    yield from list_rows("long_run", name, run_scenario(count), *targets)
