"""``moesim execute``: a scenario's plans run for real on shards, beside their prediction by the
simulator.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from simulator.base.errors import LostError, UserError
from simulator.base.plugins import build
from simulator.base.progress import Progress, show_nothing
from simulator.base.thinned import Thinned
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
from simulator.config.execution import ExecutionSpec
from simulator.deployment.facts import facts_of
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.deployment.uniform_routing import uniform_imbalance
from simulator.engine.forecast import EvenStep, forecast
from simulator.report.execution import render
from simulator.results.executed import RANK_COLUMNS, STEP_COLUMNS, Executed, ShownTimeline, write
from simulator.results.folder import check_writable
from simulator.results.provenance import Provenance
from simulator.results.shown_steps import SHOWN
from simulator.runtime import require
from simulator.scenario.scenario import Scenario, load_scenario

if TYPE_CHECKING:  # they import torch and Ray
    from simulator.runtime.backend import Backend, Site
    from simulator.runtime.job import Job, Step

_AGAIN = "nothing was written; run the same command again"
_MOST_TIMELINES = 256
"""Measured steps of a kind whose timelines are kept until the median is known, spread evenly over
all of them."""
_STRIDE = 997
"""Places in the pool of expert choices between two steps' beginnings."""


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
    _check_backend(backend, simulated_nodes, address)
    if folder is not None:
        check_writable(Path(folder))
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
        _check_measured(plan)
    if backend == "ray":
        _check_transport(scenario.execution, scenario.where)
        _check_faults(scenario.execution, plans, simulated_nodes)
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
        "deployments": {
            plan.name: facts_of(plan) | {SHOWN: runner.shown[plan.name]} for plan in plans
        },
        "scenario": scenario.model_dump(mode="json"),
    }
    joined = {name: pd.concat(found, ignore_index=True) for name, found in tables.items()}
    executed = Executed(run=run, **joined)
    if folder is not None:
        progress("writing the report", 0, None)
        write(executed, Path(folder), render)
    return executed


def _check_measured(plan: DeploymentPlan) -> None:
    """Refuse a number of ranks whose collectives were not measured before it has run, not after."""
    from simulator.config.host import HostRates

    placement = plan.placement
    if isinstance(placement.calibration, HostRates) and placement.layout.num_ranks > 1:
        _ = placement.calibration.collectives


def _check_backend(backend: str, simulated_nodes: int | None, address: str | None) -> None:
    if backend not in ("ray", "in_process"):
        raise UserError(f"--backend {backend or repr(backend)}: must be ray or in_process")
    for option, value in (("--simulated-nodes", simulated_nodes), ("--address", address)):
        if backend == "in_process" and value is not None:
            raise UserError(f"{option}: --backend in_process has no nodes; leave one of them out")
    if simulated_nodes is not None and address is not None:
        raise UserError(
            "--simulated-nodes and --address: nodes are simulated on this machine or found in a "
            "cluster; give one of them"
        )


def _check_transport(execution: ExecutionSpec, file: str) -> None:
    where = f"{file} [execution.transport]"
    if not build("runtime.transport", execution.transport, where).joins_processes:
        raise UserError(
            f"{where}: '{execution.transport['kind']}' joins threads of one process, "
            "and shards are processes of their own"
        )


def _check_faults(
    execution: ExecutionSpec, plans: list[DeploymentPlan], simulated_nodes: int | None
) -> None:
    for fault in execution.faults:
        for plan in plans:
            if fault.rank is not None and fault.rank >= plan.placement.layout.num_ranks:
                last = plan.placement.layout.num_ranks - 1
                raise UserError(
                    f"execution.faults: rank {fault.rank}: '{plan.name}' has ranks 0 to {last}"
                )
        if fault.node is not None and fault.node >= (simulated_nodes or 0):
            raise UserError(
                f"execution.faults: node {fault.node} cannot be killed: "
                f"start it with --simulated-nodes {fault.node + 1} or more"
            )
        if fault.step > _list_steps(execution)[-1][1].number:
            raise UserError(
                f"execution.faults: step {fault.step}: the last one "
                f"is {_list_steps(execution)[-1][1].number}"
            )


