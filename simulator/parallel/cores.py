"""Numbers of processes that the user asks for."""

from __future__ import annotations

from simulator.base.errors import UserError


def check_count(workers: int | None) -> None:
    """Refuse a number of processes below 1; ``None`` is any.

    Raises:
        UserError: if it is below 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
