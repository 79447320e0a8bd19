"""Steps of the ``rank`` and ``message`` fidelities: every rank of a replica is a SimPy process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, ProcessGenerator

from simulator.base.jit import jit
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.engine.fabric import FluidWires, Wires
from simulator.engine.message import MessageWires
from simulator.engine.overflow_count import OverflowCount
from simulator.engine.pool import PoolState
from simulator.engine.rank import StepTimes, run_step
from simulator.engine.state import Ints, Ranks, Requests
from simulator.engine.step_price import ATTENTION, price_pipeline, slow_down
from simulator.engine.taken import TakenStep, TakenSteps
from simulator.results.phases import STEP_PHASES
from simulator.step.loads import measure_loads
from simulator.step.operations import list_operations
from simulator.step.pipelines import sends_s, stage_shares
from simulator.step.prices import Prices
from simulator.step.program import Batch, PricedBatch

Fidelity = Literal["step", "rank", "message"]
FindProfiles = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Function from numbers of requests to their load profiles."""


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
    ends, sequences, is_decode, num_logits = _list_sequences(
        requests.each, ranks.each, ranks.running, ranks.chunk, ranks.starts
    )
    begins = [0, *ends.tolist()]
    found = [
        _make_batch(begins[first : first + num_dp + 1], sequences, is_decode, num_logits[first:])
        for first in range(0, len(ranks.each), num_dp)
    ]
    return [batch for batch in found if batch.tokens_d.any()]


def _make_batch(
    begins: list[int], sequences: Ints, is_decode: NDArray[np.bool_], num_logits: Ints
) -> Batch:
    """Make the batch of a lane, whose ranks' sequences begin at the first of ``begins`` and end at
    its last.
    """
    places = [slice(*ends) for ends in pairwise(begins)]
    new, context, numbers, domains = (tuple(row[place] for place in places) for row in sequences)
    decodes = tuple(is_decode[place] for place in places)
    return Batch(new, context, decodes, num_logits[: len(places)], numbers, domains)


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
    sequences, is_decode = np.empty((4, count), np.int64), np.empty(count, np.bool_)
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
            generated = request.generated
            known = request.num_input + generated
            decodes = is_summed or (generated > 0 and context + 1 == known)
            if decodes:
                num_logits[d] += new
            elif context + new == known:
                num_logits[d] += 1
            sequences[0, n], sequences[1, n] = new, context
            sequences[2, n], sequences[3, n] = request.number, request.domain
            is_decode[n] = decodes
            n += 1
        ends[d] = n
    return ends, sequences, is_decode, num_logits


