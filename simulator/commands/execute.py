"""``moesim execute``: a scenario's plans run for real on shards, beside their prediction by the
simulator.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.data import is_shipped
from simulator.base.errors import LostError, UserError
from simulator.base.machine import name_machine
from simulator.base.plugins import build
from simulator.base.progress import Progress, show_nothing
from simulator.base.recent import Thinned
from simulator.commands.report import write_results
from simulator.config.execution import ExecutionSpec
from simulator.config.host import HostRates
from simulator.config.linear import Linear
from simulator.config.sparsity import Pruning, choose_dense, choose_experts
from simulator.deployment.facts import facts_of
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.deployment.training.plan import TrainingPlan
from simulator.deployment.uniform_routing import uniform_imbalance
from simulator.engine.by_ranks import StepTimes
from simulator.engine.probe import forecast, make_even_batch
from simulator.results.executed import (
    RANK_COLUMNS,
    STEP_COLUMNS,
    SUMMARY_COLUMNS,
    Executed,
    ExecutedCache,
    Loss,
    ShownTimeline,
)
from simulator.results.phases import STEP_PHASES
from simulator.results.provenance import Provenance
from simulator.results.sampled_steps import SAMPLED
from simulator.results.tables import SPAN_COLUMNS
from simulator.runtime import require
from simulator.scenario.jobs import Source, load_scenario
from simulator.scenario.scenario import Scenario, choose_deployments
from simulator.step.program import Batch

if TYPE_CHECKING:  # they import torch and Ray
    from simulator.runtime.backend import Backend, Site
    from simulator.runtime.job import Job, Step
    from simulator.runtime.layers.cached_experts import CacheReads
    from simulator.runtime.live import LiveStep


_AGAIN = "nothing was written; run the same command again"
_MOST_TIMELINES = 256
"""Measured steps of a kind whose timelines are kept until the median is known, spread evenly over
all of them."""


def execute(
    scenario: Source,
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
    packages = check_backend(backend, simulated_nodes, address)
    if folder is not None:
        Executed.check_writable(Path(folder))
    from simulator.runtime.job import make_job
    from simulator.runtime.sites import open_site

    made = Provenance.begin()
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario)
    plans = [
        make_plan(deployment, scenario.seed, scenario.where, scenario.folder)
        for deployment in choose_deployments(scenario.deployments, names, scenario.where)
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
    run = {
        "name": scenario.name,
        "seed": scenario.seed,
        **made.describe(*packages),
        "machine": name_machine(),
        "calibration": describe_calibration(plans[0]),
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


def describe_calibration(plan: DeploymentPlan | TrainingPlan) -> dict[str, object]:
    """Describe the calibration that predictions rest on."""
    found = plan.placement.calibration
    if not isinstance(found, HostRates):
        return {"title": found.title, "machine": None, "source": ""}
    name = plan.spec.calibration or plan.placement.accelerator.calibration
    return {
        "title": found.host.title,
        "machine": found.host.machine,
        "source": found.tables.matrix.source,
        "spread": found.tables.matrix.spread,
        "is_shipped": is_shipped("cluster_configs/calibration", name),
    }


def _find_calibrated_share(plan: DeploymentPlan) -> float:
    """Share of the cores that other programs took while the machine was calibrated; 0 where the
    calibration does not say.
    """
    found = plan.placement.calibration
    return (found.host.others_share or 0.0) if isinstance(found, HostRates) else 0.0


class _Runner:
    """Runs deployments one after the other, on the same actors where their ranks are the same."""

    def __init__(self, site: Site, execution: ExecutionSpec, tick: Progress) -> None:
        self.site, self.execution, self.tick = site, execution, tick
        self.facts: dict[str, dict[str, object]] = {}
        """Facts for ``run.json`` by deployment that has run: sampled steps, and changes."""
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
        from simulator.runtime.timeline import combine

        backend = self._prepare_backend(plan)
        steps = list_steps(self.execution, goes_on=plan.placement.offload is not None)
        last = {kind: step for kind, step, _ in steps}
        self.tick(plan.name, 0, len(steps))
        backend.load(job)
        paces = [measure_pace(backend, plan.placement.calibration)]
        known_faults = len(backend.faults)
        rows: list[dict[str, object]] = []
        ranks: list[dict[str, object]] = []
        differences: dict[str, float] = {}
        timed: dict[str, Thinned[Timed]] = {}
        others: dict[str, float] = {}
        counted: list[_Counted] = []
        reads: dict[str, list[CacheReads]] = {}
        reference, live = Reference(job), LiveDeployment(plan, job, backend)
        for done, (kind, step, counts) in enumerate(steps):
            if counts and kind not in timed:
                meter, timed[kind] = LoadMeter(backend), Thinned(_MOST_TIMELINES)
            ran = live.run(step, counts=counts)
            if ran.step.keeps_output:
                reference.use_placement(ran.job)
                found = largest_difference(ran, reference.hidden_vectors(step))
                differences[kind] = max(found, differences.get(kind, 0.0))
            if counts:
                measured = combine([shard.moments for shard in ran.shards])
                measured.phases["overhead"] += max(0.0, ran.seconds - measured.duration_s)
                duration_s = max(ran.seconds, measured.duration_s)
                rows.append(
                    _make_row(plan.name, kind, "measured", step, duration_s, measured.phases)
                )
                timed[kind].add(Timed(step.number, duration_s, measured.spans))
                ranks += list_rank_rows(plan.name, kind, ran)
                counted.append(_Counted(kind, step, ran.plan))
                reads.setdefault(kind, []).extend(ran.shards[0].reads_L)
                if step is last[kind]:
                    others[kind] = meter.others_share()
                    paces.append(measure_pace(backend, plan.placement.calibration))
            self.tick(plan.name, done + 1, len(steps))
        medians = {kind: choose_median(kept.items) for kind, kept in timed.items()}
        spans = [
            _make_spans(plan.name, f"{kind}, measured", step.spans)
            for kind, step in medians.items()
        ]
        pace = statistics.geometric_mean(paces)
        sampled = {}
        for (kind, step, own), times in _predict(counted, pace):
            rows.append(
                _make_row(plan.name, kind, "predicted", step, times.duration_s, times.phases)
            )
            if step.number == medians[kind].number:
                found_spans = [
                    (s.rank, s.phase, s.layer, s.start_s, s.duration_s) for s in times.spans or []
                ]
                spans.append(_make_spans(plan.name, f"{kind}, predicted", found_spans))
                chance = uniform_imbalance(own, step.num_tokens)
                sampled[kind] = asdict(ShownTimeline(step.number, chance))
        tokens = {kind: step.num_tokens for kind, step in last.items()}
        self.facts[plan.name] = {
            SAMPLED: sampled,
            "changes": [asdict(change) for change in live.ranks.changed],
            "rebalances": [asdict(moved) for moved in live.experts.moves],
            "caches": [asdict(cache) for cache in sum_reads(plan, reads, tokens)],
            "clock_s": live.clock_s,
            "pace": pace,
        }
        faults = [
            {**fault._asdict(), "ranks": " ".join(map(str, fault.ranks))}
            for fault in backend.faults[known_faults:]
        ]
        table = pd.DataFrame(rows, columns=list(STEP_COLUMNS))
        return {
            "steps": table,
            "ranks": pd.DataFrame(ranks, columns=list(RANK_COLUMNS)),
            "spans": pd.concat(spans, ignore_index=True),
            "faults": pd.DataFrame(faults, columns=list(Loss._fields)),
            "summary": summarise(plan, table, differences, others, _find_calibrated_share(plan)),
        }


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


def check_measured(plan: DeploymentPlan) -> None:
    """Refuse a number of ranks whose collectives were not measured before it has run, not after."""
    placement = plan.placement
    if isinstance(placement.calibration, HostRates) and placement.layout.num_ranks > 1:
        _ = placement.calibration.collectives


def check_backend(
    backend: str, simulated_nodes: int | None, address: str | None
) -> tuple[str, ...]:
    """Refuse an unknown backend, places that it does not have, and packages that are missing.

    Returns:
        Packages that the backend needs.
    """
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
    packages = ("torch", "ray") if backend == "ray" else ("torch",)
    for package in packages:
        require(package)
    return packages


def check_transport(execution: ExecutionSpec, file: str) -> None:
    """Refuse a transport that joins no processes."""
    where = f"{file} [execution.transport]"
    if not build("runtime.transport", execution.transport, where).joins_processes:
        raise UserError(
            f"{where}: '{execution.transport['kind']}' joins threads of one process, "
            "and shards are processes of their own"
        )


def check_faults(
    execution: ExecutionSpec, plans: list[DeploymentPlan], simulated_nodes: int | None
) -> None:
    """Refuse faults of ranks, nodes and steps that are not there."""
    for fault in execution.faults:
        last_step = list_steps(execution)[-1][1].number
        for plan in plans:
            last = plan.placement.layout.num_ranks - 1
            if fault.rank is not None and fault.rank > last:
                raise UserError(
                    f"execution.faults: rank {fault.rank}: '{plan.name}' has ranks 0 to {last}"
                )
        if fault.node is not None and fault.node >= (simulated_nodes or 0):
            raise UserError(
                f"execution.faults: node {fault.node} cannot be killed: "
                f"start it with --simulated-nodes {fault.node + 1} or more"
            )
        if fault.step > last_step:
            raise UserError(f"execution.faults: step {fault.step}: the last one is {last_step}")


_STRIDE = 997
"""Places in the pool of expert choices between two steps' beginnings."""


