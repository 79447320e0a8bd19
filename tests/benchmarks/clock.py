"""CPU time of one process, and what a process of its own takes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

ROOT = Path(__file__).parents[2]
Name = TypeVar("Name")


class Spent(NamedTuple):
    """What a process took from its start to its end."""

    cpu_s: float
    wall_s: float
    peak_bytes: int


def cpu_s(call: Callable[[], object]) -> float:
    """CPU seconds of one call, all threads of this process counted."""
    began_s = time.process_time()
    call()
    return time.process_time() - began_s


def repeated_cpu_s(call: Callable[[], object]) -> float:
    """CPU seconds of a call, the mean of as many as take half a second.

    A process that has waited for another begins slowly (measured: twice as long for the first tenth
    of a second), which is much of a short call and little of a long one.
    """
    count, spent_s = 0, 0.0
    while spent_s < 0.5:
        spent_s += cpu_s(call)
        count += 1
    return spent_s / count


def time_in_turns(calls: Mapping[Name, Callable[[], float]], rounds: int) -> dict[Name, float]:
    """The median of what each call returns: every round asks all of them, one after the other, so
    that a machine that is slow for a while is slow for all.

    Args:
        rounds: an odd number, so that the median is a figure that was measured.
    """
    if rounds % 2 == 0:
        raise ValueError(f"rounds = {rounds}: an odd number is meant")
    found: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(call())
    return {name: statistics.median(values) for name, values in found.items()}


def run_moesim(*arguments: str | Path, **environment: str) -> Spent:
    """The command in a process of its own, whose output is kept from the reader.

    Raises:
        RuntimeError: if it fails, with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "spent.json"
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.child", out, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"moesim {arguments[0]} failed: {done.stderr[-400:]}")
        return Spent(**json.loads(out.read_text(encoding="utf-8")))
