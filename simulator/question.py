"""A plan's question, read from a file or by the name of a shipped one."""

from __future__ import annotations

from pathlib import Path

from simulator.scenario import read_named
from simulator.spec.base import validate
from simulator.spec.planning import Question


def load_question(name: str, overrides: list[str], seed: int | None = None) -> tuple[Question, Path]:
    """The question in a file, or a shipped one by name, and the file.

    Args:
        overrides: ``path=value`` texts, as of a scenario (``workload.rate_scale=2``, ``clusters.0.price_per_gpu_hour=2.1``).

    Raises:
        UserError: if the file is missing or wrong, or an override names no place.
    """
    table, path, where = read_named(name, overrides, seed, "workloads/plans", "plan")
    return validate(Question, table, where), path
