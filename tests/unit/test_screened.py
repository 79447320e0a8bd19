"""What the screen leaves: pools of which placement, pairs within the limits, and what is simulated
where nothing keeps the targets.
"""

from pathlib import Path

import numpy as np
import pytest

from simulator.base.frozen import validate
from simulator.config.capacity import Question
from simulator.planner.screen import (
    Judged,
    Rates,
    Screened,
    Served,
    Speed,
    pair_pools,
    screen,
    size_candidate,
)
from simulator.planner.search import choose_hopeless
from simulator.planner.space import TOO_FEW, TOO_SLOW, ReplicaShape, Ruled, Space
from simulator.planner.traffic import traffic_of
from tests.laws import tiny_question
from tests.small_scenario import poisson

HERE = Path()
NOTHING = Served(*(np.zeros(0) for _ in Served._fields))
QUESTION = tiny_question.QUESTION | {
    "workload": poisson(96.0, 400, 40, 90),
    "models": [{"model": "gpt-oss-20b"}],
    "space": tiny_question.QUESTION["space"] | {"attention_dp": [4], "ep": ["all"]},
}


def question(**keys):
    return validate(Question, QUESTION | keys, "test")


@pytest.mark.parametrize(
    ("placements", "of_prompts"),
    [
        (["contiguous"], "contiguous"),
        (["contiguous", "eplb"], "contiguous"),
        (["eplb"], "eplb"),
    ],
)
def test_pools_for_prompts_place_experts_in_order_where_that_is_asked_for(placements, of_prompts):
    asked = question(space=QUESTION["space"] | {"placements": placements})
    found = screen(Space(asked, HERE), traffic_of(asked, HERE), 0, 0)
    pairs = [one for one in found.candidates if one.prefill is not None]
    assert {one.shape.placement for one in pairs} == set(placements)
    assert {one.prefill.placement for one in pairs} == {of_prompts}
    assert {speed.prefill.placement for speed in found.pooled} == {of_prompts}


def test_what_keeps_no_target_costs_the_largest_cluster_within_the_limits():
    space = Space(question(limits={"nodes": 4}, spare={"nodes": 1}), HERE)
    front = [Speed(100.0, 1.0, 1.0, replica(), 1000)]
    (one,) = choose_hopeless(space, {(0, 0): Screened([], 0, Ruled(), front, [])})
    largest = max(space.sizes(replica()))
    assert largest < space.machines[0].sizes[-1]
    assert one.cost_per_hour == largest * space.machines[0].gpu_hour


def replica(ranks=1):
    return ReplicaShape(0, 0, ranks, 1, 1, "", "bf16", 0, "none")


@pytest.mark.parametrize(
    ("spare", "decode_rate", "last_rate", "too_little"),
    [({}, 3.0, 3.0, 2.99), ({"nodes": 1}, 3.0, 4.0, 3.99), ({"gpus": 2}, 3.0, 3.2, 3.19)],
)
def test_a_pair_of_pools_is_possible_up_to_the_last_gpu_that_is_not_held_free(
    spare, decode_rate, last_rate, too_little
):
    """96 requests a second: 32 GPUs that decode, and for prompts what is left of 64 but the
    spare.
    """
    asked = question(spare=spare)
    space, traffic = Space(asked, HERE), traffic_of(asked, HERE)._replace(rate_per_s=96.0)
    decodes = [Judged(replica(), Rates(decode_rate, decode_rate, 0.01, 0.0), NOTHING, 2048)]
    for rate, expected in ((last_rate, 1), (too_little, 0)):
        ruled = Ruled()
        prompts = [Judged(replica(), Rates(rate, rate, 0.0, 0.1), NOTHING, 2048)]
        found, number = pair_pools(space, traffic, prompts, decodes, ruled)
        assert len(found) == number == expected
        assert ruled.counts == ({} if expected else {TOO_FEW: 1})


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, []), (1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (7, [0, 3, 6])]
)
def test_of_what_keeps_no_target_the_ends_and_the_middle_are_simulated_at_the_largest_size(
    count, chosen
):
    space = Space(question(), HERE)
    front = [
        Speed(100.0 - place, 1.0 + place, 1.0, replica(), 1000 + place) for place in range(count)
    ]
    found = choose_hopeless(space, {(0, 0): Screened([], 0, Ruled(), front, [])})
    assert [one.budget - 1000 for one in found] == chosen
    for one in found:
        assert (one.replicas, one.gpus) == (64, 64)
        assert one.cost_per_hour == 64 * space.machines[0].gpu_hour


@pytest.mark.parametrize(
    ("likely", "most", "replicas", "reason"),
    [
        (3.0, 4.0, [32], None),
        (0.0, 4.0, [24], None),
        (0.0, 0.0, [], TOO_SLOW),
        (0.5, 1.0, [], TOO_FEW),
    ],
)
def test_replicas_carry_the_traffic_as_likely_as_not_or_read_optimistically(
    likely, most, replicas, reason
):
    """96 requests a second on at most 64 GPUs."""
    space = Space(question(), HERE)
    traffic, ruled = traffic_of(question(), HERE)._replace(rate_per_s=96.0), Ruled()
    rates = Rates(likely, most, 0.01, 0.1)
    found = size_candidate(space, traffic, replica(), 2048, rates, ruled)
    assert ([] if found is None else [found.replicas]) == replicas
    assert ruled.counts == ({} if reason is None else {reason: 1})
