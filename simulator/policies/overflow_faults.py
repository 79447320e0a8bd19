"""Faults of the experts that a user's own overflow policy admits."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.base.contracts import is_array
from simulator.policies.overflow import RoutedTokens


def find_fault(found: Any, tokens: RoutedTokens) -> str:
    """Describe what admitted experts must be; empty where they are."""
    shape = (len(tokens.ids_TJ), tokens.top_k)
    if is_array(found, shape, whole=True) and _are_own(found, tokens.ids_TJ):
        return ""
    return f"whole numbers of shape {shape}, each -1 or one of its token's ids_TJ, each id once"


def _are_own(ids_TK: Any, ids_TJ: Any) -> bool:
    """Whether every id that is not -1 is one of its token's choices, and stands once."""
    is_own_TKJ = ids_TK[:, :, None] == ids_TJ[:, None, :]
    is_known_TK = is_own_TKJ.any(axis=2) | (ids_TK == -1)
    return bool(np.all(is_known_TK) and (is_own_TKJ.sum(axis=1) <= 1).all())
