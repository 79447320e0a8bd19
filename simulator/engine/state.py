"""State of batching: a record for each request, data-parallel rank or block. Few arrays in few
tuples, because compiled code copies tuples at every call and counts references to every array in
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.policies.scheduling import Rules
from simulator.results.tables import NUM_GAP_BINS
from simulator.workload.traces import RequestTrace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Records = Any
"""Array of records, ``each[r].computed`` of one and ``each.computed`` of all, in compiled code and
outside."""


_NOTHING: Floats = np.zeros(0)

HERE, IN_LINE, RESERVED, READ = range(4)
"""Stages of a request: no cache is to arrive for it; in the decode pool, it queues for KV blocks or
is about to; blocks are reserved for its cache, which is in transfer or not computed yet; or its
first blocks are read from a tier."""
NEVER = 1 << 62
"""Number that is never reached."""


class Queue:
    """Queue of requests (:mod:`simulator.engine.queue`)."""

    first: int
    """First request, if any."""
    last: int
    count: int
    is_ordered: int
    """Whether keys of requests order it; else they stand as they came."""


@cache
def _find_type(kind: type) -> np.dtype[Any]:
    types: dict[str, object] = {"int": np.int64, "float": np.float64}
    if kind is not Queue:
        types["Queue"] = _find_type(Queue)
    fields = [(name, types[text]) for name, text in kind.__annotations__.items()]
    found: np.dtype[Any] = np.dtype(fields, align=True)
    # A field of all records would stand in few sets of the processor's cache: 3 % of the loop.
    return np.dtype([*fields, ("spare", np.int64)]) if found.itemsize % 256 == 0 else found


def make_records(kind: type, *shape: int) -> Records:
    """Records of a kind, all zeros."""
    return np.zeros(shape, _find_type(kind)).view(np.recarray)


class Request:
    """Request and its progress; times are in seconds, NaN until they are known."""

    num_input: int
    num_output: int
    max_output: int
    """Output tokens that it may have as far as its engine knows (``max_tokens``)."""
    known_end: int
    """Output tokens with which it ends as the engine knows beforehand."""
    computed: int
    """Tokens whose keys and values are in the cache."""
    generated: int
    """Output tokens emitted."""
    transferred: int
    """Tokens whose keys and values are transferred from a prefill pool or read from tiers; 0 once
    they are lost."""
    blocks: int
    """KV blocks that the request alone holds."""
    shared: int
    """Leading prefix blocks held together with other requests."""
    cached: int
    """Prompt tokens found in the prefix cache at first admission."""
    read: int
    """Tokens of these that were read from tiers below the GPU."""
    preemptions: int
    replica: int
    """Replica that it was sent to last, -1 for none."""
    streams: int
    """Requests that ran on its replica when its first token came, itself among them."""
    dp_rank: int
    following: int
    """Next request in the same queue, or on its way to the same replica; -1 at the end. In an
    ordered queue the next below the same one."""
    child: int
    """First request below this one in an ordered queue, -1 for none."""
    before: int
    """Request that this one follows or is the child of, -1 for none."""
    key: float
    """Place in an ordered queue: the least is first."""
    key_offset: float
    """Part of the key that it has whenever it joins."""
    admitted: int
    """Number of admissions before its latest one, which orders requests by how long they have
    run."""
    prompt: int
    """Tokens that it had when it was last admitted: its prompt, and its output until then."""
    kept_first: int
    """Index in its sequence of the first KV block that it lost when it was preempted."""
    kept_blocks: int
    """Number of these blocks that were full."""
    kept_end: int
    """Position in the queue of free blocks behind these blocks
    (:func:`simulator.engine.cache.keep_order`)."""
    kept_since: int
    """Number of its cache's release with which they came into it."""
    joined: int
    """Steps that its rank had counted when its latest token was; of a summed decode when it joined
    the others (:mod:`simulator.engine.batching`): ``computed``, ``generated`` and ``blocks`` are of
    that moment."""
    ahead: int
    """Tokens that the step in flight computes of it, and ``computed`` counts already; minus the
    tokens that it gets where they come of a draft."""
    retries: int
    """Times that its replica stopped and it was sent to another one."""
    stage: int
    domain: int
    """Kind of text, an index into :attr:`simulator.workload.traces.RequestTrace.domains`; -1 where
    unknown."""
    profile: int
    """Load profile, which experts are priced by (:mod:`simulator.step.mixes`)."""
    number: int
    """Number in the whole trace, which seeds its random draws."""
    arrival_s: float
    scheduled_s: float
    first_s: float
    last_s: float
    """Time of its latest output token."""
    finish_s: float
    lost_s: float
    """Time at which no replica was left to send it to."""
    reserved_s: float
    """Time at which a rank of the decode pool reserved KV blocks for its cache."""
    read_s: float
    """Time at which its first blocks have been read from tiers."""
    read_wait_s: float
    """Seconds that this takes, before the request is first scheduled."""


