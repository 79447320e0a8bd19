"""Dispatch of one copy for every node that holds any of the token's experts, forwarded inside it
(DeepEP's normal kernels).
"""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.policies.dispatch import Rows
from simulator.policies.dispatch.per_rank import PerRank
from simulator.policies.token_counts import count_forwarded


class PerNode(Frozen):
    """A token crosses the network once a node, to the GPU there of its own position, which forwards
    it over the fast links.

    The two hops are pipelined in chunks, so they load their links at the same time. A node with
    fewer ranks than the position asks for begins again at its first.
    """

    kernels: str = "normal"
    """Name of the entry in the calibration's table ``exchange`` that prices it."""

    def copies(self, rank_TK: Ints, source_T: Ints, node_R: Ints) -> Floats:
        return np.asarray(count_forwarded(rank_TK, source_T, node_R))

    def rows(self, rank_TK: Ints, node_R: Ints) -> Rows:
        if len(np.unique(node_R)) > 1:
            raise UserError(
                "dispatch 'per_node' forwards tokens inside each node, which is not executed on "
                "several; use 'per_rank'"
            )
        return PerRank().rows(rank_TK, node_R)
