"""Arrays of batching: a row for each request, data-parallel rank or block, a column for each
number. Few arrays in few tuples, because compiled code copies tuples at every call and counts
references to every array in them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.policies.scheduling import Rules

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


_NOTHING: Floats = np.zeros(0)


class Column:
    """Column of an array by its name, to read and to write outside of compiled code."""

    def __init__(self, array: str, place: int) -> None:
        self.array, self.place = array, place

    def __get__(self, state: Any, owner: type) -> Any:
        return getattr(state, self.array)[..., self.place]


(
    NUM_INPUT,
    NUM_OUTPUT,
    COMPUTED,
    GENERATED,
    TRANSFERRED,
    BLOCKS,
    SHARED,
    CACHED,
    PREEMPTIONS,
    DP_RANK,
    FOLLOWING,
    ADMITTED,
    KEPT_FIRST,
    KEPT_BLOCKS,
    KEPT_END,
    JOINED,
    RETRIES,
    STAGE,
    DOMAIN,
    PROFILE,
    NUMBER,
) = range(21)
"""Integer columns of a request."""
HERE, IN_LINE, RESERVED = range(3)
"""Stages of a request in the decode pool: no cache is to arrive for it; it queues for KV blocks or
is about to; blocks are reserved for its cache, which is in transfer or not computed yet."""
(ARRIVAL_S, SCHEDULED_S, FIRST_S, LAST_S, FINISH_S, LOST_S, RESERVED_S) = range(7)
"""Time columns of a request, seconds."""
(
    HEAD,
    TAIL,
    NUM_WAITING,
    NUM_RUNNING,
    IS_FULL,
    STOPPED_BY,
    NUM_DECODES,
    CONTEXTS,
    LONGEST,
    TICKS,
    NEXT_END,
    NUM_READY,
    LAST_READY,
    FIRST_IN_LINE,
    LAST_IN_LINE,
    NUM_IN_LINE,
    NUM_RESERVED,
    RESERVED_OUTPUT,
    TOKENS,
    IS_LOST,
) = range(20)
"""Integer columns of a data-parallel rank, or of one of its lanes in a pipeline."""
(FREE_BLOCKS, CAPACITY_BLOCKS, NUM_EVICTABLE, NUM_TAKEN, RAN_OUT) = range(5)
"""Integer columns of a data-parallel rank's cache."""
(REFS, IN_CACHE, OLDER, NEWER) = range(4)
"""Integer columns of a prefix block."""
(HELD, NUM_ADMISSIONS, FIRST_RESERVED, LAST_RESERVED) = range(4)
"""Integer columns of all ranks of a replica together."""
(
    IS_BUSY,
    NUM_FINISHED,
    NUM_PUSHED,
    NUM_STEPS,
    OUTSTANDING_TOKENS,
    NUM_COMING,
    FIRST_COMING,
    LAST_COMING,
    COMING_TOKENS,
    IS_GONE,
    RUN_ROW,
    LAST_ROW,
    HAS_ENDED,
    IS_PAUSED,
    PRICE_STATE,
    IS_DRAINING,
    LOOK_STEPS,
    NUM_KEPT,
) = range(18)
"""Integer columns of a replica's clock."""


NEVER = 1 << 62
"""Number that is never reached."""


class _RequestsArrays(NamedTuple):
    ints: Ints
    """``[N, columns]`` integers of each request."""
    times: Floats
    """``[N, columns]`` times of each request, seconds; NaN until they are known."""
    prefix_starts: Ints
    """``[N + 1]`` beginnings of each request's part of ``prefix_ids``."""
    prefix_ids: Ints
    """Ids of prefix blocks, request after request."""
    first: int
    """Number in the trace of the request in the first row."""


