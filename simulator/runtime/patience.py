"""How long ranks may keep each other waiting before one of them is taken for hung."""

from __future__ import annotations

_FIRST = 10
"""Times the time that was asked for, which the first step of a kind may take: its kernels are
loaded, its caches filled, and nothing is known yet of how long it takes here."""
_SLOWEST = 5
"""Times the slowest step of a kind so far: on a busy machine healthy steps differ by as much."""


class Patience:
    """Learns from the steps of one job; a deployment that takes long gets more of it."""

    def __init__(self, least_s: float) -> None:
        """Nothing is known yet.

        Args:
            least_s: that ranks may always wait, in seconds.
        """
        self.least_s = least_s
        self._slowest_s: dict[str, float] = {}

    @property
    def first_s(self) -> float:
        """Seconds that ranks may wait for what was not measured yet."""
        return _FIRST * self.least_s

    def of(self, kind: str) -> float:
        """Seconds that ranks may wait in a step of a kind."""
        slowest_s = self._slowest_s.get(kind)
        return self.first_s if slowest_s is None else max(self.least_s, _SLOWEST * slowest_s)

    def learn(self, kind: str, took_s: float) -> None:
        """A step of a kind was finished."""
        self._slowest_s[kind] = max(took_s, self._slowest_s.get(kind, 0.0))

    def forget(self) -> None:
        """Another job's steps take another time, and so do ranks that are new."""
        self._slowest_s.clear()
