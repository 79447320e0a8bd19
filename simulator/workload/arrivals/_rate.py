"""Modulated request rates: the building blocks of :mod:`simulator.workload.arrivals.modulated` and
:mod:`~.windowed`.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.quantities import Duration, value_range
from simulator.workload.renewal import Cv, Pattern

FEWEST_REQUESTS = 0.1
"""Mean requests of one round (all windows, or a span) below which drawing them window by window
would not end."""

_MOST_WINDOWS = 10_000_000
"""Most windows that are drawn one by one: a minute of work."""


def check_windows(num_requests: int, requests_per_round: float, windows_per_round: int) -> None:
    """Refuse windows so short that drawing the requests window by window would not end.

    Raises:
        UserError: with how long they would have to be.
    """
    windows = num_requests / requests_per_round * windows_per_round
    if windows > _MOST_WINDOWS:
        raise UserError(
            f"arrivals: {num_requests:,} requests take {windows:,.3g} windows, at most "
            f"{_MOST_WINDOWS:,} are drawn; make them {windows / _MOST_WINDOWS:.2g} times as long"
        )


class Window(Frozen):
    """A stretch of time with one rate and one burstiness."""

    duration_s: Duration
    """Seconds that the window lasts."""
    rate_per_s: Annotated[float, value_range(0, 1e6, "requests per second")]
    """Mean requests per second; 0 where nobody asks."""
    cv: Cv = 1.0
    """Coefficient of variation of the gaps in the window."""
    pattern: Pattern = "gamma"
    """Distribution of the gaps."""


class Swing(Frozen):
    """A random multiplier of the rate: log-normal with mean 1, forgetting itself over ``time_s``
    (Ornstein-Uhlenbeck).
    """

    std: Annotated[float, value_range(1e-6, 1e3)]
    """Standard deviation of the multiplier."""
    time_s: Duration
    """Seconds after which the correlation of its logarithm has fallen to 1/e."""

    def multipliers(
        self, num_cells: int, cell_s: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """The multiplier in ``num_cells`` cells of ``cell_s`` seconds each."""
        variance = math.log1p(self.std**2)
        return np.exp(
            math.sqrt(variance) * _wander(num_cells, cell_s / self.time_s, rng) - variance / 2
        )


class Pauses(Frozen):
    """Times when nobody asks, at random: exponential silences of ``mean_s``, exponential activity
    between them.
    """

    share: Annotated[float, value_range(1e-6, 0.999999)]
    """Share of the time that is silent."""
    mean_s: Duration
    """Mean length of a silence, seconds."""

    def multipliers(
        self, num_cells: int, cell_s: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """1 in cells with activity, 0 in silent ones."""
        means_s = (self.mean_s, self.mean_s * (1 - self.share) / self.share)
        is_active = bool(rng.random() >= self.share)
        relative = np.zeros(num_cells)
        start_s = 0.0
        while start_s < num_cells * cell_s:
            end_s = start_s + rng.exponential(means_s[is_active])
            if is_active:
                relative[round(start_s / cell_s) : round(end_s / cell_s)] = 1.0
            start_s, is_active = end_s, not is_active
        return relative


def _wander(num_cells: int, step: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A stationary Gaussian process of variance 1 with correlation ``exp(-step)`` from cell to
    cell.

    The recursion ``z[t] = a z[t-1] + sqrt(1 - a^2) e[t]`` is summed in closed form within blocks
    short enough for ``a^-t``.
    """
    noise = rng.standard_normal(num_cells) * math.sqrt(-math.expm1(-2 * step))
    noise[0] /= math.sqrt(-math.expm1(-2 * step))
    block = max(1, min(num_cells, int(12 / step)))
    decay = np.exp(-step * np.arange(1, block + 1))
    last = 0.0
    for start in range(0, num_cells, block):
        part = noise[start : start + block]
        fade = decay[: len(part)]
        part[:] = fade * (np.cumsum(part / fade) + last)
        last = float(part[-1])
    return noise
