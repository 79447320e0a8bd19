"""Shown steps: a decode step and a step with prompt tokens, rank by rank, from which reports draw
ranks, experts, traffic and the time inside a step.

Where ranks were simulated they are steps that the run took, run again with everything kept. The
``step`` fidelity knows a step's tokens but not which rank had them, so it shows representative
steps: as many tokens as one of its own, spread evenly over the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import pandas as pd
import simpy

from simulator.base.columns import Columns
from simulator.deployment.conditions import place_at
from simulator.deployment.plan import DeploymentPlan
from simulator.deployment.uniform_routing import uniform_imbalance
from simulator.engine.by_ranks import ByRanks, StepTimes, TakenStep, finish_step, run_step
from simulator.engine.fabric import FluidWires
from simulator.engine.pool import PoolState
from simulator.engine.state import Floats, Ints
from simulator.policies.failures import Machines
from simulator.results.tables import (
    EXPERT_COLUMNS,
    RANK_COLUMNS,
    SPAN_COLUMNS,
    TRAFFIC_COLUMNS,
    ShownStep,
)
from simulator.step.operations import step_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch, PricedBatch


@dataclass(frozen=True)
class Probe:
    """Tables of :mod:`simulator.results.tables` for the shown steps, without the
    deployment's name.
    """

    ranks: pd.DataFrame
    experts: pd.DataFrame
    traffic: pd.DataFrame
    spans: pd.DataFrame
    shown_steps: dict[str, ShownStep]

    def select_phase(self, phase: str) -> Probe:
        """Select the step of one phase."""
        ranks, traffic, spans = (
            t[t["phase"] == phase].reset_index(drop=True)
            for t in (self.ranks, self.traffic, self.spans)
        )
        steps = {name: step for name, step in self.shown_steps.items() if name == phase}
        return Probe(ranks, self.experts, traffic, spans, steps)


class _Chosen(NamedTuple):
    """Batch to be shown."""

    batch: Batch
    prices: Prices
    """Prices of its replica then."""
    offset: int
    """Index of its first token in the pool of expert choices."""
    taken: TakenStep | None
    """Step of the run that it belongs to; ``None`` for a representative one."""


def probe(
    pool: PoolState,
    machines: Machines,
    steps: Columns,
    requests: Columns,
    by_ranks: ByRanks | None,
    first_replica: int,
) -> Probe:
    """Run a decode step and a step with prompt tokens again, rank by rank: of each kind, one as
    long as the step at the median of the time spent in its kind.

    Args:
        machines: GPUs of the pool.
        steps: the run's log.
        requests: served by the run, for the typical context of a sequence.
        by_ranks: executor of the run's steps, where ranks were simulated.
        first_replica: number of the pool's first replica in the log.
    """
    ranks, traffic, spans = [], [], []
    shown: dict[str, ShownStep] = {}
    plan = pool.plan
    make_wires = FluidWires if by_ranks is None else by_ranks.make_wires
    for phase, step in _medians(steps):
        taken = by_ranks.taken.nearest(phase, float(step.duration_s)) if by_ranks else None
        if taken is None:
            replica = int(step.replica) - first_replica
            placement = place_at(plan, machines, replica, float(step.start_s))
            prices = pool.prices
            if placement is not plan.placement:
                prices = pool.price_placement(placement)
            chosen = _represent(plan, prices, step, requests)
        else:
            chosen = _choose_fullest(taken)
        env = simpy.Environment()
        priced = chosen.prices.price_batch(chosen.batch, chosen.offset)
        run = ByRanks(chosen.prices, make_wires).run_batch(env, priced, keep_spans=True)
        found = finish_step(env, run).spans or []
        spans += [(phase, *span) for span in sorted(found, key=attrgetter("rank", "start_s"))]
        shown[phase] = _describe(plan, chosen, first_replica)
        if plan.placement.experts is not None:
            rows, sent = _expert_ranks(plan, priced, phase)
            ranks += rows
            traffic += sent
    return Probe(
        ranks=_frame(ranks, list(RANK_COLUMNS)[1:]),
        experts=_expert_load(plan),
        traffic=_frame(traffic, list(TRAFFIC_COLUMNS)[1:]),
        spans=_frame(spans, ["phase", "rank", "name", "layer", "start_s", "duration_s"])[
            list(SPAN_COLUMNS)[1:]
        ],
        shown_steps=shown,
    )


def _frame(rows: Sequence[tuple[object, ...]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns)


class _Median(NamedTuple):
    """Row of equal steps, by its columns in the log."""

    replica: int
    start_s: float
    duration_s: float
    num_steps: int
    prefill_tokens: int
    decodes: int


def _medians(steps: Columns) -> Iterator[tuple[str, _Median]]:
    """Yield for each kind the step at the median of the time spent in steps of its kind: half of
    that time passes in steps that are no longer. The median over steps would be a short one, where
    many short steps accompany a few that take all the time.
    """
    has_prompts = (steps["prefill_tokens"] > 0).to_numpy()
    decodes = ~has_prompts & (steps["decodes"] > 0).to_numpy()
    for phase, is_own in (("decode", decodes), ("prefill", has_prompts)):
        places = np.flatnonzero(is_own)
        if len(places):
            duration_s, num_steps = (
                steps[column].to_numpy()[places] for column in ("duration_s", "num_steps")
            )
            place = places[_find_median_of_time(duration_s, num_steps)]
            yield phase, _Median(*(steps[column].iloc[place] for column in _Median._fields))


def _represent(plan: DeploymentPlan, prices: Prices, step: _Median, requests: Columns) -> _Chosen:
    """Make a batch of as many tokens as the run's step (of one lane of a pipeline), spread evenly
    over the data-parallel ranks, all with a typical context.
    """
    context = max(1, int((requests["num_input"] + requests["num_output"] / 2).mean()))
    pp, prompts = plan.placement.layout.pp, int(step.prefill_tokens)
    decodes = int(step.decodes // step.num_steps)
    least = 0 if prompts else 1
    batch = spread_batch(
        plan, max(1, prompts // pp) if prompts else 0, max(least, decodes // pp), context
    )
    return _Chosen(batch, prices, 0, None)


def _choose_fullest(taken: TakenStep) -> _Chosen:
    """Choose a step's batch; of those that a pipeline has in flight, the one with most tokens."""
    tokens = [int(batch.tokens_d.sum()) for batch in taken.batches]
    lane = tokens.index(max(tokens))
    return _Chosen(taken.batches[lane], taken.prices, taken.offsets[lane], taken)


