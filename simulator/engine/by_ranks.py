"""Steps of the ``rank`` and ``message`` fidelities: every rank of a replica is a SimPy process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, ProcessGenerator

from simulator.base.jit import jit
from simulator.base.recent import Thinned
from simulator.cost.comm import Exchange
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.engine.batching import is_decode
from simulator.engine.fabric import FluidWires, Wires, make_wires
from simulator.engine.pool import PoolState
from simulator.engine.state import Ints, Ranks, Requests
from simulator.engine.table import ATTENTION, add_pass, price_pipeline
from simulator.results.phases import STEP_PHASES
from simulator.step.operations import list_operations, pass_operations
from simulator.step.prices import Prices, measure_loads, sends_s, stage_shares
from simulator.step.program import Batch, Busy, Finish, Operation, PricedBatch, Start, Together

# CPU cores that ranks share, where a machine has fewer cores than ranks.


class SharedCores(FluidWires):
    """Even sharing of cores by the ranks that compute, none getting more than one, as an operating
    system's scheduler approximates: a link of which nobody gets more than a part.
    """

    def __init__(self, env: simpy.Environment, num_cores: int) -> None:
        """Begin with idle cores."""
        super().__init__(env)
        self._num_cores = num_cores

    def work(self, seconds: float) -> Event:
        """Compute for a rank what takes ``seconds`` on a core of its own."""
        return self._start(np.array([seconds]))

    @property
    def _pace(self) -> float:
        """Share of a core that each rank gets."""
        return min(1.0, self._num_cores / max(1, len(self._done)))

    def _drain(self, seconds: float) -> None:
        self._left_FL -= seconds * self._pace

    def _find_ends(self) -> NDArray[np.float64]:
        return np.asarray(np.maximum(self._left_FL[:, 0], 0.0) / self._pace)


# Sample of the steps that a run took at a fidelity that knows each rank's batch, kept to be shown.


_MOST_KEPT = 256
"""Most steps of a kind that are kept, spread evenly over the run; a batch of 32 ranks takes some 50
kB."""


class TakenStep(NamedTuple):
    """One step of one replica."""

    replica: int
    """Number of the replica in its pool."""
    number: int
    """Steps that the replica took before."""
    start_s: float
    duration_s: float
    batches: tuple[Batch, ...]
    """Batch of each lane of a pipeline that had something to compute; otherwise one."""
    prices: Prices
    """Prices of its replica then."""
    offsets: tuple[int, ...]
    """Index of each batch's first token in the pool of expert choices."""


class TakenSteps:
    """Sample of a run's steps, by the phase that they are shown as."""

    def __init__(self) -> None:
        self._by_phase: dict[str, Thinned[TakenStep]] = {
            phase: Thinned(_MOST_KEPT) for phase in ("decode", "prefill")
        }

    def add(self, step: TakenStep) -> None:
        """Add a step to the sample."""
        has_prompts = any(not flags.all() for batch in step.batches for flags in batch.is_decode)
        self._by_phase["prefill" if has_prompts else "decode"].add(step)

    def nearest(self, phase: str, duration_s: float) -> TakenStep | None:
        """Find the kept step whose duration is nearest, the earliest of equals; ``None`` where none
        of the phase was kept.
        """
        kept = self._by_phase[phase].items
        return min(kept, key=lambda step: abs(step.duration_s - duration_s), default=None)


# Execution of one step with every rank as a SimPy process: it computes, meets the others of its
# group, exchanges, and goes on.


class Span(NamedTuple):
    """Activity of one rank for a while."""

    rank: int
    phase: str
    layer: int
    """Layer, -1 outside of layers."""
    start_s: float
    """Seconds from the start of the step."""
    duration_s: float


@dataclass
class StepTimes:
    """Times of one step: seconds by phase, mean over ranks, which add up to the step's duration."""

    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEP_PHASES, 0.0))
    spans: list[Span] | None = None
    """Timeline of every rank, if requested."""

    @property
    def duration_s(self) -> float:
        """Seconds of the step."""
        return sum(self.phases.values())

    def stretch(self, pace: float) -> StepTimes:
        """The step where everything takes ``pace`` times as long."""
        return StepTimes(
            {phase: pace * seconds for phase, seconds in self.phases.items()},
            self.spans
            and [
                span._replace(start_s=pace * span.start_s, duration_s=pace * span.duration_s)
                for span in self.spans
            ],
        )


