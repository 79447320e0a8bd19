"""How long the command takes before it gets to work: a run of ten requests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

from tests.benchmarks.clock import time_in_turns
from tests.benchmarks.effort import Effort
from tests.benchmarks.rows import Row
from tests.benchmarks.scenarios.whole_run import run_scenario

ORDER = 50
OPT_IN = False
REQUESTS, MOST_ROUNDS = 10, 3
WARM_S, COLD_S = 1.2, 12.0
"""CPU seconds that were asked for when the engine got one clock (decision 14)."""


def measure(effort: Effort, tell: Callable[[str], None]) -> Iterator[Row]:
    """With everything compiled, and with nothing."""
    name, rounds = f"moesim run, {REQUESTS} requests", min(effort.rounds, MOST_ROUNDS)
    tell(f"{name}, compiled")
    run_scenario(REQUESTS)
    warm_s = time_in_turns({name: lambda: run_scenario(REQUESTS).cpu_s}, rounds)[name]
    yield Row(
        "start_up", f"{name}, compiled", "CPU time", "s", warm_s, target=WARM_S, rounds=rounds
    )
    if effort.compiles:
        tell(f"{name}, not compiled")
        with tempfile.TemporaryDirectory() as folder:
            cold_s = run_scenario(REQUESTS, NUMBA_CACHE_DIR=folder).cpu_s
        yield Row("start_up", f"{name}, not compiled", "CPU time", "s", cold_s, target=COLD_S)