def list_steps(execution: ExecutionSpec, *, goes_on: bool = False) -> list[tuple[str, Step, bool]]:
    """Kind, step, and whether it counts; the first of each kind is checked against the
    reference.

    Args:
        goes_on: whether each step has the next tokens of the sequences of the step before, instead
            of others.
    """
    from simulator.runtime.job import Step

    kinds = (
        ("prompt", execution.prompts, execution.prompt_tokens, 0),
        ("decode", execution.sequences, 1, execution.context_tokens),
    )
    found: list[tuple[str, Step, bool]] = []
    for kind, sequences, new, context in kinds:
        for i in range(execution.warm_up + execution.steps if sequences else 0):
            number = len(found)
            offset = number if goes_on else _STRIDE * number
            step = Step(number, sequences, new, context, offset, i == 0)
            found.append((kind, step, i >= execution.warm_up))
    return found


def spread_evenly(plan: DeploymentPlan, step: Step) -> tuple[Batch, int]:
    """The step as the simulator has it, its sequences spread over the data-parallel ranks, and its
    offset.
    """
    from simulator.runtime.layers.weights import Part

    dp = plan.placement.layout.attention_dp
    sequences_d = [Part(d, dp).num(step.num_sequences) for d in range(dp)]
    return make_even_batch(sequences_d, step.new_tokens, step.context_tokens), step.offset


