"""Popularity of experts that drifts with the time of arrival."""

import dataclasses

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.policies.routing import RecordedSequences
from simulator.policies.routing.lognormal import _DRAWS, _STAGES_A_DRAW, Lognormal, _turn
from simulator.step.request_choices import RequestChoices, bind_requests, describe_choices
from simulator.workload.traces import pick_requests

STAYS = {"kind": "lognormal", "sigma": 1.0}
DRIFTS = {**STAYS, "drift_s": 8.0}
STAGES = _DRAWS * _STAGES_A_DRAW


def sequences(num_kinds=1, stage_s=2.0):
    """One token for each stage of each kind, which chooses the expert of its stage."""
    count = num_kinds * STAGES
    return RecordedSequences(
        np.arange(count, dtype=np.int16).reshape(1, count, 1),
        np.arange(count),
        tuple(map(str, range(count))),
        np.arange(count),
        is_drawn=True,
        num_stages=STAGES,
        stage_s=stage_s,
    )


def stages_of(trace, num_kinds=1):
    return RequestChoices(sequences(num_kinds), trace, np.random.default_rng(1)).group_N - 1


def test_every_stage_is_as_spread_as_a_draw_and_neighbours_are_alike():
    draws = np.random.default_rng(1).standard_normal((_DRAWS, 1, 40, 500))
    stages = _turn(draws).reshape(STAGES, -1)
    assert np.array_equal(stages[::_STAGES_A_DRAW], draws.reshape(_DRAWS, -1))
    np.testing.assert_allclose(stages.std(axis=1), 1.0, atol=0.03)
    alike = np.corrcoef(stages)
    near = [alike[stage, (stage + 1) % STAGES] for stage in range(STAGES)]
    np.testing.assert_allclose(near, np.cos(np.pi / 2 / _STAGES_A_DRAW), atol=0.02)
    np.testing.assert_allclose(alike[0, _STAGES_A_DRAW::_STAGES_A_DRAW], 0.0, atol=0.03)


@pytest.mark.parametrize("num_domains", [1, 2])
def test_popularity_is_at_first_what_it_would_stay_at(tiny, num_domains):
    stays, drifts = (
        tiny.plan("moe", attention_dp=4, ep=4, routing={**one, "num_domains": num_domains})
        for one in (STAYS, DRIFTS)
    )
    one, other = (plan.placement.experts for plan in (stays, drifts))
    assert np.array_equal(one.topk_ids_LTK, other.topk_ids_LTK)
    assert np.array_equal(one.placed.expert_LP, other.placed.expert_LP)


def test_requests_are_of_the_stages_around_their_arrival(tiny):
    trace = tiny.trace(4000, 200.0)
    turned = trace.arrival_s / 2.0
    stage = stages_of(trace)
    assert (np.isin(stage - np.floor(turned), (0, 1))).all()
    near = turned % 1
    for first in (0.0, 0.25, 0.5, 0.75):
        own = (near >= first) & (near < first + 0.25)
        assert (stage - np.floor(turned))[own].mean() == pytest.approx(first + 0.125, abs=0.06)


def test_after_its_draws_popularity_begins_anew(tiny):
    trace = tiny.trace(500)
    period_s = 2.0 * STAGES
    later = dataclasses.replace(trace, arrival_s=trace.arrival_s + 3 * period_s)
    assert np.array_equal(stages_of(trace), stages_of(later))


def test_kinds_of_text_drift_apart_and_parts_of_a_trace_as_the_whole(tiny):
    trace = tiny.trace(300, 20.0)
    kind = np.arange(300) % 3 - 1
    named = dataclasses.replace(trace, domains=("a", "b"), domain=kind)
    whole = stages_of(named, 2)
    assert (whole[kind >= 0] // STAGES == kind[kind >= 0]).all()
    assert set((whole[kind < 0] // STAGES).tolist()) == {0, 1}  # of any
    rows = np.arange(1, 300, 4)
    assert np.array_equal(stages_of(pick_requests(named, rows), 2), whole[rows])


def test_it_is_told_and_a_closed_loop_has_no_times_for_it(tiny):
    placement = tiny.plan("moe", attention_dp=4, ep=4, routing=DRIFTS).placement
    trace = tiny.trace(10)
    (found,) = describe_choices(placement, trace)
    assert found.facts["stage_s"] == 2
    with pytest.raises(UserError, match="a closed loop has no arrival times that drift_s could"):
        bind_requests(placement, dataclasses.replace(trace, concurrency=4))
    assert Lognormal(**{key: value for key, value in DRIFTS.items() if key != "kind"}).drift_s == 8