class _Meeting:
    """Meeting of one group at one operation: when the last member arrives, the exchange starts; all
    leave when it ends.
    """

    def __init__(self, env: simpy.Environment, size: int, exchange: Exchange) -> None:
        self.missing = size
        self.exchange = exchange
        self.started_s = 0.0
        """Time at which the last member arrives, as far as is known."""
        self.over: Event = env.event()


class _Turn(NamedTuple):
    """Operation of a program: ranks compute, or their groups meet, or they wait for what they
    started.
    """

    phase: str
    layer: int
    seconds_R: list[float] | None = None
    """Seconds that each rank computes, ``[R]``; ``None`` where it does not."""
    meeting_R: list[_Meeting] | None = None
    """Meeting of each rank's group, ``[R]``."""
    comes: bool = False
    """Whether a rank is awaited here, as opposed to waiting for an exchange that it started."""
    waits: bool = True
    """Whether a rank waits until the exchange has ended."""


def run_step(
    env: simpy.Environment,
    wires: Wires,
    program: list[Operation],
    num_ranks: int,
    *,
    shared_cores: int | None = None,
    keep_spans: bool = False,
) -> ProcessGenerator:
    """Execute a program; the process's value is its :class:`StepTimes`.

    Args:
        shared_cores: cores that all ranks compute on, where there are fewer than ranks.
    """
    times = StepTimes(spans=[] if keep_spans else None)
    everyone = Together("wait", -1, (tuple(range(num_ranks)),), (Exchange.empty(),))
    turns = _arrange(env, [*program, everyone], num_ranks)
    cores = None if shared_cores is None else SharedCores(env, shared_cores)
    ranks = [
        env.process(_rank(env, wires, cores, turns, rank, num_ranks, times))
        for rank in range(num_ranks)
    ]
    yield env.all_of(ranks)
    return times


def _arrange(env: simpy.Environment, program: list[Operation], num_ranks: int) -> list[_Turn]:
    """Translate a program for its ranks, each with its own group's meetings."""
    turns: list[_Turn] = []
    started: dict[int, _Turn] = {}
    for operation in program:
        if isinstance(operation, Finish):
            turns.append(started[operation.start.number]._replace(comes=False, waits=True))
            continue
        turn = _Turn(operation.phase, operation.layer)
        if isinstance(operation, Busy):
            turns.append(turn._replace(seconds_R=operation.seconds_R.tolist()))
            continue
        meeting_of: dict[int, _Meeting] = {}
        for group, exchange in zip(operation.groups, operation.exchanges, strict=True):
            meeting_of |= dict.fromkeys(group, _Meeting(env, len(group), exchange))
        meeting_R = [meeting_of[rank] for rank in range(num_ranks)]
        waits = isinstance(operation, Together)
        turns.append(turn._replace(meeting_R=meeting_R, comes=True, waits=waits))
        if isinstance(operation, Start):
            started[operation.number] = turns[-1]
    return turns


def finish_step(env: simpy.Environment, step: ProcessGenerator) -> StepTimes:
    """Run virtual time until the step has ended."""
    process = env.process(step)
    env.run(process)
    if not isinstance(process.value, StepTimes):
        raise TypeError("not a step")
    return process.value


def _rank(
    env: simpy.Environment,
    wires: Wires,
    cores: SharedCores | None,
    turns: list[_Turn],
    rank: int,
    num_ranks: int,
    times: StepTimes,
) -> ProcessGenerator:
    """Process of one rank through the step. Its computation between two meetings concerns no other
    rank, so it announces at once when it will arrive at the next.
    """
    started_s = busy_until_s = env.now

    def account(phase: str, layer: int, since_s: float, until_s: float) -> None:
        if until_s > since_s:
            times.phases[phase] += (until_s - since_s) / num_ranks
            if times.spans is not None:
                times.spans.append(Span(rank, phase, layer, since_s - started_s, until_s - since_s))

    for turn in turns:
        since_s = busy_until_s
        if turn.seconds_R is not None:
            seconds = turn.seconds_R[rank]
            if cores is None:
                busy_until_s += seconds
            elif seconds > 0.0:
                yield cores.work(seconds)
                busy_until_s = env.now
            account(turn.phase, turn.layer, since_s, busy_until_s)
            continue
        assert turn.meeting_R is not None
        meeting, now_s = turn.meeting_R[rank], env.now
        since_s = now_s + (since_s - now_s)  # as the clock rounds it
        if turn.comes:
            meeting.started_s = max(meeting.started_s, since_s)
            meeting.missing -= 1
            if meeting.missing == 0:
                env.process(_exchange(env, wires, meeting))
        if turn.waits:
            yield meeting.over
            busy_until_s = max(since_s, env.now)
            begun_s = min(max(since_s, meeting.started_s), busy_until_s)
            account("wait", turn.layer, since_s, begun_s)
            account(turn.phase, turn.layer, begun_s, busy_until_s)


