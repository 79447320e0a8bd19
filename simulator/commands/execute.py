"""``moesim execute``: a scenario's plans run for real on shards, beside their prediction by the
simulator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from simulator.base.data import is_shipped
from simulator.base.errors import LostError, UserError
from simulator.base.machine import name_machine
from simulator.base.progress import Progress, show_nothing
from simulator.base.thinned import Thinned
from simulator.commands.execute_cache import sum_reads
from simulator.commands.execute_checks import (
    check_backend,
    check_faults,
    check_measured,
    check_transport,
)
from simulator.commands.execute_steps import list_steps, spread_evenly
from simulator.commands.execute_tables import (
    Timed,
    choose_median,
    combine_moments,
    largest_difference,
    make_predicted_span_rows,
    make_rank_rows,
    make_span_rows,
    make_step_row,
    summarise,
)
from simulator.commands.report import write_results
from simulator.config.execution import ExecutionSpec
from simulator.deployment.facts import facts_of
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.deployment.uniform_routing import uniform_imbalance
from simulator.engine.by_ranks import StepTimes
from simulator.engine.probe import forecast
from simulator.results.executed import RANK_COLUMNS, STEP_COLUMNS, Executed, ShownTimeline
from simulator.results.provenance import Provenance
from simulator.results.shown_steps import SHOWN
from simulator.runtime import require
from simulator.scenario.scenario import Scenario, load_scenario

if TYPE_CHECKING:  # they import torch and Ray
    from simulator.runtime.backend import Backend, Site
    from simulator.runtime.job import Job, Step
    from simulator.runtime.layers.cached_experts import CacheReads

_AGAIN = "nothing was written; run the same command again"
_MOST_TIMELINES = 256
"""Measured steps of a kind whose timelines are kept until the median is known, spread evenly over
all of them."""


def execute(
    scenario: Scenario | str | Path | Mapping[str, Any],
    *,
    folder: str | Path | None = None,
    backend: str = "ray",
    simulated_nodes: int | None = None,
    address: str | None = None,
    names: Sequence[str] = (),
    progress: Progress = show_nothing,
) -> Executed:
    """Run every deployment of a scenario for real, on PyTorch shards, beside its prediction.

    Args:
        scenario: as :func:`load_scenario` takes it, which also overrides keys.
        folder: results folder to write, with the report; ``None`` = none.
        backend: ``ray`` for ranks that are Ray actors, or ``in_process`` for ranks that are
            threads of this process.
        simulated_nodes: number of Ray nodes on this machine to spread the ranks over.
        address: Ray cluster (``host:port``) to use; ``None`` = Ray is started here.
        names: deployments to run; by default all.
        progress: called with the name of a part of the work, how many of its steps are done, and
            how many there are.

    Raises:
        LostError: if the cluster is lost, or steps fail again and again.
        UserError: if PyTorch or Ray are missing, anything that the scenario names is wrong or can
            only be simulated, or the folder cannot be written.
    """
    check_backend(backend, simulated_nodes, address)
    if folder is not None:
        Executed.check_writable(Path(folder))
    require("torch")
    if backend == "ray":
        require("ray")
    from simulator.runtime.job import make_job
    from simulator.runtime.sites import open_site

    made = Provenance.begin()
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario)
    plans = [
        make_plan(deployment, scenario.seed, scenario.where, scenario.folder)
        for deployment in scenario.choose_deployments(names)
    ]
    jobs = [make_job(plan, scenario.folder) for plan in plans]
    for plan in plans:
        check_measured(plan)
    if backend == "ray":
        check_transport(scenario.execution, scenario.where)
        check_faults(scenario.execution, plans, simulated_nodes)
    elif scenario.execution.faults:
        raise UserError(
            "--backend in_process: execution.faults kill processes, and its ranks are threads of "
            "one; leave them out, or use --backend ray"
        )
    tables: dict[str, list[pd.DataFrame]] = {
        name: [] for name in ("summary", "steps", "ranks", "spans", "faults")
    }
    progress("starting Ray" if backend == "ray" else "starting threads", 0, None)
    running = ""
    try:
        with open_site(backend, simulated_nodes, address) as site:
            runner = _Runner(site, scenario.execution, progress)
            try:
                for plan, job in zip(plans, jobs, strict=True):
                    running = f" while '{plan.name}' ran"
                    for name, table in runner.run(plan, job).items():
                        tables[name].append(table)
            finally:
                runner.close()
    except LostError as error:
        raise LostError(f"{str(error).replace(':', f'{running}:', 1)}; {_AGAIN}") from error
    run: dict[str, Any] = {
        "name": scenario.name,
        "seed": scenario.seed,
        **made.describe("torch", *(["ray"] if backend == "ray" else [])),
        "machine": runner.machine,
        "calibration": _describe_calibration(plans),
        "nodes": site.description,
        "deployments": {plan.name: facts_of(plan) | runner.facts[plan.name] for plan in plans},
        "scenario": scenario.model_dump(mode="json"),
    }
    # A table to which a deployment adds nothing may hold its numbers as objects.
    joined = {
        name: pd.concat(found, ignore_index=True).infer_objects() for name, found in tables.items()
    }
    executed = Executed(run=run, **joined)
    if folder is not None:
        progress("writing the report", 0, None)
        write_results(executed, folder)
    return executed


def _describe_calibration(plans: list[DeploymentPlan]) -> dict[str, Any]:
    """Describe the calibration that predictions rest on."""
    from simulator.config.host import HostRates

    found = plans[0].placement.calibration
    if isinstance(found, HostRates):
        return {
            "title": found.host.title,
            "machine": found.host.machine,
            "source": found.tables.matrix.source,
            "spread": found.tables.matrix.spread,
            "is_shipped": is_shipped(
                "cluster_configs/calibration",
                plans[0].spec.calibration or plans[0].placement.accelerator.calibration,
            ),
        }
    return {"title": found.title, "machine": None, "source": ""}


def _find_calibrated_share(plan: DeploymentPlan) -> float:
    """Share of the cores that other programs took while the machine was calibrated; 0 where the
    calibration does not say.
    """
    from simulator.config.host import HostRates

    found = plan.placement.calibration
    return (found.host.others_share or 0.0) if isinstance(found, HostRates) else 0.0


class _Runner:
    """Runs deployments one after the other, on the same actors where their ranks are the same."""

    def __init__(self, site: Site, execution: ExecutionSpec, tick: Progress) -> None:
        self.site, self.execution, self.tick = site, execution, tick
        self.machine = name_machine()
        self.facts: dict[str, dict[str, Any]] = {}
        """By deployment that has run, what ``run.json`` has of its run: steps whose timelines are
        shown, and what changed."""
        self._backend: Backend | None = None

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()

    def _prepare_backend(self, plan: DeploymentPlan) -> Backend:
        if self._backend is not None and self.site.fits(self._backend, plan):
            return self._backend
        self.close()
        self._backend = None
        self.tick(f"starting {plan.placement.layout.num_ranks} shards", 0, None)
        self._backend = self.site.start(plan.placement.fabric.node_R, self.execution)
        return self._backend

    def run(self, plan: DeploymentPlan, job: Job) -> dict[str, pd.DataFrame]:
        from simulator.calibration.host.measure import measure_pace
        from simulator.runtime.live import LiveDeployment
        from simulator.runtime.load import LoadMeter
        from simulator.runtime.reference import Reference

        execution = self.execution
        backend = self._prepare_backend(plan)
        total = (execution.steps + execution.warm_up) * (
            bool(execution.prompts) + bool(execution.sequences)
        )
        self.tick(plan.name, 0, total)
        backend.load(job)
        pace = measure_pace(backend, plan.placement.calibration)
        known_faults = len(backend.faults)
        rows: list[dict[str, Any]] = []
        ranks: list[dict[str, Any]] = []
        differences: dict[str, float] = {}
        timed: dict[str, Thinned[Timed]] = {}
        meters: dict[str, LoadMeter] = {}
        others: dict[str, float] = {}
        counted: list[_Counted] = []
        reads: dict[str, list[CacheReads]] = {}
        reference, live = Reference(job), LiveDeployment(plan, job, backend)
        steps = list_steps(execution, goes_on=plan.placement.offload is not None)
        last = {kind: step.number for kind, step, _ in steps}
        for done, (kind, step, counts) in enumerate(steps):
            if counts and kind not in meters:
                meters[kind] = LoadMeter(backend)
            ran = live.run(step, counts=counts)
            if ran.step.keeps_output:
                reference.use_placement(ran.job)
                wanted_TH = reference.hidden_vectors(step)
                found = largest_difference(ran.plan, ran.shards, wanted_TH)
                differences[kind] = max(found, differences.get(kind, 0.0))
            if counts:
                measured = combine_moments(ran.plan, ran.shards)
                measured.phases["overhead"] += max(0.0, ran.seconds - measured.duration_s)
                duration_s = max(ran.seconds, measured.duration_s)
                rows.append(
                    make_step_row(plan.name, kind, "measured", step, duration_s, measured.phases)
                )
                kept = timed.setdefault(kind, Thinned(_MOST_TIMELINES))
                kept.add(Timed(step.number, duration_s, measured.spans))
                ranks += make_rank_rows(plan.name, kind, step, ran.shards, ran.members)
                counted.append(_Counted(kind, step, ran.plan))
                reads.setdefault(kind, []).extend(ran.shards[0].reads_L)
                if step.number == last[kind]:
                    others[kind] = meters[kind].others_share()
            self.tick(plan.name, done + 1, total)
        medians = {kind: choose_median(kept.items) for kind, kept in timed.items()}
        spans = [
            make_span_rows(plan.name, f"{kind}, measured", step.spans)
            for kind, step in medians.items()
        ]
        for one, times in _predict(counted, pace):
            rows.append(
                make_step_row(
                    plan.name, one.kind, "predicted", one.step, times.duration_s, times.phases
                )
            )
            if one.step.number == medians[one.kind].number:
                spans.append(make_predicted_span_rows(plan.name, f"{one.kind}, predicted", times))
        self.facts[plan.name] = {
            SHOWN: {
                one.kind: asdict(
                    ShownTimeline(one.step.number, uniform_imbalance(one.plan, one.step.num_tokens))
                )
                for one in counted
                if one.step.number == medians[one.kind].number
            },
            "changes": [asdict(change) for change in live.ranks.changed],
            "rebalances": [asdict(moved) for moved in live.experts.moves],
            "caches": [
                asdict(cache)
                for cache in sum_reads(
                    plan, reads, {kind: step.num_tokens for kind, step, _ in steps}
                )
            ],
            "clock_s": live.clock_s,
            "pace": pace,
        }
        faults = backend.faults[known_faults:]
        table = pd.DataFrame(rows, columns=list(STEP_COLUMNS))
        return {
            "steps": table,
            "ranks": pd.DataFrame(ranks, columns=list(RANK_COLUMNS)),
            "spans": pd.concat(spans, ignore_index=True),
            "faults": pd.DataFrame(
                [{**fault._asdict(), "ranks": " ".join(map(str, fault.ranks))} for fault in faults],
                columns=list(_FAULTS),
            ),
            "summary": summarise(plan, table, differences, others, _find_calibrated_share(plan)),
        }


_FAULTS = ("deployment", "step", "ranks", "what", "recovery_s")


class _Counted(NamedTuple):
    """Measured step, with the plan that was in force."""

    kind: str
    step: Step
    plan: DeploymentPlan


def _predict(counted: Sequence[_Counted], pace: float) -> Iterator[tuple[_Counted, StepTimes]]:
    """Simulate the steps that were measured, each by the plan that was in force, on a machine that
    takes ``pace`` times as long as when it was calibrated.
    """
    for _, group in itertools.groupby(counted, key=lambda one: id(one.plan)):
        own = list(group)
        steps = [spread_evenly(one.plan, one.step) for one in own]
        for one, times in zip(own, forecast(own[0].plan, steps, keep_spans=True), strict=True):
            yield one, times.stretch(pace)
