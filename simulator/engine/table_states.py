"""States of a replica in its pool's table of prices: all ranks as fast as usual, some lost, or some
slower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine.table import StepTable, start_table
from simulator.step.mixes import Mixes


def add_state(table: StepTable, mixes: Mixes, left_d: NDArray[np.int64] | None = None) -> StepTable:
    """Add a state of a replica to a table, whose entries for it are filled when a step needs them;
    no other table shares its arrays then.

    Args:
        left_d: data-parallel groups that are left in it; by default all.
    """
    other = start_table(mixes)
    slow, group_class = other.slow, other.group_class
    if left_d is not None:
        slow, group_class = np.ones_like(table.slow[:1]), np.zeros_like(table.group_class[:1])
        slow[0, left_d], group_class[0, left_d] = other.slow[0], other.group_class[0]
    return table._replace(
        slow=np.concatenate([table.slow, slow]),
        group_class=np.concatenate([table.group_class, group_class]),
        collective_s=_stack(table.collective_s, other.collective_s),
        sizes=np.concatenate([table.sizes, other.sizes]),
        expert_tokens=_stack(table.expert_tokens, other.expert_tokens),
        expert_shares=_stack(table.expert_shares, other.expert_shares),
        expert_imbalances=_stack(table.expert_imbalances, other.expert_imbalances),
        profile_loads=_stack(table.profile_loads, other.profile_loads),
        expert_alone_s=_stack(table.expert_alone_s, other.expert_alone_s),
        expert_s=_stack(table.expert_s, other.expert_s),
        is_filled=_stack(table.is_filled, other.is_filled),
    )


def keep_first_state(table: StepTable) -> StepTable:
    """Drop all states of replicas but the usual one."""
    return table._replace(
        sizes=table.sizes[:1],
        slow=table.slow[:1],
        group_class=table.group_class[:1],
        collective_s=table.collective_s[:1],
        expert_tokens=table.expert_tokens[:1],
        expert_shares=table.expert_shares[:1],
        expert_imbalances=table.expert_imbalances[:1],
        profile_loads=table.profile_loads[:1],
        expert_alone_s=table.expert_alone_s[:1],
        expert_s=table.expert_s[:1],
        is_filled=table.is_filled[:1],
    )


def _stack(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """Append the only state of ``new`` to those of ``old``, in an array as large as the larger."""
    missing = [wide - own for own, wide in zip(old.shape[1:], new.shape[1:], strict=True)]
    room = [(0, max(0, more)) for more in missing]
    fill = [(0, max(0, -more)) for more in missing]
    return np.concatenate([np.pad(old, [(0, 0), *room]), np.pad(new, [(0, 0), *fill])])
