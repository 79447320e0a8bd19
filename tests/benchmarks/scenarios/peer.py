"""One trace served by NVIDIA Dynamo's simulator of a serving engine, where it is installed.

``python -m dynamo.replay`` (ai-dynamo 1.2 to 1.4) serves synthetic requests in virtual time; its
options are those of the reference page of 1.4.0
(docs.nvidia.com/dynamo/v1.4.0/reference/components/dyno-sim-replay-cli-reference). From 1.5 on
another program took its place, with a file of its own, which is not called here. It prices a step
by a formula of its own, so only the time that simulating takes is comparable, not what comes out.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.clock import time_in_turns
from tests.benchmarks.effort import Effort
from tests.benchmarks.rows import Row
from tests.benchmarks.scenarios.whole_run import run_scenario

TITLE = "Beside a peer"
ORDER = 70
OPT_IN = False
PEER = "NVIDIA Dynamo, dynamo.replay"
ABSENT = "not installed: pip install 'ai-dynamo>=1.2,<1.5'"
INPUT, OUTPUT, INTERVAL_MS = 1_024, 256, 1_000 / 22


def is_installed() -> bool:
    """Whether there is a Dynamo that has the program."""
    try:
        return importlib.util.find_spec("dynamo.replay") is not None
    except ModuleNotFoundError:
        return False


def replay(num_requests: int) -> float:
    """CPU seconds of the peer, from the start of its process to its end."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            "input-tokens": INPUT,
            "output-tokens": OUTPUT,
            "request-count": num_requests,
            "arrival-interval-ms": INTERVAL_MS,
            "num-workers": 1,
            "replay-mode": "offline",
            "report-json": Path(folder) / "report.json",
        }
        options = [str(part) for key, value in sizes.items() for part in (f"--{key}", value)]
        before = os.times()
        command = [sys.executable, "-m", "dynamo.replay", *options]
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def measure(effort: Effort, tell: Callable[[str], None]) -> Iterator[Row]:
    """Requests a second of the whole command, its start left out of account."""
    name = f"one replica, {INPUT:,} and {OUTPUT} tokens, 22 requests/s"
    tell(name)
    few, many = effort.run_requests
    if not is_installed():
        yield Row("peer", name, "requests", "1/s", None, "higher", PEER, note=ABSENT)
        return
    calls: dict[tuple[str, int], Callable[[], float]] = {
        ("own", few): lambda: run_scenario(few).cpu_s,
        ("own", many): lambda: run_scenario(many).cpu_s,
        ("peer", few): lambda: replay(few),
        ("peer", many): lambda: replay(many),
    }
    spent = time_in_turns(calls, 1)
    own, peer = ((many - few) / (spent[who, many] - spent[who, few]) for who in ("own", "peer"))
    note = f"whole command, from {few:,} to {many:,} requests; prices differ"
    yield Row("peer", name, "requests", "1/s", own, "higher", PEER, peer, note=note)
