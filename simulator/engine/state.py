"""The arrays that batching works on. Named tuples, because compiled code takes them as they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.results.tables import NUM_GAP_BINS
from simulator.workload.traces import RequestTrace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Requests(NamedTuple):
    """What is asked, and how far it is. One entry a request of the trace; shared by all
    replicas.
    """

    arrival_s: Floats
    num_input: Ints
    num_output: Ints
    prefix_starts: Ints
    """``[N + 1]`` into ``prefix_ids``."""
    prefix_ids: Ints
    computed: Ints
    """Tokens whose keys and values are in the cache."""
    generated: Ints
    """Output tokens emitted."""
    brought: Ints
    """Tokens whose keys and values come with the request, from a prefill pool; 0 once they are
    lost."""
    blocks: Ints
    """KV blocks held by the request alone."""
    shared: Ints
    """Leading prefix blocks held together with others."""
    cached: Ints
    """Prompt tokens found in the prefix cache at first admission."""
    preemptions: Ints
    scheduled_s: Floats
    first_s: Floats
    last_s: Floats
    finish_s: Floats
    dp_rank: Ints
    following: Ints
    """Next request in the same waiting queue, -1 at its end."""
    admitted: Ints
    """How many admissions came before its latest one: which of two requests has run for longer."""
    kept_first: Ints
    """Where in its sequence the KV blocks begin that it lost when it was preempted."""
    kept_blocks: Ints
    """How many of them were full."""
    kept_end: Ints
    """Behind which place in the line of free blocks they stood
    (:func:`simulator.engine.blocks.keep_order`)."""


class Ranks(NamedTuple):
    """Those of one replica that batch on their own: ``[dp]`` or ``[dp, ...]``.

    Without a pipeline they are its attention data-parallel ranks. A pipeline of ``pp`` stages keeps
    ``pp`` batches in flight, each in a lane of its own, and batch ``d`` is of data-parallel rank
    ``d % pools``. Its GPUs hold the caches of all lanes, so blocks and prefixes are by
    data-parallel rank only: ``[pools]`` or ``[pools, ...]``.
    """

    head: Ints
    """First waiting request, -1 for none."""
    tail: Ints
    num_waiting: Ints
    running: Ints
    """``[dp, max_sequences]`` requests in order of admission."""
    chunk: Ints
    """``[dp, max_sequences]`` tokens of each that the step computes; 0 = sits out."""
    num_running: Ints
    free_blocks: Ints
    capacity_blocks: Ints
    refs: Ints
    """``[pools, U]`` running requests that hold each prefix block."""
    in_cache: NDArray[np.bool_]
    older: Ints
    """``[pools, U + 1]`` evictable prefix blocks, a ring from the most to the least recently used;
    entry ``U`` is its ends."""
    newer: Ints
    num_evictable: Ints
    held: Ints
    """``[1]`` steps for which prompts have been held back."""
    ran_out: NDArray[np.bool_]
    """``[pools]`` whether a request has lost its blocks in this step."""
    num_admissions: Ints
    """``[1]`` so far."""
    num_taken: Ints
    """``[pools]`` KV blocks taken so far: how far the line of free blocks has moved."""
    is_full: NDArray[np.bool_]
    """Whether the last look found no room for one more, and nobody has left since."""
    output_share: Floats
    """Share of the outputs of running requests that admission counts on."""
    stopped_by: Ints
    """What ended the step's admission, by its place in
    :data:`simulator.results.tables.ADMISSION_LIMITS`."""


class Limits(NamedTuple):
    """Numbers that batching goes by."""

    token_budget: int
    max_sequences: int
    """Of one batch."""
    mixes_phases: bool
    splits_prompts: bool
    block_tokens: int
    sequence_blocks: int
    """KV blocks that every running sequence takes whatever its length (windows, recurrent
    state)."""
    prefix_tokens: int
    """Tokens of one prefix block, 0 without prefix caching."""
    prefix_blocks: int
    """KV blocks of one prefix block."""
    watermark_blocks: int
    """KV blocks kept free when a request is admitted while others run."""
    checks_known: bool = False
    """Whether all tokens that a request has so far must have room when it is admitted."""
    finds_preempted: bool = False
    """Whether a preempted request finds those of its blocks again that nobody has taken."""
    reserves_output: bool = False
    """Whether a request takes the blocks of its whole output when it is admitted."""
    output_share: float = 0.0
    """Share of the outputs of running requests that admission counts on at first, as SGLang does; 0
    = outputs are not counted on."""
    least_output_share: float = 0.0
    output_share_decay: float = 0.0
    """What a decode step without retraction takes off that share."""
    retract_steps: int = 0
    """Tokens that each request left by a retraction is counted to decode beyond those it has."""
    poll_steps: int = 1
    """Steps from one look at the queue to the next."""
    balance_steps: int = 0
    """Steps for which data-parallel ranks hold prompts back until each has one."""
    wait_steps: int = 0
    """Steps for which prompts are held back until a step has ``wait_tokens``."""
    wait_tokens: int = 0


class Clock(NamedTuple):
    """Where a replica is; arrays of one number, so that compiled code can move it."""

    is_busy: NDArray[np.bool_]
    """Whether a step is under way, or about to be formed."""
    num_finished: Ints
    num_pushed: Ints
    """Requests that have been queued at a rank."""
    num_steps: Ints
    outstanding_tokens: Ints
    """Prompt and output tokens of those that were queued and have not finished."""
    num_coming: Ints
    """Requests that were sent here since the last look at them, and are at no rank yet ..."""
    first_coming: Ints
    """... the first of them; :attr:`Requests.following` leads on ..."""
    last_coming: Ints
    """... to the last ..."""
    coming_tokens: Ints
    """... and their prompt and output tokens."""
    gap_counts: Ints
    """``[NUM_GAP_BINS]`` gaps between output tokens."""


def start_requests(trace: RequestTrace, *, with_prefixes: bool) -> Requests:
    """No request has begun."""
    count = trace.num_requests

    def zeros() -> Ints:
        return np.zeros(count, dtype=np.int64)

    def nans() -> Floats:
        return np.full(count, np.nan)

    has_prefixes = with_prefixes and trace.prefix_block_tokens > 0
    return Requests(
        arrival_s=trace.arrival_s.astype(np.float64),
        num_input=trace.num_input.astype(np.int64),
        num_output=trace.num_output.astype(np.int64),
        prefix_starts=trace.prefix_starts.astype(np.int64)
        if has_prefixes
        else np.zeros(count + 1, dtype=np.int64),
        prefix_ids=trace.prefix_ids.astype(np.int64)
        if has_prefixes
        else np.zeros(0, dtype=np.int64),
        computed=zeros(),
        generated=zeros(),
        brought=zeros(),
        blocks=zeros(),
        shared=zeros(),
        cached=zeros(),
        preemptions=zeros(),
        scheduled_s=nans(),
        first_s=nans(),
        last_s=nans(),
        finish_s=nans(),
        dp_rank=zeros(),
        following=np.full(count, -1, dtype=np.int64),
        admitted=zeros(),
        kept_first=zeros(),
        kept_blocks=zeros(),
        kept_end=zeros(),
    )


def start_ranks(
    num_ranks: int,
    max_sequences: int,
    capacity_blocks: int,
    num_prefixes: int,
    num_lanes: int = 1,
    output_share: float = 1.0,
) -> Ranks:
    """Nothing waits, nothing runs, all blocks are free.

    Args:
        num_ranks: that batch on their own, in all lanes together.
        capacity_blocks: of a data-parallel rank, for all lanes together.
        num_lanes: batches of a data-parallel rank that are in flight.
        output_share: share of the outputs of running requests that admission counts on at first.
    """
    num_pools = num_ranks // num_lanes

    def zeros(count: int = num_ranks) -> Ints:
        return np.zeros(count, dtype=np.int64)

    ring = np.zeros((num_pools, num_prefixes + 1), dtype=np.int64)
    ring[:, num_prefixes] = num_prefixes
    return Ranks(
        head=zeros() - 1,
        tail=zeros() - 1,
        num_waiting=zeros(),
        running=np.full((num_ranks, max_sequences), -1, dtype=np.int64),
        chunk=np.zeros((num_ranks, max_sequences), dtype=np.int64),
        num_running=zeros(),
        free_blocks=zeros(num_pools) + capacity_blocks,
        capacity_blocks=zeros(num_pools) + capacity_blocks,
        refs=np.zeros((num_pools, num_prefixes), dtype=np.int64),
        in_cache=np.zeros((num_pools, num_prefixes), dtype=np.bool_),
        older=ring,
        newer=ring.copy(),
        num_evictable=zeros(num_pools),
        held=zeros(1),
        ran_out=np.zeros(num_pools, dtype=np.bool_),
        num_admissions=zeros(1),
        num_taken=zeros(num_pools),
        is_full=np.zeros(num_ranks, dtype=np.bool_),
        output_share=np.full(num_ranks, output_share),
        stopped_by=zeros(),
    )


def start_clock() -> Clock:
    """Idle."""

    def zero() -> Ints:
        return np.zeros(1, dtype=np.int64)

    return Clock(
        is_busy=np.zeros(1, dtype=np.bool_),
        num_finished=zero(),
        num_pushed=zero(),
        num_steps=zero(),
        outstanding_tokens=zero(),
        num_coming=zero(),
        first_coming=zero() - 1,
        last_coming=zero() - 1,
        coming_tokens=zero(),
        gap_counts=np.zeros(NUM_GAP_BINS, dtype=np.int64),
    )
