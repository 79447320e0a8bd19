"""Expert parallelism load balancer (DeepSeek, github.com/deepseek-ai/EPLB, MIT): copies of hot
experts, packed greedily.
"""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.frozen import Frozen
from simulator.base.quantities import Groups, Nodes, Slots
from simulator.policies.placement import Placed, choose_num_slots, in_blocks


class Eplb(Frozen):
    """Hot experts get copies in spare slots; then experts are packed, the heaviest first, each onto
    the least loaded rank.

    With groups and nodes that divide, whole groups of experts are packed onto nodes first and
    copies stay inside a node (hierarchical, for routers that limit a token to few groups); else all
    ranks are one pool (global).
    """

    num_slots: Slots | None = None
    """Slots of all ranks together, a multiple of the ranks; absent = one for each expert, or the
    next multiple of the ranks."""
    num_groups: Groups = 1
    """Number of expert groups that the router chooses among."""
    num_nodes: Nodes = 1
    """Number of nodes that whole groups are packed onto."""

    def place(self, load_LE: Floats, num_ranks: int, rng: np.random.Generator) -> Placed:
        num_experts = load_LE.shape[1]
        num_slots = choose_num_slots("eplb", self.num_slots, num_experts, num_ranks)
        groups, nodes = self.num_groups, self.num_nodes
        if groups % nodes or num_experts % groups or num_ranks % nodes or num_slots % nodes:
            groups = nodes = 1
        expert_LP = np.stack(
            [_place_layer(load_E, num_slots, groups, nodes, num_ranks) for load_E in load_LE]
        )
        return in_blocks(expert_LP, num_ranks)


def _place_layer(
    load_E: Floats, num_slots: int, num_groups: int, num_nodes: int, num_ranks: int
) -> Ints:
    """Place the experts of one layer: the expert of every slot, ``[P]``, the slots of
    rank 0 first.
    """
    group_size = len(load_E) // num_groups
    members_GX = np.arange(len(load_E)).reshape(num_groups, group_size)
    groups_of_node = pack_evenly(load_E[members_GX].sum(axis=1), num_nodes)
    chosen = []
    for groups in groups_of_node:
        expert_X = members_GX[groups].reshape(-1)
        copy_S, share_S = copy_hottest(load_E[expert_X], num_slots // num_nodes)
        chosen += [
            expert_X[copy_S[slots]] for slots in pack_evenly(share_S, num_ranks // num_nodes)
        ]
    return np.concatenate(chosen)


def copy_hottest(load_X: Floats, num_slots: int) -> tuple[Ints, Floats]:
    """Assign an expert and its share of the load to each slot: every spare slot goes to the most
    loaded copies.
    """
    copies_X = np.ones(len(load_X), dtype=np.int64)
    spare = []
    for _ in range(num_slots - len(load_X)):
        hottest = int((load_X / copies_X).argmax())
        copies_X[hottest] += 1
        spare.append(hottest)
    expert_S = np.concatenate([np.arange(len(load_X)), np.array(spare, dtype=np.int64)])
    return expert_S, (load_X / copies_X)[expert_S]


def pack_evenly(load_N: Floats, num_packs: int) -> list[list[int]]:
    """Pack items, equally many in each pack: the heaviest first, each into the least loaded pack
    that has room.
    """
    room = len(load_N) // num_packs
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    total_K = np.zeros(num_packs)
    for item in np.argsort(-load_N, kind="stable").tolist():
        pack = int(total_K.argmin())
        packs[pack].append(item)
        total_K[pack] += load_N[item]
        if len(packs[pack]) == room:
            total_K[pack] = np.inf
    return packs
