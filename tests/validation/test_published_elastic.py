"""Published throughput and interruptions of SGLang's elastic expert parallelism: DeepSeek-V3.2 on
32 GPUs with 256 redundant experts (LMSYS, "Elastic EP in SGLang", March 2026).

Given: the split, the copies, the interruption's parts, and that each rank runs as many requests as
before (ten: 5,552 tokens/s over 31 ranks at the 54 ms of a token that the same source has). Which
GPUs it was is not said; H800 are taken. Neither are lengths, and so how often prompts stall the
ranks: what is compared are steps that decode. Which experts have to be loaded, and what a step of
the ranks that are left costs, comes out.
"""

import numpy as np
import pytest

from simulator.base.plugins import build
from simulator.policies.failures import Change
from tests.laws.failing import with_changes
from tests.parts import change_plan

PUBLISHED = {1: 5552.0, 2: 5432.0, 4: 5265.0, 8: 4480.0, 16: 2825.0}
"""Output tokens per second with as many ranks lost."""


@pytest.fixture(scope="module")
def served(tiny):
    """Runs in which ranks are lost at 5 s, by their number."""
    plan = tiny.plan(
        "deepseek-v3.2",
        cluster="h800-sxm-32",
        engine="sglang",
        memory_fraction=0.9,
        attention_dp=32,
        ep=32,
        placement={"kind": "eplb", "num_slots": 512},
        scheduling={"kind": "chunked", "max_sequences": 10},
    )
    plan = change_plan(plan, recovery=build("recovery", {"kind": "elastic"}, "test"))
    trace = tiny.trace(800, 1e6, 500, 2000, concurrency=400)

    def lose(count):
        change = Change(5.0, "both", (0,), starts=False, gpus=tuple(range(count)))
        return tiny.serve(with_changes(plan, change), trace, until=40.0)

    return {count: lose(count) for count in PUBLISHED}


def test_throughput_falls_as_published(served):
    rates = {}
    for count, run in served.items():
        steps = run.steps_of("both")
        full = steps["decodes"] == 10 * (32 - count) * steps["num_steps"]
        later = steps[(steps["start_s"] > 15.0) & (steps["prefill_tokens"] == 0) & full]
        rates[count] = later["decode_tokens"].sum() / later["duration_s"].sum()
    for count, published in PUBLISHED.items():
        assert rates[count] / rates[1] == pytest.approx(published / PUBLISHED[1], rel=0.10)
    found = [rates[count] / rates[1] for count in (2, 4, 8, 16)]
    assert found == pytest.approx([0.97, 0.90, 0.77, 0.53], abs=0.006)


def test_the_interruption_hardly_depends_on_how_many_are_lost(served):
    """6.2 to 6.8 s, against two to three minutes for a restart."""
    for run in served.values():
        (shrinks,) = (change for change in run.changed if change.kind == "shrinks")
        assert 6.2 < shrinks.serves_s - 5.0 < 6.8


def test_no_request_of_a_living_rank_is_disturbed(served):
    for count, run in served.items():
        (shrinks,) = (change for change in run.changed if change.kind == "shrinks")
        table = run.requests_table()
        assert shrinks.num_requests == pytest.approx(400 / 32 * count, rel=0.1)
        again = table[table["num_retries"] > 0]
        assert set(again["request"]) == set(run.moves_table()["request"])
        lost = run.pools["both"].ranks.each.is_lost[0]
        assert np.flatnonzero(lost).tolist() == list(range(count))
