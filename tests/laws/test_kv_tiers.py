"""Tiers of the KV cache below the GPU: what they hold, and when it has been read."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest

from simulator.config.workload import WorkloadSpec
from simulator.policies.kv_tiers import Tier
from simulator.workload.requests import load_requests
from tests.parts import change_plan
from tests.shared import shared_file

MOONCAKE = "traces/requests/mooncake/conversation_trace_first20min.jsonl"
"""Requests of a conversation service, 20 minutes (Apache-2.0, arXiv:2407.00079)."""
PUBLISHED = {1000: 4.0, 3000: 6.1, 10_000: 20.4, 30_000: 30.1, 50_000: 31.7}
"""Percentage of the blocks that an LRU of so many blocks finds there, those of unfinished blocks
included."""


def load_mooncake():
    path = shared_file(MOONCAKE)
    return load_requests(WorkloadSpec(requests=str(path)), path.parent, 1)


def read_blocks_of(trace):
    """Prefix blocks of each request, whole ones, and how many of them it may find."""
    for n, num_input in enumerate(trace.num_input.tolist()):
        ids = trace.prefix_ids[trace.prefix_starts[n] : trace.prefix_starts[n + 1]].tolist()
        whole = ids[: num_input // trace.prefix_block_tokens]
        yield whole, min(len(ids), (num_input - 1) // trace.prefix_block_tokens)


def replay(trace, most):
    """Blocks that each request finds in an LRU of ``most`` blocks, in which its own blocks are the
    most recently used, the deepest of them least.
    """
    known = OrderedDict()
    for whole, usable in read_blocks_of(trace):
        hits = next((i for i, block in enumerate(whole[:usable]) if block not in known), usable)
        yield hits
        for block in reversed(whole):
            known[block] = None
            known.move_to_end(block)
        while len(known) > most:
            known.popitem(last=False)


def one_after_another(trace):
    """A trace of prompts, each long after the one before."""
    count = trace.num_requests
    return replace(
        trace, arrival_s=np.arange(count) * 1e4, num_output=np.ones(count, dtype=np.int64)
    )


def with_tiers(plan, trace, *blocks, rate=1e15, **keys):
    """The same plan with tiers of so many prefix blocks."""
    size = plan.serving.capacity.cache.bytes_per_token * trace.prefix_block_tokens
    tiers = tuple(Tier(size * (count + 0.5), rate, rate, **keys) for count in blocks)
    return change_plan(plan, tiers=tiers)


@pytest.mark.parametrize("most", PUBLISHED)
def test_hits_are_those_of_an_lru(tiny, most):
    trace = one_after_another(load_mooncake())
    plan = tiny.plan("dense", num_layers=2, scheduling={"kind": "chunked", "token_budget": 8192})
    capacity = plan.serving.capacity
    size = 300 * trace.prefix_block_tokens * capacity.block_bytes / capacity.block_tokens
    plan = change_plan(plan, capacity=replace(capacity, kv_bytes=size))
    served = tiny.serve(with_tiers(plan, trace, most), trace)
    table = served.requests_table()
    wanted = np.fromiter(replay(trace, most), dtype=np.int64)
    np.testing.assert_array_equal(table["num_cached"], wanted * trace.prefix_block_tokens)
    share = 100 * wanted.sum() / len(trace.prefix_ids)
    assert share == pytest.approx(PUBLISHED[most], abs=0.35)
