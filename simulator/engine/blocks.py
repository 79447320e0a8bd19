"""KV blocks of one data-parallel rank ``d``, shared by the lanes of a pipeline: allocation,
release, and prefix caching. Compiled.

A prefix block is cached while a request holds it and afterwards until its blocks are needed; the
least recently used is evicted first, and of one request's blocks the deepest first (vLLM's
automatic prefix caching). Conserved: free blocks + blocks that requests hold alone + cached prefix
blocks = capacity.
"""

from __future__ import annotations

from simulator.base.jit import jit_inner
from simulator.engine.state import (
    BLOCKS,
    COMPUTED,
    FOLLOWING,
    FREE_BLOCKS,
    HEAD,
    IN_CACHE,
    KEPT_BLOCKS,
    KEPT_END,
    KEPT_FIRST,
    LAST_READY,
    NEWER,
    NUM_EVICTABLE,
    NUM_INPUT,
    NUM_READY,
    NUM_TAKEN,
    OLDER,
    PREEMPTIONS,
    REFS,
    SHARED,
    Ints,
    Limits,
    Ranks,
    Requests,
)


@jit_inner
def blocks_for(tokens: int, limits: Limits) -> int:
    """Number of KV blocks of a running sequence of ``tokens``."""
    return (tokens + limits.block_tokens - 1) // limits.block_tokens + limits.sequence_blocks


@jit_inner
def count_available(ranks: Ranks, d: int, limits: Limits) -> int:
    """Number of blocks that are free or can be freed by eviction."""
    return int(ranks.pools[d, FREE_BLOCKS] + ranks.pools[d, NUM_EVICTABLE] * limits.prefix_blocks)


@jit_inner
def allocate_blocks(ranks: Ranks, d: int, count: int, limits: Limits) -> None:
    """Allocate ``count`` blocks, evicting prefix blocks as needed; the caller has checked that
    enough are available.
    """
    ends = ranks.prefixes.shape[1] - 1
    while ranks.pools[d, FREE_BLOCKS] < count:
        victim = ranks.prefixes[
            d, ends, NEWER
        ]  # the ring's ends: its newer neighbour is the oldest block
        _unlink(ranks, d, victim)
        ranks.prefixes[d, victim, IN_CACHE] = False
        ranks.pools[d, FREE_BLOCKS] += limits.prefix_blocks
    ranks.pools[d, FREE_BLOCKS] -= count
    ranks.pools[d, NUM_TAKEN] += count


@jit_inner
def _unlink(ranks: Ranks, d: int, block: int) -> None:
    older, newer = ranks.prefixes[d, block, OLDER], ranks.prefixes[d, block, NEWER]
    ranks.prefixes[d, older, NEWER] = newer
    ranks.prefixes[d, newer, OLDER] = older
    ranks.pools[d, NUM_EVICTABLE] -= 1


@jit_inner
def _link_newest(ranks: Ranks, d: int, block: int) -> None:
    ends = ranks.prefixes.shape[1] - 1
    newest = ranks.prefixes[d, ends, OLDER]
    ranks.prefixes[d, newest, NEWER] = block
    ranks.prefixes[d, block, OLDER] = newest
    ranks.prefixes[d, block, NEWER] = ends
    ranks.prefixes[d, ends, OLDER] = block
    ranks.pools[d, NUM_EVICTABLE] += 1


@jit_inner
def hold_block(ranks: Ranks, d: int, block: int) -> None:
    """Add a reference of one more request to a cached prefix block."""
    if ranks.prefixes[d, block, REFS] == 0:
        _unlink(ranks, d, block)
    ranks.prefixes[d, block, REFS] += 1


@jit_inner
def _release_block(ranks: Ranks, d: int, block: int) -> None:
    ranks.prefixes[d, block, REFS] -= 1
    if ranks.prefixes[d, block, REFS] == 0:
        _link_newest(ranks, d, block)


@jit_inner
def count_hits(requests: Requests, prefixes: Ints, d: int, r: int, limits: Limits) -> int:
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
        (requests.ints[r, NUM_INPUT] - 1) // limits.prefix_tokens,
    )
    hits = 0
    while hits < usable and prefixes[d, requests.prefix_ids[start + hits], IN_CACHE]:
        hits += 1
    return hits


