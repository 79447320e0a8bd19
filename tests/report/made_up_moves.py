"""Experts that moved in made-up runs, their load imbalance over time, and what found no room."""

from typing import Any

import numpy as np
import pandas as pd


def imbalance_of(facts: dict[str, Any], requests: pd.DataFrame) -> dict[str, Any]:
    """Load imbalance over time, two moves of experts, overflow and hits by layer, of a mixture of
    experts whose run was not empty.
    """
    if not facts["is_moe"] or not len(requests):
        return {}
    at_s = np.linspace(0.5, 80, 60)
    curve = {"at_s": at_s, "imbalance": 1.3 + 0.1 * np.sin(at_s / 9), "uniform": 1.2 + 0 * at_s}
    moved = {
        **{"pool": "both", "num_experts": 120, "num_bytes": 4.2e9, "seconds": 0.03},
        **{"imbalance_before": 1.4, "imbalance_after": 1.1},
        **{"imbalance_next": 1.2, "imbalance_unmoved": 1.3},
    }
    dropped = (0.05 + 0.05 * np.cos(np.arange(6))).tolist()
    return {
        "overflow_by_layer": {"num_batches": 9, "dropped": dropped, "rerouted": dropped[::-1]},
        "hits_by_layer": [0.7 - share for share in dropped],
        "imbalance_curve": {name: values.tolist() for name, values in curve.items()},
        "rebalances": [{"at_s": second, **moved} for second in (20.0, 60.0)],
    }
