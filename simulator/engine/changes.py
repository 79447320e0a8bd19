"""Stops and starts of replicas and their ranks during a run, and the return of the requests that
they had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

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
from simulator.engine.hand_over import drop_lost, release_sent, withdraw
from simulator.engine.loop_state import LoopState
from simulator.engine.pool import PoolState
from simulator.engine.queue import list_requests
from simulator.engine.sending import release_next
from simulator.engine.state import HERE, IN_LINE, Ints
from simulator.engine.step_log import DECODES, LOG_COLUMNS
from simulator.engine.step_price import ATTENTION
from simulator.results.phases import STEP_PHASES

_CACHE = ["computed", "transferred", "blocks", "shared", "kept_first", "kept_blocks", "kept_end"]
"""A request's state in the caches of its replica."""
_OF_PROMPT = ["first_s", "last_s", "finish_s"]
"""Times that a request has once its prompt is computed."""
_PREFILL_TOKENS, _DECODE_TOKENS, _READ_BYTES, _DROPPED_PAIRS = (
    LOG_COLUMNS.index(name)
    for name in ("prefill_tokens", "decode_tokens", "read_bytes", "dropped_pairs")
)


Kind = Literal[
    "hangs", "stops", "starts", "shrinks", "grows", "evacuates", "launches", "drains", "leaves"
]
"""Kinds of changes of a replica: a GPU has failed, which nobody has noticed yet; it is gone; it
serves again; it goes on with fewer ranks; ranks have joined it again; a failure is announced, until
which it gets no requests; its GPUs are taken, on which it starts; it gets no more requests; its
GPUs are given back."""


class Changed(NamedTuple):
    """Change of some replicas of a pool at one instant, and the requests that they lost."""

    at_s: float
    pool: str
    kind: Kind
    given_back: dict[int, Ints]
    """Requests that each of the replicas lost, by their numbers in the trace."""
    num_gpus: int
    """GPUs that each of the replicas serves with then."""
    serves_s: float
    """Time from which they do so, once they have started or their ranks have formed a new group,
    seconds."""

    def list_requests(self) -> list[int]:
        """List the requests that were lost, by their numbers in the trace."""
        return [int(request) for found in self.given_back.values() for request in found]


def stop_replica(pool: PoolState, replica: int, events: Events) -> Ints:
    """Stop a replica, whose caches are lost; its step under way has been cut off before.

    Returns:
        Requests that it had, by their numbers in the trace; they keep the tokens they have emitted
            and nothing else.
    """
    (counts,) = pool.clock_of(replica).counts
    everywhere = np.ones(pool.plan.placement.layout.attention_dp, dtype=np.bool_)
    rows = [
        _call_off(pool, replica, everywhere, events),
        _lose_kept(pool, replica, everywhere, events),
    ]
    rows += [_lose_running(pool, replica), _lose_coming(pool, replica)]
    counts.is_gone = 1
    for array, fresh in zip(pool.ranks_of(replica), pool.fresh_ranks, strict=True):
        array[:] = fresh
    counts.num_kept = counts.outstanding_tokens = 0
    counts.num_pushed = counts.num_finished
    given_back: Ints = np.sort(np.concatenate(rows)) + pool.requests.first
    return given_back


def lose_groups(pool: PoolState, replica: int, lost_D: NDArray[np.bool_], events: Events) -> Ints:
    """Stop some data-parallel groups of a replica, whose caches are lost, while the others go on.

    Returns:
        Requests that they had, by their numbers in the trace.
    """
    ranks, requests = pool.ranks_of(replica), pool.requests
    (counts,) = pool.clock_of(replica).counts
    expected = _call_off(pool, replica, lost_D, events)
    kept = _lose_kept(pool, replica, lost_D, events)
    counts.num_kept -= len(kept)
    here = _lose_running(pool, replica, lost_D)
    left = np.concatenate([expected, here])
    counts.num_pushed -= len(left)
    rows = requests.each[left]
    counts.outstanding_tokens -= (rows.num_input + rows.num_output).sum()
    for array, fresh in zip(ranks, pool.fresh_ranks, strict=True):
        if array is not ranks.counts:
            array[lost_D] = fresh[lost_D]
    ranks.each.is_lost[lost_D] = 1
    given_back: Ints = np.sort(np.concatenate([left, kept])) + requests.first
    return given_back


def halt_replica(pool: PoolState, replica: int, number: int, events: Events) -> None:
    """Call off the step that a replica is about to form; one under way has been cut off.

    Args:
        number: of the replica among those of all pools.
    """
    remove_events(events, [code_of(kind, number) for kind in (FORMS, FORMS_LATE)])
    pool.clock_of(replica).counts.is_busy[:] = False


def undo_formed(pool: PoolState, replica: int) -> None:
    """Undo what forming a step did that forming it again would do once more: blocks for the next
    token of summed decodes.
    """
    ranks = pool.ranks_of(replica)
    for d in np.flatnonzero(ranks.each.num_decodes):
        taken = ranks.ring[d, ranks.each.ticks[d] % pool.limits.block_tokens]
        ranks.caches.free_blocks[d] += taken
        dissolve_sums(pool.requests, ranks, pool.limits, int(d))


def lose_requests(rows: Sequence[int], place: int, at_s: float, state: LoopState) -> None:
    """Lose the requests that a replica of a pool gave back; their clients get an error."""
    first, handing = state.first, state.handing
    for row in rows:
        state.pools[place].requests.each.lost_s[row] = at_s
        if handing is not None and place == 0:
            drop_lost(state.events, len(first.clock.counts), handing.pool, row, at_s)
        elif handing is not None and first.requests.each.first_s[row] >= 0:
            release_sent(state.events, first, row, at_s)
        release_next(state.feed, first.requests, 1, at_s)


