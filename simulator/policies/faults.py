"""Faults of a user's own overflow, placement and pipelining policies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.contracts import is_array
from simulator.policies.overflow import RoutedTokens
from simulator.policies.pipelining import Pass, PassKind, PipeliningPolicy
from simulator.policies.placement import Placed


def find_overflow_fault(found: Any, tokens: RoutedTokens) -> str:
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


def find_placement_fault(placed: Placed, shape: tuple[int, ...], num_ranks: int) -> str:
    """First fault of a placement, with its layer; empty where it has none."""
    num_layers, num_experts = shape
    expert_LP, rank_LP = placed.expert_LP, placed.rank_LP
    if placed.num_ranks != num_ranks:
        return f"num_ranks is {placed.num_ranks}"
    if not is_array(expert_LP, (num_layers, None), whole=True):
        return "expert_LP is not of that shape"
    if not is_array(rank_LP, expert_LP.shape, whole=True):
        return "rank_LP is not of the shape of expert_LP"
    if rank_LP.min(initial=0) < 0 or rank_LP.max(initial=0) >= num_ranks:
        return f"rank_LP holds ranks beyond 0 to {num_ranks - 1}"
    for layer, (expert_P, slots_R) in enumerate(zip(expert_LP, count_slots(placed), strict=True)):
        if wrong := sorted(set(expert_P.tolist()) ^ set(range(num_experts))):
            return f"layer {layer} {'lacks' if wrong[0] in range(num_experts) else 'has'} " + (
                f"expert {wrong[0]}"
            )
        if np.ptp(slots_R) > 1:
            return (
                f"layer {layer} has {slots_R.max()} slots on rank {slots_R.argmax()} and "
                f"{slots_R.min()} on rank {slots_R.argmin()}"
            )
    return ""


def count_slots(placed: Placed) -> NDArray[np.int64]:
    """Slots of each rank in each layer, ``[L, R]``."""
    counts = [np.bincount(rank_P, minlength=placed.num_ranks) for rank_P in placed.rank_LP]
    return np.stack(counts)


_KINDS: tuple[PassKind, ...] = ("forward", "backward", "input", "weight")


def find_schedule_fault(
    policy: PipeliningPolicy, num_stages: int, num_micro_batches: int
) -> str | None:
    """Find the first way in which a schedule breaks its promises; ``None`` where it keeps them."""
    places = policy.place_chunks(num_stages)
    chunks = Counter(place.stage for place in places)
    if set(chunks) != set(range(num_stages)) or len(set(chunks.values())) != 1:
        return f"place_chunks puts {dict(chunks)} chunks on stages, must be equally many on each"
    if len(set(places)) != len(places):
        return "place_chunks puts two chunks at one place"
    for stage in range(num_stages):
        counts = Counter(
            one for turn in policy.list_turns(stage, num_stages, num_micro_batches) for one in turn
        )
        for chunk in range(chunks[stage]):
            for number in range(num_micro_batches):
                found = {kind: counts[Pass(kind, number, chunk)] for kind in _KINDS}
                halves = found["input"] == found["weight"] == 1 - found["backward"]
                if found["forward"] != 1 or not halves:
                    return (
                        f"micro-batch {number} goes through chunk {chunk} of stage {stage} "
                        f"{found['forward']} times forward, {found['backward']} backward, "
                        f"{found['input']} input, {found['weight']} weight; must be once forward, "
                        "and once backward or once input and weight"
                    )
    return None
