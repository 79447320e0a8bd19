"""Timeouts after which a rank that keeps the others waiting counts as hung."""

from __future__ import annotations

_FIRST = 10
"""Multiple of the requested timeout for the first step of a kind: its kernels are loaded, its
caches filled, and its duration is still unknown."""
_SLOWEST = 5
"""Multiple of the slowest step of a kind so far: on a busy machine healthy steps differ by as
much."""


class Patience:
    """Timeouts learned from the steps of one job; slow deployments get longer ones."""

    def __init__(self, least_s: float) -> None:
        """Start without measurements.

        Args:
            least_s: shortest timeout, seconds.
        """
        self.least_s = least_s
        self._slowest_s: dict[str, float] = {}

    @property
    def first_s(self) -> float:
        """Seconds that ranks may wait for steps that were not measured yet."""
        return _FIRST * self.least_s

    def limit_s(self, kind: str) -> float:
        """Seconds that ranks may wait in a step of a kind."""
        slowest_s = self._slowest_s.get(kind)
        return self.first_s if slowest_s is None else max(self.least_s, _SLOWEST * slowest_s)

    def learn(self, kind: str, took_s: float) -> None:
        """Record the duration of a finished step of a kind."""
        self._slowest_s[kind] = max(took_s, self._slowest_s.get(kind, 0.0))

    def forget(self) -> None:
        """Forget all durations: another job's steps take another time, and so do new ranks."""
        self._slowest_s.clear()
