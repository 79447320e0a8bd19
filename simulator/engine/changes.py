"""Stops and starts of replicas and their ranks during a run, and the return of the requests that
they had.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from simpy.events import ProcessGenerator

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.batching import count_ended, dissolve_sums, gets_last
from simulator.engine.cache import give_back
from simulator.engine.events import (
    ARRIVES,
    COMES_LATER,
    FORMS,
    FORMS_LATE,
    GOES_ON,
    IS_READ,
    Events,
    code_of,
    push_event,
    remove_events,
)
from simulator.engine.loop import drop_lost, release_sent, withdraw
from simulator.engine.loop_state import AGAIN, CHANGE, LoopState
from simulator.engine.pool import PoolState, has_no_requests, release_next
from simulator.engine.queue import join_again, list_requests
from simulator.engine.replica_states import Run, count_loaded_bytes, place_on_left
from simulator.engine.state import HERE, IN_LINE, READ, Ints, Ranks, Requests
from simulator.policies.contracts import find_interruption
from simulator.policies.failures import Change
from simulator.results.tables import ReplicasChanged

_CACHE = ["computed", "transferred", "blocks", "shared", "kept_first", "kept_blocks", "kept_end"]
"""A request's state in the caches of its replica."""

Kind = Literal[
    "hangs", "stops", "starts", "shrinks", "grows", "evacuates", "launches", "drains", "leaves"
]
"""Kinds of changes of a replica: a GPU has failed, which nobody has noticed yet; it is gone; it
serves again; it goes on with fewer ranks; ranks have joined it again; a failure is announced, until
which it gets no requests; its GPUs are taken, on which it starts; it gets no more requests; its
GPUs are given back."""


def lose_groups(pool: PoolState, replica: int, lost_D: NDArray[np.bool_], events: Events) -> Ints:
    """Stop some data-parallel groups of a replica, whose caches are lost, while the others go on;
    or all, where its step under way has been cut off before.

    Args:
        lost_D: whether each group is lost, ``[D]``.

    Returns:
        Requests that they had, by their numbers in the trace; they keep the tokens they have
            emitted and nothing else.
    """
    ranks, requests, counts = pool.ranks_of(replica), pool.requests, pool.ranks.counts[replica, 0]
    # Of all groups those of all lanes of a pipeline.
    which = slice(None) if lost_D.all() else lost_D
    expected = _call_off(pool, replica, lost_D, events)
    kept = _lose_kept(pool, replica, lost_D, events)
    left = np.concatenate([expected, _lose_running(pool, replica, which)])
    _empty_ranks(pool, replica, which)
    if lost_D.all():
        kept = np.concatenate([kept, _lose_coming(pool, replica)])
        counts.is_gone = 1
        counts.held = counts.num_admissions = counts.reserved.count = 0
        counts.num_kept = counts.outstanding_tokens = 0
        counts.num_pushed = counts.num_finished
    else:
        ranks.each.is_lost[lost_D] = 1
        rows = requests.each[left]
        counts.num_kept -= len(kept)
        counts.outstanding_tokens -= (rows.num_input + rows.num_output).sum()
        counts.num_pushed -= len(left)
    return np.sort(np.concatenate([left, kept])) + requests.first


def undo_formed(pool: PoolState, replica: int) -> None:
    """Undo what forming a step did that forming it again would do once more: blocks for the next
    token of summed decodes, and tokens that were counted ahead.
    """
    ranks, requests, limits = pool.ranks_of(replica), pool.requests, pool.limits
    counts = pool.ranks.counts[replica, 0]
    for d, rank in enumerate(ranks.each):
        if rank.num_decodes and (counts.is_formed or not rank.in_flight):
            _, due = count_ended(requests, ranks, limits, d)
            give_back(ranks, d, int(ranks.ring[d, rank.ticks % limits.block_tokens] - due))
        if rank.num_decodes:
            dissolve_sums(requests, ranks, limits, d)
        if rank.in_flight:
            _call_back(requests, ranks, d)
    counts.in_flight = counts.is_formed = 0


