"""Numbers of processes: one a core of this machine, or as many as the user says."""

from __future__ import annotations

import os

from simulator.base.errors import UserError


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_count(workers: int | None) -> None:
    """Refuse a number of processes below 1; ``None`` is any.

    Raises:
        UserError: if it is below 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