class Rank:
    """Data-parallel rank, or one of its lanes in a pipeline."""

    num_running: int
    is_full: int
    """Whether the last admission found no room for one more request, and none has left since."""
    stopped_by: int
    """Limit that ended the step's admission, an index into
    :data:`simulator.results.tables.ADMISSION_LIMITS`."""
    num_decodes: int
    """Number of summed decodes, which come first among the running requests."""
    contexts: int
    """Tokens of all summed decodes in the cache."""
    longest: int
    """Tokens of the longest summed decode in the cache."""
    ticks: int
    """Steps that the rank has counted."""
    in_flight: int
    """Whether the latest of these is in flight, so that its tokens are counted and not out yet."""
    num_summed: int
    """Summed decodes in the step in flight."""
    num_emitting: int
    """Other requests that get a token from it, or got one from the latest step."""
    next_end: int
    """Value of ``ticks`` at which the next summed decode ends."""
    num_bereft: int
    """Number of waiting requests that lost full KV blocks, which they may find again."""
    num_reserved: int
    """Requests whose caches are to arrive, or are read from tiers, and that have blocks."""
    reserved_output: int
    """Output tokens of these that SGLang's admission assumes, until they run."""
    tokens: int
    """Prompt and output tokens of the rank's unfinished requests."""
    prompt_tokens: int
    """Prompt tokens of these."""
    is_lost: int
    """Whether a GPU of the rank is lost, while the others go on; it gets no requests."""
    output_share: float
    """Share of the outputs of running requests that admission assumes."""
    emitted_s: float
    """Time of the summed decodes' latest tokens, seconds."""
    waiting: Queue
    """Requests without blocks."""
    ready: Queue
    """Requests that have blocks and their transferred caches in them; they start before all that
    wait."""
    line: Queue
    """Requests whose caches are to arrive and that have no blocks yet."""


class Cache:
    """KV cache of a data-parallel rank."""

    free_blocks: int
    capacity_blocks: int
    num_evictable: int
    """Prefix blocks that no request holds."""
    num_full: int
    """Other full blocks that no request holds, and that are in line with these."""
    num_taken: int
    """KV blocks taken from that line so far."""
    num_released: int
    """Releases so far, of which each has a number."""
    ran_out: int
    """Whether a request has lost its blocks in this step."""


class Tier:
    """Memory below a GPU's own, of a data-parallel rank, and its link."""

    capacity_blocks: int
    """Prefix blocks that it holds at most."""
    num_held: int
    num_hits: int
    """Prefix blocks that requests have read for their first admission."""
    block_read_s: float
    """Seconds in which a prefix block is read."""
    block_write_s: float
    latency_s: float
    """Seconds until the first block of a request arrives."""
    read_until_s: float
    """Time from which the link towards the GPU is free."""
    written_until_s: float


