"""Copies that each dispatch policy sends, on examples worked by hand and against brute force."""

import numpy as np

from simulator.policies.dispatch import find_kernel_input, kernels_of, limits_of, policy_at
from simulator.policies.dispatch.all_gather import AllGather
from simulator.policies.dispatch.deepep_auto import DeepepAuto
from simulator.policies.dispatch.per_expert import PerExpert
from simulator.policies.dispatch.per_node import PerNode
from simulator.policies.dispatch.per_rank import PerRank
from simulator.policies.token_counts import count_arrivals


def test_kernels_see_the_tokens_that_arrive_or_rows_or_all():
    assert count_arrivals(np.array([[0, 2, 2, 3], [2, 2, 1, 1]]), 4).tolist() == [1, 1, 2, 1]
    assert [
        find_kernel_input(policy) for policy in (PerExpert(), PerRank(), PerNode(), AllGather())
    ] == [
        "rows",
        "arrivals",
        "arrivals",
        "all",
    ]


def test_few_tokens_are_sent_an_expert_and_many_a_node():
    auto, node_R = DeepepAuto(low_latency_tokens=2), np.array([0, 0, 1, 1])
    few = (np.array([[2, 2], [3, 3]]), np.array([0, 0]))
    many = (np.array([[2, 2], [3, 3], [3, 2]] * 3), np.array([0] * 9))
    np.testing.assert_array_equal(auto.copies(*few, node_R), PerExpert().copies(*few, node_R))
    np.testing.assert_array_equal(auto.copies(*many, node_R), PerNode().copies(*many, node_R))
    assert (policy_at(auto, 2), policy_at(auto, 3)) == (PerExpert(), PerNode())
    assert (kernels_of(auto), limits_of(auto)) == (("low_latency", "normal"), (2,))
    assert (kernels_of(PerRank(kernels="one_sided")), limits_of(PerRank())) == (("one_sided",), ())
