"""KV blocks of one data-parallel rank, each with a number of its own.

vLLM's block pool (``vllm/v1/core/block_pool.py``, ``free_blocks``): blocks are taken from the front
of a line of free ones. With prefix caching a block that is full is known by its content, be it of a
prompt or of an output, and goes back to the end of the line, the last of a sequence first, so that
its beginning stays for longest; others go to the front, or before 0.24 to the end as well. What a
free block holds can be used again until somebody takes it. A prefix block stands in line as one.
"""

from __future__ import annotations

import math
from itertools import takewhile

from tests.reference.requests import Request
from tests.reference.settings import Settings


class Tier:
    """Memory below the GPU, which holds copies of prefix blocks: the least recently used goes
    first, but none before those that continue it.
    """

    def __init__(self, most: int, read_s: float, write_s: float, latency_s: float) -> None:
        self._most, self._read_s, self._write_s, self._latency_s = most, read_s, write_s, latency_s
        self.held: list[int] = []
        """Blocks, the least recently used first."""
        self._there_s: dict[int, float] = {}
        """When each can be read."""
        self._reads_until_s = self._writes_until_s = 0.0

    def has(self, prefix: int, now_s: float) -> bool:
        """Whether a block can be read."""
        return prefix in self.held and self._there_s[prefix] <= now_s

    def write(self, chain: tuple[int, ...], first: int, now_s: float) -> None:
        """Keep the blocks of a chain from some on, each directly behind the one before it; at no
        time only those that are there already.
        """
        before = chain[first - 1] if first else None
        for prefix in chain[first:]:
            if before is not None and before not in self.held:
                return
            if prefix == before:
                continue
            if prefix in self.held:
                self.held.remove(prefix)
            else:
                if now_s == math.inf:
                    return
                if len(self.held) == self._most:
                    if not self.held or self.held[0] == before:
                        return
                    self.held.pop(0)
                self._writes_until_s = max(self._writes_until_s, now_s) + self._write_s
                self._there_s[prefix] = self._writes_until_s
            place = len(self.held) if before is None else self.held.index(before)
            self.held.insert(place, prefix)
            before = prefix

    def read(self, count: int, now_s: float) -> float:
        """Read some blocks of a request behind those of others. Returns when they have come."""
        self._reads_until_s = max(self._reads_until_s, now_s) + count * self._read_s
        return self._reads_until_s + self._latency_s