class PrefixBlock:
    """Prefix block in a tier. Those that may be evicted (on the GPU, those that nobody holds) form
    a ring from the most to the least recently used, whose ends are one more row.
    """

    refs: int
    """Requests that hold it, on the GPU."""
    since_s: float
    """Time from which it can be read, infinite while it is not there."""
    older: int
    """Neighbour in the ring that was used less recently."""
    newer: int
    released: int
    """Number of its cache's release with which it came into the ring, on the GPU."""
    full_before: int
    """Full blocks of no prefix that stand in line between it and the less recently used neighbour,
    on the GPU."""


class Replica:
    """All ranks of a replica together."""

    held: int
    """Steps for which prompts have been held back."""
    num_admissions: int
    """Admissions so far."""
    is_busy: int
    """Whether a step is in flight, or about to be formed."""
    in_flight: int
    """Whether a step is in flight."""
    is_formed: int
    """Whether another is formed, which begins when it has ended."""
    num_finished: int
    num_pushed: int
    """Requests that have been queued at a rank."""
    num_turns: int
    """Requests that ever were."""
    num_steps: int
    outstanding_tokens: int
    """Prompt and output tokens of requests that were queued and have not finished."""
    coming_tokens: int
    """Prompt and output tokens of these requests."""
    is_gone: int
    """Whether the replica has stopped and gets no requests."""
    run_row: int
    """Row of the log that may absorb the latest step, once that has ended; -1 for none."""
    last_row: int
    """Row of the latest step; -1 for none."""
    has_ended: int
    """Whether a request ended with the latest step."""
    is_paused: int
    """Number of reasons for which the replica forms no step though it serves: its experts move, it
    hangs, or its ranks form a new group."""
    price_state: int
    """State that its steps are priced in: 0 with all ranks, others with some that are lost."""
    is_ranked: int
    """Whether waiting requests have their keys for the step that is about to be formed."""
    is_draining: int
    """Whether the replica finishes the requests that it has and gets no others."""
    look_steps: int
    """Steps after which somebody looks at the replica."""
    num_kept: int
    """Computed prompts of a prefill replica whose caches have not arrived elsewhere yet."""
    coming: Queue
    """Requests that were sent to the replica since its last step, and are at no rank yet."""
    reserved: Queue
    """Requests that the latest step has reserved blocks for."""


class Feed:
    """Arrival of requests at the first pool, by rows of the window on the trace, and what the loop
    asks for.
    """

    num_come: int
    """Row of the next request to arrive."""
    num_released: int
    """Rows of requests whose arrival is known: all of an open loop."""
    is_closed: int
    """Whether the end of a request releases another (closed loop)."""
    ingress_delay_s: float
    """Seconds from the client, when it sends a request of a closed loop, to its arrival."""
    send_s: float
    """Seconds between two requests that the clients of a closed loop send."""
    sent_s: float
    """Time at which they sent the latest."""
    num_done: int
    """Requests that are finished or lost."""
    num_requests: int
    """Requests of the whole trace."""
    chosen: int
    """Replica that a balancer in Python has chosen, or -1."""
    used_up: int
    """Requests that may arrive before the window on the trace needs more rows
    (:mod:`simulator.engine.loop_state`)."""
    asks: int
    """Place of the pool whose balancer is asked, number of the replica that has stopped, or row of
    the request whose cache leaves."""
    asks_for: int
    """Row of the request that a balancer is asked for."""
    stopped_s: float
    """Time at which it has, seconds."""


class Requests(NamedTuple):
    """Requests and their progress: a record for each request of a window on the trace
    (:mod:`simulator.engine.loop_state`), shared by all replicas of a pool.
    """

    each: Records
    """``[N]`` :class:`Request`."""
    prefix_starts: Ints
    """``[N + 1]`` beginnings of each request's part of ``prefix_ids``."""
    prefix_ids: Ints
    """Ids of prefix blocks, request after request."""
    first: int
    """Number in the trace of the request in the first row."""


