"""Copies that each dispatch policy sends, on examples worked by hand and against brute force."""

import numpy as np
import pytest

from simulator.policies.dispatch import find_kernel_input, kernels_of, limits_of, policy_at
from simulator.policies.dispatch.all_gather import AllGather
from simulator.policies.dispatch.deepep_auto import DeepepAuto
from simulator.policies.dispatch.per_expert import PerExpert
from simulator.policies.dispatch.per_node import PerNode
from simulator.policies.dispatch.per_rank import PerRank
from simulator.policies.token_counts import count_arrivals


def sent(policy, rank_TK, source_T, node_R):
    copies_SR = policy.copies(np.array(rank_TK), np.array(source_T), np.array(node_R))
    return {
        (int(s), int(r)): int(copies_SR[s, r]) for s, r in zip(*np.nonzero(copies_SR), strict=True)
    }


def test_one_token_by_every_policy():
    """On rank 0, with experts on ranks 0, 2, 2 and 3; ranks 2 and 3 are another node."""
    token = ([[0, 2, 2, 3]], [0], [0, 0, 1, 1])
    assert sent(PerExpert(), *token) == {(0, 2): 2, (0, 3): 1}
    assert sent(PerRank(), *token) == {(0, 2): 1, (0, 3): 1}
    assert sent(PerNode(), *token) == {
        (0, 2): 1,
        (2, 3): 1,
    }  # it lands on its own position, which forwards it
    assert sent(AllGather(), *token) == {(0, 1): 1, (0, 2): 1, (0, 3): 1}


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


def test_a_token_lands_on_its_own_position_even_where_no_expert_of_it_is():
    assert sent(PerNode(), [[2]], [1], [0, 0, 1, 1]) == {(1, 3): 1, (3, 2): 1}


def test_a_smaller_node_takes_positions_in_turn():
    # Node 1 has ranks 4 and 5 only: position 3 begins again at its second rank.
    assert sent(PerNode(), [[4]], [3], [0, 0, 0, 0, 1, 1]) == {(3, 5): 1, (5, 4): 1}
    assert sent(PerNode(), [[4]], [2], [0, 0, 0, 0, 1, 1]) == {(2, 4): 1}


@pytest.mark.parametrize("policy", [PerExpert(), PerRank(), PerNode(), AllGather()])
def test_no_tokens_no_copies(policy):
    copies_SR = policy.copies(
        np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.int64), np.array([0, 0, 1, 1])
    )
    assert copies_SR.shape == (4, 4)
    assert not copies_SR.any()
