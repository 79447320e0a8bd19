"""``moesim run`` of a training scenario: each deployment's step in virtual time, and what follows
for the whole training.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from simulator.base.errors import UserError, did_you_mean
from simulator.base.frozen import Policy
from simulator.base.progress import Progress, show_nothing
from simulator.config.model import load_model
from simulator.config.training import TrainingDeployment
from simulator.deployment.training.memory import (
    TrainingMemory,
    check_training_memory,
    find_room,
)
from simulator.deployment.training.plan import TrainingPlan, list_training_notes, make_training_plan
from simulator.deployment.training.quality import TokensToLoss, find_tokens_to_loss
from simulator.engine.training import TrainingStep, find_band, run_training_step
from simulator.results.provenance import Provenance
from simulator.results.results_folder import make_verdict
from simulator.results.training import METRICS, TrainingResults, find_training
from simulator.scenario.jobs import Source, load_job
from simulator.scenario.scenario import TrainingScenario
from simulator.step.training import TrainingPrices, find_rank_imbalance, price_micro_batch
from simulator.work.flops import expert_flops, trained_flops

_DAY_S = 86_400.0


class _Part(NamedTuple):
    """Part of a training that is routed alike."""

    after_tokens: float
    plan: TrainingPlan
    prices: TrainingPrices
    step: TrainingStep


def train(
    scenario: Source,
    *,
    progress: Progress = show_nothing,
) -> TrainingResults:
    """Simulate a training step of every deployment of a training scenario.

    Args:
        scenario: as :func:`load_job` takes it.
        progress: called with the name of each deployment.

    Raises:
        UserError: if anything that the scenario names is wrong or does not fit. All deployments are
            checked before a step is simulated.

    >>> results = train({
    ...     "training": {"sequence_tokens": 1024, "global_batch": 16},
    ...     "deployments": [
    ...         {"name": "OLMoE", "model": "olmoe-1b-7b", "cluster": "h100-sxm", "num_gpus": 8,
    ...          "parallel": {"ep": 8}},
    ...     ],
    ... })
    >>> bool(results.summary["mfu"].between(0.01, 0.6).all())
    True
    """
    if not isinstance(scenario, TrainingScenario):
        scenario = load_job(scenario, (TrainingScenario,))
    made = Provenance.begin()
    plans = [_make_plan(scenario, spec, spec.routing) for spec in scenario.deployments]
    later_plans = {
        plan.name: [_make_plan(scenario, plan.spec, later.routing) for later in plan.spec.later]
        for plan in plans
    }
    for plan in plans:
        check_training_memory(plan, 1.0, scenario.where)
    targets = _find_targets(scenario, plans)
    rows, facts, spans = [], {}, []
    notes: list[str] = []
    for number, plan in enumerate(plans):
        progress("training steps", number, len(plans))
        parts = [_run_part(plan, 0.0)]
        for later, other in zip(plan.spec.later, later_plans[plan.name], strict=True):
            parts.append(_run_part(other, later.after_tokens))
        imbalance = max(find_rank_imbalance(part.prices) for part in parts)
        memory = check_training_memory(plan, imbalance, scenario.where)
        target = targets.get(plan.name)
        tokens = scenario.training.total_tokens if target is None else target.tokens
        rows.append(_measure(scenario, parts, memory, tokens))
        facts[plan.name] = _describe(plan, parts, memory) | (
            {} if target is None else target.describe()
        )
        spans.append(_list_spans(plan, parts[0].step))
        notes += map(str, list_training_notes(plan, target))
    progress("training steps", len(plans), len(plans))
    summary = pd.DataFrame(rows, columns=["deployment", *METRICS])
    run = {
        "name": scenario.name,
        "seed": scenario.seed,
        "training": scenario.training.model_dump(mode="json"),
        "deployments": facts,
        "notes": list(dict.fromkeys(notes)),
        "scenario": scenario.model_dump(mode="json"),
    }
    results = TrainingResults(run, summary, pd.concat(spans, ignore_index=True))
    verdict = make_verdict(find_training(results))
    return replace(results, run=run | {"verdict": verdict} | made.describe())


def _make_plan(
    scenario: TrainingScenario, spec: TrainingDeployment, routing: Policy | None
) -> TrainingPlan:
    """Plan a deployment as it routes in some part of the training."""
    own = spec.model_copy(update={"routing": routing})
    return make_training_plan(
        own, scenario.training, scenario.seed, scenario.where, scenario.folder
    )


def _find_targets(scenario: TrainingScenario, plans: list[TrainingPlan]) -> dict[str, TokensToLoss]:
    """Find the tokens of each deployment to the same loss; none where all train on as many."""
    training, quality = scenario.training, scenario.training.quality
    if quality is None or training.total_tokens is None:
        return {}
    own = {plan.name: plan.model for plan in plans}
    reference = own.get(quality.as_good_as)
    if reference is None:
        try:
            reference = load_model(quality.as_good_as, scenario.where, scenario.folder)
        except UserError:
            raise UserError(
                f"{scenario.where} [training.quality]: as_good_as names '{quality.as_good_as}', "
                f"which is neither a deployment nor a model; "
                f"{did_you_mean(quality.as_good_as, own)}"
            ) from None
    return {
        plan.name: find_tokens_to_loss(
            plan.model, reference, training.total_tokens, quality.law, scenario.where
        )
        for plan in plans
    }


def _run_part(plan: TrainingPlan, after_tokens: float) -> _Part:
    prices = price_micro_batch(plan)
    return _Part(after_tokens, plan, prices, run_training_step(plan, prices))


def _measure(
    scenario: TrainingScenario, parts: list[_Part], memory: TrainingMemory, tokens: float | None
) -> dict[str, object]:
    """Measure a deployment: a step as the training begins, and days and cost over all parts.

    Args:
        tokens: of the whole training, where they are known.
    """
    first, training = parts[0], scenario.training
    plan, step_s, num_gpus = first.plan, first.step.step_s, first.plan.spec.num_gpus
    step_tokens = training.sequence_tokens * training.global_batch
    flops = trained_flops(plan.model, training.sequence_tokens) * training.global_batch
    steps = [step for own in first.prices.expert_steps_M for step in own]
    dropped_share = (
        sum(one.dropped_pairs for one in steps) / (_count_pairs(first) * len(steps))
        if plan.placement.drops_pairs
        else 0.0
    )
    flops -= dropped_share * expert_flops(plan.model) * step_tokens
    rate = flops / step_s / num_gpus
    peak = plan.placement.accelerator.flops_per_s(plan.spec.dtype)
    days = math.nan
    if tokens is not None and plan.spec.uptime:
        days = _count_days(parts, tokens, step_tokens) / plan.spec.uptime
    gpu_hours = days * 24.0 * num_gpus
    price = plan.cluster.price_per_gpu_hour
    return {
        "deployment": plan.name,
        "tokens_per_s_per_gpu": step_tokens / step_s / num_gpus,
        "tokens_per_s": step_tokens / step_s,
        "flops_per_s_per_gpu": rate,
        "mfu": rate / peak,
        "step_s": step_s,
        "bubble_share": first.step.bubble_share,
        "imbalance": float(np.mean([s.pairs_R.max() / s.pairs_R.mean() for s in steps]))
        if steps
        else math.nan,
        "dropped_share": dropped_share if plan.placement.drops_pairs else math.nan,
        "memory_bytes": memory.total_bytes,
        "tokens": math.nan if tokens is None else tokens,
        "days": days,
        "gpu_hours": gpu_hours,
        "cost": math.nan if price is None else gpu_hours * price,
    }


def _count_pairs(part: _Part) -> float:
    """Count the token-expert pairs that a block's tokens ask for in one layer."""
    moe = part.plan.model.moe
    return float(part.prices.batch.tokens_d.sum()) * (0 if moe is None else moe.top_k)


