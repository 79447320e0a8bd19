"""Sampled steps: a decode step and a step with prompt tokens, rank by rank, from which reports draw
ranks, experts, traffic and the time inside a step.

Where ranks were simulated they are steps that the run took, run again with everything kept. The
``step`` fidelity knows a step's tokens but not which rank had them, so it shows representative
steps: as many tokens as one of its own, spread evenly over the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import pandas as pd
import simpy

from simulator.base.columns import Columns
from simulator.cost.comm import Exchange
from simulator.deployment.conditions import place_at
from simulator.deployment.plan import DeploymentPlan
from simulator.deployment.uniform_routing import uniform_imbalance
from simulator.engine.by_ranks import ByRanks, StepTimes, TakenStep, finish_step, run_batch
from simulator.engine.fabric import FluidWires, make_wires
from simulator.engine.pool import PoolState
from simulator.engine.state import Floats, Ints
from simulator.policies.failures import Machines
from simulator.results import tables
from simulator.step.prices import Prices
from simulator.step.program import Batch, PricedBatch

_OF_STEP = ("replica", "start_s", "duration_s", "num_steps", "prefill_tokens", "decodes")
"""Columns of the log that a step is represented by."""


@dataclass(frozen=True)
class Probe:
    """Tables of :mod:`simulator.results.tables` for the sampled steps, without the
    deployment's name.
    """

    ranks: pd.DataFrame
    experts: pd.DataFrame
    traffic: pd.DataFrame
    spans: pd.DataFrame
    sampled_steps: dict[str, tables.SampledStep]


def probe(
    pool: PoolState,
    machines: Machines,
    steps: Columns,
    requests: Columns,
    by_ranks: ByRanks | None,
    phases: Sequence[str],
) -> Probe:
    """Run a decode step and a step with prompt tokens again, rank by rank: of each kind, one as
    long as the step at the median of the time spent in its kind.

    Args:
        machines: GPUs of the pool.
        steps: the run's log.
        requests: served by the run, for the typical context of a sequence.
        by_ranks: executor of the run's steps, where ranks were simulated.
        phases: ``decode`` and ``prefill``, or the one that the pool is for.
    """
    ranks, traffic, spans = [], [], []
    shown: dict[str, tables.SampledStep] = {}
    plan = pool.plan
    fidelity = by_ranks.fidelity if by_ranks else "rank"
    for phase, row in _find_medians(steps, phases):
        taken = by_ranks.taken.nearest(phase, row["duration_s"]) if by_ranks else None
        step = taken or _represent(pool, machines, row, requests)
        # Of the batches that a pipeline has in flight, the one with most tokens.
        lane = int(np.argmax([batch.tokens_d.sum() for batch in step.batches]))
        env = simpy.Environment()
        priced = step.prices.price_batch(step.batches[lane], step.offsets[lane])
        wires = make_wires(env, fidelity, step.prices.placement.fabric)
        run = run_batch(env, wires, step.prices, priced, keep_spans=True)
        found = finish_step(env, run).spans or []
        spans += [(phase, *span) for span in sorted(found, key=attrgetter("rank", "start_s"))]
        shown[phase] = _describe(pool, priced.batch, taken)
        if plan.placement.experts is not None:
            rows, sent = _expert_ranks(plan, priced, phase)
            ranks += rows
            traffic += sent
    return Probe(
        ranks=pd.DataFrame(ranks, columns=list(tables.RANK_COLUMNS)[1:]),
        experts=_expert_load(plan),
        traffic=pd.DataFrame(traffic, columns=list(tables.TRAFFIC_COLUMNS)[1:]),
        spans=pd.DataFrame(spans, columns=list(tables.SPAN_COLUMNS)[1:]),
        sampled_steps=shown,
    )


def _find_medians(steps: Columns, phases: Sequence[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Find for each kind the step at the median of the time spent in steps of its kind, by the
    log's columns: half of that time passes in steps that are no longer. The median over steps would
    be a short one, where many short steps accompany a few that take all the time.
    """
    has_prompts = (steps["prefill_tokens"] > 0).to_numpy()
    is_of = {"decode": ~has_prompts & (steps["decodes"] > 0).to_numpy(), "prefill": has_prompts}
    for phase in phases:
        places = np.flatnonzero(is_of[phase])
        if len(places):
            own = (steps[column].to_numpy()[places] for column in ("duration_s", "num_steps"))
            place = places[_find_median_of_time(*own)]
            yield phase, {column: steps[column].iloc[place] for column in _OF_STEP}


