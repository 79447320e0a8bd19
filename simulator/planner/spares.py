"""Spare replicas of a deployment (N+k): how many there are, for what share of the time they are
enough, and why there is no room for them.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.planner.loss_probability import share_of_time_serving
from simulator.planner.space import ReplicaShape, Space

Sides = tuple[ReplicaShape, ReplicaShape | None]
"""Shape of a deployment's replicas, and of those that compute prompts where these are a pool."""


class Spares(NamedTuple):
    """Spare replicas of each pool."""

    replicas: int = 0
    prefill_replicas: int = 0


def count_spares(space: Space, sides: Sides, replicas: int, prefill_replicas: int = 0) -> Spares:
    """Count the spare replicas beside those that keep the targets; none without
    ``failures.availability``.
    """
    shape, prompts = sides
    if prompts is None:
        return Spares(space.count_spares(shape, replicas))
    return Spares(
        space.count_spares(shape, replicas, in_pools=True),
        space.count_spares(prompts, prefill_replicas, in_pools=True),
    )


def share_of_time_enough(
    space: Space, sides: Sides, counts: tuple[int, int], spares: Spares
) -> tuple[float, float]:
    """Share of the time in which as many replicas of each pool serve as keep the targets, at the
    lowest and the highest ``mtbf_gpu_hours``.

    Args:
        counts: replicas that keep the targets, and prefill replicas.
    """
    low = high = 1.0
    for shape, count, spare in zip(sides, counts, spares, strict=True):
        if shape is not None:
            sizes = shape.num_ranks, space.host_gpus(shape)
            own = share_of_time_serving(count, spare, *sizes, space.question.failures)
            low, high = low * own[0], high * own[1]
    return low, high


def explain_no_room(space: Space, shape: ReplicaShape, replicas: int) -> str | None:
    """Say why there is no room for the spare replicas beside so many, and what would do; ``None``
    where there is none for these alone.
    """
    failures, largest = space.question.failures, max(space.sizes(shape), default=0)
    room = max(0, largest - space.spare_gpus(shape)) // shape.num_ranks
    if room < replicas or failures.availability is None:
        return None
    wanted = replicas + space.count_spares(shape, replicas)
    sizes = shape.num_ranks, space.host_gpus(shape)
    reached, _ = share_of_time_serving(replicas, room - replicas, *sizes, failures)
    size = f"{shape.num_ranks:,} GPU{'' if shape.num_ranks == 1 else 's'}"
    needed = f"{replicas:,} that {'serves' if replicas == 1 else 'serve'}"
    return (
        f"availability = {failures.availability:g} takes {wanted:,} replicas of {size} for "
        f"{needed}, and the limits allow {room:,}, with which it is {reached:.6g}: "
        "ask for no more, raise the limits, or lower repair_hours"
    )
