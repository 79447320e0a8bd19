"""Timeline of a run: SimPy owns virtual time and the changes of a deployment, and one compiled loop
does everything routine.

At the ``step`` fidelity the loop runs ahead to the next change. Where ranks are simulated it forms
and completes the steps, and SimPy times them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import chain
from math import nan
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from simpy.events import Event, Process, ProcessGenerator

from simulator.base.columns import Columns, Picked, Spool, read_whole
from simulator.base.errors import UserError
from simulator.base.progress import CountDone
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.deployment.plan import DeploymentPlan
from simulator.deployment.uniform_routing import mean_uniform_imbalances
from simulator.engine import loop
from simulator.engine.audit import Audit, Audits
from simulator.engine.by_ranks import (
    ByRanks,
    Fidelity,
    StepUnderWay,
    read_batches,
)
from simulator.engine.carried_caches import CarriedCaches
from simulator.engine.changes import Failing
from simulator.engine.events import ENDS, FORMS, code_of, find_event, push_event, remove_events
from simulator.engine.experts_table import OverflowCount
from simulator.engine.links import SharedWires, bound_sharing
from simulator.engine.loop_state import CHANGE, Instants, LoopState, StepLooks, count_settled
from simulator.engine.moving_experts import MovingExperts
from simulator.engine.pool import PoolState, form_soon, start_pools
from simulator.engine.probe import probe
from simulator.engine.replica_states import ReplicaStates, degrade
from simulator.engine.result_rows import StepLog, read_requests, read_steps
from simulator.engine.scaling import Scaling, leave_drained
from simulator.engine.state import Floats
from simulator.engine.step_log import LOG_COLUMNS, POOL, REPLICA, cut_row
from simulator.engine.table import StepTable, count_profiles, fill_entry, price_step, start_table
from simulator.policies.contracts import list_looks, scales
from simulator.results.tables import (
    ADMISSION_LIMITS,
    MOVE_COLUMNS,
    DeploymentRecord,
    ExpertsMoved,
    Gaps,
    ImbalanceCurve,
    ReplicasChanged,
    TierUse,
)
from simulator.workload.traces import RequestTrace, take_requests

# Samples of the steps of a run whose ranks are not simulated, for drops by layer.


_MOST_BATCHES = 32
"""Most batches that are counted; each takes some 10 to 100 ms, and layers differ by more than large
batches do."""


def count_formed_step(pool: PoolState, replica: int) -> None:
    """Count what is dropped and rerouted of the step that a replica has formed, layer by layer,
    unless enough are counted.
    """
    prices, count = pool.prices, pool.overflow
    if not prices.placement.drops_pairs or count.num_batches >= _MOST_BATCHES:
        return
    rng = prices.placement.rng("overflow by layer", count.num_batches)
    for batch in read_batches(pool.requests, pool.ranks_of(replica)):
        count.add(prices, prices.price_batch(batch, int(rng.integers(POOL_TOKENS))))


# Results of serving a trace, before they are assembled into a record.


class Rows(NamedTuple):
    """Rows of a run, stored part by part."""

    requests: Spool
    steps: Spool
    costs: Spool


@dataclass(frozen=True)
class Served:
    """Requests and steps of a run, and the state that it ended in."""

    plan: DeploymentPlan
    trace: RequestTrace
    pools: dict[str, PoolState]
    """Pools by name, ``both`` for one that computes prompts and decodes, else ``decode`` and
    ``prefill``; with the last rows of the window on the trace."""
    by_ranks: dict[str, ByRanks]
    """Executors of each pool's steps, where ranks were simulated."""
    rows: Rows
    ingress_delay_s: float
    """Seconds from the client to the scheduler."""
    changed: tuple[ReplicasChanged, ...] = ()
    """Changes of replicas that lost GPUs or got them back, in order of time."""
    moved: tuple[tuple[int, int, float], ...] = ()
    """Requests that replicas lost, by number, with the replica's number and the time."""
    rebalances: tuple[ExpertsMoved, ...] = ()
    """Moves of experts, in order of time."""
    until_s: float | None = None
    """Time at which the run was ended, seconds; ``None`` where it ended with all requests done."""
    audits: tuple[Audits, ...] = ()
    """Errors of each pool's prices."""

    @cached_property
    def requests(self) -> Columns:
        """Table of requests with ``REQUEST_COLUMNS`` without the deployment, in order of number."""
        return self.rows.requests.close()

    @cached_property
    def steps(self) -> Columns:
        """Table of steps with ``STEP_COLUMNS`` without the deployment, those of a replica in order
        of their start; replica after replica within each part that was stored at once.
        """
        return self.rows.steps.close()

    @cached_property
    def costs(self) -> Columns:
        """Table of :data:`~simulator.engine.result_rows.COST_COLUMNS`, a row for each of
        the steps.
        """
        return self.rows.costs.close()

    def requests_table(self) -> pd.DataFrame:
        """Read all requests as one data frame."""
        return read_whole(self.requests)

    def steps_of(self, name: str) -> pd.DataFrame:
        """Read the steps of a pool as one data frame, replica after replica, with the columns
        ``replica`` (its number in the pool), ``num_steps``, ``decodes`` and
        :data:`~simulator.engine.step_log.LOG_COLUMNS`, ``limited_by`` as an index.
        """
        steps = pd.concat([read_whole(self.steps), read_whole(self.costs)], axis=1)
        steps = steps[steps["pool"] == name].sort_values("replica", kind="stable")
        limits = pd.Categorical(steps["limited_by"], categories=list(ADMISSION_LIMITS))
        steps["limited_by"] = limits.codes.astype(float)
        steps["replica"] -= self.pools[name].first_replica
        columns = ["replica", "num_steps", "decodes", *LOG_COLUMNS]
        return steps[columns].reset_index(drop=True)

    def moves_table(self) -> pd.DataFrame:
        """Table of requests moved between replicas, with ``MOVE_COLUMNS`` without the deployment,
        in order of time.
        """
        return pd.DataFrame(self.moved, columns=list(MOVE_COLUMNS)[1:]).astype(
            {"request": np.int64, "replica": np.int64, "at_s": np.float64}
        )