def _call_back(requests: Requests, ranks: Ranks, d: int) -> None:
    """Forget the tokens of a rank's step in flight, which has been cut off."""
    rank, rows = ranks.each[d], requests.each
    out, running = ranks.emitting[d, : rank.num_emitting], ranks.running[d, : rank.num_running]
    for r in np.setdiff1d(out[[bool(gets_last(requests, r)) for r in out]], running):
        join_again(rank.waiting, rows, r)  # preempted with its last token on the way
    rows.generated[out] -= np.maximum(1, -rows.ahead[out])
    rows.computed[running] -= np.abs(rows.ahead[running])
    rank.num_emitting = rank.num_summed = rank.in_flight = 0


def lose_requests(rows: Sequence[int], place: int, at_s: float, state: LoopState) -> None:
    """Lose the requests that a replica of a pool gave back; their clients get an error."""
    first, transfers = state.first, state.transfers
    for row in rows:
        state.pools[place].requests.each.lost_s[row] = at_s
        if transfers is not None and place == 0:
            drop_lost(state.events, len(first.ranks.counts), transfers.pool, row, at_s)
        elif transfers is not None and first.requests.each.first_s[row] >= 0:
            release_sent(state.events, first, row, at_s)
        release_next(state.feed, first.requests, 1, at_s)


def withdraw_requests(rows: Sequence[int], at_s: float, state: LoopState) -> None:
    """Give up the places in the decode pool of requests whose prompts are computed again: they ask
    for room once more, since caches that wait for room may be in the way of these prompts.
    """
    if state.transfers is None:
        return
    pool, num_first = state.transfers.pool, len(state.first.ranks.counts)
    for row in rows:
        if remove_events(state.events, [code_of(GOES_ON, row)]):
            pool.requests.each.stage[row] = HERE
        else:
            withdraw(state.events, num_first, pool, row, at_s)


def forget_tokens(rows: Sequence[int] | Ints, pool: PoolState) -> None:
    """Forget the output tokens of the requests, which begin anew."""
    each = pool.requests.each
    each.generated[rows] = 0
    each.first_s[rows] = each.last_s[rows] = each.finish_s[rows] = np.nan


def _empty_ranks(pool: PoolState, replica: int, which: slice | NDArray[np.bool_]) -> None:
    """Empty ranks of a replica, which go on counting hits."""
    ranks = pool.ranks_of(replica)
    num_hits = ranks.tiers.num_hits.copy()
    for array, fresh in zip(ranks.by_rank, pool.fresh_ranks.by_rank, strict=True):
        array[which] = fresh[which]
    ranks.tiers.num_hits[:] = num_hits


def _lose_running(pool: PoolState, replica: int, which: slice | NDArray[np.bool_]) -> Ints:
    """Take back the requests that run or wait at some of a replica's ranks."""
    ranks, requests = pool.ranks_of(replica), pool.requests
    found = [np.zeros(0, dtype=np.int64)]
    for d in np.arange(len(ranks.each))[which].tolist():
        rank = ranks.each[d]
        if rank.num_decodes:
            dissolve_sums(requests, ranks, pool.limits, d)
        found.append(ranks.running[d, : rank.num_running])
        found += [list_requests(queue, requests.each) for queue in (rank.ready, rank.waiting)]
    given_back: Ints = np.concatenate(found)
    is_here = requests.each.stage[given_back] == HERE
    given_back = given_back[is_here & np.isnan(requests.each.finish_s[given_back])]
    _lose_caches(pool, given_back)
    return given_back


def _lose_coming(pool: PoolState, replica: int) -> Ints:
    """Take back the requests that were sent to a replica and are at no rank yet."""
    counts, requests = pool.ranks.counts[replica, 0], pool.requests
    coming: Ints = list_requests(counts.coming, requests.each)
    coming = coming[requests.each.stage[coming] == HERE]
    _lose_caches(pool, coming)
    counts.coming_tokens = counts.coming.count = 0
    return coming


