"""Two representative steps at the ``rank`` fidelity: what the report shows of ranks, experts,
traffic and time inside a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import simpy

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.fabric import FluidWires
from simulator.engine.rank import finish_step, run_step
from simulator.results.tables import EXPERT_COLUMNS, RANK_COLUMNS, SPAN_COLUMNS, TRAFFIC_COLUMNS
from simulator.step.operations import step_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch


@dataclass(frozen=True)
class Probe:
    """Tables of :mod:`simulator.results.tables`, without the deployment's name."""

    ranks: pd.DataFrame
    experts: pd.DataFrame
    traffic: pd.DataFrame
    spans: pd.DataFrame

    def only(self, phase: str) -> Probe:
        """The step of one phase."""
        ranks, traffic, spans = (
            t[t["phase"] == phase].reset_index(drop=True)
            for t in (self.ranks, self.traffic, self.spans)
        )
        return Probe(ranks, self.experts, traffic, spans)


def probe(
    plan: DeploymentPlan, prices: Prices, steps: pd.DataFrame, requests: pd.DataFrame
) -> Probe:
    """Run a decode step and a step with prompt tokens again, rank by rank: of each kind, one that
    is as long as the step in which its time passes at the median.

    Args:
        steps: the run's log.
        requests: what it served, for the typical context of a sequence.
    """
    ranks, traffic, spans = [], [], []
    for phase, batch in _representative(plan, steps, requests).items():
        env = simpy.Environment()
        program = step_operations(prices, batch, 0)
        times = finish_step(
            env,
            run_step(
                env,
                FluidWires(env),
                program,
                plan.layout.num_ranks,
                shared_cores=plan.calibration.shared_cores,
                keep_spans=True,
            ),
        )
        spans += [(phase, *span) for span in times.spans or []]
        if plan.experts is not None:
            rows, sent = _expert_ranks(plan, prices, batch, phase)
            ranks += rows
            traffic += sent
    return Probe(
        ranks=_frame(ranks, list(RANK_COLUMNS)[1:]),
        experts=_expert_load(plan),
        traffic=_frame(traffic, list(TRAFFIC_COLUMNS)[1:]),
        spans=_frame(spans, ["phase", "rank", "name", "layer", "start_s", "duration_s"])[
            list(SPAN_COLUMNS)[1:]
        ],
    )


def _frame(rows: Sequence[tuple[object, ...]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns)


def _representative(
    plan: DeploymentPlan, steps: pd.DataFrame, requests: pd.DataFrame
) -> dict[str, Batch]:
    """A decode step and a step with prompt tokens, spread evenly over the data-parallel ranks (of
    one of a pipeline's lanes).

    Each is the one at the median of the time that steps of its kind take: half of that time passes
    in steps that are no longer. The median of their number would be a short one, where many short
    steps stand beside a few that take all the time.
    """
    pp = plan.layout.pp
    context = max(1, int((requests["num_input"] + requests["num_output"] / 2).mean()))
    found: dict[str, Batch] = {}
    decodes = steps[(steps["prefill_tokens"] == 0) & (steps["decode_tokens"] > 0)]
    if len(decodes):
        step = _at_median_of_time(decodes)
        found["decode"] = _batch(plan, 0, max(1, int(step["decode_tokens"]) // pp), context)
    prompts = steps[steps["prefill_tokens"] > 0]
    if len(prompts):
        step = _at_median_of_time(prompts)
        tokens, others = int(step["prefill_tokens"]), int(step["decode_tokens"])
        found["prefill"] = _batch(plan, max(1, tokens // pp), others // pp, context)
    return found


def _at_median_of_time(steps: pd.DataFrame) -> pd.Series:
    ordered = steps.sort_values("duration_s", kind="stable")
    passed_s = ordered["duration_s"].cumsum().to_numpy()
    return ordered.iloc[int(np.searchsorted(passed_s, passed_s[-1] / 2))]


def _batch(plan: DeploymentPlan, prefill_tokens: int, decode_tokens: int, context: int) -> Batch:
    dp = plan.layout.attention_dp
    order = np.arange(dp)
    prompts = prefill_tokens // dp + (order < prefill_tokens % dp)
    # Remainders go to opposite ends, so that no rank gets more tokens than a full step has.
    decodes = decode_tokens // dp + (order >= dp - decode_tokens % dp)
    new = [
        np.array([1] * n + [p] * bool(p), dtype=np.int64)
        for p, n in zip(prompts.tolist(), decodes.tolist(), strict=True)
    ]
    is_decode = [
        np.array([True] * n + [False] * bool(p), dtype=np.bool_)
        for p, n in zip(prompts.tolist(), decodes.tolist(), strict=True)
    ]
    contexts = [np.where(flags, context, 0).astype(np.int64) for flags in is_decode]
    logits = np.array([len(row) for row in new], dtype=np.int64)
    return Batch(tuple(new), tuple(contexts), tuple(is_decode), logits)


def _expert_ranks(
    plan: DeploymentPlan, prices: Prices, batch: Batch, phase: str
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    rows: list[tuple[object, ...]] = []
    num_ranks, num_layers = plan.layout.num_ranks, plan.model.num_moe_layers
    bytes_SR = {
        "dispatch": np.zeros((num_ranks, num_ranks)),
        "combine": np.zeros((num_ranks, num_ranks)),
    }
    for layer in range(num_layers):
        step = prices.expert_step(layer, batch.tokens_d, 0)
        slowest_s = float(step.experts_R.max())
        for rank in range(num_ranks):
            seconds = float(step.experts_R[rank])
            rows.append(
                (phase, layer, rank, float(step.pairs_R[rank]), seconds, slowest_s - seconds)
            )
        for direction, exchange in (("dispatch", step.dispatch), ("combine", step.combine)):
            if exchange.bytes_SR.size:
                bytes_SR[direction] += exchange.bytes_SR / num_layers
    sent: list[tuple[object, ...]] = [
        (phase, direction, int(source), int(destination), float(matrix[source, destination]))
        for direction, matrix in bytes_SR.items()
        for source, destination in zip(*np.nonzero(matrix), strict=True)
    ]
    return rows, sent


def _expert_load(plan: DeploymentPlan) -> pd.DataFrame:
    columns = list(EXPERT_COLUMNS)[1:]
    if plan.experts is None or plan.model.moe is None:
        return pd.DataFrame(columns=columns)
    frames = []
    for layer, topk_ids_TK in enumerate(plan.experts.topk_ids_LTK):
        pairs_E = np.bincount(topk_ids_TK.ravel(), minlength=plan.model.moe.num_experts)
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
