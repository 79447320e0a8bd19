"""Calls of arrival processes and length distributions, with checks of what they promise. Both
functions raise the ``UserError`` of :func:`simulator.base.contracts.ask` where a user's own breaks
a promise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.contracts import ask, is_array
from simulator.workload.arrivals import ArrivalProcess
from simulator.workload.lengths import LengthDistribution


def draw_arrivals(
    process: ArrivalProcess, num_requests: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw sorted arrival times in seconds, ``[num_requests]``."""

    def explain(arrival_s: object) -> str:
        fits = is_array(arrival_s, (num_requests,), whole=False) and not (
            arrival_s.min(initial=0.0) < 0 or (np.diff(arrival_s) < 0).any()
        )
        wanted = f"numbers of shape ({num_requests},): seconds from 0 on, never falling"
        return "" if fits else wanted

    found = ask(ArrivalProcess.arrival_s, process, num_requests, rng, explain=explain)
    return np.asarray(found, dtype=np.float64)


def draw_lengths(
    distribution: LengthDistribution, num_requests: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw ``(num_input, num_output)``, each ``[num_requests]``."""

    def explain(lengths: object) -> str:
        fits = (
            isinstance(lengths, tuple)
            and len(lengths) == 2
            and all(
                is_array(side, (num_requests,), whole=True) and side.min(initial=1) >= 1
                for side in lengths
            )
        )
        wanted = f"two arrays of whole numbers of shape ({num_requests},), all at least 1"
        return "" if fits else wanted

    method = LengthDistribution.draw
    num_input, num_output = ask(method, distribution, num_requests, rng, explain=explain)
    return np.asarray(num_input, dtype=np.int64), np.asarray(num_output, dtype=np.int64)
