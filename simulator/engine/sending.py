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
from simulator.engine.state import (
    ARRIVAL_S,
    COMING_TOKENS,
    FIRST_COMING,
    FOLLOWING,
    IS_BUSY,
    IS_DRAINING,
    IS_GONE,
    IS_LOST,
    LAST_COMING,
    NUM_COMING,
    NUM_FINISHED,
    NUM_IN_LINE,
    NUM_INPUT,
    NUM_KEPT,
    NUM_OUTPUT,
    NUM_PUSHED,
    NUM_RESERVED,
    NUM_RUNNING,
    NUM_WAITING,
    OUTSTANDING_TOKENS,
    TOKENS,
    Clock,
    Floats,
    Ints,
    Limits,
    Ranks,
    Requests,
)
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
def send_request(pool: Pool, request: int, feed: Feed) -> int:
    """Send a request to the replica that the balancer chooses, which queues it when it forms a
    step. Returns the replica's number, -1 where none is left.
    """
    replica = _choose(pool, request, feed)
    feed.chosen[0] = -1
    if replica < 0:
        return -1
    balance, ints, counts = pool.balance, pool.requests.ints, pool.clock.counts
    balance.num_sent[0] += 1
    balance.replica_of[request] = replica
    ints[request, FOLLOWING] = -1
    if counts[replica, 0, NUM_COMING] == 0:
        counts[replica, 0, FIRST_COMING] = request
    else:
        ints[counts[replica, 0, LAST_COMING], FOLLOWING] = request
    counts[replica, 0, LAST_COMING] = request
    counts[replica, 0, NUM_COMING] += 1
    counts[replica, 0, COMING_TOKENS] += ints[request, NUM_INPUT] + ints[request, NUM_OUTPUT]
    return replica


@jit_inner
def _choose(pool: Pool, request: int, feed: Feed) -> int:
    counts, balance = pool.clock.counts, pool.balance
    num_replicas = len(counts)
    if num_replicas == 1:
        return -1 if counts[0, 0, IS_GONE] or counts[0, 0, IS_DRAINING] else 0
    if feed.chosen[0] >= 0:
        return int(feed.chosen[0])
    if len(balance.turns) > 0:
        return int(balance.turns[balance.num_sent[0]])
    best, least = -1, 0.0
    for replica in range(num_replicas):
        if counts[replica, 0, IS_GONE] or counts[replica, 0, IS_DRAINING]:
            continue
        if balance.weights.per_new_token > 0:
            load = _measure_best_rank(pool, replica, request)
        else:
            load = balance.weights.per_request * (
                counts[replica, 0, NUM_PUSHED]
                - counts[replica, 0, NUM_FINISHED]
                + counts[replica, 0, NUM_COMING]
            ) + balance.weights.per_token * (
                counts[replica, 0, OUTSTANDING_TOKENS] + counts[replica, 0, COMING_TOKENS]
            )
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
    coming = weights.per_request * counts[NUM_COMING] + weights.per_token * counts[COMING_TOKENS]
    load = _measure_load(
        pool.requests, each, ranks.prefixes[replica], d, request, weights, pool.limits
    )
    return float(load + coming / len(each))


@jit_inner
def choose_rank(
    requests: Requests, each: Ints, prefixes: Ints, r: int, weights: Weights, limits: Limits
) -> int:
    """Choose the data-parallel rank of a replica for request ``r``: the one with the least load
    where the balancer sees prefixes, otherwise the one with the fewest unfinished requests.
    """
    best, least = -1, 0.0
    for d in range(len(each)):
        if each[d, IS_LOST]:
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
    each: Ints,
    prefixes: Ints,
    d: int,
    r: int,
    weights: Weights,
    limits: Limits,
) -> float:
    """Load of a rank with request ``r``, whose cached prefix need not be computed there."""
    cached = count_hits(requests, prefixes, d % len(prefixes), r, limits) * limits.prefix_tokens
    return float(
        weights.per_request * _count_unfinished(each, d)
        + weights.per_token * each[d, TOKENS]
        + weights.per_new_token * (requests.ints[r, NUM_INPUT] - cached)
    )


@jit_inner
def _count_unfinished(each: Ints, d: int) -> int:
    here = each[d, NUM_WAITING] + each[d, NUM_RUNNING]
    return int(here + each[d, NUM_IN_LINE] + each[d, NUM_RESERVED])


@jit
def find_cached(requests: Requests, prefixes: Ints, r: int, limits: Limits, replicas: Ints) -> Ints:
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
        counts[IS_DRAINING]
        and counts[NUM_COMING] == 0
        and counts[NUM_KEPT] == 0
        and counts[NUM_PUSHED] == counts[NUM_FINISHED]
    )


@jit_inner
def form_soon(
    events: Events, clock: Clock, replica: int, number: int, now_s: float, kind: int
) -> None:
    """Let a replica form a step at this instant, unless one is in flight."""
    if not clock.counts[replica, 0, IS_BUSY]:
        clock.counts[replica, 0, IS_BUSY] = True
        push_event(events, now_s, code_of(kind, number))


@jit_inner
def ranks_of(ranks: Ranks, replica: int) -> Ranks:
    """Ranks of one replica."""
    return Ranks(
        ranks.each[replica],
        ranks.running[replica],
        ranks.chunk[replica],
        ranks.pools[replica],
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
        for _ in range(min(count, len(requests.times) - feed.num_released[0])):
            requests.times[feed.num_released[0], ARRIVAL_S] = now_s + feed.ingress_delay_s
            feed.num_released[0] += 1