def _count_days(parts: list[_Part], total_tokens: float, step_tokens: int) -> float:
    """Count the days in which all tokens are trained on, each part at its own rate."""
    ends = [min(part.after_tokens, total_tokens) for part in parts[1:]]
    seconds = 0.0
    for part, end in zip(parts, [*ends, total_tokens], strict=True):
        tokens = end - min(part.after_tokens, total_tokens)
        seconds += tokens / step_tokens * part.step.step_s
    return seconds / _DAY_S


def _describe(plan: TrainingPlan, parts: list[_Part], memory: TrainingMemory) -> dict[str, object]:
    """Describe a deployment for ``run.json``."""
    model, spec = plan.model, plan.spec
    return {
        "model": model.name,
        "model_title": model.title or model.name,
        "is_moe": model.moe is not None,
        "is_rumour": model.is_rumour,
        "total_parameters": model.num_parameters,
        "active_parameters": model.num_active_parameters,
        "accelerator": plan.placement.accelerator.title,
        "cluster_title": plan.cluster.title,
        "num_gpus": spec.num_gpus,
        "layout": plan.text(),
        "pipelining": str(spec.pipelining["kind"]),
        "num_micro_batches": plan.num_micro_batches,
        "dtype": spec.dtype,
        "recompute": spec.recompute,
        "zero": spec.zero,
        "uptime": spec.uptime,
        "currency": plan.cluster.currency,
        "price_per_gpu_hour": plan.cluster.price_per_gpu_hour,
        "parts_s": parts[0].step.mean_parts,
        "band": find_band(plan, parts[0].step),
        "stages_s": [dict(stage) for stage in parts[0].step.parts_S],
        "memory_bytes": {
            "weights": memory.weights_bytes,
            "gradients": memory.gradients_bytes,
            "optimizer": memory.optimizer_bytes,
            "activations": memory.activations_bytes,
            "room": find_room(plan),
        },
        "later_steps": [
            {"after_tokens": part.after_tokens, "step_s": part.step.step_s} for part in parts[1:]
        ],
    }


def _list_spans(plan: TrainingPlan, step: TrainingStep) -> pd.DataFrame:
    spans = pd.DataFrame(step.spans, columns=["rank", "name", "layer", "start_s", "duration_s"])
    spans.insert(0, "phase", "step")
    spans.insert(0, "deployment", plan.name)
    return spans