def withdraw_requests(rows: Sequence[int], at_s: float, state: LoopState) -> None:
    """Give up the places in the decode pool of requests whose prompts are computed again: they ask
    for room once more, since caches that wait for room may be in the way of these prompts.
    """
    if state.handing is None:
        return
    pool, num_first = state.handing.pool, len(state.first.clock.counts)
    for row in rows:
        if remove_events(state.events, [code_of(GOES_ON, row)]):
            pool.requests.each.stage[row] = HERE
        else:
            withdraw(state.events, num_first, pool, row, at_s)


def forget_tokens(rows: Sequence[int] | Ints, pool: PoolState) -> None:
    """Forget the output tokens of the requests, which begin anew."""
    each = pool.requests.each
    each.generated[rows] = 0
    for name in _OF_PROMPT:
        each[name][rows] = np.nan


def send_again(rows: Sequence[int], place: int, at_s: float, events: Events) -> None:
    """Schedule the requests to arrive again at a pool, in order of number."""
    kind = COMES_LATER if place == 0 else GOES_ON
    for request in sorted(rows):
        push_event(events, at_s, code_of(kind, request))


def _lose_running(pool: PoolState, replica: int, lost_D: NDArray[np.bool_] | None = None) -> Ints:
    """Take back the requests that run or wait at a replica's ranks.

    Args:
        lost_D: data-parallel groups, ``[D]``; by default all, those of all lanes of a pipeline.
    """
    ranks, requests = pool.ranks_of(replica), pool.requests
    each = range(len(ranks.each)) if lost_D is None else np.flatnonzero(lost_D).tolist()
    found = [np.zeros(0, dtype=np.int64)]
    for d in each:
        rank = ranks.each[d]
        if rank.num_decodes:
            dissolve_sums(requests, ranks, pool.limits, d)
        found.append(ranks.running[d, : rank.num_running])
        found += [list_requests(queue, requests.each) for queue in (rank.ready, rank.waiting)]
    given_back: Ints = np.concatenate(found)
    given_back = given_back[requests.each.stage[given_back] == HERE]
    _lose_caches(pool, given_back)
    return given_back


def _lose_coming(pool: PoolState, replica: int) -> Ints:
    """Take back the requests that were sent to a replica and are at no rank yet."""
    (counts,), requests = pool.clock_of(replica).counts, pool.requests
    coming: Ints = list_requests(counts.coming, requests.each)
    coming = coming[requests.each.stage[coming] == HERE]
    _lose_caches(pool, coming)
    counts.coming_tokens = counts.coming.count = 0
    return coming


def _find_own(pool: PoolState, replica: int, lost_D: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each request was sent to some data-parallel groups of a replica; where these are all,
    also those that it has not queued at a rank yet.
    """
    is_own: NDArray[np.bool_] = pool.replica_of == replica
    if not lost_D.all():
        (counts,) = pool.clock_of(replica).counts
        is_own &= lost_D[pool.requests.each.dp_rank % len(lost_D)]
        is_own[list_requests(counts.coming, pool.requests.each)] = False
    return is_own


def _call_off(pool: PoolState, replica: int, lost_D: NDArray[np.bool_], events: Events) -> Ints:
    """Take back requests whose caches were to be transferred to groups of a decode replica: the
    caches stay where they are, and the requests ask another rank for room.
    """
    rows = pool.requests.each
    is_own = _find_own(pool, replica, lost_D)
    is_own &= (rows.stage != HERE) & np.isnan(rows.lost_s)
    expected: Ints = np.flatnonzero(is_own)
    remove_events(events, [code_of(ARRIVES, int(request)) for request in expected])
    remove_events(events, [code_of(GOES_ON, int(request)) for request in expected])
    rows.stage[expected] = IN_LINE
    rows.blocks[expected] = 0
    rows.child[expected] = rows.before[expected] = -1
    rows.retries[expected] += 1
    return expected


def _lose_kept(pool: PoolState, replica: int, lost_D: NDArray[np.bool_], events: Events) -> Ints:
    """Drop prompts whose caches groups of a prefill replica kept for transfer; they are to be
    computed again.
    """
    rows = pool.requests.each
    is_kept = (rows.blocks + rows.shared > 0) & ~np.isnan(rows.finish_s)
    prompts: Ints = np.flatnonzero(_find_own(pool, replica, lost_D) & is_kept)
    remove_events(events, [code_of(ARRIVES, int(request)) for request in prompts])
    forget_tokens(prompts, pool)
    _lose_caches(pool, prompts)
    return prompts


def _lose_caches(pool: PoolState, given_back: Ints) -> None:
    rows = pool.requests.each
    for name in _CACHE:
        rows[name][given_back] = 0
    rows.following[given_back] = rows.child[given_back] = rows.before[given_back] = -1
    rows.retries[given_back] += 1


def cut_row(row: NDArray[np.float64], at_s: float) -> None:
    """Cut a step short: the time until then is spent in the proportions of the whole step, and it
    emits no tokens.
    """
    share = max(0.0, at_s - row[0]) / row[1]
    row[1] *= share
    row[ATTENTION : ATTENTION + len(STEP_PHASES)] *= share
    row[_READ_BYTES] *= share
    row[[_PREFILL_TOKENS, _DECODE_TOKENS, _DROPPED_PAIRS, DECODES]] = 0
