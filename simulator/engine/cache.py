"""KV cache of one data-parallel rank ``d``, shared by the lanes of a pipeline: looking up what is
cached of a prompt, allocation, release and eviction of blocks. Compiled. Nothing else reads what is
free.

A prefix block is cached while a request holds it and afterwards until its blocks are needed; the
least recently used is evicted first, and of one request's blocks the deepest first (vLLM's
automatic prefix caching). Conserved: free blocks + blocks that requests hold alone + cached prefix
blocks = capacity.
"""

from __future__ import annotations

from simulator.base.jit import jit_inner
from simulator.engine.queue import find_another
from simulator.engine.state import Ints, Limits, Ranks, Records, Requests


@jit_inner
def blocks_for(tokens: int, limits: Limits) -> int:
    """Number of KV blocks of a running sequence of ``tokens``."""
    return (tokens + limits.block_tokens - 1) // limits.block_tokens + limits.sequence_blocks


@jit_inner
def count_available(ranks: Ranks, d: int, limits: Limits) -> int:
    """Number of blocks that are free or can be freed by eviction."""
    cache = ranks.caches[d]
    return int(cache.free_blocks + cache.num_evictable * limits.prefix_blocks)


def count_all_available(ranks: Ranks, limits: Limits) -> Ints:
    """:func:`count_available` of all ranks at once."""
    caches = ranks.caches
    found: Ints = caches.free_blocks + caches.num_evictable * limits.prefix_blocks
    return found


@jit_inner
def measure_use(ranks: Ranks, d: int, limits: Limits) -> float:
    """Share of the blocks that requests hold."""
    capacity = ranks.caches[d].capacity_blocks
    return float((capacity - count_available(ranks, d, limits)) / capacity)


def give_back(ranks: Ranks, d: int, count: int) -> None:
    """Free ``count`` blocks that were allocated in advance."""
    ranks.caches.free_blocks[d] += count


@jit_inner
def allocate_blocks(ranks: Ranks, d: int, count: int, limits: Limits) -> None:
    """Allocate ``count`` blocks, evicting prefix blocks as needed; the caller has checked that
    enough are available.
    """
    cache, ends = ranks.caches[d], ranks.prefixes.shape[1] - 1
    while cache.free_blocks < count:
        victim = ranks.prefixes[d, ends].newer  # the newer neighbour of the ring's ends is oldest
        _unlink(ranks, d, victim)
        ranks.prefixes[d, victim].in_cache = False
        cache.free_blocks += limits.prefix_blocks
    cache.free_blocks -= count
    cache.num_taken += count


@jit_inner
def _unlink(ranks: Ranks, d: int, block: int) -> None:
    prefixes = ranks.prefixes[d]
    older, newer = prefixes[block].older, prefixes[block].newer
    prefixes[older].newer = newer
    prefixes[newer].older = older
    ranks.caches[d].num_evictable -= 1


@jit_inner
def _link_newest(ranks: Ranks, d: int, block: int) -> None:
    prefixes = ranks.prefixes[d]
    ends = len(prefixes) - 1
    newest = prefixes[ends].older
    prefixes[newest].newer = block
    prefixes[block].older = newest
    prefixes[block].newer = ends
    prefixes[ends].older = block
    ranks.caches[d].num_evictable += 1


@jit_inner
def hold_block(ranks: Ranks, d: int, block: int) -> None:
    """Add a reference of one more request to a cached prefix block."""
    if ranks.prefixes[d, block].refs == 0:
        _unlink(ranks, d, block)
    ranks.prefixes[d, block].refs += 1


@jit_inner
def _release_block(ranks: Ranks, d: int, block: int) -> None:
    ranks.prefixes[d, block].refs -= 1
    if ranks.prefixes[d, block].refs == 0:
        _link_newest(ranks, d, block)


@jit_inner
def count_hits(requests: Requests, prefixes: Records, d: int, r: int, limits: Limits) -> int:
    """Count the leading prefix blocks of ``r`` that are cached and wholly inside its prompt,
    without the one that holds its last token.

    Args:
        prefixes: of a replica's ranks (:attr:`simulator.engine.state.Ranks.prefixes`).
    """
    if limits.prefix_tokens == 0:
        return 0
    start = requests.prefix_starts[r]
    usable = min(
        requests.prefix_starts[r + 1] - start,
        (requests.each[r].num_input - 1) // limits.prefix_tokens,
    )
    hits = 0
    while hits < usable and prefixes[d, requests.prefix_ids[start + hits]].in_cache:
        hits += 1
    return hits


