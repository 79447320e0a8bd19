"""What must have room before a request may start, by engine: nothing is reserved that need not be,
and a full cache does not end in computing everything again.
"""

import numpy as np
import pytest

from simulator.config.workload import SLO
from simulator.engine.batching import form_step, retract
from simulator.engine.state import start_ranks, start_requests
from simulator.engine.timeline import run_plan
from simulator.results.metrics import summarise
from simulator.workload.traces import RequestTrace
from tests.parts import freeze
from tests.unit.steps_of_a_second import Asked, make_limits, make_trace, serve

LONG_PROMPTS = {
    "name": "long prompts",
    "model": "llama-3.1-70b",
    "cluster": "h100-sxm-2",
    "weight_dtype": "fp8",
    "parallel": {"tp": 2},
    "replicas": 1,
    "prefix_caching": False,
    "memory_fraction": 0.9,
    "activation_bytes": 2e9,
}
"""Llama-3.1-70B on two H100, whose cache holds five requests of 16,384 tokens with 1,024 more, and
which 0.15 of them a second keep busy for 97 % of the time."""


@pytest.fixture(scope="module")
def arrivals():
    gaps_s = np.random.default_rng(1).exponential(1 / 0.15, 700)
    full = [np.full(700, tokens) for tokens in (16384, 1024)]
    return RequestTrace(np.cumsum(gaps_s), *full, "drawn")


def measure(scheduling, arrivals, **changes):
    table = {**LONG_PROMPTS, "scheduling": scheduling, **changes}
    plan = freeze(table)
    return summarise([plan], [run_plan(plan, arrivals)], SLO()).iloc[0]


@pytest.mark.parametrize("kind", ["chunked", "prefill_first"])
def test_a_cache_that_is_full_does_not_make_prompts_be_computed_over_and_over(kind, arrivals):
    """An independent scheduler with vLLM's check says TTFT p50 1.34 s, no prompt work twice."""
    found = measure({"kind": kind, "token_budget": 8192}, arrivals)
    assert found["ttft_p50_s"] < 1.7
    assert found["recomputed_share"] < 0.03


def test_without_the_check_it_does(arrivals):
    found = measure({"kind": "chunked", "reserve_full_isl": False, "watermark": 0.01}, arrivals)
    assert found["ttft_p50_s"] > 100
    assert found["recomputed_share"] > 0.5


def test_the_check_asks_for_the_whole_prompt_and_takes_the_first_chunk():
    """Ten blocks of four tokens: beside a prompt of five another one of six waits."""
    limits = make_limits(token_budget=16, max_sequences=2, checks_known=True)
    for num_input, waits in ((20, False), (21, True)):
        served = serve([Asked(0, 20, 2), Asked(1, num_input, 1)], limits, 10)
        assert (served.requests.scheduled_s[1] > 1) == waits
        (first,) = [row for row in served.steps[1][0] if row[0] == 1] if not waits else [None]
        assert waits or first[1] == 12, "beside the first prompt's last four tokens"


def test_the_watermark_is_not_asked_of_a_request_alone():
    """It would wait for ever, since nothing that runs could give back blocks."""
    served = serve([Asked(0, 36, 4)], make_limits(watermark_blocks=4), 10)
    assert served.requests.scheduled_s.tolist() == [0]


def test_what_a_request_lost_and_nobody_took_is_found_again():
    limits = make_limits(max_sequences=3, finds_full=True)
    asked = [Asked(0, 16, 12), Asked(0, 16, 12), Asked(0, 16, 1)]
    served, anew = (serve(asked, each, 10) for each in (limits, make_limits(max_sequences=3)))
    assert served.requests.preemptions.tolist() == anew.requests.preemptions.tolist() == [0, 1, 0]
    back = next(row for step in served.steps for row in step[0] if row[0] == 1 and row[1] > 1)
    assert back[2] == 0
    again = [row for step in served.steps[1:] for row in step[0] if row[0] == 1 and not row[3]]
    assert again
    assert again[0][2] in (4, 8, 12), "whole blocks of its prompt"


@pytest.mark.parametrize("mixes_phases", [True, False])
def test_after_a_retraction_admission_counts_on_what_those_that_are_left_have_used(mixes_phases):
    """And after a step without one on a little less than before. Seven blocks of four tokens, all
    taken, and both requests need another one: the one with fewer output tokens loses its own,
    though it was admitted first.
    """
    limits = make_limits(
        mixes_phases=mixes_phases,
        output_share=0.7,
        least_output_share=0.1,
        output_share_decay=0.05,
        retract_steps=2,
    )
    requests = start_requests(make_trace([Asked(0, 10, 20), Asked(0, 12, 30)]), with_prefixes=False)
    ranks = start_ranks(1, 8, 7, 0, output_share=0.7)
    ranks.running[0, :2], ranks.each.num_running[0], ranks.caches.free_blocks[0] = (0, 1), 2, 0
    each = requests.each
    each.computed[:], each.generated[:], each.blocks[:] = (12, 16), (3, 5), (3, 4)
    each.admitted[:] = (0, 1)
    form_step(requests, ranks, limits, 0.0)
    assert each.preemptions.tolist() == [1, 0]
    assert ranks.each.output_share[0] == (5 + 2) / (30 + 1)
    retract(requests, ranks, 0, limits)
    assert ranks.each.output_share[0] == pytest.approx((5 + 2) / (30 + 1) - 0.05)


def test_those_with_the_fewest_output_tokens_lose_their_blocks_and_wait_last():
    limits = make_limits(
        mixes_phases=False, max_sequences=3, output_share=0.1, least_output_share=0.1
    )
    served = serve([Asked(0, 16, 30), Asked(3, 4, 20), Asked(12, 20, 4)], limits, 12)
    assert served.requests.preemptions.tolist() == [0, 1, 0]
    assert served.requests.scheduled_s.tolist()[:2] == [0, 3]
    order = [row[0] for step in served.steps for row in step[0] if not row[3]]
    assert order == [0, 1, 2, 1], "prompts, and what the second one lost behind the third"
