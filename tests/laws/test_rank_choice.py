"""Data-parallel ranks are chosen as engines do it: cases worked by hand from their code."""

import numpy as np
import pytest

from simulator.config.engine import find_engine
from simulator.workload.traces import RequestTrace


def choose(tiny, how, arrival_s, num_input, num_output, ranks=4, num_blocks=None, **keys):
    """Ranks of requests."""
    rules = {"kind": "chunked", "rank_choice": how, **keys}
    plan = tiny.plan("moe", attention_dp=ranks, ep=ranks, scheduling=rules)
    if num_blocks is not None:
        plan = tiny.with_blocks(plan, num_blocks)
    arrays = (np.array(values, dtype=np.int64) for values in (num_input, num_output))
    trace = RequestTrace(np.array(arrival_s, dtype=np.float64), *arrays, "by hand")
    return tiny.run(plan, trace).requests["dp_rank"].tolist()


@pytest.mark.parametrize(
    ("how", "ranks"),
    [("fewest", [0] * 8), ("in_turn", [0, 1, 2, 3] * 2), ("waiting_full", [0, 1, 2, 3] * 2)],
)
def test_where_nobody_is_there_engines_differ_in_who_is_first(tiny, how, ranks):
    """Each has left when the next comes. vLLM rotates its scan from 0.27 on
    (``eng_start_index`` of v1/engine/core_client.py); SGLang's ``round_robin_scheduler`` counts.
    """
    assert choose(tiny, how, np.arange(8.0), [9] * 8, [2] * 8) == ranks


@pytest.mark.parametrize(
    ("how", "num_blocks", "ranks"),
    [
        ("fewest", None, [1, 1]),
        ("waiting_more", None, [1, 0]),
        ("waiting_full", None, [1, 1]),
        ("waiting_full", 40, [1, 0]),
    ],
)
def test_those_that_wait_count_more_in_vllm(tiny, how, num_blocks, ranks):
    """Rank 0 has three that decode and rank 1 one when two come at once. The first goes to rank 1,
    where it waits for a step: 2 requests there, or 4 + 1 of ``waiting * 4 + running``; or from
    0.27 on 2 + 6 x (used - 0.5), which is more than 3 with the cache four fifths full.
    """
    times = [0.0] * 6 + [0.2] * 2
    num_input, num_output = [160] * 8, [400, 400, 400, 2, 400, 2, 2, 2]
    if num_blocks is not None:  # of 16 tokens, which the one at rank 1 has nearly all
        num_input, num_output[1] = [40, 490, 40, 16, 40, 16, 16, 16], 140
    found = choose(tiny, how, times, num_input, num_output, 2, num_blocks)
    assert found == [0, 1, 0, 1, 0, 1, *ranks]


@pytest.mark.parametrize(
    ("num_input", "ranks"),
    [
        ([10, 80, 30, 70, 40, 60, 20, 50], [0, 0, 2, 1, 3, 2, 1, 3]),
        ([1, 1, 1, 1000, 1, 1, 1, 1], [1, 2, 3, 0, 1, 2, 3, 0]),
    ],
)
def test_longest_prompts_come_first_in_tensorrt_llm(tiny, num_input, ranks):
    """Each goes to the rank with the fewest prompt tokens of those that have not their share of
    requests, two (``_balance_requests_across_ranks``): 80, 70, 60 and 50 tokens to ranks 0 to 3,
    then 40 to rank 3, 30 to rank 2 and so on. Rank 0 with 1,000 tokens gets the last nevertheless.
    """
    assert choose(tiny, "prompt_tokens", [0.0] * 8, num_input, [5] * 8) == ranks


@pytest.mark.parametrize(
    ("engine", "how"),
    [
        ("vllm@0.12.0", "waiting_more"),
        ("vllm@0.24.0", "waiting_more"),
        ("vllm@0.27.1", "waiting_full"),
        ("vllm", "waiting_full"),
        ("sglang@0.5.4", "in_turn"),
        ("sglang", "in_turn"),
        ("trtllm", "prompt_tokens"),
    ],
)
def test_releases_choose_as_their_code_does(engine, how):
    assert find_engine(engine).scheduling["rank_choice"] == how
