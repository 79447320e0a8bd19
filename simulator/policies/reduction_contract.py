"""Calls of reduction policies that refuse, as a ``UserError``, what breaks their promises."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.contracts import ask, is_array
from simulator.policies.reduction import ReductionPolicy


def reduce_experts(
    policy: ReductionPolicy, load_E: NDArray[np.float64], pairs_EE: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Ask what becomes of each expert of one layer, ``[E]``."""

    def explain(becomes_E: Any) -> str:
        fits = is_array(becomes_E, load_E.shape, whole=True) and (
            set(np.unique(becomes_E).tolist()) - {-1} == set(range(policy.num_experts))
        )
        wanted = f"numbers of shape {load_E.shape}, all of 0 to {policy.num_experts - 1} among them"
        return "" if fits else f"{wanted}, or -1"

    found: NDArray[np.int64] = ask(policy, "reduce", load_E, pairs_EE, explain=explain)
    return found
