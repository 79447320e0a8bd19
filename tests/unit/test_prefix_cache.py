"""Which blocks of a prompt the prefix cache has already, against a list that anyone can check."""

from hypothesis import assume, given
from hypothesis import strategies as st

from tests.unit.steps_of_a_second import (
    PREFIX_TOKENS,
    QUICK,
    Asked,
    blocks_needed,
    make_limits,
    make_trace,
    serve,
    traces,
)


class BruteForceCache:
    """A prefix cache as a list from the least to the most recently used, serving one request at a
    time.
    """

    def __init__(self, limits, capacity):
        self.limits, self.free, self.unused = limits, capacity, []

    def _take(self, count):
        while self.free < count:
            self.unused.pop(0)
            self.free += self.limits.prefix_blocks
        self.free -= count

    def hits(self, ids, num_input, num_output):
        """Serve a request and return how many of its leading prefix blocks were there."""
        size = self.limits.prefix_blocks
        found = 0
        while found < min(len(ids), (num_input - 1) // PREFIX_TOKENS) and ids[found] in self.unused:
            found += 1
        for block in ids[:found]:
            self.unused.remove(block)
        alone = -(-num_input // self.limits.block_tokens) - found * size
        self._take(alone)
        shared = found
        while shared < num_input // PREFIX_TOKENS and ids[shared] not in self.unused:
            shared += 1
        alone -= (shared - found) * size
        growth = -(-(num_input + num_output - 1) // self.limits.block_tokens) - -(
            -num_input // self.limits.block_tokens
        )
        self._take(growth)
        self.free += alone + growth
        self.unused += reversed(ids[:shared])
        return found


@QUICK
@given(
    st.lists(
        st.builds(
            Asked,
            st.just(0),
            st.integers(1, 60),
            st.integers(1, 12),
            st.integers(0, 3),
            st.integers(0, 7),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 60),
)
def test_prefix_hits_are_those_of_a_least_recently_used_cache(asked, block_tokens, spare):
    limits = make_limits(
        block_tokens=block_tokens,
        prefix_tokens=PREFIX_TOKENS,
        prefix_blocks=PREFIX_TOKENS // block_tokens,
        token_budget=17,
    )
    one_by_one = [request._replace(arrival_s=100 * i) for i, request in enumerate(asked)]
    capacity = blocks_needed(asked, limits) + spare
    served = serve(one_by_one, limits, capacity)
    cache, trace = BruteForceCache(limits, capacity), make_trace(one_by_one)
    expected = [
        cache.hits(trace.prefix_ids[start:end].tolist(), request.num_input, request.num_output)
        for request, start, end in zip(
            one_by_one, trace.prefix_starts, trace.prefix_starts[1:], strict=False
        )
    ]
    assert (served.requests.cached // PREFIX_TOKENS).tolist() == expected


def test_a_request_that_waits_for_blocks_keeps_none_of_its_prefix_from_eviction():
    limits = make_limits(prefix_tokens=PREFIX_TOKENS, prefix_blocks=2, max_sequences=2)
    asked = [
        Asked(0, 17, 1, family=1, shared=2),
        Asked(1, 17, 1, family=2, shared=2),
        Asked(2, 40, 18),  # grows by five blocks, for which two prefix blocks go
        Asked(3, 40, 1, family=1, shared=2),  # waits meanwhile: it lacks a block
    ]
    served = serve(asked, limits, 19)
    assert served.requests.scheduled_s[3] > 10
    assert served.requests.cached.tolist() == [0, 0, 0, 0], "the older prefix went first"


@QUICK
@given(traces, st.integers(0, 10))
def test_sharing_prefixes_never_computes_more_prompt_tokens(asked, spare):
    plain = make_limits()
    shared = plain._replace(prefix_tokens=PREFIX_TOKENS, prefix_blocks=2)
    capacity = len(asked) * blocks_needed(asked, plain) + spare
    counts = []
    for limits in (plain, shared):
        served = serve(asked, limits, capacity)
        assume(served.requests.preemptions.sum() == 0)
        counts.append(
            sum(new for step in served.steps for _, new, _, decodes in step[0] if not decodes)
        )
    assert counts[1] == counts[0] - served.requests.cached.sum()