class Requests(_RequestsArrays):
    """Requests and their progress: a row for each request of a window on the trace
    (:mod:`simulator.engine.windows`), shared by all replicas of a pool.
    """

    num_input = Column("ints", NUM_INPUT)
    num_output = Column("ints", NUM_OUTPUT)
    computed = Column("ints", COMPUTED)
    """Tokens whose keys and values are in the cache."""
    generated = Column("ints", GENERATED)
    """Output tokens emitted."""
    transferred_tokens = Column("ints", TRANSFERRED)
    """Tokens whose keys and values are transferred from a prefill pool; 0 once they are lost."""
    blocks = Column("ints", BLOCKS)
    """KV blocks that the request alone holds."""
    shared = Column("ints", SHARED)
    """Leading prefix blocks held together with other requests."""
    cached = Column("ints", CACHED)
    """Prompt tokens found in the prefix cache at first admission."""
    preemptions = Column("ints", PREEMPTIONS)
    dp_rank = Column("ints", DP_RANK)
    following = Column("ints", FOLLOWING)
    """Next request in the same queue, or on its way to the same replica; -1 at the end."""
    admitted = Column("ints", ADMITTED)
    """Number of admissions before its latest one, which orders requests by how long they have
    run."""
    kept_first = Column("ints", KEPT_FIRST)
    """Index in its sequence of the first KV block that it lost when it was preempted."""
    kept_blocks = Column("ints", KEPT_BLOCKS)
    """Number of these blocks that were full."""
    kept_end = Column("ints", KEPT_END)
    """Position in the queue of free blocks behind these blocks
    (:func:`simulator.engine.blocks.keep_order`)."""
    joined = Column("ints", JOINED)
    """Steps that its rank had counted when it joined the summed decodes
    (:mod:`simulator.engine.decodes`); ``computed``, ``generated`` and ``blocks`` are of that
    moment."""
    retries = Column("ints", RETRIES)
    """Times that its replica stopped and it was sent to another one."""
    stage = Column("ints", STAGE)
    domain = Column("ints", DOMAIN)
    """Kind of text, an index into :attr:`simulator.workload.traces.RequestTrace.domains`; -1 where
    unknown."""
    profile = Column("ints", PROFILE)
    """Load profile, which experts are priced by (:mod:`simulator.step.load_profiles`)."""
    number = Column("ints", NUMBER)
    """Number in the whole trace, which seeds its random draws."""
    arrival_s = Column("times", ARRIVAL_S)
    scheduled_s = Column("times", SCHEDULED_S)
    first_s = Column("times", FIRST_S)
    last_s = Column("times", LAST_S)
    """Time of its latest output token."""
    finish_s = Column("times", FINISH_S)
    lost_s = Column("times", LOST_S)
    """Time at which no replica was left to send it to."""
    reserved_s = Column("times", RESERVED_S)
    """Time at which a rank of the decode pool reserved KV blocks for its cache."""


class _RanksArrays(NamedTuple):
    each: Ints
    """``[dp, columns]`` integers of each rank."""
    running: Ints
    """``[dp, max_sequences]`` running requests in order of admission."""
    chunk: Ints
    """``[dp, max_sequences]`` tokens of each that the step computes; 0 = not in this step."""
    pools: Ints
    """``[pools, columns]`` integers of each data-parallel rank's cache."""
    prefixes: Ints
    """``[pools, U + 1, columns]`` integers of each prefix block; the last row holds the ends of the
    eviction ring."""
    counts: Ints
    """``[1, columns]`` integers of the replica."""
    output_share: Floats
    """``[dp]`` share of the outputs of running requests that admission assumes."""
    ring: Ints
    """``[dp, block tokens]`` summed decodes that need a KV block in steps whose number has this
    remainder."""
    emitted_s: Floats
    """``[dp]`` time of the summed decodes' latest tokens, seconds."""
    ends: Ints
    """``[dp, max_sequences]`` step count of the rank at which each summed decode ends."""
    starts: Ints
    """``[dp, max_sequences]`` context of each summed decode when it joined, less the steps that the
    rank had counted then."""
    profiles: Ints
    """``[dp, P]`` summed decodes of each load profile."""


class Ranks(_RanksArrays):
    """Ranks of one replica that batch on their own.

    Without a pipeline they are its attention data-parallel ranks. A pipeline of ``pp`` stages keeps
    ``pp`` batches in flight, each in a lane of its own, and batch ``d`` belongs to data-parallel
    rank ``d % pools``. Its GPUs hold the caches of all lanes, so blocks and prefixes are by
    data-parallel rank only.
    """

    head = Column("each", HEAD)
    """First waiting request, -1 for none."""
    tail = Column("each", TAIL)
    num_waiting = Column("each", NUM_WAITING)
    num_running = Column("each", NUM_RUNNING)
    is_full = Column("each", IS_FULL)
    """Whether the last admission found no room for one more request, and none has left since."""
    stopped_by = Column("each", STOPPED_BY)
    """Limit that ended the step's admission, an index into
    :data:`simulator.results.tables.ADMISSION_LIMITS`."""
    num_decodes = Column("each", NUM_DECODES)
    """Number of summed decodes, which come first among the running requests."""
    contexts = Column("each", CONTEXTS)
    """Tokens of all summed decodes in the cache."""
    longest = Column("each", LONGEST)
    """Tokens of the longest summed decode in the cache."""
    ticks = Column("each", TICKS)
    """Steps that the rank has counted for its summed decodes."""
    next_end = Column("each", NEXT_END)
    """Value of ``ticks`` at which the next summed decode ends."""
    num_ready = Column("each", NUM_READY)
    """Number of waiting requests, the first of the queue, that have blocks and their transferred
    caches in them."""
    last_ready = Column("each", LAST_READY)
    """Last of these requests."""
    num_in_line = Column("each", NUM_IN_LINE)
    """Requests whose caches are to arrive and that have no blocks yet, in a queue of their own."""
    num_reserved = Column("each", NUM_RESERVED)
    """Requests whose caches are to arrive and that have blocks."""
    reserved_output = Column("each", RESERVED_OUTPUT)
    """Output tokens of these that SGLang's admission assumes, until they run."""
    tokens = Column("each", TOKENS)
    """Prompt and output tokens of the rank's unfinished requests."""
    is_lost = Column("each", IS_LOST)
    """Whether a GPU of the rank is lost, while the others go on; it gets no requests."""
    free_blocks = Column("pools", FREE_BLOCKS)
    capacity_blocks = Column("pools", CAPACITY_BLOCKS)
    num_evictable = Column("pools", NUM_EVICTABLE)
    """Prefix blocks that no request holds."""
    num_taken = Column("pools", NUM_TAKEN)
    """KV blocks taken so far, which is how far the queue of free blocks has moved."""
    ran_out = Column("pools", RAN_OUT)
    """Whether a request has lost its blocks in this step."""
    older = Column("prefixes", OLDER)
    """Neighbour that was used less recently. Evictable prefix blocks form a ring from the most to
    the least recently used, whose ends are the last row."""
    newer = Column("prefixes", NEWER)
    held = Column("counts", HELD)
    """Steps for which prompts have been held back."""
    num_admissions = Column("counts", NUM_ADMISSIONS)
    """Admissions so far."""
    first_reserved = Column("counts", FIRST_RESERVED)
    """First request that the latest step has reserved blocks for, -1 for none; ``following`` leads
    to the next."""
    last_reserved = Column("counts", LAST_RESERVED)
    """Last request that the latest step has reserved blocks for."""

    @property
    def refs(self) -> Ints:
        """``[pools, U]`` running requests that hold each prefix block."""
        found: Ints = self.prefixes[..., :-1, REFS]
        return found

    @property
    def in_cache(self) -> Ints:
        """``[pools, U]`` whether each prefix block is cached."""
        found: Ints = self.prefixes[..., :-1, IN_CACHE]
        return found


