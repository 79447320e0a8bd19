"""Steps of the ``rank`` and ``message`` fidelities: every rank of a replica is a SimPy process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, ProcessGenerator

from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.engine.fabric import FluidWires, Wires
from simulator.engine.message import MessageWires
from simulator.engine.overflow_count import OverflowCount
from simulator.engine.pool import PoolState
from simulator.engine.rank import StepTimes, run_step
from simulator.engine.state import Ranks, Requests
from simulator.engine.step_price import ATTENTION, price_pipeline, slow_down
from simulator.engine.taken import TakenStep, TakenSteps
from simulator.results.tables import STEP_PHASES
from simulator.step.loads import measure_loads
from simulator.step.operations import list_operations
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
    num_dp = len(ranks.free_blocks)
    found = [
        _read_batch(requests, ranks, range(first, first + num_dp))
        for first in range(0, len(ranks.head), num_dp)
    ]
    return [batch for batch in found if batch.tokens_d.any()]


def _read_batch(requests: Requests, ranks: Ranks, lane: range) -> Batch:
    new, context, decodes, logits, numbers, domains = [], [], [], [], [], []
    for d in lane:
        summed = int(ranks.num_decodes[d])
        each = np.flatnonzero(ranks.chunk[d, summed : ranks.num_running[d]]) + summed
        ids = ranks.running[d, np.append(np.arange(summed), each)]
        numbers.append(requests.number[ids])
        domains.append(requests.domain[ids])
        new.append(np.append(np.ones(summed, np.int64), ranks.chunk[d, each]))
        joined = ranks.starts[d, :summed] + ranks.ticks[d]
        context.append(np.append(joined, requests.computed[ids[summed:]]))
        known = requests.num_input[ids] + requests.generated[ids]
        is_decode = (requests.generated[ids] > 0) & (context[-1] + 1 == known)
        is_decode[:summed] = True
        decodes.append(is_decode)
        is_last = ~is_decode & (context[-1] + new[-1] == known)
        logits.append(int(is_last.sum() + new[-1][is_decode].sum()))
    return Batch(
        tuple(new),
        tuple(context),
        tuple(decodes),
        np.array(logits, dtype=np.int64),
        tuple(numbers),
        tuple(domains),
    )


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
            sends_s = prices.sends_s(np.array([batch.tokens_d.max() for batch in batches]))
            price_pipeline(parts, head_s, sends_s, placement.layout.pp, *prices.stage_shares, row)
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
