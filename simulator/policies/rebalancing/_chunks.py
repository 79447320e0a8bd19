"""Moves of a few layers at a time."""

from __future__ import annotations

from typing import Annotated, Protocol

from simulator.base.quantities import value_range

LayersPerChunk = Annotated[int, value_range(1, 4096, "layers")] | None
"""Number of layers whose experts move at a time; absent = all."""


class _Moves(Protocol):
    @property
    def asynchronous(self) -> bool: ...

    @property
    def layers_per_chunk(self) -> int | None: ...


def check_chunks(policy: _Moves) -> None:
    """Refuse moves in the background of steps that are made between steps, too.

    Raises:
        ValueError: if both are asked for.
    """
    if policy.asynchronous and policy.layers_per_chunk is not None:
        raise ValueError(
            "layers_per_chunk moves experts between steps, and asynchronous beside them; leave one "
            "of them out"
        )