# Record of a run: tables of requests and steps, and one sampled step of each kind, repeated rank by
# rank.


_NUM_BINS = 120
"""Bins of the load imbalance over time: as many as a figure shows."""


def make_record(served: Served) -> DeploymentRecord:
    """Assemble a run's record; replicas are numbered on from pool to pool.

    Raises:
        UserError: if no step was taken.
        RuntimeError: if a request neither finished nor was lost, and nothing ended the run.
    """
    plan, requests, steps = served.plan, served.requests, served.steps
    unfinished = int((requests["outcome"] == "unfinished").sum())
    if not len(steps):
        why = "its replicas stop before any request"
        if (requests["outcome"] == "refused").all():
            why = "every prompt is longer than it takes"
        raise UserError(f"deployment '{plan.name}': no step was taken: {why}")
    if unfinished and served.until_s is None:
        raise RuntimeError(f"{unfinished} requests of deployment '{plan.name}' never finished")
    probes, read_bytes, uniform_S = [], 0.0, np.full(len(steps), nan)
    overflow = OverflowCount(plan.placement.model.num_moe_layers)
    for name, pool in served.pools.items():
        is_own = (steps["pool"] == name).to_numpy()
        own = steps if is_own.all() else Picked(steps, is_own)
        if plan.placement.experts is not None:
            uniform_S[is_own] = mean_uniform_imbalances(
                pool.plan, _tokens_of_batches(pool.plan, own)
            )
        overflow.join(pool.overflow)
        read_bytes += (
            float(served.costs["read_bytes"][is_own].sum()) * pool.plan.placement.layout.num_gpus
        )
        executor = served.by_ranks.get(name)
        phases = ("decode", "prefill") if name == "both" else (name,)
        probes.append(probe(pool, plan.machines[name], own, requests, executor, phases))
    gaps = np.sum([pool.ranks.gap_counts.sum(axis=0) for pool in served.pools.values()], axis=0)
    duration_s = steps["duration_s"].to_numpy()
    dropped_share = _share_dropped(plan, steps, served.costs)

    def mean_over_time(values_S: Floats) -> float:
        return (
            float((values_S * duration_s).sum() / duration_s.sum())
            if plan.placement.experts
            else nan
        )

    def add_name(frame: pd.DataFrame) -> pd.DataFrame:
        named_frame = frame.copy(deep=False)
        named_frame.insert(0, "deployment", plan.name)
        return named_frame

    def join_probes(table: str) -> pd.DataFrame:
        frames = [getattr(found, table) for found in probes]
        return add_name(pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0])

    return DeploymentRecord(
        name=plan.name,
        requests=requests,
        steps=steps,
        ranks=join_probes("ranks"),
        experts=add_name(probes[0].experts),
        traffic=join_probes("traffic"),
        spans=join_probes("spans"),
        itl=Gaps(gaps),
        load_imbalance=mean_over_time(served.costs["load_imbalance"].to_numpy()),
        uniform_imbalance=mean_over_time(uniform_S),
        read_bytes=read_bytes,
        dropped_share=dropped_share,
        overflow_by_layer=overflow.report(dropped_share),
        moves=add_name(served.moves_table()),
        changes=served.changed,
        rebalances=served.rebalances,
        imbalance_curve=_measure_imbalance(served, uniform_S),
        tiers=_list_tiers(served.pools.get("prefill") or served.pools["both"], requests),
        price_audit=next((one.mixes for one in served.audits if one.mixes), None),
        changed_audit=next((one.changed for one in served.audits if one.changed), None),
        sampled_steps={
            phase: step for found in probes for phase, step in found.sampled_steps.items()
        },
        num_lead_in=served.trace.num_lead_in,
        wires_shared=None if served.by_ranks else bound_sharing(plan, requests, steps),
    )


