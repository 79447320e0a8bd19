"""Sending of requests to replicas: pools, load balancers as numbers, and the arrival of requests.
Compiled.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from simulator.base.jit import jit, jit_inner
from simulator.engine.blocks import count_hits
from simulator.engine.events import Events, code_of, push_event
from simulator.engine.queue import join
from simulator.engine.state import Clock, Floats, Ints, Limits, Ranks, Records, Requests
from simulator.engine.table import StepTable


class Pool(NamedTuple):
    """Equal replicas behind one load balancer."""

    requests: Requests
    """Requests of the trace as far as this pool serves them: those of a prefill pool have one
    output token."""
    ranks: Ranks
    """Ranks of all replicas, ``[M, ...]``."""
    clock: Clock
    """Clocks of all replicas, ``[M, ...]``."""
    limits: Limits
    table: StepTable
    balance: Balance


class Weights(NamedTuple):
    """Weights of what makes a load (:class:`simulator.policies.balancing.Rule`)."""

    per_request: float = 0.0
    per_token: float = 0.0
    per_new_token: float = 0.0


class Balance(NamedTuple):
    """Load balancer of a pool, as numbers."""

    weights: Weights
    turns: Ints
    """``[N]`` replica of each of the trace's requests in order of arrival; empty where load
    decides."""
    is_asked: bool
    """Whether a balancer in Python chooses."""
    num_sent: Ints
    """``[1]`` requests sent so far."""
    replica_of: Ints
    """``[rows]`` replica that each request was sent to."""


class Feed(NamedTuple):
    """Arrival of requests at the first pool, by rows of the window on the trace."""

    num_come: Ints
    """``[1]`` row of the next request to arrive."""
    num_released: Ints
    """``[1]`` rows of requests whose arrival is known: all of an open loop."""
    is_closed: bool
    """Whether the end of a request releases another (closed loop)."""
    ingress_delay_s: float
    """Seconds from the end of one request of a closed loop to the next one's arrival."""
    num_done: Ints
    """``[1]`` requests that are finished or lost."""
    num_requests: int
    """Requests of the whole trace."""
    chosen: Ints
    """``[1]`` replica that a balancer in Python has chosen, or -1."""
    used_up: Ints
    """``[1]`` requests that may arrive before the window on the trace needs more rows
    (:mod:`simulator.engine.windows`)."""
    asks: Ints
    """``[2]`` place of the pool whose balancer is asked or that is looked at, number of the replica
    whose step has no price yet or that has drained, or row of the request whose cache leaves; and
    row of the request that a balancer is asked for."""
    stopped_s: Floats
    """``[1]`` time at which a replica has drained, or has taken the steps that somebody waits for,
    seconds."""


@jit_inner
def send_request(pool: Pool, request: int, feed: Feed, now_s: float) -> int:
    """Send a request to the replica that the balancer chooses, which queues it when it forms a
    step. Returns the replica's number, -1 where none is left.
    """
    replica = _choose(pool, request, feed)
    feed.chosen[0] = -1
    if replica < 0:
        return -1
    pool.balance.num_sent[0] += 1
    pool.balance.replica_of[request] = replica
    rows, counts = pool.requests.each, pool.clock.counts[replica, 0]
    rows[request].key = rows[request].key_offset + pool.limits.key_per_second * now_s
    join(counts.coming, rows, request)
    counts.coming_tokens += rows[request].num_input + rows[request].num_output
    return replica


@jit_inner
def _choose(pool: Pool, request: int, feed: Feed) -> int:
    clock, balance = pool.clock, pool.balance
    num_replicas = len(clock.counts)
    if num_replicas == 1:
        counts = clock.counts[0, 0]
        return -1 if counts.is_gone or counts.is_draining else 0
    if feed.chosen[0] >= 0:
        return int(feed.chosen[0])
    if len(balance.turns) > 0:
        return int(balance.turns[balance.num_sent[0]])
    best, least = -1, 0.0
    for replica in range(num_replicas):
        counts = clock.counts[replica, 0]
        if counts.is_gone or counts.is_draining:
            continue
        if balance.weights.per_new_token > 0:
            load = _measure_best_rank(pool, replica, request)
        else:
            outstanding = counts.num_pushed - counts.num_finished + counts.coming.count
            tokens = counts.outstanding_tokens + counts.coming_tokens
            load = balance.weights.per_request * outstanding + balance.weights.per_token * tokens
        if best < 0 or load < least:
            best, least = replica, load
    return best


