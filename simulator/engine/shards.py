"""Shards: independent replicas of a deployment, served in parallel.

Where a balancer does not look at load, the replica of every request is known before anything is
served, so that each range of replicas is a deployment of its own, and their merged results are
those of the whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel

from simulator.base.columns import Columns, Spool, list_frames
from simulator.base.contracts import is_shipped
from simulator.base.progress import CountDone
from simulator.base.recent import Recent
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.loop_state import ROWS
from simulator.engine.pool import PoolState
from simulator.engine.result_rows import HELD_ROWS
from simulator.engine.state import Ints
from simulator.engine.table import StepTable, start_table
from simulator.engine.timeline import MakeTable, Rows, Served, serve
from simulator.policies.balancing import Rule
from simulator.policies.contracts import list_looks, scales
from simulator.workload.traces import RequestTrace, pick_requests


@dataclass(frozen=True)
class Shard:
    """Some replicas of a deployment, and the requests that are sent to them."""

    plan: DeploymentPlan
    trace: RequestTrace
    first: int
    """Number of the shard's first replica in the deployment."""


class ServedShard(NamedTuple):
    """Results of a shard, as one process gives them to another; replicas are numbered from 0."""

    requests: Columns
    steps: Columns
    costs: Columns
    gap_counts: Ints
    """Histograms of gaps between output tokens, ``[M, NUM_GAP_BINS]``."""
    tier_hits: Ints
    """Prefix blocks read from tiers, ``[M, caches, tiers]``."""
    ingress_delay_s: float
    """Seconds from the client to the scheduler."""


class _Chosen:
    """Balancing policy with a fixed choice for every request."""

    needs_load = False

    def __init__(self, turns: Ints) -> None:
        self._turns = turns

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> Rule:
        return Rule(turns=lambda _: self._turns)