def _list_tiers(pool: PoolState, requests: Columns) -> tuple[TierUse, ...]:
    """List the use of a pool's tiers; none where it keeps no prefixes."""
    size, plan = pool.limits.prefix_tokens, pool.plan
    if not size:
        return ()
    num_read, asked = int(requests["num_read"].sum()), int(requests["num_input"].sum())
    begun = pool.ranks.tiers.num_hits.sum(axis=(0, 1))
    read = [round(num_read * share) for share in begun / max(1, begun.sum())]
    hits = [int(requests["num_cached"].sum()) - num_read, *read]
    kinds = [str(table["kind"]) for table in plan.spec.kv_tiers]
    names = [f"{kind} {n + 1}" if kinds.count(kind) > 1 else kind for n, kind in enumerate(kinds)]
    num_bytes = plan.serving.capacity.cache.bytes_per_token * size
    capacities = [int(tier.memory_bytes / num_bytes) * size for tier in plan.serving.tiers]
    capacities.insert(0, plan.serving.capacity.tokens)
    shares = [found / asked for found in hits]
    return tuple(map(TierUse, ["gpu", *names], capacities, hits, shares))


def _measure_imbalance(served: Served, uniform_S: Floats) -> ImbalanceCurve | None:
    """Load imbalance over time; ``None`` for a dense model."""
    if served.plan.placement.experts is None:
        return None
    steps = served.steps
    start_s, duration_s = (steps[name].to_numpy() for name in ("start_s", "duration_s"))
    width_s = float((start_s + duration_s).max()) / _NUM_BINS
    bin_S = np.minimum((start_s / width_s).astype(np.int64), _NUM_BINS - 1)

    def mean_in_bins(values_S: Floats) -> list[float | None]:
        is_known = np.isfinite(values_S)
        weight_S = np.where(is_known, duration_s, 0.0)
        total = np.bincount(bin_S, weights=np.where(is_known, values_S, 0.0) * weight_S)
        weight = np.bincount(bin_S, weights=weight_S)
        return [
            float(sum_s / of) if of > 0 else None for sum_s, of in zip(total, weight, strict=True)
        ]

    imbalance = mean_in_bins(served.costs["load_imbalance"].to_numpy())
    at_s = ((np.arange(len(imbalance)) + 0.5) * width_s).tolist()
    return ImbalanceCurve(at_s, imbalance, mean_in_bins(uniform_S))