class Cache:
    """The blocks of a rank; the lanes of a pipeline share them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._num_fresh = settings.num_blocks
        """Blocks that nobody has had yet."""
        self._spare: list[int] = []
        """Free blocks of which nobody wants to know what they held, taken before those in line."""
        self._line: dict[int | tuple[int], None] = {}
        """Other free blocks by number, and cached prefix blocks that no request holds, each as a
        tuple, in the order in which they are taken."""
        self.prefixes: dict[int, list[int]] = {}
        """KV blocks of each prefix block that is cached."""
        self.tiers = [Tier(*numbers) for numbers in settings.tiers]
        self.has_preempted = False
        """Whether a request has lost its blocks while this step was formed."""
        self._holders: dict[int, int] = {}
        self._left_by: dict[int, Request] = {}
        """Whose tokens free blocks still hold, where that request may find them again."""

    @property
    def num_available(self) -> int:
        """Blocks that are free, or would be if prefix blocks went."""
        num_prefixes = sum(isinstance(one, tuple) for one in self._line)
        in_line = len(self._line) + num_prefixes * (self.settings.prefix_blocks - 1)
        return self._num_spare + in_line

    @property
    def _num_spare(self) -> int:
        return self._num_fresh + len(self._spare)

    @property
    def num_held(self) -> int:
        """Blocks that requests hold."""
        return self.settings.num_blocks - self.num_available

    def find_prefix(self, request: Request) -> list[int]:
        """Leading prefix blocks of a prompt that are cached; its last token is computed anyway."""
        if not self.settings.prefix_tokens:
            return []
        whole = self._count_whole(request)
        return list(takewhile(self.prefixes.__contains__, request.prefix[:whole]))

    def _count_whole(self, request: Request) -> int:
        """Whole prefix blocks of a prompt, less one with the last token that is known."""
        most = min(request.num_input, request.known - 1)
        return most // self.settings.prefix_tokens

    def count_cached(self, request: Request) -> int:
        """Tokens of the longest prefix of a prompt that is anywhere, or about to be."""
        if not self.settings.prefix_tokens:
            return 0
        whole = self._count_whole(request)
        known = {*self.prefixes, *(prefix for tier in self.tiers for prefix in tier.held)}
        found = takewhile(known.__contains__, request.prefix[:whole])
        return len(list(found)) * self.settings.prefix_tokens

    def find_readable(self, request: Request, num_prefixes: int, now_s: float) -> list[Tier]:
        """Where each prefix block behind the first ones is read: in the first tier that has it."""
        if not self.tiers:
            return []
        whole, found = self._count_whole(request), list[Tier]()
        for prefix in request.prefix[num_prefixes:whole]:
            tiers = [tier for tier in self.tiers if tier.has(prefix, now_s)]
            if not tiers:
                break
            found.append(tiers[0])
        return found

    def write(self, request: Request, first: int, end: int, now_s: float) -> None:
        """Keep some prefix blocks of a request in all tiers."""
        for tier in self.tiers if end > first else ():
            tier.write(request.prefix[:end], first, now_s)

    def find_lost(self, request: Request, num_prefixes: int) -> list[int]:
        """Blocks behind its first prefix blocks that a request lost and nobody has taken."""
        skipped = (num_prefixes - request.lost_behind) * self.settings.prefix_blocks
        if skipped < 0:
            return []
        lost = request.lost_blocks
        found = list(takewhile(lambda block: self._left_by.get(block) is request, lost))
        if self.settings.rules.output_share and len(found) < len(lost):
            return []  # SGLang's tree lets go of a prompt as a whole
        return found[skipped:]

    def count_in_use(self, prefixes: list[int]) -> int:
        """KV blocks of cached prefix blocks that others hold, so that nothing is taken for them."""
        held = [prefix for prefix in prefixes if (prefix,) not in self._line]
        return sum(len(self.prefixes[prefix]) for prefix in held)

    def use_again(self, request: Request, prefixes: list[int], lost: list[int]) -> None:
        """Let a request hold what it has found."""
        for prefix in prefixes:
            self._line.pop((prefix,), None)
            self._holders[prefix] += 1
        for block in lost:
            del self._line[block], self._left_by[block]
        request.shared, request.blocks, request.lost_blocks = prefixes, lost, []

    def count_missing(self, request: Request, num_tokens: int) -> int:
        """Blocks that a request lacks to hold so many tokens."""
        shared = len(request.shared) * self.settings.prefix_blocks
        own = len(request.blocks) + len(request.fixed_blocks)
        return max(0, self.settings.blocks_for(num_tokens) - shared - own)

    def grow(self, request: Request, num_tokens: int) -> None:
        """Take the blocks that a request lacks; they are available."""
        taken = self._take(self.count_missing(request, num_tokens))
        fixed = self.settings.fixed_blocks - len(request.fixed_blocks)
        request.fixed_blocks += taken[:fixed]
        request.blocks += taken[fixed:]

    def _take(self, count: int) -> list[int]:
        while self._num_spare < count:
            self._evict()
        taken = [self._spare.pop() for _ in range(min(count, len(self._spare)))]
        fresh = count - len(taken)
        taken += range(self._num_fresh - fresh, self._num_fresh)
        self._num_fresh -= fresh
        return taken

    def _evict(self) -> None:
        """Let go what stands first in line."""
        first = next(iter(self._line))
        del self._line[first]
        if isinstance(first, int):
            self._left_by.pop(first, None)
            self._spare.append(first)
            return
        [prefix] = first
        del self._holders[prefix]
        self._spare += self.prefixes.pop(prefix)

    def share_prompt(self, request: Request, num_tokens: int, now_s: float) -> None:
        """Cache the whole prefix blocks among the first tokens of a prompt, which others find from
        the step on that computes them. Behind one that somebody else computed meanwhile a request
        keeps blocks of its own.
        """
        if not self.settings.prefix_tokens:
            return
        whole = min(request.num_input, num_tokens) // self.settings.prefix_tokens
        first = len(request.shared)
        for prefix in request.prefix[first:whole]:
            if prefix in self.prefixes:
                break
            size = self.settings.prefix_blocks
            self.prefixes[prefix], request.blocks = request.blocks[:size], request.blocks[size:]
            self._holders[prefix] = 1
            request.shared.append(prefix)
        self.write(request, first, len(request.shared), now_s)

    def release(self, request: Request, known: int | None = None) -> None:
        """Take back all that a request holds, of which the first tokens are known by content."""
        full = self._list_full(request, request.computed if known is None else known)
        for block in [*reversed(request.fixed_blocks), *reversed(request.blocks)]:
            if self.settings.finds_full and (
                block in full or not self.settings.rules.frees_partial_first
            ):
                self._line[block] = None
            else:
                self._spare.append(block)
        for prefix in reversed(request.shared):
            self._holders[prefix] -= 1
            if not self._holders[prefix]:
                self._line[prefix,] = None
        request.blocks, request.fixed_blocks, request.shared = [], [], []

    def _list_full(self, request: Request, known: int) -> list[int]:
        """Blocks of its own that a request has filled with its first tokens."""
        full = known // self.settings.block_tokens
        return request.blocks[: max(0, full - len(request.shared) * self.settings.prefix_blocks)]

    def preempt(self, request: Request) -> None:
        """Take back all that a request holds, which finds its full blocks again while they last:
        not one that is filled by a token whose successor is not known yet; in SGLang's tree those
        of its prompt only.
        """
        known = request.computed - request.waits_for_token
        if self.settings.rules.output_share:
            known = min(request.computed, request.prompt)
        if self.settings.finds_full and request.may_go_on:
            request.lost_behind = len(request.shared)
            request.lost_blocks = self._list_full(request, known)
            self._left_by |= dict.fromkeys(request.lost_blocks, request)
        self.release(request, known)
        self.has_preempted = True

    def make_spare(self, num_tokens: int) -> None:
        """Let go of blocks in line, as many as hold so many tokens, unless others do already."""
        wanted = -(-num_tokens // self.settings.block_tokens)
        if self._num_spare * self.settings.block_tokens >= num_tokens:
            return
        before = self._num_spare
        while self._line and self._num_spare < before + wanted:
            self._evict()
