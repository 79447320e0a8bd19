"""Which machine figures were taken on, and with what."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from typing import Any

from simulator.base.machine import name_processor
from simulator.results.provenance import Provenance


def read_memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system, and how busy others kept it when this began."""
    return {
        "processor": name_processor(),
        "cores": os.cpu_count(),
        "memory_bytes": read_memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average_1_min": round(os.getloadavg()[0], 2),
    }


def describe_making(made: Provenance, machine: dict[str, Any], effort: str) -> dict[str, Any]:
    """Everything that has to be known to measure again."""
    command = shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]])
    return {**made.describe(), "command": command, "effort": effort, "machine": machine}