def _describe_calibration(plans: list[DeploymentPlan]) -> dict[str, Any]:
    """Describe the calibration that predictions rest on."""
    from simulator.config.host import HostRates

    found = plans[0].placement.calibration
    if isinstance(found, HostRates):
        return {
            "title": found.host.title,
            "machine": found.host.machine,
            "source": found.tables.matrix.source,
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
        from simulator.calibration.host.timing import machine

        self.site, self.execution, self.tick = site, execution, tick
        self.machine = machine()
        self.shown: dict[str, dict[str, Any]] = {}
        """By deployment that has run and kind, the fields of ``ShownTimeline``."""
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
        self._backend = self.site.start(plan, self.execution)
        return self._backend

    def run(self, plan: DeploymentPlan, job: Job) -> dict[str, pd.DataFrame]:
        from simulator.runtime.load import LoadMeter
        from simulator.runtime.reference import Reference

        execution = self.execution
        backend = self._prepare_backend(plan)
        total = (execution.steps + execution.warm_up) * (
            bool(execution.prompts) + bool(execution.sequences)
        )
        self.tick(plan.name, 0, total)
        backend.load(job)
        known_faults = len(backend.faults)
        rows: list[dict[str, Any]] = []
        ranks: list[dict[str, Any]] = []
        spans: list[pd.DataFrame] = []
        differences: dict[str, float] = {}
        timed: dict[str, Thinned[Timed]] = {}
        meters: dict[str, LoadMeter] = {}
        others: dict[str, float] = {}
        reference = Reference(job)
        for done, (kind, step, counts) in enumerate(_list_steps(execution)):
            if counts and kind not in meters:
                meters[kind] = LoadMeter(backend)
            shards = backend.step(step)
            # A recovery is no part of a step; it stands in the table of faults.
            wall_s = time.perf_counter() - backend.attempt_began_s
            if step.keeps_output:
                differences[kind] = largest_difference(plan, shards, reference.hidden_vectors(step))
            if counts:
                measured = combine_moments(plan, shards)
                measured.phases["overhead"] += max(0.0, wall_s - measured.duration_s)
                duration_s = max(wall_s, measured.duration_s)
                rows.append(
                    make_step_row(plan.name, kind, "measured", step, duration_s, measured.phases)
                )
                kept = timed.setdefault(kind, Thinned(_MOST_TIMELINES))
                kept.add(Timed(step.number, duration_s, measured.spans))
                ranks += make_rank_rows(plan.name, kind, step, shards)
                if step.number == _find_last(execution, kind):
                    others[kind] = meters[kind].others_share()
            self.tick(plan.name, done + 1, total)
        medians = {kind: choose_median(kept.items) for kind, kept in timed.items()}
        spans += [
            make_span_rows(plan.name, f"{kind}, measured", step.spans)
            for kind, step in medians.items()
        ]
        counted = [(kind, step) for kind, step, counts in _list_steps(execution) if counts]
        for (kind, step), times in zip(
            counted,
            forecast(plan, [_spread_evenly(plan, step) for _, step in counted], keep_spans=True),
            strict=True,
        ):
            rows.append(
                make_step_row(plan.name, kind, "predicted", step, times.duration_s, times.phases)
            )
            if step.number == medians[kind].number:
                spans.append(make_predicted_span_rows(plan.name, f"{kind}, predicted", times))
        self.shown[plan.name] = {
            kind: asdict(
                ShownTimeline(medians[kind].number, uniform_imbalance(plan, step.num_tokens))
            )
            for kind, step in dict(counted).items()
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


def _list_steps(execution: ExecutionSpec) -> list[tuple[str, Step, bool]]:
    """Kind, step, and whether it counts; the first of each kind is checked against the
    reference.
    """
    from simulator.runtime.job import Step

    kinds = []
    if execution.prompts:
        kinds.append(("prompt", execution.prompts, execution.prompt_tokens, 0))
    if execution.sequences:
        kinds.append(("decode", execution.sequences, 1, execution.context_tokens))
    found: list[tuple[str, Step, bool]] = []
    for kind, sequences, new, context in kinds:
        for i in range(execution.warm_up + execution.steps):
            number = len(found)
            found.append(
                (
                    kind,
                    Step(number, sequences, new, context, _STRIDE * number, i == 0),
                    i >= execution.warm_up,
                )
            )
    return found


def _find_last(execution: ExecutionSpec, kind: str) -> int:
    return max(int(step.number) for other, step, _ in _list_steps(execution) if other == kind)


def _spread_evenly(plan: DeploymentPlan, step: Step) -> EvenStep:
    from simulator.runtime.layers.part import Part

    dp = plan.placement.layout.attention_dp
    sequences_d = tuple(Part(d, dp).num(step.num_sequences) for d in range(dp))
    return EvenStep(sequences_d, step.new_tokens, step.context_tokens, step.offset)
