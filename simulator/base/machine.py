"""The machine that the program runs on, and collection of garbage in a process of our own."""

from __future__ import annotations

import gc
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def name_machine() -> str:
    """The processor and the cores of it that may be used, as a name to tell machines apart by."""
    return f"{name_processor()}, {count_cores()} cores"


def name_processor() -> str:
    """The processor's model, as the system calls it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def count_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use: those of its affinity, or the whole ones that the
    quotas of its control groups pay for, where these are fewer.

    Args:
        root: of the file systems ``proc`` and ``sys``.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([own, *_list_quotas(root)])))


def _list_quotas(root: Path) -> Iterator[float]:
    """Cores that each control group around this process has at once, of either version."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                with suppress(OSError, ValueError):  # no such group in this container, or no limit
                    quota, period = " ".join((folder / name).read_text() for name in names).split()
                    if int(quota) > 0:
                        yield int(quota) / int(period)


_RARE_LOOKS = (200_000, 10, 100)
"""Objects that are made between two looks for cycles of garbage, how many of these there are to one
at older objects, and of those to one at all."""


def look_rarely() -> None:
    """Look for cycles of garbage less often than Python does, which took a tenth of a short run
    (measured: 4.4 against 4.0 s of CPU).
    """
    gc.set_threshold(*_RARE_LOOKS)


@contextmanager
def hold_imports(heaviest: str) -> Iterator[None]:
    """Let the objects that imports make stay for good, where this context is the first to import
    the heaviest of them: none is looked at for garbage, neither meanwhile nor later.
    """
    if heaviest in sys.modules:
        yield
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
