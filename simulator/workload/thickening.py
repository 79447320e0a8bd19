"""More requests on a recording's own time axis: a sampled day at the rate of the whole, with the
day's shape.

Compressing time (``rate_scale``) raises the rate too, but makes the day's slow changes fast ones; a
service that has an hour to grow then has minutes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.workload.traces import RequestTrace, take_requests

_NEIGHBOURS = 64
"""Number of recorded requests around a moment that a request drawn for it may resemble: enough to
mix lengths, and few minutes of any published trace."""


def thicken(trace: RequestTrace, factor: float, rng: np.random.Generator) -> RequestTrace:
    """Make a trace with ``factor`` times as many requests: the recorded ones, and ones drawn
    between them.

    Between any two recorded arrivals equally many are drawn on average, so that the rate grows
    alike at any time. Each has the lengths of a recorded request near it in time; of its prefix
    blocks it shares those that recorded requests share. A larger factor draws what a smaller one
    draws, and more.

    Args:
        factor: at least 1.
    """
    recorded = trace.num_requests
    added = round((factor - 1) * recorded)
    if not added:
        return trace
    moment, choice = rng.random((added, 2)).T
    place = moment * (recorded - 1)
    drawn_s = np.interp(place, np.arange(recorded), trace.arrival_s)
    near = min(_NEIGHBOURS, recorded)
    first = np.clip(place.astype(np.int64) - near // 2, 0, recorded - near)
    like = first + (choice * near).astype(np.int64)
    arrival_s = np.concatenate([trace.arrival_s, drawn_s])
    order = np.argsort(arrival_s, kind="stable")
    source = np.concatenate([np.arange(recorded), like])[order]
    taken = take_requests(trace, source)
    note = (
        f"thickened {factor:g} times: {added} of {added + recorded} requests are drawn from "
        "recorded ones near in time"
    )
    return replace(
        taken,
        arrival_s=arrival_s[order],
        prefix_ids=_own_prefixes(taken, order >= recorded),
        notes=(*trace.notes, note),
    )


def _own_prefixes(taken: RequestTrace, is_drawn: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Renumber prefix blocks: a drawn request has blocks of its own where the one that it resembles
    shares them with no other.
    """
    if not taken.prefix_block_tokens:
        return taken.prefix_ids
    ids = taken.prefix_ids.copy()
    of_drawn = np.repeat(is_drawn, np.diff(taken.prefix_starts))
    num_ids = int(ids.max(initial=-1)) + 1
    uses = np.bincount(ids[~of_drawn], minlength=num_ids)
    own = of_drawn & (uses[ids] == 1)
    ids[own] = num_ids + np.arange(int(own.sum()))
    return ids
