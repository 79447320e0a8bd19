"""Calls of replica choice policies that refuse, as a ``UserError``, what breaks their promises."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.contracts import ask, has_method, is_array
from simulator.policies.replica_choice import Copies, Origins, ReplicaChoicePolicy, ReplicaChooser


def prepare_replica_choice(policy: ReplicaChoicePolicy, copies: Copies) -> ReplicaChooser:
    """Prepare the choice among the copies of one layer."""
    found: ReplicaChooser = ask(policy, "prepare", copies, explain=has_method("choose"))
    return found


def choose_replicas(
    chooser: ReplicaChooser,
    ids_TK: NDArray[np.int64],
    origins: Origins,
) -> NDArray[np.int64]:
    """Choose the slot of every token-expert pair, ``[T, K]``."""

    def explain(slot_TK: Any) -> str:
        fits = is_array(slot_TK, ids_TK.shape, whole=True) and bool(
            ((slot_TK >= 0) == (ids_TK >= 0)).all()
        )
        return "" if fits else f"slots of shape {ids_TK.shape}, -1 exactly where an id is"

    found: NDArray[np.int64] = ask(chooser, "choose", ids_TK, origins, explain=explain)
    return found
