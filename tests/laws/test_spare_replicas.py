"""Spare replicas (N+k): as few as a share of the time takes, on the smallest cluster that has room
for them; and as many replicas serve for as long as the plan says when GPUs fail at random.
"""

import math
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.base.frozen import validate
from simulator.config.capacity import Question
from simulator.config.failures import FailureRates
from simulator.planner.loss_probability import (
    MOST_SPARES,
    count_spare_replicas,
    share_of_time_serving,
)
from simulator.planner.space import ReplicaShape, Space, Spares, count_spares, share_of_time_enough
from tests.cases import cases
from tests.laws.test_planner_laws import DENSE, QUESTION, candidate


def rates_of(mtbf_hours, repair_hours, **keys):
    table = {"mtbf_gpu_hours_low": mtbf_hours, "mtbf_gpu_hours_high": 10 * mtbf_hours}
    return FailureRates(repair_hours=repair_hours, **table, **keys)


def add_up(replicas, spares, num_gpus, mtbf_hours, repair_hours):
    """Probability that at least so many serve, term by term."""
    serves = (mtbf_hours / (mtbf_hours + repair_hours)) ** num_gpus
    total = replicas + spares
    return sum(
        math.comb(total, out) * serves ** (total - out) * (1 - serves) ** out
        for out in range(spares + 1)
    )


@given(
    st.integers(1, 40),
    st.sampled_from([1, 2, 8, 32]),
    st.floats(100, 50_000),
    st.floats(0.1, 20),
    st.floats(0.5, 0.999999),
)
def test_spares_are_as_few_as_the_share_of_the_time_takes(
    replicas, num_gpus, mtbf_hours, repair_hours, share
):
    rates = rates_of(mtbf_hours, repair_hours)
    spares = count_spare_replicas(replicas, num_gpus, 8, share, rates)
    assume(spares < 500)
    low, high = share_of_time_serving(replicas, spares, num_gpus, 8, rates)
    assert share <= low <= high
    assert low == pytest.approx(add_up(replicas, spares, num_gpus, mtbf_hours, repair_hours))
    if spares:
        assert share_of_time_serving(replicas, spares - 1, num_gpus, 8, rates)[0] < share
    # More replicas, a rarer failure and a looser target never take more or fewer than they ought.
    assert count_spare_replicas(replicas + 1, num_gpus, 8, share, rates) >= spares
    assert count_spare_replicas(replicas, num_gpus, 8, share / 2, rates) <= spares
    rarer = rates_of(2 * mtbf_hours, repair_hours)
    assert count_spare_replicas(replicas, num_gpus, 8, share, rarer) <= spares


def test_a_share_that_no_number_reaches_has_an_end():
    assert count_spare_replicas(1000, 64, 8, 0.9999, rates_of(1e-3, 1e9)) == MOST_SPARES


@cases(60)
@given(
    st.integers(1, 20),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([None, 0.9, 0.999, 0.99999]),
    st.integers(0, 2),
    st.integers(0, 12),
)
def test_a_cluster_has_room_for_the_spares_and_the_next_smaller_one_has_not(
    replicas, tp, availability, gpus, prompts
):
    failures = {"mtbf_gpu_hours_low": 500, "repair_hours": 5}
    if availability is not None:
        failures["availability"] = availability
    asked = QUESTION | {"failures": failures, "spare": {"gpus": gpus}}
    asked |= {"clusters": [{"cluster": "h100-sxm", "max_gpus": 128}]}
    space = Space(validate(Question, asked, "test"), Path())
    shape = ReplicaShape(DENSE, 0, tp, 1, 1, "", "bf16", 0, "none")
    pool = shape if prompts else None
    size = space.find_cluster((shape, pool), (replicas, prompts))
    assume(size is not None)
    one = candidate(DENSE, tp=tp, prefill=pool)
    spares = count_spares(space, one.sides, replicas, prompts)
    used = one.count_gpus(replicas, prompts) + one.count_gpus(*spares)
    assert used + space.spare_gpus(shape, pool) <= size
    smaller = max((other for other in space.sizes(shape) if other < size), default=0)
    assert used + space.spare_gpus(shape, pool) > smaller
    if pool is None:
        assert space.count_replicas(size, shape) >= replicas > space.count_replicas(smaller, shape)
    if availability is None:
        assert spares == Spares(0, 0)
    else:
        low, _ = share_of_time_enough(space, one.sides, (replicas, prompts), spares)
        assert low >= availability * (1 - 1e-12)