def _represent(
    pool: PoolState, machines: Machines, row: dict[str, float], requests: Columns
) -> TakenStep:
    """Make a step of as many tokens as one of the run (as one lane of a pipeline), spread evenly
    over the data-parallel ranks, all with a typical context, at the prices of its replica then.
    """
    plan, replica = pool.plan, int(row["replica"]) - pool.first_replica
    placement = place_at(plan, machines, replica, float(row["start_s"]))
    is_usual = placement is plan.placement
    context = max(1, int((requests["num_input"] + requests["num_output"] / 2).mean()))
    pp, prompts = placement.layout.pp, int(row["prefill_tokens"])
    decodes = max(0 if prompts else 1, int(row["decodes"] // row["num_steps"]) // pp)
    batch = spread_batch(plan, max(1, prompts // pp) if prompts else 0, decodes, context)
    prices = pool.prices if is_usual else pool.price_placement(placement)
    return TakenStep(replica, 0, row["start_s"], row["duration_s"], (batch,), prices, (0,))


def _describe(pool: PoolState, batch: Batch, taken: TakenStep | None) -> tables.SampledStep:
    """Describe a step that was taken, or a representative one."""
    plan = pool.plan
    decodes = [
        int(new[flags].sum()) for new, flags in zip(batch.new_tokens, batch.is_decode, strict=True)
    ]
    return tables.SampledStep(
        source="representative" if taken is None else "run",
        replica=None if taken is None else pool.first_replica + taken.replica,
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
    each = list(zip(prompts.tolist(), decodes.tolist(), strict=True))
    is_decode = [np.arange(n + bool(p)) < n for p, n in each]
    new = [np.where(flags, of_decode, p) for flags, (p, _) in zip(is_decode, each, strict=True)]
    contexts = [np.where(flags, context, 0) for flags in is_decode]
    logits = of_decode * decodes + (prompts > 0)
    return Batch(tuple(new), tuple(contexts), tuple(is_decode), logits)


def _expert_ranks(
    plan: DeploymentPlan, priced: PricedBatch, phase: str
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Make the rows of the tables of ranks and of traffic."""
    num_ranks, num_layers = plan.placement.layout.num_ranks, plan.placement.model.num_moe_layers
    found_3LR = np.zeros((3, num_layers, num_ranks))
    bytes_SR = {name: np.zeros((num_ranks, num_ranks)) for name in ("dispatch", "combine")}
    for _, steps in priced.parts:
        for layer, step in enumerate(steps):
            waits_R = step.experts_R.max() - step.experts_R
            found_3LR[:, layer] += step.pairs_R, step.experts_R, waits_R
            for direction, sum_SR in bytes_SR.items():
                exchange: Exchange = getattr(step, direction)
                if exchange.sent.num_ranks:
                    sum_SR += exchange.bytes_SR / num_layers
    rows: list[tuple[object, ...]] = [
        (phase, layer, rank, *found_3LR[:, layer, rank].tolist())
        for layer, rank in np.ndindex(num_layers, num_ranks)
    ]
    sent: list[tuple[object, ...]] = [
        (phase, direction, source, destination, float(sum_SR[source, destination]))
        for direction, sum_SR in bytes_SR.items()
        for source, destination in np.argwhere(sum_SR).tolist()
    ]
    return rows, sent


def _expert_load(plan: DeploymentPlan) -> pd.DataFrame:
    """Make the table of experts."""
    columns, experts = list(tables.EXPERT_COLUMNS)[1:], plan.placement.experts
    moe = plan.placement.model.moe
    if experts is None or moe is None:
        return pd.DataFrame(columns=columns)
    ids_LTK = experts.topk_ids_LTK
    pairs_LE = np.array([np.bincount(ids.ravel(), minlength=moe.num_experts) for ids in ids_LTK])
    layer, expert = np.indices(pairs_LE.shape)
    load_LE = pairs_LE / pairs_LE.mean(axis=1, keepdims=True)
    found = zip(columns, (layer, expert, load_LE), strict=True)
    return pd.DataFrame({column: of_LE.ravel() for column, of_LE in found})


# Predicted times of single steps, rank by rank, to compare with a real execution.


def make_even_batch(sequences_d: Sequence[int], new_tokens: int, context_tokens: int) -> Batch:
    """Make a batch of sequences that are alike, as the simulator's engine forms it.

    Args:
        sequences_d: sequences of each data-parallel rank.
        new_tokens: new tokens of each sequence.
        context_tokens: tokens of each sequence in the cache.
    """
    values = new_tokens, context_tokens, new_tokens == 1 and context_tokens > 0
    new, contexts, is_decode = (
        tuple(np.full(number, value) for number in sequences_d) for value in values
    )
    return Batch(new, contexts, is_decode, np.array(sequences_d, dtype=np.int64))


def forecast(
    plan: DeploymentPlan, steps: Sequence[tuple[Batch, int]], *, keep_spans: bool = False
) -> Iterator[StepTimes]:
    """Simulate each step on its own at the ``rank`` fidelity.

    Args:
        steps: batch of each, and index of its first token in the plan's pool of expert choices.
    """
    if not steps:
        return
    prices = Prices(plan.placement, max(int(batch.tokens_d.max()) for batch, _ in steps))
    for step in steps:
        env, priced = simpy.Environment(), prices.price_batch(*step)
        yield finish_step(
            env, run_batch(env, FluidWires(env), prices, priced, keep_spans=keep_spans)
        )
