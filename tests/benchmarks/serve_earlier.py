"""Serves cases with the revision of the simulator that is on the path, whichever it is: a case a
line comes in as JSON, CPU seconds of the engine or why it was refused go out.

Started by :mod:`tests.benchmarks.revision` as a file, with the revision's folder as PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from clock import repeated_cpu_s
from deployments import Case, make_case

from simulator.engine.table import make_table


def find_engine() -> Callable[[Any, Any, Any], object]:
    """What serves a plan's requests with a table, up to the table of requests."""
    try:
        from simulator.engine.timeline import serve
    except ImportError:
        return _serve_before_one_clock
    return lambda plan, trace, fill: serve(plan, trace, fill=fill).requests_table()


def _serve_before_one_clock(plan: Any, trace: Any, fill: Any) -> object:
    from simulator.engine.cluster import _Run

    from simulator.engine.loop import ByTable

    run = _Run(plan, trace, lambda _: None)
    table = fill(run.pool.prices, "steps")
    if trace.concurrency is None:
        run.pool.serve(table, range(trace.num_requests), run.tick)
    elif len(run.pool.replicas) == 1:
        run.in_compiled_loop(table, trace.concurrency)
    else:
        run.in_simpy(ByTable(table))
    return run.table()


@cache
def prepare(text: str) -> Callable[[], object]:
    """The call that serves a case, its table filled and its code compiled."""
    plan, trace = make_case(Case(**json.loads(text)))
    tables: dict[str, Any] = {}

    def fill(asked: Any, stream: str) -> Any:
        if stream not in tables:
            tables[stream] = make_table(getattr(asked, "prices", asked), stream)
        return tables[stream]

    engine = find_engine()
    engine(plan, trace, fill)
    return lambda: engine(plan, trace, fill)


def answer(text: str) -> dict[str, Any]:
    """CPU seconds of one case."""
    try:
        call = prepare(text)
        return {"cpu_s": repeated_cpu_s(call)}
    except Exception as error:
        return {"refusal": f"{type(error).__name__}: {error}".splitlines()[0]}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)
