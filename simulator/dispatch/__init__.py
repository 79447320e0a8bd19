"""How many copies of a token travel to its experts, and between which ranks. One policy a file.

The way back (combine) is the way there reversed: ``copies_SR`` transposed.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class DispatchPolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    def copies(self, rank_TK: NDArray[np.int64], source_T: NDArray[np.int64], node_R: NDArray[np.int64]) -> NDArray[np.float64]:
        """Hidden vectors that each rank sends to each other one in the dispatch of one MoE layer.

        Args:
            rank_TK: rank of each token's experts, ``[T, K]``.
            source_T: rank each token is on, ``[T]``.
            node_R: fast domain of each rank, ``[R]``.

        Returns:
            ``copies_SR``, ``[R, R]``, the diagonal 0 (what stays on a rank does not travel).
        """
        ...