def _describe(plan: DeploymentPlan, chosen: _Chosen, first_replica: int) -> ShownStep:
    batch, taken = chosen.batch, chosen.taken
    decodes = [
        int(new[flags].sum()) for new, flags in zip(batch.new_tokens, batch.is_decode, strict=True)
    ]
    return ShownStep(
        source="representative" if taken is None else "run",
        replica=None if taken is None else first_replica + taken.replica,
        number=None if taken is None else taken.number,
        start_s=None if taken is None else taken.start_s,
        duration_s=None if taken is None else taken.duration_s,
        num_batches=plan.placement.layout.pp,
        prefill_tokens=(batch.tokens_d - decodes).tolist(),
        decode_tokens=decodes,
        uniform_imbalance=uniform_imbalance(plan, int(batch.tokens_d.sum())),
    )


def _find_median_of_time(duration_s: Floats, num_steps: Ints) -> int:
    """Find the row of steps as long as the step at which half of the time has passed, shorter ones
    first.
    """
    order = np.argsort(duration_s / num_steps, kind="stable")
    passed_s = np.cumsum(duration_s[order])
    return int(order[np.searchsorted(passed_s, passed_s[-1] / 2)])


def spread_batch(
    plan: DeploymentPlan,
    prefill_tokens: int,
    num_decodes: int,
    context: int,
    prompt_ranks: int | None = None,
) -> Batch:
    """Make a batch whose tokens are spread evenly over the data-parallel ranks, all of whose
    decodes have ``context`` tokens in the cache.

    Args:
        prompt_ranks: data-parallel ranks that share the prompt tokens; by default all.
    """
    dp, of_decode = plan.placement.layout.attention_dp, 1 + plan.placement.drafts.num_tokens
    order, sharing = np.arange(dp), prompt_ranks or dp
    prompts = prefill_tokens // sharing + (order < prefill_tokens % sharing)
    prompts[sharing:] = 0
    # Remainders go to opposite ends, so that no rank gets more tokens than a full step has.
    decodes = num_decodes // dp + (order >= dp - num_decodes % dp)
    if of_decode > 1:  # drafts are cut where a step is full
        decodes = np.minimum(decodes, (plan.serving.rules.token_budget - prompts) // of_decode)
    new = [
        np.array([of_decode] * n + [p] * bool(p), dtype=np.int64)
        for p, n in zip(prompts.tolist(), decodes.tolist(), strict=True)
    ]
    is_decode = [
        np.array([True] * n + [False] * bool(p), dtype=np.bool_)
        for p, n in zip(prompts.tolist(), decodes.tolist(), strict=True)
    ]
    contexts = [np.where(flags, context, 0).astype(np.int64) for flags in is_decode]
    logits = np.array(
        [of_decode * n + bool(p) for p, n in zip(prompts, decodes, strict=True)], dtype=np.int64
    )
    return Batch(tuple(new), tuple(contexts), tuple(is_decode), logits)


def _expert_ranks(
    plan: DeploymentPlan, priced: PricedBatch, phase: str
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    num_ranks, num_layers = plan.placement.layout.num_ranks, plan.placement.model.num_moe_layers
    pairs_LR, experts_LR, wait_LR = np.zeros((3, num_layers, num_ranks))
    bytes_SR = {
        "dispatch": np.zeros((num_ranks, num_ranks)),
        "combine": np.zeros((num_ranks, num_ranks)),
    }
    for _, steps in priced.parts:
        for layer, step in enumerate(steps):
            pairs_LR[layer] += step.pairs_R
            experts_LR[layer] += step.experts_R
            wait_LR[layer] += step.experts_R.max() - step.experts_R
            for direction, exchange in (("dispatch", step.dispatch), ("combine", step.combine)):
                if exchange.sent.num_ranks:
                    bytes_SR[direction] += exchange.bytes_SR / num_layers
    rows: list[tuple[object, ...]] = [
        (
            phase,
            layer,
            rank,
            float(pairs_LR[layer, rank]),
            float(experts_LR[layer, rank]),
            float(wait_LR[layer, rank]),
        )
        for layer in range(num_layers)
        for rank in range(num_ranks)
    ]
    sent: list[tuple[object, ...]] = [
        (phase, direction, int(source), int(destination), float(matrix[source, destination]))
        for direction, matrix in bytes_SR.items()
        for source, destination in zip(*np.nonzero(matrix), strict=True)
    ]
    return rows, sent


def _expert_load(plan: DeploymentPlan) -> pd.DataFrame:
    placement = plan.placement
    columns = list(EXPERT_COLUMNS)[1:]
    if placement.experts is None or placement.model.moe is None:
        return pd.DataFrame(columns=columns)
    frames = []
    for layer, topk_ids_TK in enumerate(placement.experts.topk_ids_LTK):
        pairs_E = np.bincount(topk_ids_TK.ravel(), minlength=placement.model.moe.num_experts)
        frames.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "expert": np.arange(len(pairs_E)),
                    "load": pairs_E / pairs_E.mean(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)[columns]


# Predicted times of single steps, rank by rank, to compare with a real execution.


class EvenStep(NamedTuple):
    """Step over sequences that are alike, spread over the data-parallel ranks."""

    sequences_d: tuple[int, ...]
    """Sequences of each data-parallel rank."""
    new_tokens: int
    """New tokens of each sequence."""
    context_tokens: int
    """Tokens of each sequence in the cache."""
    offset: int
    """Index of the step's first token in the plan's pool of expert choices."""

    def batch(self) -> Batch:
        """Batch of the step, as the simulator's engine forms it."""
        is_decode = self.new_tokens == 1 and self.context_tokens > 0
        return Batch(
            new_tokens=tuple(
                np.full(number, self.new_tokens, dtype=np.int64) for number in self.sequences_d
            ),
            context_tokens=tuple(
                np.full(number, self.context_tokens, dtype=np.int64) for number in self.sequences_d
            ),
            is_decode=tuple(np.full(number, is_decode) for number in self.sequences_d),
            num_logits=np.array(self.sequences_d, dtype=np.int64),
        )


def forecast(
    plan: DeploymentPlan, steps: Sequence[EvenStep], *, keep_spans: bool = False
) -> Iterator[StepTimes]:
    """Simulate each step on its own at the ``rank`` fidelity."""
    if not steps:
        return
    prices = Prices(plan.placement, max(max(step.sequences_d) * step.new_tokens for step in steps))
    num_ranks = plan.placement.layout.num_ranks
    for step in steps:
        env = simpy.Environment()
        program = step_operations(prices, step.batch(), step.offset)
        yield finish_step(
            env,
            run_step(
                env,
                FluidWires(env),
                program,
                num_ranks,
                shared_cores=plan.placement.calibration.shared_cores,
                keep_spans=keep_spans,
            ),
        )
