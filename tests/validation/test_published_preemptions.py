"""How often requests lose their blocks, against counts that others published."""

import numpy as np
import pytest

from simulator.engine.batching import complete_step, form_step, queue_request
from simulator.engine.state import Limits, start_ranks, start_requests
from simulator.policies.scheduling import Rules
from simulator.workload.traces import RequestTrace

NUM_BLOCKS, NUM_REQUESTS, CONCURRENCY = 299_584 // 16, 450, 128
PUBLISHED = {0.0: 1065, 0.02: 400, 0.05: 187, 0.10: 168, 0.15: 168}
"""Preemptions by watermark: vLLM #44594, one run each, Qwen2.5-7B on a GB200, a KV cache of 299,584
tokens in blocks of 16, no prefix caching, 450 prompts of 800 to 1,200 tokens with 4,000 to 6,000
output tokens, 128 in flight, at most 256 running."""


def count_preemptions(watermark, seed):
    """Serve that load by the batching rules alone: in a closed loop the order of events does not
    depend on what a step takes.
    """
    rng = np.random.default_rng(seed)
    trace = RequestTrace(
        arrival_s=np.zeros(NUM_REQUESTS),
        num_input=rng.integers(800, 1201, NUM_REQUESTS),
        num_output=rng.integers(4000, 6001, NUM_REQUESTS),
        provenance="drawn",
    )
    rules = Rules(8192, 256, True, True, checks_known=True)
    limits = Limits(rules, 16, 0, 0, 0, watermark_blocks=int(watermark * NUM_BLOCKS))
    requests = start_requests(trace, with_prefixes=False)
    ranks = start_ranks(1, rules.max_sequences, NUM_BLOCKS, 0)
    now_s = 0.0  # an integer would be compiled for anew
    counts = ranks.counts[0]
    while counts.num_finished < NUM_REQUESTS:
        for r in range(counts.num_pushed, min(CONCURRENCY + counts.num_finished, NUM_REQUESTS)):
            queue_request(requests, ranks, 0, r)
        form_step(requests, ranks, limits, now_s)
        now_s += 1
        complete_step(requests, ranks, limits, now_s)
    return int(requests.each.preemptions.sum())


@pytest.mark.parametrize("watermark", PUBLISHED)
def test_preemptions_by_watermark_are_those_published_for_vllm(watermark):
    counted = [count_preemptions(watermark, seed) for seed in range(2)]
    assert np.mean(counted) == pytest.approx(PUBLISHED[watermark], rel=0.25)