def _share_dropped(plan: DeploymentPlan, steps: Columns, costs: Columns) -> float:
    """Share of token-expert pairs dropped, over all layers and steps; NaN where none can be."""
    placement = plan.placement
    moe = placement.model.moe
    if moe is None or not placement.drops_pairs:
        return nan
    tokens = int(steps["prefill_tokens"].sum() + steps["decode_tokens"].sum())
    pairs = tokens * moe.top_k * placement.model.num_moe_layers
    return float(costs["dropped_pairs"].sum()) / pairs if pairs else nan


def _tokens_of_batches(plan: DeploymentPlan, steps: Columns) -> Floats:
    """Tokens of one batch that passes the routed experts in each step, ``[S]``: a pipeline's
    batches in flight and the halves of two-batch overlap are assumed equal.
    """
    halves = 2 if plan.spec.overlap == "two_batch" else 1
    of_decode = 1 + plan.placement.drafts.num_tokens
    tokens_S = (steps["prefill_tokens"] + of_decode * steps["decodes"]).to_numpy(np.float64)
    tokens_S /= steps["num_steps"].to_numpy()
    return np.maximum(tokens_S / (plan.placement.layout.pp * halves), 1.0)


MakeTable = Callable[[PoolState, str], StepTable]
"""Factory of a pool's table; entries that it lacks are filled with the random numbers of the named
stream."""
STREAMS = {"both": "steps", "decode": "steps", "prefill": "prefill steps"}
"""Names of the random streams of each pool's steps."""


def run_plan(
    plan: DeploymentPlan,
    trace: RequestTrace,
    fidelity: Fidelity = "step",
    progress: CountDone = lambda _: None,
    fill: MakeTable = lambda pool, _: start_table(pool.mixes),
) -> DeploymentRecord:
    """Serve the whole trace and return a record of the run, with steps of each kind shown.

    Args:
        fill: makes the tables of the ``step`` fidelity, such as slower ones.

    Raises:
        UserError: if the trace's longest request does not fit in the KV cache.
    """
    return make_record(serve(plan, trace, fidelity, progress=progress, fill=fill))


def serve(
    plan: DeploymentPlan,
    trace: RequestTrace,
    fidelity: Fidelity = "step",
    *,
    progress: CountDone = lambda _: None,
    fill: MakeTable = lambda pool, _: start_table(pool.mixes),
    ingress_delay_s: float | None = None,
    until: float | None = None,
    keeps_steps: bool = True,
) -> Served:
    """Serve a trace on all replicas of all pools, which may stop and start as the plan's failures
    have it.

    Args:
        progress: told how many requests are done, some ten times a second.
        fill: makes the tables of the ``step`` fidelity, once more when experts have moved; may
            return what it returned before for a plan that differs in its replicas only.
        ingress_delay_s: seconds from the client to the scheduler; by default the
            calibration's.
        until: seconds since the first arrival after which nothing happens any more, and what is
            under way is cut off; by default until all is done.
        keeps_steps: whether the tables of steps are made, most of the memory of a long run.

    Raises:
        UserError: if the trace's longest request does not fit in the KV cache.
    """
    if ingress_delay_s is None:
        ingress_delay_s = (plan.prefill or plan).placement.calibration.engine.first_token_s
    if trace.concurrency is not None:
        trace = _start_clients(plan, trace, fidelity, fill, ingress_delay_s)
    pools = start_pools(plan, trace)
    by_ranks: dict[str, ByRanks] = {}
    for name, pool in pools.items():
        if fidelity == "step":
            pool.price_by(fill(pool, STREAMS[name]))
        else:
            pool.price_by(pool.table)
            by_ranks[name] = ByRanks(fidelity, STREAMS[name], pool)
    state = LoopState(plan, trace, pools, ingress_delay_s, fidelity != "step")
    timeline = _Timeline(state, pools, by_ranks, fill, progress, fidelity, keeps_steps)
    timeline.run(math.inf if until is None else until)
    return timeline.close()