def _find_own(pool: PoolState, replica: int, lost_D: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each request was sent to some data-parallel groups of a replica; where these are all,
    also those that it has not queued at a rank yet.
    """
    is_own: NDArray[np.bool_] = pool.requests.each.replica == replica
    if not lost_D.all():
        counts = pool.ranks.counts[replica, 0]
        is_own &= lost_D[pool.requests.each.dp_rank % len(lost_D)]
        is_own[list_requests(counts.coming, pool.requests.each)] = False
    return is_own


def _call_off(pool: PoolState, replica: int, lost_D: NDArray[np.bool_], events: Events) -> Ints:
    """Take back requests that read their first blocks from tiers, or whose caches were to be
    transferred to groups of a decode replica: these stay where they are, and the requests ask
    another rank for room.
    """
    rows = pool.requests.each
    is_own = _find_own(pool, replica, lost_D)
    is_own &= (rows.stage != HERE) & np.isnan(rows.lost_s)
    expected: Ints = np.flatnonzero(is_own)
    kinds = ARRIVES, GOES_ON, IS_READ
    remove_events(events, [code_of(kind, int(request)) for kind in kinds for request in expected])
    reads = expected[rows.stage[expected] == READ]
    rows.stage[expected] = IN_LINE
    rows.stage[reads] = HERE
    rows.blocks[expected] = 0
    rows.child[expected] = rows.before[expected] = -1
    rows.retries[expected] += 1
    _forget_caches(pool, reads)
    return expected


def _lose_kept(pool: PoolState, replica: int, lost_D: NDArray[np.bool_], events: Events) -> Ints:
    """Drop prompts whose caches groups of a prefill replica kept for transfer; they are to be
    computed again.
    """
    rows = pool.requests.each
    is_kept = (rows.blocks + rows.shared > 0) & ~np.isnan(rows.finish_s)
    prompts: Ints = np.flatnonzero(_find_own(pool, replica, lost_D) & is_kept)
    remove_events(events, [code_of(ARRIVES, int(request)) for request in prompts])
    forget_tokens(prompts, pool)
    _lose_caches(pool, prompts)
    return prompts


def _lose_caches(pool: PoolState, given_back: Ints) -> None:
    rows = pool.requests.each
    _forget_caches(pool, given_back)
    rows.following[given_back] = rows.child[given_back] = rows.before[given_back] = -1
    rows.retries[given_back] += 1


def _forget_caches(pool: PoolState, lost: Ints) -> None:
    rows = pool.requests.each
    for name in _CACHE:
        rows[name][lost] = 0
    unread = lost[np.isnan(rows.scheduled_s[lost])]
    rows.read[unread], rows.read_wait_s[unread] = 0, np.nan


# GPUs of a pool that are out of work, and the ranks that are lost with them.


class Outages:
    """Count of reasons for which each GPU of a pool is out of work."""

    def __init__(self, plan: DeploymentPlan) -> None:
        layout = plan.placement.layout
        self._size, self._layout = layout.num_gpus, layout
        self._reasons_MG = np.zeros((plan.serving.replicas, layout.num_gpus), dtype=np.int64)

    def apply(self, change: Change) -> None:
        """Add a reason for each of a change's GPUs, or take one away where there is one."""
        step = -1 if change.starts else 1
        for replica in change.replicas:
            gpus = self.list_gpus(change, replica)
            self._reasons_MG[replica, gpus] = np.maximum(self._reasons_MG[replica, gpus] + step, 0)

    def list_gpus(self, change: Change, replica: int) -> NDArray[np.int64]:
        """List the GPUs of one of a change's replicas, numbered from the replica's first."""
        own = [gpu % self._size for gpu in change.gpus if gpu // self._size == replica]
        return np.array(own, dtype=np.int64) if change.gpus else np.arange(self._size)

    def find_groups(self, gpus: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the data-parallel groups of GPUs, numbered from their replica's first."""
        return gpus % self._layout.num_ranks // self._layout.tp

    def find_lost(self, replica: int) -> NDArray[np.bool_]:
        """Find the data-parallel groups of a replica that have lost a GPU, ``[D]``."""
        lost_D = np.zeros(self._layout.attention_dp, dtype=np.bool_)
        lost_D[self.find_groups(np.flatnonzero(self._reasons_MG[replica]))] = True
        return lost_D


# Failures of GPUs during a run, and recoveries of their replicas.


class Life(NamedTuple):
    """State of a replica, as failures and scaling have left it."""

    is_held: bool = True
    """Whether its pool counts on it: it has been launched, and no more drains for good."""
    is_gone: bool = False
    """Whether it has stopped, or has not been launched yet."""
    is_ready: bool = True
    """Whether it has been launched and has started, so that it serves while its GPUs work."""
    is_draining: bool = False
    """Whether it gets no requests."""
    is_empty: bool = False
    """Whether it would have none then."""
    broken: frozenset[int] = frozenset()
    """Data-parallel groups with a GPU out of work."""
    lost: frozenset[int] = frozenset()
    """Data-parallel groups that it goes on without."""
    num_hangs: int = 0
    """Failures that are not noticed yet."""
    announced: frozenset[tuple[int, ...]] = frozenset()
    """Failures that are announced, by their GPUs."""
    evacuates: bool = False
    """Whether it drains until an announced failure."""


Event = Literal[
    "announced", "fails", "noticed", "works", "begins", "launched", "started", "surplus", "drained"
]
"""Event in the life of a replica: a failure is announced, comes, is noticed; GPUs work again and
ranks on them have started; the replica itself has; it is launched, has started for the first time,
is one too many, has no request left."""


def decide(
    life: Life, event: Event, gpus: tuple[int, ...] = (), *, goes_on: bool = True
) -> tuple[Life, Kind | None]:
    """Decide what an event makes of a replica.

    Args:
        gpus: of the failure that is announced or noticed.
        goes_on: whether the groups that are left could hold all of its experts.

    Returns:
        Its state, and what it does; ``None`` where it goes on as it was.
    """
    if event == "launched":
        return life._replace(is_held=True), "launches"
    if event == "started":
        life = life._replace(is_ready=True)
        if life.broken:
            return life, "stops"
        event = "begins"
    if event == "surplus":
        life = life._replace(is_held=False, evacuates=False, is_draining=True)
        if not (life.is_gone or life.is_empty):
            return life, "drains"
        event = "drained"
    if event == "drained":
        if not life.is_draining or (life.is_held and not life.is_gone):
            return life, None
        life = life._replace(is_gone=True, is_ready=False)
        return life._replace(is_draining=False, evacuates=False), "leaves"
    if event == "begins":
        life = life._replace(is_gone=False)
    if event == "announced":
        life = life._replace(announced=life.announced | {gpus})
        if life.is_gone or life.is_draining:
            return life, None
    if event in ("announced", "begins"):
        if not life.announced:
            return life, None
        return life._replace(evacuates=True, is_draining=True), "evacuates"
    if event == "fails":
        return life._replace(num_hangs=life.num_hangs + 1), None if life.num_hangs else "hangs"
    if event == "works" and life.num_hangs:
        return life, None  # what has failed meanwhile is noticed first
    if event == "noticed":
        life = life._replace(num_hangs=0, announced=life.announced - {gpus})
        if life.evacuates and not life.announced:
            life = life._replace(evacuates=False, is_draining=False)
    if life.is_gone:
        return life, "starts" if life.is_ready and not life.broken else None
    if life.broken == life.lost:
        return life, None
    if life.broken and not goes_on:
        return life._replace(is_gone=True), "stops"
    return life._replace(lost=life.broken), "shrinks" if life.broken - life.lost else "grows"


class _Became(NamedTuple):
    """New state of a replica."""

    kind: Kind
    num_gpus: int
    """GPUs that it serves with."""
    interrupted_s: float = 0.0
    """Seconds until it does."""


class Failing:
    """Failures of a deployment, in all pools."""

    def __init__(self, run: Run) -> None:
        """Begin with all GPUs at work."""
        self._run, self._state = run, run.state
        self._outages = [Outages(pool.plan) for pool in self._state.pools]
        self._noticed_s: dict[tuple[int, int], float] = {}
        """Time at which the latest failure of a replica is noticed, by place and replica."""
        self._lives: defaultdict[tuple[int, int], Life] = defaultdict(Life)
        """States of replicas after their last events, by place and replica."""
        self.changed: list[ReplicasChanged] = []
        self.moved: list[tuple[int, int, float]] = []
        """Number of each request that a replica lost, number of that replica, and when."""
        self._waits_to_send: list[tuple[int, list[int]]] = []
        """Numbers of requests that replicas gave back at this instant, by place of their pool."""

    def is_broken(self, place: int, replica: int) -> bool:
        """Whether GPUs of a replica are out of work."""
        return bool(self._outages[place].find_lost(replica).any())

    def is_announced(self, place: int, replica: int) -> bool:
        """Whether a failure of a replica is announced."""
        return bool(self._lives[place, replica].announced)

    def _read(self, place: int, replica: int) -> Life:
        """Read the state of a replica now."""
        pool = self._state.pools[place]
        counts, ranks = pool.ranks.counts[replica, 0], pool.ranks_of(replica)
        lost_D = ranks.each.is_lost[: pool.plan.placement.layout.attention_dp]
        return self._lives[place, replica]._replace(
            is_gone=bool(counts.is_gone),
            is_ready=bool(pool.is_ready[replica]),
            is_draining=bool(counts.is_draining),
            is_empty=has_no_requests(pool.ranks.counts, replica),
            broken=_list_groups(self._outages[place].find_lost(replica)),
            lost=_list_groups(lost_D),
        )

    def step(
        self,
        place: int,
        replica: int,
        event: Event,
        gpus: tuple[int, ...] = (),
        *,
        goes_on: bool = True,
    ) -> Kind | None:
        """Bring a replica into its next state. Returns what it does."""
        life, kind = decide(self._read(place, replica), event, gpus, goes_on=goes_on)
        self._lives[place, replica] = life
        pool = self._state.pools[place]
        pool.ranks.counts.is_gone[replica] = life.is_gone
        pool.ranks.counts.is_draining[replica] = life.is_draining
        pool.is_ready[replica] = life.is_ready
        return kind

    def note(self, kind: Kind, place: int, replica: int, at_s: float, seconds: float = 0.0) -> None:
        """Note what a replica does that loses no request by it.

        Args:
            seconds: until it serves, where it is launched.
        """
        pool = self._state.pools[place]
        num_gpus = 0 if kind in ("stops", "leaves") else pool.count_gpus(replica)
        self._add(_Became(kind, num_gpus, seconds), place, at_s, {replica: _none()})

    def follow(self, changes: Iterator[Change]) -> ProcessGenerator:
        """Apply a failure policy's changes: failures when they are noticed, and repairs when ranks
        have started.
        """
        for change in changes:
            yield self._run.instants.wait_until(change.at_s, CHANGE)
            if change.at_s > self._run.until_s:
                return
            self._run.run_ahead(change.at_s)
            place = self._state.names.index(change.pool)
            policy = self._state.pools[place].plan.serving.recovery
            if change.is_notice:
                self._announce(change, place)
                continue
            if change.starts:
                keys = [(place, replica) for replica in change.replicas]
                from_s = max([change.at_s, *(self._noticed_s.get(key, 0.0) for key in keys)])
                # Where no replica is held on them, nothing starts on repaired GPUs.
                held = self._state.pools[place].is_ready[list(change.replicas)]
                then_s = from_s + policy.startup_s * bool(held.any())
            else:
                then_s = change.at_s + policy.detection_s
                self._fail(change, place, then_s)
            if then_s == change.at_s:
                self._apply(change, place, change.at_s)
            else:
                self._run.instants.env.process(self._apply_later(change, place, then_s))

    def _announce(self, change: Change, place: int) -> None:
        """Send no more requests to replicas of which GPUs will fail, nor to those that start before
        that.
        """
        for replica in change.replicas:
            hits = self._hits_living(change, place, replica)
            if hits and self.step(place, replica, "announced", change.gpus):
                self.note("evacuates", place, replica, change.at_s)
        self._state.balance_again(place)
        self._run.scale_soon()

    def _apply_later(self, change: Change, place: int, at_s: float) -> ProcessGenerator:
        yield self._run.instants.wait_until(at_s, CHANGE)
        if at_s <= self._run.until_s:
            self._run.run_ahead(at_s)
            self._apply(change, place, at_s)

    def _fail(self, change: Change, place: int, noticed_s: float) -> None:
        """Cut the steps of replicas whose GPUs fail, which hang until that is noticed."""
        pool, hung = self._state.pools[place], []
        for replica in change.replicas:
            self._noticed_s[place, replica] = noticed_s
            is_gone = pool.ranks.counts.is_gone[replica, 0]
            if is_gone or not self._hits_living(change, place, replica):
                continue
            cut = self._run.cut_step(place, replica, change.at_s)
            if cut or pool.ranks.counts.is_formed[replica]:
                undo_formed(pool, replica)
            self._halt(place, replica)
            pool.ranks.counts.is_paused[replica] += 1
            if self.step(place, replica, "fails"):
                hung.append(replica)
        self._outages[place].apply(change)
        if noticed_s > change.at_s and hung:
            self._add(_Became("hangs", 0), place, change.at_s, dict.fromkeys(hung, _none()))

    def _hits_living(self, change: Change, place: int, replica: int) -> bool:
        """Whether a failure hits a data-parallel group that serves."""
        outages, ranks = self._outages[place], self._state.pools[place].ranks_of(replica)
        groups = outages.find_groups(outages.list_gpus(change, replica))
        return bool((ranks.each.is_lost[groups] == 0).any())

    def _apply(self, change: Change, place: int, at_s: float) -> None:
        """Let replicas stop, shrink, grow or start, as their GPUs are out of work or not: also for
        failures that are noticed with another one.
        """
        if change.starts:
            self._outages[place].apply(change)
        given: dict[_Became, dict[int, Ints]] = {}
        pool = self._state.pools[place]
        for replica in change.replicas:
            num_hangs = 0 if change.starts else self._lives[place, replica].num_hangs
            pool.ranks.counts.is_paused[replica] -= num_hangs
            found = self._recover(change, place, replica)
            if found is not None:
                given.setdefault(found[0], {})[replica] = found[1]
            elif num_hangs:
                self._pause(place, replica, 0.0)
        for became, rows_of in given.items():
            self._add(became, place, at_s, rows_of)
            for replica in rows_of if became.kind == "starts" else ():
                if self.step(place, replica, "begins"):
                    self.note("evacuates", place, replica, at_s)
        self._state.balance_again(place)
        self._run.scale_soon()

    def _add(self, became: _Became, place: int, at_s: float, given_back: dict[int, Ints]) -> None:
        kind, num_gpus, seconds = became
        first = self._state.pools[place].first_replica
        moved = [(int(r), first + one, at_s) for one, lost in given_back.items() for r in lost]
        self.moved += moved
        self.changed.append(
            ReplicasChanged(
                at_s=at_s,
                pool=self._state.names[place],
                kind=kind,
                starts=kind in ("starts", "grows"),
                replicas=[first + replica for replica in given_back],
                num_requests=len(moved),
                num_gpus=num_gpus,
                serves_s=at_s + seconds,
            )
        )
        if not self._waits_to_send:
            send = partial(self._send_again, at_s)
            self._run.instants.call_at(self._run.instants.env.now, AGAIN, send)
        self._waits_to_send.append((place, [request for request, _, _ in moved]))

    def _recover(self, change: Change, place: int, replica: int) -> tuple[_Became, Ints] | None:
        """Bring a replica into the state that its GPUs allow. Returns what it became, and the
        requests that it lost; ``None`` where it stays as it is.
        """
        pool, states = self._state.pools[place], self._run.replica_states
        layout, ranks = pool.plan.placement.layout, pool.ranks_of(replica)
        lost_D = self._outages[place].find_lost(replica)
        was_lost_D = ranks.each.is_lost[: layout.attention_dp] == 1
        before, left = states.find_left(place, replica), None
        if lost_D.any() and not pool.ranks.counts.is_gone[replica, 0]:
            left = place_on_left(pool.plan, before, lost_D)
        event: Event = "works" if change.starts else "noticed"
        kind = self.step(place, replica, event, change.gpus, goes_on=left is not None)
        if kind is None:
            return None
        if kind == "starts":
            return _Became(kind, layout.num_gpus), _none()
        if kind == "stops":
            return _Became(kind, 0), self.stop(place, replica)
        newly_D = lost_D & ~was_lost_D
        rows = lose_groups(pool, replica, newly_D, self._state.events) if newly_D.any() else _none()
        ranks.each.is_lost[: layout.attention_dp] = lost_D
        states.shrink(place, replica, left)
        loaded_bytes = 0.0  # ranks that join have loaded their experts before
        if left is not None and newly_D.any():
            loaded_bytes = count_loaded_bytes(pool.plan.placement, before, left)
        seconds = find_interruption(pool.plan.serving.recovery, loaded_bytes)
        self._pause(place, replica, seconds)
        return _Became(kind, int((~lost_D).sum()) * layout.tp, seconds), rows

    def stop(self, place: int, replica: int) -> Ints:
        """Stop a replica, whose step under way has been cut off before. Returns the requests that
        it had, by their numbers in the trace.
        """
        pool = self._state.pools[place]
        self._run.replica_states.shrink(place, replica, None)
        self._halt(place, replica)
        everywhere = np.ones(pool.plan.placement.layout.attention_dp, dtype=np.bool_)
        return lose_groups(pool, replica, everywhere, self._state.events)

    def _halt(self, place: int, replica: int) -> None:
        """Call off the step that a replica is about to form; one under way has been cut off."""
        number = self._state.number_of(place, replica)
        remove_events(self._state.events, [code_of(kind, number) for kind in (FORMS, FORMS_LATE)])
        self._state.pools[place].ranks.counts.is_busy[replica] = False

    def _pause(self, place: int, replica: int, seconds: float) -> None:
        """Let a replica form steps again after a while, behind the step in flight."""
        self._state.pools[place].ranks.counts.is_paused[replica] += 1
        self._run.instants.env.process(self._run.pause(place, replica, seconds))

    def _send_again(self, at_s: float) -> None:
        """Send the given-back requests again, after all changes of this instant."""
        state = self._state
        for place in range(len(state.pools)):
            rows = [row for own, row in self.list_again() if own == place]
            fate = state.pools[place].plan.serving.recovery.requests
            if fate == "lose":
                lose_requests(rows, place, at_s, state)
                continue
            if place == 0:
                withdraw_requests(rows, at_s, state)
            if fate == "retry":
                forget_tokens(rows, state.pools[place])
            for row in sorted(rows):
                kind = COMES_LATER if place == 0 else GOES_ON
                push_event(state.events, at_s, code_of(kind, row))
        self._waits_to_send.clear()
        self._run.look_soon()

    def list_again(self) -> list[tuple[int, int]]:
        """List the place of the pool and the row of each request that is to be sent again."""
        first = self._state.first.requests.first
        return [(place, r - first) for place, again in self._waits_to_send for r in again]


def _list_groups(is_own_D: NDArray[Any]) -> frozenset[int]:
    return frozenset(np.flatnonzero(is_own_D).tolist())


def _none() -> Ints:
    return np.zeros(0, dtype=np.int64)