def split_replicas(plan: DeploymentPlan, trace: RequestTrace, most: int) -> list[Shard]:
    """Split a deployment into up to ``most`` shards of equally many replicas; none where there
    would be only one, or where replicas are coupled: by load, a closed loop, another pool,
    failures, slower GPUs, experts that move, or scaling.
    """
    count = min(most, plan.serving.replicas)
    if count < 2 or not _are_apart(plan, trace):
        return []
    turns = PoolState(plan, trace).balance.turns
    if not len(turns):
        return []
    is_taken = trace.num_input <= plan.serving.rules.longest_prompt
    chosen = np.zeros(trace.num_requests, dtype=np.int64)  # refused ones take no turn
    chosen[is_taken] = turns[: is_taken.sum()]
    ends = [plan.serving.replicas * number // count for number in range(count + 1)]
    return [_take_range(plan, trace, chosen, is_taken, *span) for span in pairwise(ends)]


def _are_apart(plan: DeploymentPlan, trace: RequestTrace) -> bool:
    """Whether replicas are independent of each other once every request has its replica."""
    stays = next(list_looks(plan.serving.rebalancing), None) is None
    stays = stays and not scales(plan.serving.scaling, plan.serving.replicas)
    is_open = trace.concurrency is None and trace.num_requests > 0
    changes = not stays or plan.failures or plan.placement.cluster.degraded
    return plan.prefill is None and is_open and not changes


def _take_range(
    plan: DeploymentPlan,
    trace: RequestTrace,
    chosen: Ints,
    is_taken: NDArray[np.bool_],
    first: int,
    end: int,
) -> Shard:
    rows = np.flatnonzero((chosen >= first) & (chosen < end))
    turns = np.zeros(len(rows), dtype=np.int64)  # as many as requests, though fewer are sent
    own = chosen[rows[is_taken[rows]]] - first
    turns[: len(own)] = own
    serving = replace(plan.serving, replicas=end - first, balancing=_Chosen(turns))
    return Shard(replace(plan, serving=serving), pick_requests(trace, rows), first)


def serve_shard(shard: Shard, progress: CountDone, fill: MakeTable) -> ServedShard:
    """Serve a shard at the ``step`` fidelity.

    Args:
        progress: as in :func:`simulator.engine.timeline.serve`.
        fill: as in :func:`simulator.engine.timeline.serve`; the tables of all shards have the same
            entries.
    """
    served = serve(shard.plan, shard.trace, progress=progress, fill=fill)
    pool = served.pools["both"]
    counts = pool.ranks.gap_counts, pool.ranks.tiers.num_hits
    return ServedShard(served.requests, served.steps, served.costs, *counts, served.ingress_delay_s)


def merge_shards(
    plan: DeploymentPlan,
    trace: RequestTrace,
    shards: Sequence[Shard],
    served: Sequence[ServedShard],
) -> Served:
    """Merge the shards' results into those that :func:`~simulator.engine.timeline.serve` returns
    for the whole deployment.

    Steps are replica after replica in all, also where they come in several parts.
    """
    pool = PoolState(plan, trace)
    pool.ranks.gap_counts[:] = np.concatenate([one.gap_counts for one in served])
    pool.ranks.tiers.num_hits[:] = np.concatenate([one.tier_hits for one in served])
    steps = (
        frame
        for shard, one in zip(shards, served, strict=True)
        for frame in _shift_replicas(one.steps, shard.first)
    )
    costs = (frame for one in served for frame in list_frames(one.costs))
    rows = Rows(_merge_requests(trace, shards, served), _spool(steps), _spool(costs))
    return Served(plan, trace, {"both": pool}, {}, rows, served[0].ingress_delay_s)


def _shift_replicas(table: Columns, first: int) -> Iterator[pd.DataFrame]:
    """Renumber a shard's replicas to their numbers in the deployment."""
    for frame in list_frames(table):
        replica = frame["replica"]
        yield frame.assign(replica=replica.where(replica < 0, replica + first))


def _spool(frames: Iterator[pd.DataFrame]) -> Spool:
    """Spool rows one after the other, in parts as large as those of a run."""
    spool = Spool()
    held: list[pd.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(map(len, held)) >= HELD_ROWS:
            spool.add(partial(pd.concat, held, ignore_index=True))
            held = []
    if held:
        spool.add(partial(pd.concat, held, ignore_index=True))
    return spool


def _merge_requests(
    trace: RequestTrace, shards: Sequence[Shard], served: Sequence[ServedShard]
) -> Spool:
    """Merge requests in the order of the trace, a window of it at a time."""
    spool, ends = Spool(), range(ROWS, trace.num_requests + ROWS, ROWS)
    windows = [
        _cut_windows(_shift_replicas(one.requests, shard.first), ends)
        for shard, one in zip(shards, served, strict=True)
    ]
    for parts in zip(*windows, strict=True):
        spool.add(partial(_sort_requests, parts))
    return spool


def _sort_requests(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(parts).sort_values("request", ignore_index=True)


def _cut_windows(frames: Iterator[pd.DataFrame], ends: Iterable[int]) -> Iterator[pd.DataFrame]:
    """Cut a shard's requests, which are in order, at some numbers."""
    more: pd.DataFrame | None = next(frames)
    for end in ends:
        taken = []
        while more is not None:
            count = int(np.searchsorted(more["request"], end))
            taken.append(more.iloc[:count])
            left = more.iloc[count:]
            more = next(frames, None) if not len(left) else None
        more = left
        yield pd.concat(taken)


# Step tables that the runs of one process share: filling one takes a hundred times as long as a
# short run by it.


_TABLES = Recent[tuple[bytes, int, str], StepTable](most=64)
"""Tables used lately, by placement, most tokens and random stream; most take less than 1 MB."""


def share_table(pool: PoolState, stream: str) -> StepTable:
    """Find the table of a pool's steps, with the entries that runs have filled until now.

    A table is started anew for requests with load profiles, whose tokens it counts; where pairs are
    dropped, which are counted by layer in the steps that fill it; and where a user's own code sets
    prices, which may change while a notebook goes on.
    """
    placement = pool.prices.placement
    counts = pool.profiles is not None or placement.drops_pairs
    if counts or not _is_all_shipped(placement):
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
