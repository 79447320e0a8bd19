"""Which machine figures were taken on, and with what."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from simulator.results.provenance import Provenance


def name_processor() -> str:
    """The processor's model, as the system calls it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
