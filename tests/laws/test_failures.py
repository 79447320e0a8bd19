"""Replicas that stop and start while others serve: nothing is lost that need not be, nothing comes
twice, and what happens is the same at every fidelity.
"""

import numpy as np
import pandas as pd
import pytest

from simulator.engine import result_rows
from simulator.engine.timeline import serve
from simulator.policies.failures import Change
from tests.cases import seeds
from tests.laws.deployments import check_same_events, draw_deployment, serve_by_events
from tests.laws.failing import check_outcomes, draw_changes, with_changes
from tests.parts import change_plan


def draw_failing(tiny, seed):
    plan, trace = draw_deployment(tiny, seed)
    if plan.prefill is None and plan.serving.replicas == 1:
        plan = change_plan(plan, replicas=2)
    served = tiny.serve(plan, trace)
    span_s = float(np.nanmax(served.requests_table()["finish_s"]))
    return with_changes(plan, *draw_changes(plan, seed, span_s)), trace


@seeds(3000, 16, soak=240)
def test_whatever_stops_every_request_finishes_or_is_lost_and_no_token_comes_twice(tiny, seed):
    """And a replica that has stopped takes no step until it starts."""
    plan, trace = draw_failing(tiny, seed)
    served = tiny.serve(plan, trace)
    table = check_outcomes(plan, trace, served)
    if "both" in served.pools:
        is_lost = (table["outcome"] == "lost").to_numpy()
        num_tokens = served.pools["both"].requests.each.generated
        assert (num_tokens[is_lost] < trace.num_output[is_lost]).all()
        moves = served.moves_table().groupby("request").size().reindex(table.index).fillna(0)
        in_vain = is_lost & (moves > 0)  # given back, and nobody was there
        assert (table["num_retries"] == moves - in_vain).all()
    for name in served.pools:
        steps = served.steps_of(name)
        parts = [column for column in steps if column.endswith("_s")][2:]
        np.testing.assert_allclose(steps[parts].sum(axis=1), steps["duration_s"], atol=1e-12)


@seeds(3000, 16)
def test_failures_do_the_same_at_every_fidelity(tiny, monkeypatch, seed):
    check_fidelities(tiny, monkeypatch, seed)


def test_no_step_is_formed_once_all_requests_are_lost(tiny, monkeypatch):
    """Nobody is left to decode, and prompts wait at a replica that goes on."""
    check_fidelities(tiny, monkeypatch, 3158)


def check_fidelities(tiny, monkeypatch, seed):
    plan, trace = draw_failing(tiny, seed)
    compiled = tiny.serve(plan, trace)
    simpy = serve_by_events(monkeypatch, plan, trace, tiny.tables)
    check_same_events(compiled, simpy)


def test_with_no_replica_left_requests_are_lost_and_closed_loops_end(tiny):
    for concurrency in (None, 4):
        plan, trace = (
            tiny.plan("dense", num_layers=2),
            tiny.trace(50, 400.0, concurrency=concurrency),
        )
        half_s = float(serve(plan, trace).requests_table()["finish_s"].median())
        served = serve(with_changes(plan, Change(half_s, "both", (0,), starts=False)), trace)
        table = served.requests_table()
        counts = table["outcome"].value_counts()
        assert counts["finished"] + counts["lost"] == 50
        assert min(counts["finished"], counts["lost"]) > 5
        assert (table["finish_s"].dropna() <= half_s).all()


@seeds(3000, 15)
@pytest.mark.parametrize("by", ["table", "events"])
def test_what_is_ended_early_is_the_beginning_of_the_whole(tiny, monkeypatch, seed, by):
    plan, trace = draw_failing(tiny, seed)

    def run(until):
        if by == "table":
            return tiny.serve(plan, trace, until=until)
        return serve_by_events(monkeypatch, plan, trace, tiny.tables, until=until)

    whole = run(None)
    table = whole.requests_table()
    middle_s = table["finish_s"].median()
    until = 0.01 if np.isnan(middle_s) else float(middle_s)
    part = run(until)
    found = part.requests_table()
    was_finished = table["finish_s"] <= until
    assert ((found["outcome"] == "finished") == was_finished).all()
    assert (found["outcome"][~was_finished] != "finished").all()
    for column in ("scheduled_s", "first_token_s", "finish_s"):
        happened = found[column].notna()
        assert (found[column][happened] <= until).all()
        if "both" in whole.pools:
            assert found[column][happened].equals(table[column][happened])
            assert not (table[column][~happened] <= until).any()
    for name in whole.pools:
        steps, own = whole.steps_of(name), part.steps_of(name)
        assert ((own["start_s"] + own["duration_s"]) <= until + 1e-12).all()
        ended = own[own["decode_tokens"] + own["prefill_tokens"] > 0]
        both = ended.merge(steps, on=["replica", "start_s"])
        assert len(both) >= len(ended) - own["replica"].nunique()


def test_what_is_planned_for_after_the_end_does_not_happen(tiny):
    plan, trace = tiny.plan("dense", replicas=2, num_layers=2), tiny.trace(10, 400.0)
    served = serve(with_changes(plan, Change(1e6, "both", (0,), starts=False)), trace)
    assert served.changed == ()


@pytest.mark.parametrize("rows", [2, 7])
def test_where_a_log_begins_anew_makes_no_difference(tiny, monkeypatch, rows):
    plan, trace = draw_failing(tiny, 3001)
    whole = tiny.serve(plan, trace)
    monkeypatch.setattr(result_rows, "_LOG_ROWS", rows)
    parts = tiny.serve(plan, trace)
    pd.testing.assert_frame_equal(whole.requests_table(), parts.requests_table(), check_exact=True)
    for name in whole.pools:
        own, other = whole.steps_of(name), parts.steps_of(name)
        assert len(own) <= len(other)
        added = own.columns.drop(["start_s", "running", "waiting", "kv_used", "limited_by"])
        added = added.drop("load_imbalance")
        np.testing.assert_allclose(
            own.groupby("replica")[list(added.drop("replica"))].sum(),
            other.groupby("replica")[list(added.drop("replica"))].sum(),
            rtol=1e-9,
            atol=1e-12,
        )