class Ranks(NamedTuple):
    """Ranks of one replica that batch on their own.

    Without a pipeline they are its attention data-parallel ranks. A pipeline of ``pp`` stages keeps
    ``pp`` batches in flight, each in a lane of its own, and batch ``d`` belongs to data-parallel
    rank ``d % len(caches)``. Its GPUs hold the caches of all lanes, so blocks and prefixes are by
    data-parallel rank only. The last two fields are of all ranks together.
    """

    each: Records
    """``[dp]`` :class:`Rank`."""
    running: Ints
    """``[dp, max_sequences]`` running requests in order of admission."""
    chunk: Ints
    """``[dp, max_sequences]`` tokens of each that the step computes; 0 = not in this step."""
    emitting: Ints
    """``[dp, max_sequences]`` requests, other than summed decodes, that get a token from the step
    in flight, or got one from the latest."""
    caches: Records
    """``[caches]`` :class:`Cache` of each data-parallel rank."""
    prefixes: Records
    """``[caches, 1 + tiers, U + 1]`` :class:`PrefixBlock` on the GPU and in tiers below it; the
    last row of each holds the ends of the eviction ring."""
    tiers: Records
    """``[caches, tiers]`` :class:`Tier`."""
    ring: Ints
    """``[dp, block tokens]`` summed decodes that need a KV block in steps whose number has this
    remainder."""
    ends: Ints
    """``[dp, max_sequences]`` step count of the rank at which each summed decode ends."""
    starts: Ints
    """``[dp, max_sequences]`` context of each summed decode when it joined, less the steps that the
    rank had counted then."""
    profiles: Ints
    """``[dp, P]`` summed decodes of each load profile."""
    counts: Records
    """``[1]`` :class:`Replica`."""
    gap_counts: Ints
    """``[NUM_GAP_BINS]`` histogram of gaps between output tokens of all ranks."""

    @property
    def by_rank(self) -> tuple[Any, ...]:
        """All fields but those of all ranks together."""
        return self[:-2]


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
    fills_apart: bool = False
    """Whether prompts have steps of their own and are admitted by the outputs that are assumed
    (:func:`simulator.engine.admission.admit_prefills`)."""
    watermark_blocks: int = 0
    """KV blocks kept free when a request is admitted while others run."""
    wait_tokens: int = 0
    """Tokens from which on a step is not held back any longer."""
    longest_prompt: int = NEVER
    """Tokens of the longest prompt that is not refused when it arrives."""
    sums_decodes: bool = False
    """Whether decodes may be summed (:mod:`simulator.engine.batching`): where a table prices them,
    and only their number and contexts matter."""
    accepted: Floats = _NOTHING
    """Probability that each token of a draft is accepted
    (:attr:`simulator.policies.speculation.Drafts.accepted`)."""
    draft_seed: int = 0
    """Seed of the acceptance of draft tokens."""
    key_per_second: float = 0.0
    """Part of a request's key for each second of the time at which it joins, where requests wait in
    an order of their own (:mod:`simulator.policies.order`)."""
    ranks_again: bool = False
    """Whether requests that wait get other keys before each step."""
    hands_over: bool = False
    """Whether finished requests keep their KV blocks until their caches have arrived at another
    pool."""


# Initial state of batching.


