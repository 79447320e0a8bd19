"""Call of a spilling policy that refuses, as a ``UserError``, what breaks its promises."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.contracts import ask, is_array
from simulator.policies.spilling import SpillingPolicy, Spills


def spill_pairs(
    policy: SpillingPolicy, pairs_P: NDArray[np.int64], rank_P: NDArray[np.int64], num_ranks: int
) -> Spills:
    """Choose what is spilled in one layer of a step."""

    def explain(found: Any) -> str:
        wanted = (
            f"Spills of whole numbers: slots below {len(pairs_P)}, other ranks below {num_ranks} "
            "than theirs, none twice for a slot, and no more pairs than a slot has"
        )
        return "" if _fits(found, pairs_P, rank_P, num_ranks) else wanted

    found: Spills = ask(policy, "spill", pairs_P, rank_P, num_ranks, explain=explain)
    return found


def _fits(
    found: Any, pairs_P: NDArray[np.int64], rank_P: NDArray[np.int64], num_ranks: int
) -> bool:
    """Whether spills keep what is promised of them."""
    if not isinstance(found, Spills) or not is_array(found.slot_X, (None,), whole=True):
        return False
    slot_X, rank_X, pairs_X = found
    if not all(is_array(one, slot_X.shape, whole=True) for one in (rank_X, pairs_X)):
        return False
    if not len(slot_X):
        return True
    if slot_X.min() < 0 or slot_X.max() >= len(pairs_P) or pairs_X.min() < 0:
        return False
    spilled_P = np.bincount(slot_X, weights=pairs_X, minlength=len(pairs_P))
    return bool(
        rank_X.min() >= 0
        and rank_X.max() < num_ranks
        and (rank_P[slot_X] != rank_X).all()
        and len(set(zip(slot_X.tolist(), rank_X.tolist(), strict=True))) == len(slot_X)
        and (spilled_P <= pairs_P).all()
    )