class Limits(NamedTuple):
    """Limits that batching obeys."""

    rules: Rules
    """Rules of the scheduling policy, as far as they apply: ``max_sequences`` of one batch, prompts
    held back only where there is something to hold them for."""
    block_tokens: int
    """Tokens of a KV block."""
    sequence_blocks: int
    """KV blocks that every running sequence takes whatever its length (windows, recurrent
    state)."""
    prefix_tokens: int
    """Tokens of one prefix block, 0 without prefix caching."""
    prefix_blocks: int
    """KV blocks of one prefix block."""
    watermark_blocks: int = 0
    """KV blocks kept free when a request is admitted while others run."""
    wait_tokens: int = 0
    """Tokens from which on a step is not held back any longer."""
    sums_decodes: bool = False
    """Whether decodes may be summed (:mod:`simulator.engine.decodes`): where a table prices them,
    and only their number and contexts matter."""
    accepted: Floats = _NOTHING
    """Probability that each token of a draft is accepted
    (:attr:`simulator.policies.speculation.Drafts.accepted`)."""
    draft_seed: int = 0
    """Seed of the acceptance of draft tokens."""
    hands_over: bool = False
    """Whether finished requests keep their KV blocks until their caches have arrived at another
    pool."""


class _ClockArrays(NamedTuple):
    counts: Ints
    """``[1, columns]`` integers of the replica."""
    gap_counts: Ints
    """``[NUM_GAP_BINS]`` histogram of gaps between output tokens."""


class Clock(_ClockArrays):
    """State of a replica beside its ranks."""

    is_busy = Column("counts", IS_BUSY)
    """Whether a step is in flight, or about to be formed."""
    num_finished = Column("counts", NUM_FINISHED)
    num_pushed = Column("counts", NUM_PUSHED)
    """Requests that have been queued at a rank."""
    num_steps = Column("counts", NUM_STEPS)
    outstanding_tokens = Column("counts", OUTSTANDING_TOKENS)
    """Prompt and output tokens of requests that were queued and have not finished."""
    num_coming = Column("counts", NUM_COMING)
    """Requests that were sent to the replica since its last step, and are at no rank yet."""
    first_coming = Column("counts", FIRST_COMING)
    """First of these requests; ``following`` leads to the next."""
    last_coming = Column("counts", LAST_COMING)
    """Last of these requests."""
    coming_tokens = Column("counts", COMING_TOKENS)
    """Prompt and output tokens of these requests."""
    run_row = Column("counts", RUN_ROW)
    """Row of the log that may absorb the latest step, once that has ended; -1 for none."""
    last_row = Column("counts", LAST_ROW)
    """Row of the latest step; -1 for none."""
    has_ended = Column("counts", HAS_ENDED)
    """Whether a request ended with the latest step."""
    is_paused = Column("counts", IS_PAUSED)
    """Number of reasons for which the replica forms no step though it serves: its experts move, it
    hangs, or its ranks form a new group."""
    price_state = Column("counts", PRICE_STATE)
    """State that its steps are priced in: 0 with all ranks, others with some that are lost."""
    is_gone = Column("counts", IS_GONE)
    """Whether the replica has stopped and gets no requests."""
    is_draining = Column("counts", IS_DRAINING)
    """Whether the replica finishes the requests that it has and gets no others."""
    look_steps = Column("counts", LOOK_STEPS)
    """Steps after which somebody looks at the replica."""
    num_kept = Column("counts", NUM_KEPT)
    """Computed prompts of a prefill replica whose caches have not arrived elsewhere yet."""
