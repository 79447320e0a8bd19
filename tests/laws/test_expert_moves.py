"""Experts that are placed anew come from ranks that have them, and nothing else travels."""

import numpy as np
import pytest

from simulator.policies.placement import Placed
from simulator.work.expert_moves import count_expert_moves
from tests.cases import seeds


def draw_placed(rng, shape):
    """Any placement of some experts, with copies, on ranks that have as many slots."""
    num_layers, num_experts, num_ranks, slots = shape
    layers = []
    for _ in range(num_layers):
        copies = rng.integers(num_experts, size=num_ranks * slots - num_experts)
        layers.append(rng.permutation(np.concatenate([np.arange(num_experts), copies])))
    rank_P = np.repeat(np.arange(num_ranks), slots)
    return Placed(np.array(layers), np.tile(rank_P, (num_layers, 1)), num_ranks)


def draw_two(seed):
    rng = np.random.default_rng(seed)
    num_ranks, slots = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    num_experts = int(rng.integers(1, num_ranks * slots + 1))
    shape = (int(rng.integers(1, 4)), num_experts, num_ranks, slots)
    node_R = np.sort(rng.integers(0, 3, num_ranks))
    return draw_placed(rng, shape), draw_placed(rng, shape), node_R


def has(placed, layer, rank):
    return set(placed.expert_LP[layer][placed.rank_LP[layer] == rank].tolist())


def move_one_by_one(before, after, node_R):
    """Count moves by sets of who lacks what, and who has it."""
    found = np.zeros((after.num_ranks, after.num_ranks), dtype=int)
    for layer in range(len(after.expert_LP)):
        for expert in range(int(after.expert_LP.max()) + 1):
            senders = [s for s in range(after.num_ranks) if expert in has(before, layer, s)]
            wants = [
                r
                for r in range(after.num_ranks)
                if expert in has(after, layer, r) and r not in senders
            ]
            for turn, rank in enumerate(wants):
                near = [s for s in senders if node_R[s] == node_R[rank]] or senders
                found[near[turn % len(near)], rank] += 1
    return found


@seeds(0, 60)
def test_what_a_rank_lacks_comes_from_the_nearest_that_has_it(seed):
    before, after, node_R = draw_two(seed)
    moves_SR = count_expert_moves(before, after, node_R)
    assert (moves_SR == move_one_by_one(before, after, node_R)).all()
    assert not np.diagonal(moves_SR).any()
    lacking = [
        sum(
            len(has(after, layer, r) - has(before, layer, r)) for layer in range(len(after.rank_LP))
        )
        for r in range(after.num_ranks)
    ]
    assert moves_SR.sum(axis=0).tolist() == lacking


@pytest.mark.parametrize("seed", range(10))
def test_nothing_travels_where_everything_stays(seed):
    placed, _, node_R = draw_two(seed)
    assert not count_expert_moves(placed, placed, node_R).any()