def sum_reads(
    plan: DeploymentPlan, reads: Mapping[str, Sequence[CacheReads]], tokens: Mapping[str, int]
) -> list[ExecutedCache]:
    """Sum what the steps of each kind found in memory and read from the disk; nothing where a
    rank's memory holds all experts.

    Args:
        reads: of all measured steps and layers, by kind of step.
        tokens: new tokens of a step of each kind.
    """
    offload = plan.placement.offload
    if offload is None:
        return []
    found = []
    for kind, ones in reads.items():
        used, held = sum(one.used for one in ones), sum(one.held for one in ones)
        read_bytes = float(sum(one.read_bytes for one in ones))
        found.append(
            ExecutedCache(
                kind=kind,
                used=used,
                held=held,
                hit_rate=held / max(used, 1),
                predicted_hit_rate=offload.replay(tokens[kind]).hit_rate,
                read_bytes=read_bytes,
                read_s=sum(one.read_s for one in ones),
                predicted_read_s=read_bytes / offload.rates.copy_bytes_per_s,
            )
        )
    return found


_LEAST_LEFT = 0.01
"""Share of the cores that ranks have at least, since they did go on."""


def _make_row(
    deployment: str, kind: str, source: str, step: Step, duration_s: float, phases: dict[str, float]
) -> dict[str, object]:
    """Make a row of ``STEP_COLUMNS``."""
    return {
        "deployment": deployment,
        "kind": kind,
        "source": source,
        "number": step.number,
        "tokens": step.num_tokens,
        "duration_s": duration_s,
        **{f"{phase}_s": phases[phase] for phase in STEP_PHASES},
    }


def list_rank_rows(deployment: str, kind: str, ran: LiveStep) -> Iterator[dict[str, object]]:
    """List rows of ``RANK_COLUMNS``, one a rank and MoE layer."""
    for shard in ran.shards:
        for layer, pairs in enumerate(shard.pairs_L):
            rows_R = shard.rows_LR[layer] if shard.rows_LR else []
            sent = sum(rows_R) - (rows_R[shard.rank] if rows_R else 0)
            rank = ran.members[shard.rank]
            values = (deployment, kind, ran.step.number, rank, layer, pairs, sent)
            yield dict(zip(RANK_COLUMNS, values, strict=True))


