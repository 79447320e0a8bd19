"""Placements of small examples worked by hand."""

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.policies.placement.contiguous import Contiguous
from simulator.policies.placement.eplb import Eplb
from simulator.policies.placement.greedy import Greedy
from simulator.policies.placement.random import Random


def place(policy, load, num_ranks, seed=0):
    return policy.place(np.array(load, dtype=np.float64), num_ranks, np.random.default_rng(seed))


def test_contiguous_gives_the_first_ranks_one_more_where_experts_do_not_divide():
    placed = place(Contiguous(), [[1.0] * 7], 3)
    assert placed.expert_LP.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert placed.rank_LP.tolist() == [[0, 0, 0, 1, 1, 2, 2]]


def test_contiguous_fills_further_slots_with_the_first_experts_again():
    placed = place(Contiguous(num_slots=8), [[1.0] * 5], 4)
    assert placed.expert_LP.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert placed.rank_LP.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]


def test_greedy_keeps_the_contiguous_order_where_that_is_as_good():
    # Heaviest first gives 7 and 5 here; 3 + 3 against 2 + 2 + 2 is better, and is the order the
    # experts already have.
    load = [2.0, 2.0, 2.0, 3.0, 3.0]
    assert place(Greedy(), [load], 2).expert_LP.tolist() == [[0, 1, 2, 3, 4]]


def test_eplb_places_the_example_that_its_authors_print():
    # github.com/deepseek-ai/EPLB, README: 2 layers of 12 experts in 4 groups, 16 slots on 8 GPUs of
    # 2 nodes.
    load = [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
    placed = place(Eplb(num_slots=16, num_groups=4, num_nodes=2), load, 8)
    assert placed.expert_LP.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert placed.rank_LP[0].tolist() == [rank for rank in range(8) for _ in range(2)]


def test_eplb_without_groups_gives_the_hottest_expert_the_spare_slots():
    placed = place(Eplb(num_slots=8), [[90.0, 10, 10, 10, 10, 10]], 4)
    assert np.bincount(placed.expert_LP[0]).tolist() == [3, 1, 1, 1, 1, 1]


def test_eplb_places_groups_and_nodes_that_do_not_divide_as_one_pool():
    load = np.random.default_rng(1).uniform(1, 9, (2, 12))
    alone = place(Eplb(num_slots=16), load, 4)
    for groups, nodes in ((5, 1), (4, 3), (3, 2), (8, 4)):
        odd = place(Eplb(num_slots=16, num_groups=groups, num_nodes=nodes), load, 4)
        assert odd.expert_LP.tolist() == alone.expert_LP.tolist()
    whole = place(Eplb(num_slots=16, num_groups=4, num_nodes=2), load, 4)
    assert whole.expert_LP.tolist() != alone.expert_LP.tolist()


@pytest.mark.parametrize(
    ("policy", "num_ranks", "said"),
    [
        (Eplb(num_slots=6), 4, "num_slots = 6 must be a multiple of the 4 ranks"),
        (Eplb(num_slots=10), 4, "num_slots = 10 must be .* at least the 8 experts"),
        *((one, 16, "8 experts on 16 ranks") for one in (Contiguous(), Random(), Greedy())),
        (Contiguous(num_slots=4), 4, "at least the 8 experts"),
    ],
)
def test_experts_that_find_no_place_are_refused(policy, num_ranks, said):
    with pytest.raises(UserError, match=said):
        place(policy, [[1.0] * 8], num_ranks)
