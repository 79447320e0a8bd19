"""The arrays that batching works on: a row for each request, data-parallel rank or block, a column
for each number. Few arrays in few tuples, because compiled code copies tuples at every call and
counts references to every array in them.
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
    """A column of an array by its name, to read and to write outside of compiled code."""

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
    NUMBER,
) = range(20)
"""Columns: whole numbers of a request."""
HERE, IN_LINE, RESERVED = range(3)
"""Stages of a request of the decode pool: nothing is to come for it, it stands in line for KV
blocks or is about to, and blocks are kept for its cache, which is on its way or not yet computed.
"""
(ARRIVAL_S, SCHEDULED_S, FIRST_S, LAST_S, FINISH_S, LOST_S, RESERVED_S) = range(7)
"""Columns: seconds of a request."""
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
) = range(18)
"""Columns: whole numbers of what batches on its own."""
(FREE_BLOCKS, CAPACITY_BLOCKS, NUM_EVICTABLE, NUM_TAKEN, RAN_OUT) = range(5)
"""Columns: whole numbers of a data-parallel rank's cache."""
(REFS, IN_CACHE, OLDER, NEWER) = range(4)
"""Columns: whole numbers of a prefix block."""
(HELD, NUM_ADMISSIONS, FIRST_RESERVED, LAST_RESERVED) = range(4)
"""Columns: whole numbers of a replica's ranks together."""
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
) = range(14)
"""Columns: whole numbers of a replica."""


class _RequestsArrays(NamedTuple):
    ints: Ints
    times: Floats
    prefix_starts: Ints
    """``[N + 1]`` into ``prefix_ids``."""
    prefix_ids: Ints
    first: int
    """Number in the trace of the request in the first row."""


class Requests(_RequestsArrays):
    """What is asked, and how far it is: a row for each request of a window on the trace
    (:mod:`simulator.engine.windows`), shared by all replicas of a pool.
    """

    num_input = Column("ints", NUM_INPUT)
    num_output = Column("ints", NUM_OUTPUT)
    computed = Column("ints", COMPUTED)
    """Tokens whose keys and values are in the cache."""
    generated = Column("ints", GENERATED)
    """Output tokens emitted."""
    transferred_tokens = Column("ints", TRANSFERRED)
    """Tokens whose keys and values come with the request, from a prefill pool; 0 once they are
    lost."""
    blocks = Column("ints", BLOCKS)
    """KV blocks held by the request alone."""
    shared = Column("ints", SHARED)
    """Leading prefix blocks held together with others."""
    cached = Column("ints", CACHED)
    """Prompt tokens found in the prefix cache at first admission."""
    preemptions = Column("ints", PREEMPTIONS)
    dp_rank = Column("ints", DP_RANK)
    following = Column("ints", FOLLOWING)
    """Next request in the same waiting queue, or on the way to the same replica; -1 at its end."""
    admitted = Column("ints", ADMITTED)
    """How many admissions came before its latest one: which of two requests has run for longer."""
    kept_first = Column("ints", KEPT_FIRST)
    """Where in its sequence the KV blocks begin that it lost when it was preempted."""
    kept_blocks = Column("ints", KEPT_BLOCKS)
    """How many of them were full."""
    kept_end = Column("ints", KEPT_END)
    """Behind which place in the line of free blocks they stood
    (:func:`simulator.engine.blocks.keep_order`)."""
    joined = Column("ints", JOINED)
    """Steps that its rank had counted when it joined the summed decodes
    (:mod:`simulator.engine.decodes`), of which ``computed``, ``generated`` and ``blocks`` are."""
    retries = Column("ints", RETRIES)
    """Times that its replica was gone and it was sent to another one."""
    stage = Column("ints", STAGE)
    domain = Column("ints", DOMAIN)
    """Kind of text, by its place in :attr:`simulator.workload.traces.RequestTrace.domains`; -1
    where none is told."""
    number = Column("ints", NUMBER)
    """Its place in the whole trace, by which chance is drawn."""
    arrival_s = Column("times", ARRIVAL_S)
    scheduled_s = Column("times", SCHEDULED_S)
    first_s = Column("times", FIRST_S)
    last_s = Column("times", LAST_S)
    """When its latest output token was emitted."""
    finish_s = Column("times", FINISH_S)
    lost_s = Column("times", LOST_S)
    """When no replica was left to send it to."""
    reserved_s = Column("times", RESERVED_S)
    """When a rank of the decode pool kept KV blocks for its cache."""


class _RanksArrays(NamedTuple):
    each: Ints
    """``[dp, columns]``."""
    running: Ints
    """``[dp, max_sequences]`` requests in order of admission."""
    chunk: Ints
    """``[dp, max_sequences]`` tokens of each that the step computes; 0 = sits out."""
    pools: Ints
    """``[pools, columns]``."""
    prefixes: Ints
    """``[pools, U + 1, columns]``."""
    counts: Ints
    """``[1, columns]``."""
    output_share: Floats
    """``[dp]`` share of the outputs of running requests that admission counts on."""
    ring: Ints
    """``[dp, block tokens]`` summed decodes that need a KV block in the steps whose number has this
    remainder."""
    emitted_s: Floats
    """``[dp]`` when the summed decodes got their latest tokens."""
    ends: Ints
    """``[dp, max_sequences]`` after how many steps of the rank each summed decode ends."""
    starts: Ints
    """``[dp, max_sequences]`` its context less the steps that the rank had counted when it
    joined."""


