"""What keeps requests waiting is named as what it is, at every step in which any waits."""

import numpy as np
import pytest

from simulator.engine.probe import _find_median_of_time
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


def test_the_step_that_stands_for_all_is_where_their_time_passes():
    """Many short steps, and two that take nine tenths of the time; whether short ones share a row
    or not.
    """
    durations_s = np.array([0.01] * 40 + [1.8, 1.9])
    chosen = durations_s[_find_median_of_time(durations_s, np.ones(42, dtype=np.int64))]
    assert _find_median_of_time(np.array([0.2, 1.8, 0.2, 1.9]), np.array([20, 1, 20, 1])) == 1
    assert chosen == 1.8
    in_ms = 1000 * durations_s
    assert in_ms[_find_median_of_time(in_ms, np.ones(42, dtype=np.int64))] == 1800
    half_s = durations_s.sum() / 2
    assert (
        durations_s[durations_s < chosen].sum() < half_s <= durations_s[durations_s <= chosen].sum()
    )
