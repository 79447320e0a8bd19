"""The parts of an output token's time add up to it, whatever the steps compute and wherever a
request waits.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from simulator.base import plugins
from simulator.results.derived.token_time import make_token_time
from simulator.results.phases import STEP_PHASES

SMALL = {"token_budget": 64, "max_sequences": 8}
PARTS = [f"{phase}_s" for phase in STEP_PHASES]
PREFILL = {"parallel": {"tp": 2}, "replicas": 1, "scheduling": {"kind": "chunked", **SMALL}}


def token_s(requests):
    """Seconds of an output token but the first, mean over tokens."""
    later = requests[(requests["num_output"] > 1) & (requests["outcome"] == "finished")]
    return (later["finish_s"] - later["first_token_s"]).sum() / (later["num_output"] - 1).sum()


def token_time(record):
    return make_token_time(
        {record.name: record.requests}, {record.name: record.steps}, record.moves
    )


def check_sums(record):
    found = token_time(record)
    assert found["token_s"].sum() == pytest.approx(token_s(record.requests), rel=1e-9)
    np.testing.assert_allclose(found[PARTS].sum(axis=1), found["token_s"], rtol=1e-12)
    assert (found[[*PARTS, "token_s"]] >= -1e-12).all(axis=None)
    assert found["step_time_share"].sum() == pytest.approx(1.0)
    return found.set_index("kind")


@pytest.mark.parametrize("model", ["dense", "moe"])
@pytest.mark.parametrize("kind", plugins.available("scheduling"))
def test_parts_of_an_output_token_add_up_for_every_scheduler(tiny, kind, model):
    plan = tiny.plan(model, replicas=2, scheduling={"kind": kind, **SMALL})
    check_sums(tiny.run(plan, tiny.trace(60, 4000.0)))


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize("concurrency", [None, 6])
def test_they_do_in_pipelines_and_in_pools_and_in_closed_loops(tiny, concurrency, fidelity):
    trace = tiny.trace(num_requests=24, concurrency=concurrency)
    scheduling = {"kind": "chunked", **SMALL}
    check_sums(tiny.run(tiny.plan("moe", pp=2, scheduling=scheduling), trace, fidelity))
    pools = tiny.plan(
        "moe", replicas=2, attention_dp=2, ep=2, scheduling=scheduling, prefill=PREFILL
    )
    check_sums(tiny.run(pools, trace, fidelity))


def test_they_do_where_requests_lose_their_blocks_and_start_again(tiny):
    scheduling = {"kind": "chunked", "reserve_full_isl": False, **SMALL}
    plan = tiny.with_blocks(tiny.plan("dense", scheduling=scheduling), 60)
    record = tiny.run(plan, tiny.trace(40, 4000.0))
    assert record.requests["num_preemptions"].sum() > 0
    check_sums(record)


def test_prompts_that_go_first_cost_tokens_their_time(tiny):
    """A step of prompts only is part of the gap between the tokens of those who wait for it."""
    plan = tiny.plan("dense", scheduling={"kind": "prefill_first", **SMALL})
    found = check_sums(tiny.run(plan, tiny.trace(60, 4000.0)))
    assert set(found.index) == {"decode", "prefill"}
    assert found.loc["prefill", "token_s"] > 0


def test_a_run_of_first_tokens_only_has_no_such_time(tiny):
    trace = tiny.trace(5, 1000.0)
    trace = dataclasses.replace(trace, num_output=np.ones_like(trace.num_output))
    record = tiny.run(tiny.plan("dense"), trace)
    assert token_time(record).empty


def test_deployments_are_kept_apart(tiny):
    records = [tiny.run(tiny.plan(model), tiny.trace(20, 1000.0)) for model in ("dense", "moe")]
    requests, steps = (
        {str(n): getattr(record, table) for n, record in enumerate(records)}
        for table in ("requests", "steps")
    )
    moves = pd.concat([r.moves.assign(deployment=str(n)) for n, r in enumerate(records)])
    both = make_token_time(requests, steps, moves).groupby("deployment")["token_s"].sum()
    assert both.tolist() == pytest.approx([token_s(record.requests) for record in records])


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize("at_share", [0.3, 0.6])
def test_they_do_where_replicas_stop_and_requests_go_on_elsewhere(tiny, fidelity, at_share):
    """Also those that come to another replica in the middle of a step, and those that move twice;
    lost ones do not count.
    """
    trace = tiny.trace(24, 4000.0)
    keys = {"replicas": 3, "scheduling": {"kind": "chunked", **SMALL}}
    whole = tiny.run(tiny.plan("dense", **keys), trace, fidelity)
    end_s = float(whole.requests["finish_s"].max())
    losses = [
        {"kind": "kill", "at_s": end_s * at_share, "gpu": 0, "restart_s": end_s / 8},
        {"kind": "kill", "at_s": end_s * (at_share + 0.1), "gpu": 1},
        {"kind": "kill", "at_s": end_s * (at_share + 0.2), "gpu": 2},
        {"kind": "kill", "at_s": end_s * (at_share + 0.5), "gpu": 0},
    ]
    record = tiny.run(tiny.plan("dense", **keys, failures=losses), trace, fidelity)
    assert record.requests["num_retries"].max() > 1
    found = check_sums(record)
    assert found.loc["cut", "token_s"] > 0
