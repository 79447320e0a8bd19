"""Faults of a user's pipelining policy: what a schedule must hold that its protocol cannot say."""

from __future__ import annotations

from collections import Counter

from simulator.policies.pipelining import Pass, PassKind, PipeliningPolicy

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