@jit_inner
def _measure_best_rank(pool: Pool, replica: int, request: int) -> float:
    """Load of the rank of a replica where a request would be best off, with an equal part of the
    requests that are at no rank yet.
    """
    ranks, weights = pool.ranks, pool.balance.weights
    each, counts = ranks.each[replica], pool.clock.counts[replica, 0]
    d = choose_rank(pool.requests, each, ranks.prefixes[replica], request, weights, pool.limits)
    if d < 0:
        return math.inf
    coming = weights.per_request * counts.coming.count + weights.per_token * counts.coming_tokens
    load = _measure_load(
        pool.requests, each, ranks.prefixes[replica], d, request, weights, pool.limits
    )
    return float(load + coming / len(each))


@jit_inner
def choose_rank(
    requests: Requests, each: Records, prefixes: Records, r: int, weights: Weights, limits: Limits
) -> int:
    """Choose the data-parallel rank of a replica for request ``r``: the one with the least load
    where the balancer sees prefixes, otherwise the one with the fewest unfinished requests.
    """
    best, least = -1, 0.0
    for d in range(len(each)):
        if each[d].is_lost:
            continue
        if weights.per_new_token > 0:
            load = _measure_load(requests, each, prefixes, d, r, weights, limits)
        else:
            load = float(_count_unfinished(each, d))
        if best < 0 or load < least:
            best, least = d, load
    return best


@jit_inner
def _measure_load(
    requests: Requests,
    each: Records,
    prefixes: Records,
    d: int,
    r: int,
    weights: Weights,
    limits: Limits,
) -> float:
    """Load of a rank with request ``r``, whose cached prefix need not be computed there."""
    cached = count_hits(requests, prefixes, d % len(prefixes), r, limits) * limits.prefix_tokens
    return float(
        weights.per_request * _count_unfinished(each, d)
        + weights.per_token * each[d].tokens
        + weights.per_new_token * (requests.each[r].num_input - cached)
    )


@jit_inner
def _count_unfinished(each: Records, d: int) -> int:
    rank = each[d]
    here = rank.waiting.count + rank.ready.count + rank.num_running
    return int(here + rank.line.count + rank.num_reserved)


@jit
def find_cached(
    requests: Requests, prefixes: Records, r: int, limits: Limits, replicas: Ints
) -> Ints:
    """Tokens of the longest prefix of request ``r`` that a rank of each of some replicas has in its
    cache, ``[M]``.

    Args:
        prefixes: of all replicas.
    """
    found = np.zeros(len(replicas), np.int64)
    for place, replica in enumerate(replicas):
        for d in range(prefixes.shape[1]):
            hits = count_hits(requests, prefixes[replica], d, r, limits)
            found[place] = max(found[place], hits * limits.prefix_tokens)
    return found


@jit_inner
def has_drained(clock: Clock, replica: int) -> bool:
    """Whether a draining replica has no request left, and no cache that another pool needs."""
    counts = clock.counts[replica, 0]
    return bool(
        counts.is_draining
        and counts.coming.count == 0
        and counts.num_kept == 0
        and counts.num_pushed == counts.num_finished
    )


@jit_inner
def form_soon(
    events: Events, clock: Clock, replica: int, number: int, now_s: float, kind: int
) -> None:
    """Let a replica form a step at this instant, unless one is in flight."""
    counts = clock.counts[replica, 0]
    if not counts.is_busy:
        counts.is_busy = True
        push_event(events, now_s, code_of(kind, number))


@jit_inner
def ranks_of(ranks: Ranks, replica: int) -> Ranks:
    """Ranks of one replica."""
    return Ranks(
        ranks.each[replica],
        ranks.running[replica],
        ranks.chunk[replica],
        ranks.caches[replica],
        ranks.prefixes[replica],
        ranks.counts[replica],
        ranks.output_share[replica],
        ranks.ring[replica],
        ranks.emitted_s[replica],
        ranks.ends[replica],
        ranks.starts[replica],
        ranks.profiles[replica],
    )


@jit_inner
def clock_of(clock: Clock, replica: int) -> Clock:
    """Clock of one replica."""
    return Clock(clock.counts[replica], clock.gap_counts[replica])


@jit_inner
def release_next(feed: Feed, requests: Requests, count: int, now_s: float) -> None:
    """Count ``count`` requests as done, and let clients of a closed loop send others instead."""
    feed.num_done[0] += count
    if feed.is_closed:
        rows = requests.each
        for _ in range(min(count, len(rows) - feed.num_released[0])):
            rows[feed.num_released[0]].arrival_s = now_s + feed.ingress_delay_s
            feed.num_released[0] += 1
