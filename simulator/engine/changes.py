"""Stops and starts of replicas during a run, and the return of a stopped replica's requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine.decodes import dissolve_sums
from simulator.engine.events import (
    ARRIVES,
    COMES_LATER,
    FORMS,
    FORMS_LATE,
    GOES_ON,
    Events,
    code_of,
    push_event,
    remove_events,
)
from simulator.engine.pool import PoolState
from simulator.engine.state import (
    BLOCKS,
    COMPUTED,
    FINISH_S,
    FIRST_S,
    FOLLOWING,
    HERE,
    IN_LINE,
    KEPT_BLOCKS,
    KEPT_END,
    KEPT_FIRST,
    LAST_S,
    RETRIES,
    SHARED,
    TRANSFERRED,
    Ints,
)
from simulator.engine.step_log import DECODES, LOG_COLUMNS
from simulator.engine.step_price import ATTENTION
from simulator.engine.windows import list_chain
from simulator.policies.failures import Change
from simulator.results.tables import STEP_PHASES

_CACHE = (COMPUTED, TRANSFERRED, BLOCKS, SHARED, KEPT_FIRST, KEPT_BLOCKS, KEPT_END)
"""Columns of a request's state in the caches of its replica."""
_OF_PROMPT = (FIRST_S, LAST_S, FINISH_S)
"""Columns that a request has once its prompt is computed."""
_PREFILL_TOKENS, _DECODE_TOKENS, _READ_BYTES, _DROPPED_PAIRS = (
    LOG_COLUMNS.index(name)
    for name in ("prefill_tokens", "decode_tokens", "read_bytes", "dropped_pairs")
)


class Changed(NamedTuple):
    """Change of replicas, and the requests that they had."""

    change: Change
    given_back: dict[int, Ints]
    """Requests of each replica whose state the change made a difference to, by their numbers in the
    trace."""

    @property
    def to_resend(self) -> list[int]:
        """Requests to be sent again, by their numbers in the trace."""
        return [int(request) for found in self.given_back.values() for request in found]


def apply_change(change: Change, place: int, pools: Sequence[PoolState], events: Events) -> Changed:
    """Stop or start replicas of a pool.

    Steps that they had under way have been cut off before.

    Args:
        place: of the pool among ``pools``, the one that requests come to first.
    """
    pool = pools[place]
    given_back: dict[int, Ints] = {}
    for replica in change.replicas:
        reasons = pool.clock_of(replica).is_gone
        if change.starts:
            if reasons[0] == 1:
                given_back[replica] = np.zeros(0, dtype=np.int64)
            reasons[:] = np.maximum(reasons - 1, 0)
            continue
        reasons[:] += 1
        if reasons[0] == 1:
            number = replica + place * pools[0].num_replicas
            remove_events(events, [code_of(kind, number) for kind in (FORMS, FORMS_LATE)])
            expected = _call_off(pool, replica, events)
            kept = _lose_kept(pool, replica, events)
            rows = np.sort(np.concatenate([expected, kept, _stop(pool, replica)]))
            given_back[replica] = rows + pool.requests.first
    return Changed(change, given_back)


def send_again(rows: Sequence[int], place: int, at_s: float, events: Events) -> None:
    """Schedule the requests to arrive again at a pool, in order of number."""
    kind = COMES_LATER if place == 0 else GOES_ON
    for request in sorted(rows):
        push_event(events, at_s, code_of(kind, request))


def _stop(pool: PoolState, replica: int) -> Ints:
    """Stop a replica, whose caches are lost. Returns the rows of its requests, which keep the
    tokens they have emitted and nothing else.
    """
    ranks, clock, requests = pool.ranks_of(replica), pool.clock_of(replica), pool.requests
    for d in np.flatnonzero(ranks.num_decodes):
        dissolve_sums(requests, ranks, pool.limits, int(d))
    found = [ranks.running[d, :count] for d, count in enumerate(ranks.num_running)]
    queues = [(int(head), int(n)) for head, n in zip(ranks.head, ranks.num_waiting, strict=True)]
    queues.append((int(clock.first_coming[0]), int(clock.num_coming[0])))
    found += [
        np.fromiter(list_chain(requests.following, head, count), np.int64) for head, count in queues
    ]
    given_back: Ints = np.concatenate(found).astype(np.int64)
    given_back = given_back[requests.stage[given_back] == HERE]
    _lose_caches(pool, given_back)
    for array, fresh in zip(ranks, pool.fresh_ranks, strict=True):
        array[:] = fresh
    clock.num_pushed[:] = clock.num_finished
    clock.outstanding_tokens[:] = clock.coming_tokens[:] = clock.num_coming[:] = 0
    clock.is_busy[:] = False
    return given_back


def _call_off(pool: PoolState, replica: int, events: Events) -> Ints:
    """Take back requests whose caches were to be transferred to a decode replica: the caches stay
    where they are, and the requests ask another replica for room.
    """
    requests = pool.requests
    is_own = (pool.replica_of == replica) & (requests.stage != HERE) & np.isnan(requests.lost_s)
    expected: Ints = np.flatnonzero(is_own)
    remove_events(events, [code_of(ARRIVES, int(request)) for request in expected])
    remove_events(events, [code_of(GOES_ON, int(request)) for request in expected])
    requests.stage[expected] = IN_LINE
    requests.blocks[expected] = 0
    requests.retries[expected] += 1
    return expected


def _lose_kept(pool: PoolState, replica: int, events: Events) -> Ints:
    """Drop prompts whose caches a prefill replica kept for transfer; they are to be
    computed again.
    """
    requests = pool.requests
    is_kept = (requests.blocks + requests.shared > 0) & ~np.isnan(requests.finish_s)
    prompts: Ints = np.flatnonzero((pool.replica_of == replica) & is_kept)
    remove_events(events, [code_of(ARRIVES, int(request)) for request in prompts])
    requests.generated[prompts] = 0
    for column in _OF_PROMPT:
        requests.times[prompts, column] = np.nan
    _lose_caches(pool, prompts)
    return prompts


def _lose_caches(pool: PoolState, given_back: Ints) -> None:
    ints = pool.requests.ints
    for column in _CACHE:
        ints[given_back, column] = 0
    ints[given_back, FOLLOWING] = -1
    ints[given_back, RETRIES] += 1


def cut_row(row: NDArray[np.float64], at_s: float) -> None:
    """Cut a step short: the time until then is spent in the proportions of the whole step, and it
    emits no tokens.
    """
    share = max(0.0, at_s - row[0]) / row[1]
    row[1] *= share
    row[ATTENTION : ATTENTION + len(STEP_PHASES)] *= share
    row[_READ_BYTES] *= share
    row[[_PREFILL_TOKENS, _DECODE_TOKENS, _DROPPED_PAIRS, DECODES]] = 0
