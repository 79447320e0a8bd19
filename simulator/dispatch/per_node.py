"""One copy for every node that holds any of the token's experts, forwarded inside it (DeepEP's normal kernels)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.dispatch._count import count_pairs, hits
from simulator.spec.base import Frozen


class PerNode(Frozen):
    """A token crosses the network once a node, to the GPU there of its own position, which forwards it over the fast wires.

    The two hops are pipelined in chunks, so they load their links at the same time. Nodes hold equal numbers of ranks.
    """

    def copies(self, rank_TK: NDArray[np.int64], source_T: NDArray[np.int64], node_R: NDArray[np.int64]) -> NDArray[np.float64]:
        num_ranks = len(node_R)
        num_nodes = int(node_R[-1]) + 1 if num_ranks else 0
        ranks_per_node = -(-num_ranks // max(num_nodes, 1))
        position_T = source_T % ranks_per_node
        token, rank = hits(rank_TK, num_ranks)
        relay = np.where(
            node_R[rank] == node_R[source_T[token]],
            source_T[token],
            np.minimum(node_R[rank] * ranks_per_node + position_T[token], num_ranks - 1),
        )
        forwarded = count_pairs(relay, rank, num_ranks)
        node_token, node = hits(node_R[rank_TK], num_nodes)
        landing = np.minimum(node * ranks_per_node + position_T[node_token], num_ranks - 1)
        is_far = node != node_R[source_T[node_token]]
        return forwarded + count_pairs(source_T[node_token][is_far], landing[is_far], num_ranks)