def _start_clients(
    plan: DeploymentPlan,
    trace: RequestTrace,
    fidelity: Fidelity,
    fill: MakeTable,
    ingress_delay_s: float,
) -> RequestTrace:
    """Set when the clients of a closed loop send their first requests: one after another, or spread
    over the mean stay of these when they come so.
    """
    clients = np.arange(min(trace.concurrency or 0, trace.num_requests))
    gap_s = trace.send_s
    if trace.start == "spread":
        crowd = replace(take_requests(trace, clients), start="at_once")
        served = serve(plan, crowd, fidelity, fill=fill, ingress_delay_s=ingress_delay_s)
        stays_s = served.requests["finish_s"] - served.requests["arrival_s"]
        known_s = stays_s[np.isfinite(stays_s)]  # none where all are lost
        gap_s = max(gap_s, float(known_s.sum() / max(1, len(known_s)) / len(clients)))
    arrival_s = np.zeros(trace.num_requests)
    arrival_s[clients] = gap_s * clients
    return replace(trace, arrival_s=arrival_s)


class _Timeline:
    """One run: the compiled loop, and SimPy for changes and where ranks are simulated."""

    def __init__(
        self,
        state: LoopState,
        pools: dict[str, PoolState],
        by_ranks: dict[str, ByRanks],
        fill: MakeTable,
        progress: CountDone,
        fidelity: Fidelity,
        keeps_steps: bool,
    ) -> None:
        self._keeps_steps = keeps_steps
        self.instants = Instants()
        self._env = self.instants.env
        self.state, self._pools = state, pools
        self._fill, self._progress = fill, progress
        self._by_name = by_ranks
        self._by_ranks = [by_ranks[name] for name in state.names if name in by_ranks]
        args = state.plan, state.trace, pools, state.ingress_delay_s
        self._read_requests = partial(read_requests, *args)
        self.log = StepLog(self._put_away)
        self._rows = Rows(Spool(), Spool(), Spool())
        self._under_way: dict[int, StepUnderWay] = {}
        """Steps in flight by number of the replica in all pools, where ranks are simulated."""
        self._num_cut = 0
        """Number of steps that were cut short, and whose ranks SimPy still follows to their end."""
        self.wires = None
        if fidelity != "step":
            self.wires = SharedWires(self._env, state, fidelity)
            self._caches = CarriedCaches(self, self.wires)
        self.replica_states = ReplicaStates(state, fidelity)
        self.step_looks = StepLooks(state, self.instants)
        self._failing = Failing(self)
        self._scaling = {
            place: Scaling(self, self._failing, place)
            for place, pool in enumerate(state.pools)
            if scales(pool.plan.serving.scaling, pool.num_replicas)
        }
        self.rebalances: list[ExpertsMoved] = []
        self.audits = [Audit(n, one, self.replica_states) for n, one in enumerate(state.pools)]
        self.until_s = math.inf

    def run(self, until_s: float) -> None:
        """Let everything happen up to ``until_s``, that instant included."""
        self.until_s = until_s
        self.replica_states.degrade_all(0.0)
        if times := self.replica_states.list_instants():
            self._env.process(degrade(self, times))
        for changes in self.state.plan.list_failures():
            self._env.process(self._failing.follow(changes))
        for place, pool in enumerate(self.state.pools):
            looks = list_looks(pool.plan.serving.rebalancing)
            first_s = next(looks, None)
            if first_s is not None:
                by_ranks = self._by_ranks[place] if self._by_ranks else None
                fill = partial(self._fill, pool, STREAMS[self.state.names[place]])
                experts = MovingExperts(self, place, by_ranks, fill)
                self._env.process(experts.follow(chain([first_s], looks)))
        for scaling in self._scaling.values():
            self._env.process(scaling.follow())
        self._look_at(0.0)
        while not self.state.is_done:
            if not self._by_ranks:
                self.run_ahead(min(self._env.peek(), until_s))
                if self.state.is_done:
                    break
            next_s = self._env.peek()  # of a replica that has drained meanwhile, perhaps
            if next_s == math.inf or next_s > until_s:
                break
            self._env.step()
        if not self.state.is_done:
            for place, pool in enumerate(self.state.pools):
                for replica in range(pool.num_replicas):
                    self.cut_step(place, replica, until_s)
        while self._num_cut:
            self._env.step()

    def close(self) -> Served:
        """Store all rows that are left, and let go of everything that refers back to this run,
        whose arrays would stay in memory until Python looks for cycles: gigabytes of the many short
        runs of a search.
        """
        self.log.end()
        while self.state.num_read < self.state.trace.num_requests:
            self._put_requests_away(self._read_requests())
            self.state.move_window(self.state.num_rows)
        self._rows.requests.add(self._read_requests)
        plan, trace, ingress_delay_s = self.state.plan, self.state.trace, self.state.ingress_delay_s
        served = Served(
            *(plan, trace, self._pools, self._by_name, self._rows, ingress_delay_s),
            changed=tuple(self._failing.changed),
            moved=tuple(self._failing.moved),
            rebalances=tuple(self.rebalances),
            until_s=None if self.until_s == math.inf else self.until_s,
            audits=tuple(audit.report() for audit in self.audits),
        )
        self.__dict__.clear()
        return served

    def _put_requests_away(self, requests: pd.DataFrame) -> None:
        self._rows.requests.add(lambda: requests)

    def _put_away(self, log: list[NDArray[np.float64]]) -> None:
        """Make tables of parts of the log."""
        if not self._keeps_steps:
            return
        read = cache(partial(read_steps, log, self._pools))
        self._rows.steps.add(lambda: read()[0])
        self._rows.costs.add(lambda: read()[1])

    def pause_all(self, place: int, seconds: float) -> list[Process]:
        """Pause all replicas of a pool while their experts move."""
        moving = list(self.replica_states.list_placements(place))
        self.state.pools[place].ranks.counts.is_paused[moving] += 1
        return [self._env.process(self.pause(place, replica, seconds)) for replica in moving]

    def pause(self, place: int, replica: int, seconds: float) -> ProcessGenerator:
        """Keep a replica from forming steps for a while, behind its step in flight: until when."""
        state, number = self.state, self.state.number_of(place, replica)
        if number in self._under_way:
            yield self._under_way[number].ended
        begin_s = find_event(state.events, code_of(ENDS, number)) or self._env.now
        yield self.instants.wait_until(begin_s + seconds, CHANGE)
        now_s = max(begin_s + seconds, self._env.now)
        self.run_ahead(now_s)
        counts = state.pools[place].ranks.counts
        counts.is_paused[replica] -= 1
        form_soon(state.events, counts, replica, number, now_s, FORMS)
        self._look_at(now_s)
        return now_s

    def cut_step(self, place: int, replica: int, at_s: float) -> bool:
        """Cut a replica's step in flight short. Returns whether there was one."""
        number = self.state.number_of(place, replica)
        if self.wires is not None:
            if number not in self._under_way:
                return False
            self._under_way.pop(number).cut_s = at_s
            self.wires.leave(place, replica)
            self._num_cut += 1
            return True
        was_there = remove_events(self.state.events, [code_of(ENDS, number)]) > 0
        if was_there:
            counts = self.state.pools[place].ranks.counts[replica, 0]
            cut_row(self.log.rows[counts.last_row], at_s)
        return was_there

    def run_ahead(self, until_s: float) -> None:
        """Let everything happen up to a time, that instant included."""
        why, log, state = -1, self.log, self.state
        while why != loop.DONE:
            why, log.num_taken = loop.run_ahead(
                state.events,
                state.feed,
                state.first,
                state.transfers,
                until_s,
                log.rows,
                log.num_taken,
                not self._by_ranks,
            )
            if why == loop.ASKS:
                feed = state.feed
                feed.chosen = state.pools[feed.asks].choose(int(feed.asks_for))
                continue
            if why == loop.RANKS:
                place, replica = state.find_replica(int(state.feed.asks))
                state.pools[place].rank_waiting(replica, float(state.feed.stopped_s))
                continue
            if why == loop.USED_UP:
                self._move_window()
            if why == loop.DRAINED:
                until_s = min(until_s, leave_drained(self._scaling, state))
            if why == loop.LOOKS:
                until_s = min(until_s, self.step_looks.reach())
            if why == loop.PRICE_WANTED:
                self._price_step(int(state.feed.asks))
            if why == loop.CACHE_LEAVES:
                self._caches.send(int(state.feed.asks))
            if why == loop.STEP_FORMED:
                self._env.process(self._begin_step(log.rows[log.num_taken - 1]))
            if log.is_full:
                log.go_on(self._find_next(), [pool.ranks.counts for pool in state.pools])
            if why not in (loop.STEP_FORMED, loop.CACHE_LEAVES):
                self._progress(int(state.feed.num_done))

    def _move_window(self) -> None:
        """Store the first requests that are settled, and go on with the next of the trace."""
        state, requests = self.state, self._read_requests()
        again = [row for _, row in self._failing.list_again()]
        count = count_settled(requests, state.pools, state.events, again)
        if count:
            self._put_requests_away(requests.iloc[:count])
        state.move_window(count)

    def _price_step(self, number: int) -> None:
        """Price the step that a replica has formed, filling the entries that the table lacks."""
        state = self.state
        place, replica = state.find_replica(number)
        pool = state.pools[place]
        row = self.log.rows[pool.ranks.counts.last_row[replica, 0]]
        own = self.replica_states.find(place, replica)
        mixes, z = (own.mixes, own.number) if own else (pool.mixes, 0)
        table, ranks = pool.table, pool.ranks_of(replica)
        while np.isnan(row[1]):
            fill_entry(table, mixes, STREAMS[state.names[place]], *table.wanted.tolist())
            row[1] = price_step(pool.requests, ranks, table, z, row[:POOL])
        count_profiles(table)
        self.audits[place].look_at(replica, row[1], table.factor)
        if own is None:
            count_formed_step(pool, replica)
        push_event(state.events, row[0] + row[1], code_of(ENDS, number))
        self._form_ahead(place, number, row[0])

    def _form_ahead(self, place: int, number: int, at_s: float) -> None:
        """Form the step behind the one that a replica begins, where its engine works ahead."""
        if self.state.pools[place].limits.rules.steps_ahead:
            push_event(self.state.events, at_s, code_of(FORMS, number))

    def _find_next(self) -> float:
        state = self.state
        return float(loop.next_event(state.events, state.feed, state.pools[0].requests.each)[0])

    def _begin_step(self, row: NDArray[np.float64]) -> ProcessGenerator:
        """Begin a formed step at a fidelity that simulates ranks. Returns its execution."""
        place, replica = int(row[POOL]), int(row[REPLICA])
        pool, number = self.state.pools[place], self.state.number_of(place, replica)
        step = self._under_way[number] = StepUnderWay(row, Event(self._env))
        own = self.replica_states.find(place, replica)
        batches = read_batches(pool.requests, self.replica_states.ranks_of(place, replica))
        number_of_step = int(pool.ranks.counts.num_steps[replica, 0]) - 1
        self._form_ahead(place, number, row[0])
        formed = replica, number_of_step, batches, row[:POOL]
        is_whole = own is None or own.left is None
        # Nothing moves between ranks that are left.
        find_wires = partial(self.wires.find, place, replica) if self.wires and is_whole else None
        taking = self._by_ranks[place].take_step(
            self._env, *formed, own.prices if own else None, find_wires
        )
        return self._end_step(place, number, step, taking, is_whole)

    def _end_step(
        self,
        place: int,
        number: int,
        step: StepUnderWay,
        taking: ProcessGenerator,
        is_whole: bool,
    ) -> ProcessGenerator:
        """Execute a step that has begun, to its end."""
        taken = yield from taking
        if step.ended.callbacks:
            step.ended.succeed()
        if step.cut_s is not None:
            cut_row(step.row, step.cut_s)
            self._num_cut -= 1
            return
        del self._under_way[number]
        if is_whole:  # figures show whole replicas
            self._by_ranks[place].taken.add(taken)
        push_event(self.state.events, self._env.now, code_of(ENDS, number))
        self._look_at(self._env.now)

    def scale_soon(self) -> None:
        """Launch and drain replicas at this instant once all has changed."""
        for scaling in self._scaling.values():
            scaling.adjust_soon()

    def look_soon(self) -> None:
        """Go on at this instant once all has changed."""
        self._look_at(self._env.now)

    def _look_at(self, at_s: float) -> None:
        """Run ahead at a time, after everything else at that instant, where ranks are simulated."""
        if self._by_ranks:
            self.instants.look_at(at_s, self._look)

    def _look(self, at_s: float) -> None:
        if self._env.now > self.until_s:
            return
        # An event may come a rounding error before its time.
        self.run_ahead(max(at_s, self._env.now))
        next_s = self._find_next()
        if next_s < math.inf and not self.state.is_done:
            self._look_at(next_s)
