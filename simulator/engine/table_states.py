"""States of a replica in its pool's table of prices: all ranks as fast as usual, some lost, or some
slower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine.table import StepTable, start_table
from simulator.step.mixes import Mixes

_OF_STATES = (
    "sizes",
    "fullest",
    "kind",
    "slow",
    "group_class",
    "collective_s",
    "expert_tokens",
    "expert_shares",
    "expert_imbalances",
    "profile_loads",
    "expert_alone_s",
    "expert_s",
    "is_filled",
)
"""Arrays of a table whose first axis are states."""


def add_state(table: StepTable, mixes: Mixes, left_d: NDArray[np.int64] | None = None) -> StepTable:
    """Add a state of a replica to a table, whose entries for it are filled when a step needs them;
    no other table shares its arrays then.

    Args:
        left_d: data-parallel groups that are left in it; by default all.
    """
    other = start_table(mixes)
    if left_d is not None:
        num_states = len(other.sizes)
        slow = np.ones((num_states, *table.slow.shape[1:]))
        kind, group_class = np.zeros((2, num_states, table.kind.shape[1]), dtype=np.int64)
        slow[:, left_d], kind[:, left_d] = other.slow, other.kind
        group_class[:, left_d] = other.group_class
        other = other._replace(slow=slow, kind=kind, group_class=group_class)
    stacked: dict[str, Any] = {
        name: _stack(getattr(table, name), getattr(other, name)) for name in _OF_STATES
    }
    return table._replace(**stacked)


def keep_usual_state(table: StepTable) -> StepTable:
    """Drop all states of replicas but the usual one."""
    count = int(table.group_class[0].max()) + 1
    return table._replace(**{name: getattr(table, name)[:count] for name in _OF_STATES})


def _stack(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """Append the states of ``new`` to those of ``old``, in an array as large as the larger."""
    missing = [wide - own for own, wide in zip(old.shape[1:], new.shape[1:], strict=True)]
    room = [(0, max(0, more)) for more in missing]
    fill = [(0, max(0, -more)) for more in missing]
    return np.concatenate([np.pad(old, [(0, 0), *room]), np.pad(new, [(0, 0), *fill])])
