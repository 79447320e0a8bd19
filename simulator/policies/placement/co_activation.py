"""Placement of experts that tokens choose together on the same rank or node, so that fewer copies
of a token travel.
"""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.jit import jit
from simulator.base.quantities import Extent, Nodes
from simulator.policies.placement import Placed, in_blocks
from simulator.policies.placement.greedy import Greedy

_MOST_PASSES = 20
"""Most passes over all pairs of experts of a layer; a handful find no more exchange."""


class CoActivation(Frozen):
    """Experts begin as ``greedy`` puts them; then two of different ranks change places as long as
    more pairs of a token's experts come to lie together, and no rank gets more than its share of
    load.

    An exchange of two members is Kernighan and Lin's step (1970). Engines place so as well (expert
    affinity in EPLB, antgroup/sglang, pull request 2). It pays where routers choose experts
    together more often than their popularity says (``affinity``), and tokens travel once for each
    rank or node that has any of their experts.
    """

    tolerance: Extent = 1.05
    """Ratio of the largest load of a rank or node to the mean load that an exchange may leave; what
    ``greedy`` leaves is allowed."""
    num_nodes: Nodes = 1
    """Number of nodes that pairs are kept together in, as ``per_node`` dispatch sends tokens;
    inside a node experts are placed by load. 1 = pairs are kept together on ranks."""

    def place(self, load_LE: Floats, num_ranks: int, rng: np.random.Generator) -> Placed:
        raise UserError(
            "placement 'co_activation': needs to know which experts tokens choose together, which "
            "rebalancing does not count; let it use another placement"
        )

    def place_pairs(
        self, load_LE: Floats, pairs_LEE: Floats, num_ranks: int, rng: np.random.Generator
    ) -> Placed:
        """Place the experts of every layer by load and by pairs."""
        num_parts = self.num_nodes if self.num_nodes > 1 else num_ranks
        if num_ranks % num_parts or (self.num_nodes > 1 and load_LE.shape[1] % num_ranks):
            raise UserError(
                f"placement 'co_activation': num_nodes = {num_parts} must divide the {num_ranks} "
                f"ranks, and these the {load_LE.shape[1]} experts"
            )
        parts = Greedy().place(load_LE, num_parts, rng)
        expert_LP = np.stack(
            [
                self._place_layer(load_E, pairs_EE, expert_P, rank_P, num_ranks // num_parts)
                for load_E, pairs_EE, expert_P, rank_P in zip(
                    load_LE, pairs_LEE, parts.expert_LP, parts.rank_LP, strict=True
                )
            ]
        )
        return in_blocks(expert_LP, num_ranks)

    def _place_layer(
        self, load_E: Floats, pairs_EE: Floats, expert_P: Ints, part_P: Ints, ranks_per_part: int
    ) -> Ints:
        """Place the experts of one layer: the expert of every slot, ``[P]``, the slots of rank 0
        first.
        """
        part_E = np.empty_like(part_P)
        part_E[expert_P] = part_P
        _exchange(part_E, load_E, pairs_EE, self.tolerance)
        members = [np.flatnonzero(part_E == part) for part in range(int(part_P.max()) + 1)]
        if ranks_per_part == 1:
            return np.concatenate(members)
        rng = np.random.default_rng(0)  # greedy draws nothing
        return np.concatenate(
            [
                own[Greedy().place(load_E[own][None], ranks_per_part, rng).expert_LP[0]]
                for own in members
            ]
        )


@jit
def _exchange(part_E: Ints, load_E: Floats, pairs_EE: Floats, tolerance: float) -> None:
    """Let experts of different parts change places, in place, each with the one that brings the
    most pairs together, until a pass finds none.
    """
    num_experts, num_parts = len(part_E), part_E.max() + 1
    load_R, with_ER = np.zeros(num_parts), np.zeros((num_experts, num_parts))
    for e in range(num_experts):
        load_R[part_E[e]] += load_E[e]
        for f in range(num_experts):
            if f != e:
                with_ER[e, part_E[f]] += pairs_EE[e, f]
    limit = max(tolerance * load_R.mean(), load_R.max())
    for _ in range(_MOST_PASSES):
        has_changed = False
        for e in range(num_experts):
            a, best, most = part_E[e], -1, 1e-9
            for f in range(num_experts):
                b = part_E[f]
                moved = load_E[e] - load_E[f]
                if a == b or load_R[b] + moved > limit or load_R[a] - moved > limit:
                    continue
                gain = with_ER[e, b] - with_ER[e, a] + with_ER[f, a] - with_ER[f, b]
                gain -= 2 * pairs_EE[e, f]
                if gain > most:
                    best, most = f, gain
            if best >= 0:
                b = part_E[best]
                load_R[a] += load_E[best] - load_E[e]
                load_R[b] += load_E[e] - load_E[best]
                for other in range(num_experts):
                    if other != e:
                        with_ER[other, a] -= pairs_EE[other, e]
                        with_ER[other, b] += pairs_EE[other, e]
                    if other != best:
                        with_ER[other, b] -= pairs_EE[other, best]
                        with_ER[other, a] += pairs_EE[other, best]
                part_E[e], part_E[best] = b, a
                has_changed = True
        if not has_changed:
            break
