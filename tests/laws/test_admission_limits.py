"""What keeps requests waiting is named as what it is, at every step in which any waits."""

import pytest

from simulator.engine.timeline import run_plan
from simulator.results.tables import ADMISSION_LIMITS


def limits_of(record):
    """What limits steps in which requests wait; in all others nothing does."""
    steps = record.steps
    assert set(steps["limited_by"][steps["waiting"] == 0]) <= {"none"}
    assert steps["limited_by"].isin(ADMISSION_LIMITS).all()
    return steps["limited_by"][steps["waiting"] > 0]


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize(
    ("limit", "scheduling", "blocks"),
    [
        ("max_sequences", {"kind": "chunked", "token_budget": 4096, "max_sequences": 2}, 4000),
        ("token_budget", {"kind": "chunked", "token_budget": 16, "max_sequences": 64}, 4000),
        ("token_budget", {"kind": "prefill_first", "token_budget": 600, "max_sequences": 64}, 4000),
        ("kv_cache", {"kind": "chunked", "token_budget": 4096, "max_sequences": 64}, 60),
        ("kv_cache", {"kind": "no_evict", "token_budget": 4096, "max_sequences": 64}, 60),
    ],
)
def test_one_scarce_thing_is_what_requests_wait_for(tiny, limit, scheduling, blocks, fidelity):
    plan = tiny.with_blocks(tiny.plan("dense", scheduling=scheduling), blocks)
    found = limits_of(run_plan(plan, tiny.trace(20, 20_000.0), fidelity))
    assert len(found) > 3
    assert set(found) == {limit}


def test_prompts_that_a_policy_holds_back_are_told_from_those_that_find_no_place(tiny):
    scheduling = {
        "kind": "no_evict", "token_budget": 4096, "max_sequences": 64,
        "wait_steps": 4, "wait_share": 1.0,
    }  # fmt: skip
    found = limits_of(run_plan(tiny.plan("dense", scheduling=scheduling), tiny.trace(20, 2000.0)))
    assert "held_back" in set(found) <= {"held_back", "token_budget"}
