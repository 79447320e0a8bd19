"""KV blocks of one data-parallel rank ``d``, shared by the lanes of a pipeline: taking, giving
back, and prefix blocks. Compiled.

A prefix block is cached while a request holds it and afterwards until its blocks are needed; the
least recently used goes first, and of one request's blocks the deepest first (vLLM's automatic
prefix caching). Conserved: free blocks + blocks that requests hold alone + cached prefix blocks =
capacity.
"""

from __future__ import annotations

from simulator.base.compiled import compiled
from simulator.engine.state import Limits, Ranks, Requests


@compiled
def blocks_for(tokens: int, limits: Limits) -> int:
    """KV blocks of a running sequence of ``tokens``."""
    return (tokens + limits.block_tokens - 1) // limits.block_tokens + limits.sequence_blocks


@compiled
def available(ranks: Ranks, d: int, limits: Limits) -> int:
    """Blocks that are free or can be made free."""
    return int(ranks.free_blocks[d] + ranks.num_evictable[d] * limits.prefix_blocks)


@compiled
def take(ranks: Ranks, d: int, count: int, limits: Limits) -> None:
    """Take ``count`` blocks, evicting prefix blocks as needed; the caller has checked that they are
    available.
    """
    ends = ranks.older.shape[1] - 1
    while ranks.free_blocks[d] < count:
        victim = ranks.newer[d, ends]  # the ring's ends: its newer neighbour is the oldest block
        _unlink(ranks, d, victim)
        ranks.in_cache[d, victim] = False
        ranks.free_blocks[d] += limits.prefix_blocks
    ranks.free_blocks[d] -= count


@compiled
def _unlink(ranks: Ranks, d: int, block: int) -> None:
    older, newer = ranks.older[d, block], ranks.newer[d, block]
    ranks.newer[d, older] = newer
    ranks.older[d, newer] = older
    ranks.num_evictable[d] -= 1


@compiled
def _link_newest(ranks: Ranks, d: int, block: int) -> None:
    ends = ranks.older.shape[1] - 1
    newest = ranks.older[d, ends]
    ranks.newer[d, newest] = block
    ranks.older[d, block] = newest
    ranks.newer[d, block] = ends
    ranks.older[d, ends] = block
    ranks.num_evictable[d] += 1


@compiled
def hold(ranks: Ranks, d: int, block: int) -> None:
    """One more request holds a cached prefix block."""
    if ranks.refs[d, block] == 0:
        _unlink(ranks, d, block)
    ranks.refs[d, block] += 1


@compiled
def _let_go(ranks: Ranks, d: int, block: int) -> None:
    ranks.refs[d, block] -= 1
    if ranks.refs[d, block] == 0:
        _link_newest(ranks, d, block)


@compiled
def count_hits(requests: Requests, ranks: Ranks, d: int, r: int, limits: Limits) -> int:
    """Leading prefix blocks of ``r`` that are cached and wholly inside its prompt, less the one
    with its last token.
    """
    if limits.prefix_tokens == 0:
        return 0
    start = requests.prefix_starts[r]
    usable = min(
        requests.prefix_starts[r + 1] - start, (requests.num_input[r] - 1) // limits.prefix_tokens
    )
    hits = 0
    while hits < usable and ranks.in_cache[d, requests.prefix_ids[start + hits]]:
        hits += 1
    return hits


@compiled
def count_idle(requests: Requests, ranks: Ranks, d: int, r: int, hits: int) -> int:
    """Those of the first ``hits`` prefix blocks of ``r`` that no request holds: holding them takes
    from what is available.
    """
    start, idle = requests.prefix_starts[r], 0
    for i in range(start, start + hits):
        idle += ranks.refs[d, requests.prefix_ids[i]] == 0
    return idle


@compiled
def share_prompt(
    requests: Requests, ranks: Ranks, d: int, r: int, reach: int, limits: Limits
) -> None:
    """Put the whole prefix blocks among the first ``reach`` tokens of a prompt into the cache.

    They are there for others from the step that computes them on, as in vLLM, where a step's
    requests may read what others write in it.
    """
    if limits.prefix_tokens == 0:
        return
    start = requests.prefix_starts[r]
    whole = min(
        requests.prefix_starts[r + 1] - start,
        min(requests.num_input[r], reach) // limits.prefix_tokens,
    )
    while requests.shared[r] < whole:
        block = requests.prefix_ids[start + requests.shared[r]]
        if ranks.in_cache[
            d, block
        ]:  # another request computed it meanwhile; this one keeps its own copy
            return
        ranks.in_cache[d, block] = True
        ranks.refs[d, block] = 1
        requests.shared[r] += 1
        requests.blocks[r] -= limits.prefix_blocks


@compiled
def release(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Give back everything that ``r`` holds."""
    ranks.free_blocks[d] += requests.blocks[r]
    requests.blocks[r] = 0
    start = requests.prefix_starts[r]
    for i in range(requests.shared[r] - 1, -1, -1):
        _let_go(ranks, d, requests.prefix_ids[start + i])
    requests.shared[r] = 0