class Ranks(_RanksArrays):
    """Those of one replica that batch on their own.

    Without a pipeline they are its attention data-parallel ranks. A pipeline of ``pp`` stages keeps
    ``pp`` batches in flight, each in a lane of its own, and batch ``d`` is of data-parallel rank
    ``d % pools``. Its GPUs hold the caches of all lanes, so blocks and prefixes are by
    data-parallel rank only.
    """

    head = Column("each", HEAD)
    """First waiting request, -1 for none."""
    tail = Column("each", TAIL)
    num_waiting = Column("each", NUM_WAITING)
    num_running = Column("each", NUM_RUNNING)
    is_full = Column("each", IS_FULL)
    """Whether the last look found no room for one more, and nobody has left since."""
    stopped_by = Column("each", STOPPED_BY)
    """What ended the step's admission, by its place in
    :data:`simulator.results.tables.ADMISSION_LIMITS`."""
    num_decodes = Column("each", NUM_DECODES)
    """The first so many of those that run are summed ..."""
    contexts = Column("each", CONTEXTS)
    """... and have so many tokens in the cache together ..."""
    longest = Column("each", LONGEST)
    """... the longest so many ..."""
    ticks = Column("each", TICKS)
    """... after so many steps ..."""
    next_end = Column("each", NEXT_END)
    """... and the next of them ends after that many."""
    num_ready = Column("each", NUM_READY)
    """The first so many of those that wait have blocks and their caches in them ..."""
    last_ready = Column("each", LAST_READY)
    """... the last of them this one."""
    num_in_line = Column("each", NUM_IN_LINE)
    """Requests whose caches are to come and have no blocks yet, in a queue of their own."""
    num_reserved = Column("each", NUM_RESERVED)
    """Requests whose caches are to come and have blocks ..."""
    reserved_output = Column("each", RESERVED_OUTPUT)
    """... and the output tokens that SGLang's admission counts on from them, until they run."""
    free_blocks = Column("pools", FREE_BLOCKS)
    capacity_blocks = Column("pools", CAPACITY_BLOCKS)
    num_evictable = Column("pools", NUM_EVICTABLE)
    """Prefix blocks that no request holds."""
    num_taken = Column("pools", NUM_TAKEN)
    """KV blocks taken so far: how far the line of free blocks has moved."""
    ran_out = Column("pools", RAN_OUT)
    """Whether a request has lost its blocks in this step."""
    older = Column("prefixes", OLDER)
    """Evictable prefix blocks are a ring from the most to the least recently used, whose ends are
    the last row."""
    newer = Column("prefixes", NEWER)
    held = Column("counts", HELD)
    """Steps for which prompts have been held back."""
    num_admissions = Column("counts", NUM_ADMISSIONS)
    """So far."""
    first_reserved = Column("counts", FIRST_RESERVED)
    """The first request that the latest step has kept blocks for, -1 for none; ``following`` leads
    on ..."""
    last_reserved = Column("counts", LAST_RESERVED)
    """... to the last."""

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
    """Numbers that batching goes by."""

    rules: Rules
    """The scheduling policy's, as far as they mean something here: ``max_sequences`` of one batch,
    prompts held back only where there is something to hold them for."""
    block_tokens: int
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
    and nothing but their number and contexts matters."""
    accepted: Floats = _NOTHING
    """``[tokens of a draft]`` :attr:`simulator.policies.speculation.Drafts.accepted`."""
    draft_seed: int = 0
    """Seed by which it is drawn which tokens of drafts are kept."""
    hands_over: bool = False
    """Whether finished requests keep their KV blocks until their caches are at another pool."""


class _ClockArrays(NamedTuple):
    counts: Ints
    """``[1, columns]``."""
    gap_counts: Ints
    """``[NUM_GAP_BINS]`` gaps between output tokens."""


class Clock(_ClockArrays):
    """Where a replica is."""

    is_busy = Column("counts", IS_BUSY)
    """Whether a step is under way, or about to be formed."""
    num_finished = Column("counts", NUM_FINISHED)
    num_pushed = Column("counts", NUM_PUSHED)
    """Requests that have been queued at a rank."""
    num_steps = Column("counts", NUM_STEPS)
    outstanding_tokens = Column("counts", OUTSTANDING_TOKENS)
    """Prompt and output tokens of those that were queued and have not finished."""
    num_coming = Column("counts", NUM_COMING)
    """Requests that were sent here since the last look at them, and are at no rank yet ..."""
    first_coming = Column("counts", FIRST_COMING)
    """... the first of them; ``following`` leads on ..."""
    last_coming = Column("counts", LAST_COMING)
    """... to the last ..."""
    coming_tokens = Column("counts", COMING_TOKENS)
    """... and their prompt and output tokens."""
    run_row = Column("counts", RUN_ROW)
    """Row of the log that may take in the latest step, once that has ended; -1 for none."""
    last_row = Column("counts", LAST_ROW)
    """Row of the latest step; -1 for none."""
    has_ended = Column("counts", HAS_ENDED)
    """Whether a request ended with the latest step."""
    is_paused = Column("counts", IS_PAUSED)
    """For how many reasons the replica forms no step though it serves: its experts move."""
    is_gone = Column("counts", IS_GONE)
    """For how many reasons the replica has stopped and is sent nothing; 0 where it serves."""
