"""``moesim execute`` of a training scenario: steps trained for real on shards, their gradients held
against one process's, and their times beside the simulated step.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from simulator.base.machine import name_machine
from simulator.base.progress import Progress, show_nothing
from simulator.commands.execute import check_backend, describe_calibration
from simulator.config.execution import ExecutionSpec
from simulator.deployment.training.plan import TrainingPlan, make_training_plan
from simulator.engine.training import run_training_step
from simulator.results.provenance import Provenance
from simulator.results.training import STEP_PARTS, Trained
from simulator.scenario.scenario import TrainingScenario, choose_deployments
from simulator.step.training import price_micro_batch

if TYPE_CHECKING:  # they import torch
    from simulator.runtime.backend import Backend, Site
    from simulator.runtime.training.job import TrainingJob
    from simulator.runtime.training.rank import RankStep

CHECKED_STEPS = 3
"""Steps whose gradients are compared with one process's; they also warm up, and are not timed."""
TIMED_STEPS = 20
"""Steps that are timed: enough for a median and a spread."""


def execute_training(
    scenario: TrainingScenario,
    *,
    folder: Path | None = None,
    backend: str = "ray",
    simulated_nodes: int | None = None,
    address: str | None = None,
    names: Sequence[str] = (),
    progress: Progress = show_nothing,
) -> Trained:
    """Train some steps of every deployment for real, beside the simulated step.

    Args:
        folder: results folder to write; ``None`` = none.
        backend: ``ray`` for ranks that are Ray actors, or ``in_process`` for ranks that are
            threads of this process.
        simulated_nodes: number of Ray nodes on this machine to spread the ranks over.
        address: Ray cluster (``host:port``) to use; ``None`` = Ray is started here.
        names: deployments to train; by default all.

    Raises:
        LostError: if the cluster or a rank is lost.
        UserError: if PyTorch or Ray are missing, or anything that the scenario names is wrong or
            can only be simulated.
    """
    packages = check_backend(backend, simulated_nodes, address)
    if folder is not None:
        Trained.check_writable(folder)
    from simulator.runtime.sites import open_site
    from simulator.runtime.training.job import make_training_job

    made = Provenance.begin()
    plans = [
        make_training_plan(spec, scenario.training, scenario.seed, scenario.where, scenario.folder)
        for spec in choose_deployments(scenario.deployments, names, scenario.where)
    ]
    jobs = [make_training_job(plan) for plan in plans]
    rows: list[dict[str, object]] = []
    facts = {}
    progress("starting Ray" if backend == "ray" else "starting threads", 0, None)
    with open_site(backend, simulated_nodes, address) as site:
        for plan, job in zip(plans, jobs, strict=True):
            pace, own, facts[plan.name] = _train(site, plan, job, progress)
            rows += [_simulate(plan, pace), *own]
    run = {
        "name": scenario.name,
        "seed": scenario.seed,
        **made.describe(*packages),
        "machine": name_machine(),
        "calibration": describe_calibration(plans[0]),
        "training": scenario.training.model_dump(mode="json"),
        "deployments": facts,
        "scenario": scenario.model_dump(mode="json"),
    }
    columns = ["deployment", "source", "step", "step_s", *STEP_PARTS]
    trained = Trained(run, pd.DataFrame(rows, columns=columns))
    if folder is not None:
        trained.write(folder)
    return trained


def _simulate(plan: TrainingPlan, pace: float) -> dict[str, object]:
    """Make the row of the simulated step, on a machine that takes ``pace`` times as long as when it
    was calibrated.
    """
    step = run_training_step(plan, price_micro_batch(plan))
    parts = {name: pace * step.mean_parts[name] for name in STEP_PARTS}
    return {
        "deployment": plan.name,
        "source": "simulated",
        "step": -1,
        "step_s": pace * step.step_s,
        **parts,
    }


def _train(
    site: Site, plan: TrainingPlan, job: TrainingJob, progress: Progress
) -> tuple[float, list[dict[str, object]], dict[str, object]]:
    """Train a deployment. Returns the machine's pace, the rows of its measured steps, and its
    facts.
    """
    from simulator.calibration.host.measure import measure_pace
    from simulator.runtime.load import LoadMeter
    from simulator.runtime.training.rank import begin_training, train_step
    from simulator.runtime.training.reference import ReferenceTraining, find_largest_error

    total = CHECKED_STEPS + TIMED_STEPS
    progress(plan.name, 0, total)
    node_R = np.arange(job.num_ranks, dtype=np.int64) // plan.cluster.gpus_per_node
    backend: Backend = site.start(node_R, ExecutionSpec())
    try:
        paces = [measure_pace(backend, plan.placement.calibration)]
        sizes = backend.apply(begin_training, job)
        reference, errors, losses = ReferenceTraining(job), [], []
        rows: list[dict[str, object]] = []
        for number in range(total):
            is_checked = number < CHECKED_STEPS
            ranks: list[RankStep] = backend.apply(train_step, number, is_checked)
            losses.append(sum(rank.loss for rank in ranks) / job.num_tokens)
            if is_checked:
                errors.append(find_largest_error(reference.step(number)[1], ranks))
                meter = LoadMeter(backend)
            else:
                rows.append(_make_row(plan.name, number, ranks))
            progress(plan.name, number + 1, total)
        paces.append(measure_pace(backend, plan.placement.calibration))
        pace = statistics.geometric_mean(paces)
        facts = {
            "num_ranks": job.num_ranks,
            "layout": plan.text(),
            "rank_parameters": sizes,
            "micro_batches": plan.num_micro_batches,
            "loss": losses,
            "gradient_error": max(errors),
            "exchanges": _count_exchanges(plan, ranks[0]),
            "others_share": meter.others_share(),
            "pace": pace,
        }
    finally:
        backend.close()
    return pace, rows, facts


def _make_row(name: str, number: int, ranks: Sequence[RankStep]) -> dict[str, object]:
    """Make the row of a measured step."""
    from simulator.runtime.timeline import combine

    measured = combine([rank.moments for rank in ranks])
    parts = {part: measured.phases.get(part, 0.0) for part in STEP_PARTS}
    parts["wait"] += measured.phases["overhead"]  # ranks that begin later than the first one
    return {
        "deployment": name,
        "source": "measured",
        "step": number,
        "step_s": measured.duration_s,
        **parts,
    }


def _count_exchanges(plan: TrainingPlan, rank: RankStep) -> int:
    """Count the exchanges of an MoE layer and micro-batch that a rank took part in."""
    number = sum(moment.is_together and moment.layer >= 0 for moment in rank.moments)
    return number // max(plan.model.num_moe_layers * plan.num_micro_batches, 1)
