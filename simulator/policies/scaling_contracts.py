"""Calls of scaling policies that refuse, as a ``UserError``, what breaks the promises of their
family.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator.base.contracts import ask
from simulator.base.errors import UserError
from simulator.policies.contracts import list_looks
from simulator.policies.scaling import PoolLoad, ScalingPolicy


def begin_scaling(policy: ScalingPolicy, most: int) -> int:
    """Find the number of replicas that serve when a run begins, of ``most``.

    Raises:
        UserError: if the policy asks for more replicas than there can be.
    """
    return int(ask(policy, "begin", most, explain=_explain_count(most)))


def decide_replicas(policy: ScalingPolicy, loads: Sequence[PoolLoad], most: int) -> int:
    """Decide how many replicas shall serve from now on, from 1 to ``most``.

    Args:
        loads: as :meth:`simulator.policies.scaling.ScalingPolicy.decide` takes them.
    """
    return int(ask(policy, "decide", loads, most, explain=_explain_count(most)))


def scales(policy: ScalingPolicy, most: int) -> bool:
    """Whether ever fewer than ``most`` replicas may serve, failures aside."""
    return begin_scaling(policy, most) < most or next(list_looks(policy), None) is not None


def check_scaling(policy: ScalingPolicy, most: int, where: str) -> None:
    """Refuse scaling that asks for replicas that there are not.

    Args:
        where: place of the policy, for errors.
    """
    try:
        scales(policy, most)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _explain_count(most: int) -> Any:
    def explain(found: Any) -> str:
        is_whole = isinstance(found, int | np.integer) and not isinstance(found, bool)
        return "" if is_whole and 1 <= found <= most else f"a whole number from 1 to {most}"

    return explain
