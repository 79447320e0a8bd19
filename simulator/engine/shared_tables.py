"""Step tables that the runs of one process share: filling one takes a hundred times as long as a
short run by it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
from typing import Any

from pydantic import BaseModel

from simulator.base.contracts import is_shipped
from simulator.base.recent import Recent
from simulator.deployment.placement import Placement
from simulator.engine.pool import PoolState
from simulator.engine.table import StepTable, start_table

_TABLES = Recent[tuple[bytes, int, str], StepTable](most=64)
"""Tables used lately, by placement, most tokens and random stream; most take less than 1 MB."""


def share_table(pool: PoolState, stream: str) -> StepTable:
    """Find the table of a pool's steps, with the entries that runs have filled until now.

    A table is started anew for requests with load profiles, whose tokens it counts, and where a
    user's own code sets prices, which may change while a notebook goes on.
    """
    placement = pool.prices.placement
    if pool.profiles is not None or not _is_all_shipped(placement):
        return start_table(pool.mixes)
    key = (digest_placement(placement), pool.prices.max_tokens, stream)
    table = _TABLES.get(key, lambda: start_table(pool.mixes))
    table.wanted[:] = -1  # of a run that was stopped while it filled an entry
    return table


def digest_placement(placement: Placement) -> bytes:
    """Digest everything that prices of a placement's steps depend on: all but its name."""
    found = hashlib.blake2b()
    for field in dataclasses.fields(placement):
        if field.name != "name":
            # Each by itself, alike whether or not two of them share an object.
            text = io.BytesIO()
            _FieldPickler(text, protocol=5).dump(getattr(placement, field.name))
            found.update(text.getbuffer())
    return found.digest()


class _FieldPickler(pickle.Pickler):
    """Writes specs and dataclasses by their fields, without what they have cached meanwhile."""

    def reducer_override(self, found: Any) -> Any:
        if isinstance(found, BaseModel):
            names = list(type(found).model_fields)
        elif dataclasses.is_dataclass(found) and not isinstance(found, type):
            names = [field.name for field in dataclasses.fields(found)]
        else:
            return NotImplemented
        return type(found), (), {name: getattr(found, name) for name in names}


def _is_all_shipped(placement: Placement) -> bool:
    """Whether all code that sets a placement's prices is the project's."""
    model, experts = placement.model, placement.experts
    parts: list[object] = [placement.compute, *placement.others.values(), placement.comm]
    parts += [*model.mixers.values(), *model.ffns.values()]
    if experts is not None:
        parts += [experts.dispatch, experts.overflow, experts.replica_choice, experts.spilling]
    if placement.offload is not None:
        parts += [placement.offload.rules.caching, placement.offload.rules.prefetching]
    return all(is_shipped(type(part)) for part in parts)