class ByRanks:
    """Execution of a pool's steps with a process for each rank, over fluid or
    message-level wires.
    """

    def __init__(
        self,
        prices: Prices,
        make_wires: Callable[[simpy.Environment], Wires],
        stream: str = "steps",
    ) -> None:
        """Prepare the execution; nothing runs yet.

        Args:
            stream: name of the random stream, of which each step of each replica has its own.
        """
        self.prices = prices
        self.make_wires = make_wires
        self.stream = stream
        self.taken = TakenSteps()
        self.overflow = OverflowCount(prices.placement.model.num_moe_layers)
        self.find_wires: Callable[[int], Wires] | None = None
        """Function from a replica to wires that its steps share with other traffic; ``None`` where
        every batch has wires of its own."""
        self._find_profiles: FindProfiles | None = None
        self.profile_tokens = np.zeros(0)
        """Tokens of each load profile in all steps, ``[P]``."""

    def count_profiles(self, find_profiles: FindProfiles, num_profiles: int) -> None:
        """Count the tokens of later steps by the load profiles of their requests."""
        self._find_profiles, self.profile_tokens = find_profiles, np.zeros(num_profiles)

    def join(self, other: ByRanks) -> None:
        """Count together with another executor of the same pool."""
        self.overflow, self._find_profiles = other.overflow, other._find_profiles
        self.profile_tokens = other.profile_tokens

    def use_prices(self, prices: Prices) -> None:
        """Use other prices for steps that are formed from now on."""
        self.prices = prices

    def take_step(
        self,
        env: simpy.Environment,
        replica: int,
        number: int,
        batches: list[Batch],
        row: NDArray[np.float64],
    ) -> ProcessGenerator:
        """Execute a formed step in virtual time, and fill in its log row from column 1. The
        process's value is the :class:`~simulator.engine.taken.TakenStep`.

        Args:
            replica: among those of its pool.
            number: steps that the replica took before.
            batches: of each lane that has something to compute.
        """
        prices = self.prices
        placement = prices.placement
        if self._find_profiles is not None:
            for batch in batches:
                profile_N = self._find_profiles(np.concatenate(batch.requests))
                np.add.at(self.profile_tokens, profile_N, np.concatenate(batch.new_tokens))
        drawn = placement.rng(self.stream, replica, number)
        offsets = drawn.integers(POOL_TOKENS, size=len(batches)).tolist()
        # Lanes are at different stages at any time, so each has the wires to itself.
        find_wires = self.find_wires if placement.layout.pp == 1 else None
        wires = None if find_wires is None else find_wires(replica)
        priced = [
            prices.price_batch(batch, offset)
            for batch, offset in zip(batches, offsets, strict=True)
        ]
        for one in priced:
            self.overflow.add(prices, one)
        lanes = [env.process(self.run_batch(env, one, wires)) for one in priced]
        parts = np.zeros((len(lanes), len(STEP_PHASES) + 3))
        head_s = np.array([prices.head_s[batch.num_logits].max() for batch in batches])
        for lane, process in enumerate(lanes):
            times: StepTimes = yield process
            parts[lane, : len(STEP_PHASES)] = [times.phases[phase] for phase in STEP_PHASES]
            parts[lane, len(STEP_PHASES) :] = measure_loads(prices, priced[lane])
        if placement.layout.pp == 1:
            row[ATTENTION:] = parts[0]
        else:
            sent_s = sends_s(prices, np.array([batch.tokens_d.max() for batch in batches]))
            stages = placement.layout.pp, *stage_shares(placement)
            price_pipeline(parts, head_s, sent_s, *stages, row)
            yield env.timeout(max(0.0, row[0] + _parts_s(row) - env.now))
        row[1] = env.now - row[0]
        if placement.drafts.num_tokens:
            slow_down(row, placement.drafts.slowdown, placement.drafts.slowdown)
            yield env.timeout(row[1] * (placement.drafts.slowdown - 1.0))
            row[1] = env.now - row[0]
        return TakenStep(
            replica, number, float(row[0]), float(row[1]), tuple(batches), prices, tuple(offsets)
        )

    def run_batch(
        self,
        env: simpy.Environment,
        priced: PricedBatch,
        wires: Wires | None = None,
        *,
        keep_spans: bool = False,
    ) -> ProcessGenerator:
        """Execute one batch through all layers; the process's value is its
        :class:`~simulator.engine.rank.StepTimes`.

        Args:
            wires: that it shares with other traffic; by default wires of its own.
        """
        placement = self.prices.placement
        return run_step(
            env,
            wires or self.make_wires(env),
            list_operations(self.prices, priced),
            placement.layout.num_ranks,
            shared_cores=placement.calibration.shared_cores,
            keep_spans=keep_spans,
        )


def start_ranks(prices: Prices, fidelity: Fidelity, stream: str) -> ByRanks:
    """Make the executor of steps with some prices, at a fidelity that simulates ranks."""
    make_messages = partial(MessageWires, fabric=prices.placement.fabric)
    return ByRanks(prices, FluidWires if fidelity == "rank" else make_messages, stream)


def start_ranks_of(pool: PoolState, fidelity: Fidelity, stream: str) -> ByRanks:
    """Make the executor of a pool's steps at a fidelity that simulates ranks."""
    made = start_ranks(pool.prices, fidelity, stream)
    made.overflow = pool.overflow
    if pool.profiles is not None:
        made.count_profiles(pool.find_profiles, len(pool.profiles.tokens_P))
    return made


def _parts_s(row: NDArray[np.float64]) -> float:
    return float(row[ATTENTION : ATTENTION + len(STEP_PHASES)].sum())
