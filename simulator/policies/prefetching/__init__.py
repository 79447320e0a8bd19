"""Prefetching of experts into fast memory before a layer asks for them; one policy in a file."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats


class Predictor(Protocol):
    """Prefetching policy prepared for one model, from an earlier recording."""

    def predict(self, used_LE: Bools) -> Floats:
        """Rate how likely each expert is needed in this step, ``[L, E]``: those of a layer by what
        the layers before it used. What is not above 0 is not fetched.

        Args:
            used_LE: experts that the step uses, in every layer. Layer ``l`` may look at the rows
                before ``l``; a policy that is right as often as its key says (``hit_rate``), at its
                own row too.
        """
        ...


class PrefetchingPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.

    One that learns how experts of two layers follow each other has a class variable ``learns =
    True``, and is refused where routing is drawn: its layers choose independently of each other.
    """

    @property
    def experts(self) -> int:
        """Most experts that are fetched ahead for one layer of one step."""
        ...

    def prepare(self, earlier_LTK: NDArray[np.int16], num_experts: int) -> Predictor:
        """Learn from the experts that tokens chose in an earlier recording, ``[L, T, K]``."""
        ...
