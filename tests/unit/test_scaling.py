"""Scaling policies one decision at a time, the GPU-time that they hold, and what is said of it."""

import dataclasses

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.engine.timeline import run_plan
from simulator.policies.contracts import begin_scaling, check_scaling, decide_replicas
from simulator.policies.scaling import PoolLoad
from simulator.results.availability import measure_held
from simulator.results.run_sentences import list_held


def target(**keys):
    return build("scaling", {"kind": "target_load", "target": 10.0, **keys}, "test")


def load(at_s, replicas, num_requests, num_tokens=0):
    return PoolLoad(at_s, replicas, replicas, 0, num_requests, num_tokens)


@pytest.mark.parametrize(
    ("replicas", "num_requests", "wanted"),
    [
        (2, 40, 4),  # ceil(2 x 20 / 10)
        (2, 41, 5),
        (2, 22, 2),  # 1.1 times the target is within the tolerance
        (2, 23, 3),
        (4, 37, 4),
        (4, 20, 2),
        (4, 0, 1),
        (3, 900, 8),
    ],
)
def test_replicas_are_as_the_load_over_its_target(replicas, num_requests, wanted):
    """As in Kubernetes' documentation: ``ceil(replicas x load / target)`` beyond a tolerance."""
    policy = target(stabilization_s=0.0)
    assert decide_replicas(policy, [load(0.0, replicas, num_requests)], 8) == wanted


def test_tokens_may_be_the_load():
    policy = target(metric="tokens", stabilization_s=0.0)
    assert decide_replicas(policy, [load(0.0, 1, 0, num_tokens=45)], 8) == 5


def test_replicas_leave_once_no_look_of_the_last_minutes_asked_for_them():
    policy = target(stabilization_s=60.0)
    loads = [load(0.0, 5, 50), load(30.0, 5, 21)]
    assert decide_replicas(policy, loads, 8) == 5
    loads.append(load(59.9, 5, 11))
    assert decide_replicas(policy, loads, 8) == 5
    loads.append(load(60.0, 5, 11))
    assert decide_replicas(policy, loads, 8) == 3  # what was asked for at 30 s
    loads.append(load(90.0, 3, 11))
    assert decide_replicas(policy, loads, 8) == 2


def test_waiting_launches_nothing():
    """What an earlier look asked for and did not get any more is not launched by a later one."""
    policy = target(stabilization_s=60.0)
    assert decide_replicas(policy, [load(0.0, 2, 80), load(15.0, 4, 41)], 8) == 4


def test_a_schedule_goes_by_the_clock():
    changes = [{"at_s": 0, "replicas": 2}, {"at_s": 60, "replicas": 4}]
    policy = build("scaling", {"kind": "schedule", "changes": changes}, "test")
    assert begin_scaling(policy, 5) == 2
    assert list(policy.looks()) == [60.0]
    assert decide_replicas(policy, [load(60.0, 2, 0)], 5) == 4
    late = build("scaling", {"kind": "schedule", "changes": changes[1:]}, "test")
    assert begin_scaling(late, 5) == 5


def load_of(**keys):
    return {"kind": "target_load", "target": 1.0, **keys}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"kind": "schedule", "changes": [{"at_s": 1, "replicas": 9}]}, "here: .*9 replicas"),
        (load_of(max_replicas=9), r"here: .*max_replicas \(9\)"),
        (load_of(min_replicas=9), r"here: .*min_replicas \(9\)"),
        ({"kind": "schedule", "changes": []}, "at least 1"),
        ({"kind": "schedule", "changes": [{"at_s": 9, "replicas": 1}] * 2}, "in order of time"),
        (load_of(min_replicas=3, max_replicas=2), "at least"),
    ],
)
def test_what_there_cannot_be_is_refused(table, said):
    with pytest.raises(UserError, match=said):
        check_scaling(build("scaling", table, "test"), 4, "here")


@pytest.fixture(scope="module")
def scaled(tiny):
    """A plan that goes from one replica to three and back to two, and its run."""
    plan = tiny.plan("dense", tp=2, replicas=3, num_layers=2)
    trace = tiny.trace(400, 2000.0, 60, 60)
    end_s = float(np.nanmax(run_plan(plan, trace).requests["finish_s"]))
    times_s = [0.0, 0.2 * end_s, 0.6 * end_s]
    changes = [
        {"at_s": at_s, "replicas": number} for at_s, number in zip(times_s, (1, 3, 2), strict=True)
    ]
    keys = {"changes": changes, "startup_s": 0.1 * end_s}
    policy = build("scaling", {"kind": "schedule", **keys}, "test")
    plan = dataclasses.replace(plan, serving=dataclasses.replace(plan.serving, scaling=policy))
    return plan, run_plan(plan, trace)


def test_gpus_are_held_from_the_launch_until_the_replica_has_drained(scaled):
    plan, record = scaled
    duration_s = float(record.requests["finish_s"].max())
    kinds = [(change.kind, *change.replicas) for change in record.changes]
    assert kinds == [("launches", 1), ("launches", 2), ("drains", 2), ("leaves", 2)]
    launched, _, drains, left = (change.at_s for change in record.changes)
    own = record.requests.frame() if hasattr(record.requests, "frame") else record.requests
    last_s = float(own["finish_s"][own["replica"] == 2].max())
    assert left == last_s > drains
    held_s = duration_s + (duration_s - launched) + (left - launched)
    (held,) = measure_held(plan, record.changes, duration_s)
    assert held == pytest.approx(2 * held_s / duration_s)


def test_the_number_of_replicas_over_time_is_told(scaled):
    _plan, record = scaled
    changes = [dataclasses.asdict(change) for change in record.changes]
    facts = {"changes": changes, "num_gpus": 6, "replicas": 3, "first_replicas": 1}
    levels = [(held, serving) for _, held, serving in list_held(facts)]
    assert levels == [(1, 1), (2, 1), (3, 1), (3, 2), (3, 3), (3, 3), (2, 2)]