@jit_inner
def count_idle(requests: Requests, ranks: Ranks, d: int, r: int, hits: int) -> int:
    """Count those of the first ``hits`` prefix blocks of ``r`` that no request holds: holding them
    takes from the available blocks.
    """
    start, idle = requests.prefix_starts[r], 0
    for i in range(start, start + hits):
        idle += ranks.prefixes[d, requests.prefix_ids[i]].refs == 0
    return idle


@jit_inner
def share_prompt(
    requests: Requests, ranks: Ranks, d: int, r: int, reach: int, limits: Limits
) -> None:
    """Put the whole prefix blocks among the first ``reach`` tokens of a prompt into the cache.

    Other requests find them from the step that computes them on, as in vLLM, where a step's
    requests may read what others write in it.
    """
    if limits.prefix_tokens == 0:
        return
    request, start = requests.each[r], requests.prefix_starts[r]
    whole = min(
        requests.prefix_starts[r + 1] - start,
        min(request.num_input, reach) // limits.prefix_tokens,
    )
    while request.shared < whole:
        block = ranks.prefixes[d, requests.prefix_ids[start + request.shared]]
        if block.in_cache:  # another request computed it meanwhile; this one keeps its own copy
            return
        block.in_cache = True
        block.refs = 1
        request.shared += 1
        request.blocks -= limits.prefix_blocks


@jit_inner
def release(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Release all blocks that ``r`` holds."""
    request, start = requests.each[r], requests.prefix_starts[r]
    ranks.caches[d].free_blocks += request.blocks
    request.blocks = 0
    for i in range(request.shared - 1, -1, -1):
        _release_block(ranks, d, requests.prefix_ids[start + i])
    request.shared = 0


@jit_inner
def keep_order(requests: Requests, ranks: Ranks, d: int, r: int, limits: Limits) -> None:
    """Remember the positions in the free queue that the blocks of ``r``, which it is about to lose,
    will get.

    Blocks are taken from the front of the free queue and appended at its end, the last of a
    sequence first, so that its beginning stays longest. A position is the number of blocks that
    have been taken once it is at the front. Only full blocks are found again.
    """
    request, cache = requests.each[r], ranks.caches[d]
    first = request.shared * limits.prefix_blocks
    request.kept_first = first
    request.kept_blocks = min(request.computed // limits.block_tokens - first, request.blocks)
    request.kept_end = cache.num_taken + cache.free_blocks + request.blocks
    ranks.each[request.dp_rank].num_bereft += request.kept_blocks > 0


@jit_inner
def count_kept(requests: Requests, ranks: Ranks, r: int, d: int, hits: int, limits: Limits) -> int:
    """Count the blocks behind the first ``hits`` prefix blocks that ``r`` lost and no request has
    taken since.
    """
    request = requests.each[r]
    if request.kept_first != hits * limits.prefix_blocks:
        return 0
    return int(max(0, min(request.kept_blocks, request.kept_end - ranks.caches[d].num_taken)))


@jit_inner
def reclaim_blocks(requests: Requests, ranks: Ranks, r: int, d: int, count: int) -> None:
    """Reclaim ``count`` blocks that ``r`` lost from the free queue; those behind them move up."""
    rows = requests.each
    if count > 0:
        ranks.caches[d].free_blocks -= count
        for lane in range(d, len(ranks.each), len(ranks.caches)):
            rank = ranks.each[lane]
            other, num_left = rank.waiting.first, rank.num_bereft
            while num_left > 0 and other >= 0:
                num_left -= rows[other].kept_blocks > 0
                if rows[other].kept_end > rows[r].kept_end:
                    rows[other].kept_end -= count
                other = find_another(rank.waiting, rows, other)
    ranks.each[rows[r].dp_rank].num_bereft -= rows[r].kept_blocks > 0
    rows[r].kept_blocks = 0