def start_requests(
    trace: RequestTrace,
    *,
    with_prefixes: bool,
    knows_ends: bool = True,
    first: int = 0,
    offset_N: Floats | None = None,
) -> Requests:
    """Make the rows of requests that have not begun.

    Args:
        knows_ends: whether the engine knows beforehand who ends by ``max_tokens``.
        first: number of the first of them, where they are the end of a longer trace.
        offset_N: of the keys by which they wait, ``[N]``.
    """
    count = trace.num_requests
    has_prefixes = with_prefixes and trace.prefix_block_tokens > 0
    starts = trace.prefix_starts if has_prefixes else np.zeros(count + 1)
    ids = trace.prefix_ids if has_prefixes else np.zeros(0)
    before = make_records(Request, 1)
    for name, kind in Request.__annotations__.items():
        if kind == "float":
            before[name] = np.nan
    for name in ("replica", "following", "child", "before", "domain"):
        before[name] = -1
    requests = Requests(
        np.repeat(before, count),  # much quicker than fields one after the other
        starts.astype(np.int64),
        np.require(ids, np.int64, ["C", "W"]),  # compiled code is of arrays that can be written
        first,
    )
    each = requests.each
    each.arrival_s[:] = trace.arrival_s
    each.num_input[:] = trace.num_input
    each.num_output[:] = each.max_output[:] = trace.num_output
    if "max_tokens" in trace.attributes:
        each.max_output[:] = np.maximum(trace.attributes["max_tokens"], trace.num_output)
    each.known_end[:] = each.max_output if knows_ends else NEVER
    each.number[:] = trace.part_of.numbers if trace.part_of else first + np.arange(count)
    if len(trace.domain):
        each.domain[:] = trace.domain
    if offset_N is not None:
        each.key_offset[:] = offset_N
    return requests


def start_ranks(
    num_ranks: int,
    max_sequences: int,
    capacity_blocks: int,
    num_prefixes: int,
    num_lanes: int = 1,
    output_share: float = 1.0,
    ring_tokens: int = 1,
    num_profiles: int = 1,
    is_ordered: bool = False,
    tiers: Sequence[tuple[int, float, float, float]] = (),
) -> Ranks:
    """Make idle ranks: nothing waits, nothing runs, all blocks are free.

    Args:
        num_ranks: ranks that batch on their own, in all lanes together.
        capacity_blocks: KV blocks of a data-parallel rank, for all lanes together.
        num_lanes: batches of a data-parallel rank that are in flight.
        output_share: share of the outputs of running requests that admission assumes at first.
        ring_tokens: tokens of a KV block where decodes may be summed.
        num_profiles: load profiles of requests.
        is_ordered: whether requests wait in an order of their own.
        tiers: of the cache below the GPU: prefix blocks that each holds, seconds to read and to
            write one, and latency.
    """
    num_pools = num_ranks // num_lanes

    def zeros(*shape: int) -> Ints:
        return np.zeros(shape, dtype=np.int64)

    ranks = Ranks(
        each=make_records(Rank, num_ranks),
        running=zeros(num_ranks, max_sequences) - 1,
        chunk=zeros(num_ranks, max_sequences),
        emitting=zeros(num_ranks, max_sequences) - 1,
        caches=make_records(Cache, num_pools),
        prefixes=make_records(PrefixBlock, num_pools, 1 + len(tiers), num_prefixes + 1),
        tiers=make_records(Tier, num_pools, len(tiers)),
        ring=zeros(num_ranks, ring_tokens),
        ends=zeros(num_ranks, max_sequences),
        starts=zeros(num_ranks, max_sequences),
        profiles=zeros(num_ranks, num_profiles),
        counts=make_records(Replica, 1),
        gap_counts=zeros(NUM_GAP_BINS),
    )
    ranks.each.waiting.is_ordered[:] = ranks.each.line.is_ordered[:] = is_ordered
    ranks.each.output_share[:] = output_share
    ranks.caches.free_blocks[:] = ranks.caches.capacity_blocks[:] = capacity_blocks
    ranks.prefixes.since_s[:] = np.inf
    for end in (ranks.prefixes.older, ranks.prefixes.newer):
        end[..., num_prefixes] = num_prefixes
    for t, tier in enumerate(tiers):
        own = ranks.tiers[:, t]
        own.capacity_blocks, own.block_read_s, own.block_write_s, own.latency_s = tier
    ranks.counts.look_steps[:] = NEVER
    ranks.counts.run_row[:] = ranks.counts.last_row[:] = -1
    return ranks