def _make_spans(
    deployment: str, phase: str, spans: list[tuple[int, str, int, float, float]]
) -> pd.DataFrame:
    """Make ``SPAN_COLUMNS`` of one step."""
    columns = ("rank", "name", "layer", "start_s", "duration_s")
    table = pd.DataFrame(spans, columns=list(columns))
    return table.assign(deployment=deployment, phase=phase)[list(SPAN_COLUMNS)]


class Timed(NamedTuple):
    """A measured step with its timeline."""

    number: int
    duration_s: float
    spans: list[tuple[int, str, int, float, float]]


def choose_median(steps: Sequence[Timed]) -> Timed:
    """The step at the median of their times, of two in the middle the shorter: an outlier is never
    it.
    """
    ordered = sorted(steps, key=lambda step: step.duration_s)
    return ordered[(len(ordered) - 1) // 2]


def largest_difference(ran: LiveStep, wanted_TH: NDArray[np.float32]) -> float:
    """Largest difference of a hidden value between the distributed run and the reference."""
    tp = ran.plan.placement.layout.tp
    own = [
        shard.hidden_TH
        for shard in ran.shards
        if shard.rank % tp == 0 and shard.hidden_TH is not None
    ]
    return float(np.abs(np.concatenate(own) - wanted_TH).max(initial=0.0))


def summarise(
    plan: DeploymentPlan,
    steps: pd.DataFrame,
    differences: dict[str, float],
    others: dict[str, float],
    calibrated_share: float,
) -> pd.DataFrame:
    """``SUMMARY_COLUMNS``, a row a kind of step.

    Args:
        differences: from the one-process reference, by kind.
        others: share of the cores that other programs took, by kind.
        calibrated_share: that they took while the machine was calibrated.
    """
    rows = []
    for kind in dict.fromkeys(steps["kind"]):
        own = steps[steps["kind"] == kind]
        seconds = {
            source: statistics.median(own["duration_s"][own["source"] == source])
            for source in ("measured", "predicted")
        }
        tokens, share = int(own["tokens"].iloc[0]), others.get(kind, float("nan"))
        total, active = _count_parameters(plan)
        values = (
            plan.name,
            kind,
            tokens / seconds["measured"],
            tokens / seconds["predicted"],
            seconds["measured"],
            seconds["predicted"],
            seconds["predicted"] / seconds["measured"] - 1,
            seconds["predicted"] / (seconds["measured"] * _share_left(share, calibrated_share)) - 1,
            share,
            calibrated_share,
            differences.get(kind, float("nan")),
            total,
            active,
        )
        rows.append(dict(zip(SUMMARY_COLUMNS, values, strict=True)))
    return pd.DataFrame(rows)


def _count_parameters(plan: DeploymentPlan) -> tuple[int, int]:
    """Parameters and active ones, less those that pruning took."""
    model, pruning = plan.placement.model, plan.spec.pruning
    dense, experts = choose_dense(pruning), choose_experts(pruning)
    gone = gone_active = 0
    for _, name in model.layer_names:
        ffn = model.ffns.get(name)
        if ffn is not None and ffn.is_prunable and dense is not None:
            taken = _count_gone(dense, ffn.linears(model.hidden_size))
            gone, gone_active = gone + taken, gone_active + taken
        moe = None if ffn is None else ffn.experts
        if moe is not None and experts is not None:
            taken = _count_gone(experts, moe.expert_linears(model.hidden_size))
            gone, gone_active = gone + moe.num_experts * taken, gone_active + moe.top_k * taken
    return model.num_parameters - gone, model.num_active_parameters - gone_active


def _count_gone(pruning: Pruning, linears: Iterable[Linear]) -> int:
    """Weights that pruning takes out of matrices."""
    return sum(
        one.num_parameters - pruning.num_stored(one.out_features, one.in_features)
        for one in linears
    )


def _share_left(share: float, calibrated_share: float) -> float:
    """Cores that other programs left to the ranks, over those that they left while the machine was
    calibrated; 1 where either is unknown.
    """
    left = (1 - share) / (1 - calibrated_share) if calibrated_share < 1 else math.nan
    return min(1.0, max(left, _LEAST_LEFT)) if math.isfinite(left) else 1.0