def _exchange(env: simpy.Environment, wires: Wires, meeting: _Meeting) -> ProcessGenerator:
    meeting.started_s += meeting.exchange.stagger_s
    if meeting.started_s > env.now:
        yield env.timeout(meeting.started_s - env.now)
    if meeting.exchange.latency_s > 0.0 or meeting.exchange.busy_s.size:
        yield wires.carry(meeting.exchange)
    meeting.over.succeed()


Fidelity = Literal["step", "rank", "message"]


@dataclass
class StepUnderWay:
    """Step in flight, at a fidelity that simulates ranks."""

    row: NDArray[np.float64]
    ended: Event
    """Event of its end, awaited where experts are to move behind it."""
    cut_s: float | None = None
    """Time at which its replica stopped."""


def read_batches(requests: Requests, ranks: Ranks) -> list[Batch]:
    """Read the formed step of a replica: one batch for each lane that has something to compute."""
    num_dp = len(ranks.caches)
    ends, sequences, decodes_N, num_logits = _list_sequences(
        requests.each, ranks.each, ranks.running, ranks.chunk, ranks.starts
    )
    places = [slice(*span) for span in pairwise([0, *ends.tolist()])]
    found = []
    for first in range(0, len(places), num_dp):
        lane = slice(first, first + num_dp)
        new, context, numbers, domains, decodes = (
            tuple(row[place] for place in places[lane]) for row in (*sequences, decodes_N)
        )
        found.append(Batch(new, context, decodes, num_logits[lane], numbers, domains))
    return [batch for batch in found if batch.tokens_d.any()]


@jit
def _list_sequences(
    rows: Any, each: Any, running: Any, chunk: Any, starts: Any
) -> tuple[Ints, Ints, NDArray[np.bool_], Ints]:
    """List the sequences of a formed step, rank after rank.

    Returns:
        Where each rank's end; new tokens, tokens in the cache, number in the trace and kind of text
        of each; whether each decodes; and sequences of each rank that get an output token.
    """
    num_ranks, count = len(each), 0
    for d in range(num_ranks):
        count += each[d].num_decodes
        for place in range(each[d].num_decodes, each[d].num_running):
            count += chunk[d, place] != 0
    ends, num_logits = np.empty(num_ranks, np.int64), np.zeros(num_ranks, np.int64)
    sequences, decodes_N = np.empty((4, count), np.int64), np.empty(count, np.bool_)
    n = 0
    for d in range(num_ranks):
        rank = each[d]
        for place in range(rank.num_running):
            is_summed = place < rank.num_decodes
            new = 1 if is_summed else chunk[d, place]
            if new == 0:
                continue
            request = rows[running[d, place]]
            context = starts[d, place] + rank.ticks if is_summed else request.computed
            decodes = is_summed or is_decode(request.num_input, request.generated, context)
            if decodes:
                num_logits[d] += new
            elif context + new == request.num_input + request.generated:
                num_logits[d] += 1
            sequences[0, n], sequences[1, n] = new, context
            sequences[2, n], sequences[3, n] = request.number, request.domain
            decodes_N[n] = decodes
            n += 1
        ends[d] = n
    return ends, sequences, decodes_N, num_logits


