"""Calls of caching and prefetching policies that refuse, as a ``UserError``, what breaks their
promises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.contracts import ask, has_method, is_array
from simulator.policies.caching import CachingPolicy, ExpertUses
from simulator.policies.prefetching import Predictor, PrefetchingPolicy


def rate_experts(policy: CachingPolicy, uses: ExpertUses) -> NDArray[np.float64]:
    """Rate how much each expert is worth a slot, ``[L, E]``."""
    found = ask(policy, "rate_experts", uses, explain=_explain_rates(uses.last_LE.shape))
    return np.asarray(found, dtype=np.float64)


def prepare_predictor(
    policy: PrefetchingPolicy, earlier_LTK: NDArray[np.int16], num_experts: int
) -> Predictor:
    """Prepare a prefetching policy for a model."""
    found: Predictor = ask(
        policy, "prepare", earlier_LTK, num_experts, explain=has_method("predict")
    )
    return found


def predict_experts(predictor: Predictor, used_LE: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Rate how likely each expert is needed, ``[L, E]``."""
    found = ask(predictor, "predict", used_LE, explain=_explain_rates(used_LE.shape))
    return np.asarray(found, dtype=np.float64)


def _explain_rates(shape: tuple[int, ...]) -> Any:
    def explain(found: Any) -> str:
        fits = is_array(found, shape, whole=False) and bool(np.isfinite(found).all())
        return "" if fits else f"finite numbers of shape {shape}"

    return explain
