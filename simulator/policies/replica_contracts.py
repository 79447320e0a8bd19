"""Calls of failure, recovery and scaling policies that refuse what breaks their promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simulator.base.contracts import ask, check_call, is_shipped, method_name
from simulator.base.errors import UserError
from simulator.policies.contracts import as_whole_numbers, list_looks
from simulator.policies.failures import Change, FailurePolicy, Machines
from simulator.policies.faults import find_placement_fault as find_fault
from simulator.policies.placement import Placed
from simulator.policies.recovery import Loss, RecoveryPolicy
from simulator.policies.scaling import PoolLoad, ScalingPolicy


def list_changes(
    policy: FailurePolicy, machines: Mapping[str, Machines], rng: np.random.Generator
) -> Iterator[Change]:
    """Yield a policy's failures and recoveries, in order of time."""

    def explain(found: Any) -> str:
        return "" if isinstance(found, Iterator) else "an iterator of Change"

    changes: Iterator[Change] = ask(policy, "changes", machines, rng, explain=explain)
    return changes if is_shipped(type(policy)) else _hold_changes(policy, machines, changes)


def _hold_changes(
    policy: FailurePolicy, machines: Mapping[str, Machines], changes: Iterator[Change]
) -> Iterator[Change]:
    """Check a user's own changes, each when it is taken."""
    name = method_name(policy, "changes")
    now_s = 0.0

    def explain(found: Any) -> str:
        wrong = "" if found is None else _find_wrong_key(found, machines, now_s)
        known = " or ".join(
            f"'{pool}' with replicas 0 to {own.num_replicas - 1}" for pool, own in machines.items()
        )
        return wrong and f"a Change at {now_s:g} s or later, of pool {known}: {wrong}"

    while True:
        change = check_call(name, lambda: next(changes, None), explain)
        if change is None:
            return
        now_s = change.at_s
        yield change


def _find_wrong_key(found: Any, machines: Mapping[str, Machines], now_s: float) -> str:
    """First wrong field of a change, with its value; empty where all are right."""
    if not isinstance(found, Change):
        return "this is none"
    if found.pool not in machines:
        return f"pool is {found.pool!r}"
    if not isinstance(found.at_s, float | int) or not now_s <= found.at_s < float("inf"):
        return f"at_s is {found.at_s!r}"
    there = range(machines[found.pool].num_replicas)
    wrong = (
        f"replicas hold {replica!r}"
        for replica in found.replicas
        if not isinstance(replica, int | np.integer) or replica not in there
    )
    lonely = (
        f"gpus hold {gpu!r}, of no such replica"
        for gpu in found.gpus
        if not isinstance(gpu, int | np.integer)
        or gpu // machines[found.pool].gpus_per_replica not in found.replicas
    )
    return next(wrong, "") or next(lonely, "")


def find_interruption(policy: RecoveryPolicy, loaded_bytes: float) -> float:
    """Find the seconds for which a replica forms no step when ranks are left out or join."""

    def explain(found: Any) -> str:
        fits = isinstance(found, float | int) and 0 <= found < float("inf")
        return "" if fits else "seconds from 0 on"

    return float(ask(policy, "interrupt_s", loaded_bytes, explain=explain))


def shrink_experts(policy: RecoveryPolicy, loss: Loss) -> Placed | None:
    """Place the experts of a replica on the ranks that it has left; ``None`` where it stops."""
    ranks_per_group = loss.placed.num_ranks // len(loss.lost_D)
    num_left = int((~loss.lost_D).sum()) * ranks_per_group

    def explain(placed: Any) -> str:
        fits = placed is None or (
            isinstance(placed, Placed) and not find_fault(placed, loss.load_LE.shape, num_left)
        )
        wanted = (
            f"None or a Placed on {num_left} ranks with each of {loss.load_LE.shape[1]} experts in "
            "every layer, and slots that differ by at most one from rank to rank"
        )
        return "" if fits else wanted

    found = ask(policy, "shrink", loss, explain=explain)
    return None if found is None else as_whole_numbers(found)


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