class ByRanks:
    """Execution of a pool's steps with a process for each rank, over fluid or
    message-level links.
    """

    def __init__(
        self, fidelity: Fidelity, stream: str = "steps", pool: PoolState | None = None
    ) -> None:
        """Prepare the execution; nothing runs yet.

        Args:
            stream: name of the random stream, of which each step of each replica has its own.
            pool: whose steps are counted; by default they are of none.
        """
        self.fidelity, self.stream, self.pool = fidelity, stream, pool
        self.taken = TakenSteps()
        num_profiles = len(pool.profiles.tokens_P) if pool and pool.profiles else 0
        self.profile_tokens = np.zeros(num_profiles)
        """Tokens of each load profile in all steps, ``[P]``."""

    def take_step(
        self,
        env: simpy.Environment,
        replica: int,
        number: int,
        batches: list[Batch],
        row: NDArray[np.float64],
        prices: Prices | None = None,
        find_wires: Callable[[], Wires] | None = None,
    ) -> ProcessGenerator:
        """Execute a formed step in virtual time, and fill in its log row from column 1. The
        process's value is the :class:`~simulator.engine.by_ranks.TakenStep`.

        Args:
            replica: among those of its pool.
            number: steps that the replica took before.
            batches: of each lane that has something to compute.
            prices: of the step; by default the pool's own at its beginning.
            find_wires: finds links that the step shares with other traffic; by default every batch
                has links of its own.
        """
        if prices is None:
            assert self.pool is not None
            prices = self.pool.prices
        placement = prices.placement
        drawn = placement.rng(self.stream, replica, number)
        offsets = drawn.integers(POOL_TOKENS, size=len(batches)).tolist()
        # Lanes are at different stages at any time, so each has the links to itself.
        shared = find_wires() if find_wires and placement.layout.pp == 1 else None

        def wires() -> Wires:
            return shared or make_wires(env, self.fidelity, placement.fabric)

        priced = [
            prices.price_batch(batch, offset)
            for batch, offset in zip(batches, offsets, strict=True)
        ]
        self._count(prices, priced)
        lanes = [env.process(run_batch(env, wires(), prices, one)) for one in priced]
        parts = np.zeros((len(lanes), len(STEP_PHASES) + 3))
        for lane, process in enumerate(lanes):
            times: StepTimes = yield process
            parts[lane] = *times.phases.values(), *measure_loads(prices, priced[lane])
        if placement.layout.pp == 1:
            row[ATTENTION:] = parts[0]
            for own, batch, count in prices.list_passes(batches[0]):
                begun_s, drafting = env.now, own.price_batch(batch, offsets[0])
                program = pass_operations(own, drafting)
                passed: StepTimes = yield env.process(
                    run_step(env, wires(), program, placement.layout.num_ranks)
                )
                part = np.array([*passed.phases.values(), *measure_loads(own, drafting)])
                add_pass(row, part, count)
                yield env.timeout((count - 1) * (env.now - begun_s))
        else:
            head_s = np.array([prices.head_s[batch.num_logits].max() for batch in batches])
            sent_s = sends_s(prices, np.array([batch.tokens_d.max() for batch in batches]))
            stages = placement.layout.pp, *stage_shares(placement)
            price_pipeline(parts, head_s, sent_s, *stages, row)
            parts_s = float(row[ATTENTION : ATTENTION + len(STEP_PHASES)].sum())
            yield env.timeout(max(0.0, row[0] + parts_s - env.now))
        row[1] = env.now - row[0]
        return TakenStep(
            replica, number, float(row[0]), float(row[1]), tuple(batches), prices, tuple(offsets)
        )

    def _count(self, prices: Prices, priced: list[PricedBatch]) -> None:
        """Count the load profiles of a step's tokens, and the pairs that are dropped."""
        pool = self.pool
        for one in priced if pool else ():
            assert pool is not None
            pool.overflow.add(prices, one)
            if pool.profiles is not None:
                profile_N = pool.find_profiles(np.concatenate(one.batch.requests))
                np.add.at(self.profile_tokens, profile_N, np.concatenate(one.batch.new_tokens))


def run_batch(
    env: simpy.Environment,
    wires: Wires,
    prices: Prices,
    priced: PricedBatch,
    *,
    keep_spans: bool = False,
) -> ProcessGenerator:
    """Execute one batch through all layers; the process's value is its
    :class:`~simulator.engine.by_ranks.StepTimes`.
    """
    return run_step(
        env,
        wires,
        list_operations(prices, priced),
        prices.placement.layout.num_ranks,
        shared_cores=prices.placement.calibration.shared_cores,
        keep_spans=keep_spans,
    )