@jit_inner
def count_idle(requests: Requests, ranks: Ranks, d: int, r: int, hits: int) -> int:
    """Count those of the first ``hits`` prefix blocks of ``r`` that no request holds: holding them
    takes from the available blocks.
    """
    start, idle = requests.prefix_starts[r], 0
    for i in range(start, start + hits):
        idle += ranks.prefixes[d, requests.prefix_ids[i], REFS] == 0
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
    start = requests.prefix_starts[r]
    whole = min(
        requests.prefix_starts[r + 1] - start,
        min(requests.ints[r, NUM_INPUT], reach) // limits.prefix_tokens,
    )
    while requests.ints[r, SHARED] < whole:
        block = requests.prefix_ids[start + requests.ints[r, SHARED]]
        if ranks.prefixes[
            d, block, IN_CACHE
        ]:  # another request computed it meanwhile; this one keeps its own copy
            return
        ranks.prefixes[d, block, IN_CACHE] = True
        ranks.prefixes[d, block, REFS] = 1
        requests.ints[r, SHARED] += 1
        requests.ints[r, BLOCKS] -= limits.prefix_blocks


@jit_inner
def release(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Release all blocks that ``r`` holds."""
    ranks.pools[d, FREE_BLOCKS] += requests.ints[r, BLOCKS]
    requests.ints[r, BLOCKS] = 0
    start = requests.prefix_starts[r]
    for i in range(requests.ints[r, SHARED] - 1, -1, -1):
        _release_block(ranks, d, requests.prefix_ids[start + i])
    requests.ints[r, SHARED] = 0


@jit_inner
def keep_order(requests: Requests, ranks: Ranks, d: int, r: int, limits: Limits) -> None:
    """Remember the positions in the free queue that the blocks of ``r``, which it is about to lose,
    will get.

    Blocks are taken from the front of the free queue and appended at its end, the last of a
    sequence first, so that its beginning stays longest. A position is the number of blocks that
    have been taken once it is at the front. Only full blocks are found again.
    """
    first = requests.ints[r, SHARED] * limits.prefix_blocks
    full = min(requests.ints[r, COMPUTED] // limits.block_tokens - first, requests.ints[r, BLOCKS])
    end = ranks.pools[d, NUM_TAKEN] + ranks.pools[d, FREE_BLOCKS] + requests.ints[r, BLOCKS]
    requests.ints[r, KEPT_FIRST], requests.ints[r, KEPT_BLOCKS], requests.ints[r, KEPT_END] = (
        first,
        full,
        end,
    )


@jit_inner
def count_kept(requests: Requests, ranks: Ranks, r: int, d: int, hits: int, limits: Limits) -> int:
    """Count the blocks behind the first ``hits`` prefix blocks that ``r`` lost and no request has
    taken since.
    """
    if requests.ints[r, KEPT_FIRST] != hits * limits.prefix_blocks:
        return 0
    return int(
        max(
            0,
            min(
                requests.ints[r, KEPT_BLOCKS],
                requests.ints[r, KEPT_END] - ranks.pools[d, NUM_TAKEN],
            ),
        )
    )


@jit_inner
def reclaim_blocks(requests: Requests, ranks: Ranks, r: int, d: int, count: int) -> None:
    """Reclaim ``count`` blocks that ``r`` lost from the free queue; those behind them move up."""
    if count > 0:
        ranks.pools[d, FREE_BLOCKS] -= count
        for lane in range(d, len(ranks.each), len(ranks.pools)):
            other = ranks.each[lane, HEAD]
            if ranks.each[lane, NUM_READY] > 0:
                other = requests.ints[ranks.each[lane, LAST_READY], FOLLOWING]
            while (
                other >= 0 and requests.ints[other, PREEMPTIONS] > 0
            ):  # they wait before others without blocks
                if requests.ints[other, KEPT_END] > requests.ints[r, KEPT_END]:
                    requests.ints[other, KEPT_END] -= count
                other = requests.ints[other, FOLLOWING]
    requests.ints[r, KEPT_BLOCKS] = 0
