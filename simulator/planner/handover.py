"""Recommendations as a scenario that ``moesim run`` takes as it is, and as commands that start the
servers.

Sentences beside the commands say what these cannot express.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base.data import available_files
from simulator.base.writing import toml_text
from simulator.config.capacity import Question, Spare
from simulator.config.deployment import DeploymentSpec
from simulator.config.failure_rates import FailureRates
from simulator.config.workload import WorkloadSpec
from simulator.deployment.plan import make_plan
from simulator.planner.conditions import choose_slo
from simulator.planner.evaluations import best_of_each, deployment_of, gpus_used, text_of
from simulator.planner.explore import Evaluation
from simulator.planner.launch import Command, list_commands
from simulator.planner.requests import is_generated
from simulator.planner.search import SearchResult
from simulator.results.answer.handover import (
    COMPARED,
    RECOMMENDED,
    Handover,
    ScenarioFile,
    ServingCommand,
)
from simulator.workload.requests import load_requests, source_arrivals_s

_MOST_RECOMMENDED = 5
_EXACT = 17
"""Digits that leave a number as it is."""


def choose_handed_over(result: SearchResult) -> list[Evaluation]:
    """The evaluations worth handing over, the best first: overall, of the MoE models, of the dense
    ones, and runners-up.
    """
    met, models = result.met, result.space.models
    by_kind = [
        [one for one in met if (models[one.candidate.shape.model].moe is not None) is moe][:1]
        for moe in (True, False)
    ]
    unique: list[Evaluation] = []
    for evaluation in [*met[:1], *by_kind[0], *by_kind[1], *met]:
        if evaluation not in unique:
            unique.append(evaluation)
    return unique[:_MOST_RECOMMENDED]


def hand_over(result: SearchResult, target: Path | None = None) -> Handover:
    """Scenario files, and the commands of every model's best deployment that meets the targets, the
    best first.

    Args:
        target: the folder that the files will be written to, as of :func:`scenario_text`.
    """
    evaluations = choose_handed_over(result)
    files = {RECOMMENDED: evaluations[:1]} | (
        {COMPARED: evaluations} if len(evaluations) > 1 else {}
    )
    return Handover(
        scenarios=tuple(
            ScenarioFile(file=file, text=scenario_text(result, shown, target))
            for file, shown in files.items()
        ),
        commands=tuple(
            ServingCommand(
                deployment=(deployment := text_of(result, evaluation)),
                name=f"{deployment}: {one.name}",
                model=name,
                command=one.command,
                not_expressed=one.not_expressed,
                flags_read=one.flags_read,
            )
            for name, evaluation in best_of_each(result).items()
            for one in commands(result, evaluation)
        ),
    )


def _tell_shares(rates: FailureRates) -> str:
    """Shares of failures that take nodes and switches, as keys of a run's; empty without any."""
    if not rates.node_share + rates.switch_share:
        return ""
    return (
        f", node_share = {rates.node_share:g}, switch_share = {rates.switch_share:g}, "
        f"nodes_per_switch = {rates.nodes_per_switch}"
    )


def deployments(result: SearchResult, evaluations: list[Evaluation]) -> list[DeploymentSpec]:
    """Evaluations as deployments of one scenario, each with a name of its own."""
    names = [text_of(result, evaluation) for evaluation in evaluations]
    for n, evaluation in enumerate(evaluations):
        if names.count(names[n]) > 1:
            names[n] += f", {evaluation.candidate.budget} tokens a step"
    for n, name in enumerate(names):
        if name in names[:n]:
            names[n] = f"{name} ({n + 1})"
    return [
        deployment_of(result, evaluation, name)
        for evaluation, name in zip(evaluations, names, strict=True)
    ]


def scenario_text(
    result: SearchResult, evaluations: list[Evaluation], folder: Path | None = None
) -> str:
    """The TOML text of a scenario with these deployments on the plan's traffic.

    Args:
        evaluations: as :func:`recommended` orders them.
        folder: that the file will be written to, to which paths are then relative; absent = they
            are absolute.
    """
    question, base = result.question, result.space.folder
    workload, comments = _workload(result)
    comments += _explain_slo(question)
    if result.asked_requests is not None and question.workload.num_requests is not None:
        now = f"these are {question.workload.num_requests:,}, so that a steady state shows"
        comments.append(f"The plan's workload asks for {result.asked_requests:,} requests; {now}.")
    if question.power.price_per_kwh:
        comments.append("The plan pays for electricity apart, which a run does not.")
    if any(gpus_used(result, one) < (one.size or 0) for one in evaluations):
        comments.append(
            "The plan pays for the whole cluster; a run counts the GPUs that replicas take up, "
            "so it names a lower cost."
        )
    if question.spare != Spare():
        comments.append(
            f"The clusters hold more than the replicas take up: {question.spare} may be lost."
        )
    if question.failures.availability is not None:
        rates = question.failures
        comments.append(
            "Spare replicas, if any, are among the replicas. What failures do to them: "
            f'failures = [{{ kind = "random", mtbf_gpu_hours = {rates.mtbf_gpu_hours_low:g}, '
            f"repair_s = {3600 * rates.repair_hours:g}{_tell_shares(rates)} }}] in a deployment."
        )
    changes = {"slo": choose_slo(question), **_requests(workload, base, folder)}
    workload = workload.model_copy(update=changes)
    table = {
        "name": f"{question.name}: recommended",
        "seed": question.seed,
        "workload": workload.model_dump(exclude_defaults=True),
        "deployments": [_entry(spec, base, folder) for spec in deployments(result, evaluations)],
    }
    head = (
        f"Recommended for the plan '{question.name}', the best first. "
        "moesim run takes this file as it is."
    )
    if folder is not None:
        comments.append("Paths are relative to this file: move it together with what they lead to.")
    return toml_text(table, "\n".join([head, *comments]), _EXACT)


def _entry(spec: DeploymentSpec, base: Path, folder: Path | None) -> dict[str, Any]:
    """The entry of a deployment without defaults, with paths that hold from where the file lies."""
    changes: dict[str, Any] = {}
    if spec.model.endswith((".toml", ".json")):
        changes["model"] = _path(spec.model, base, folder)
    for key in ("dense_of", "moe_of"):
        made = getattr(spec, key)
        if made is not None and made.model.endswith((".toml", ".json")):
            changes[key] = made.model_copy(update={"model": _path(made.model, base, folder)})
    if spec.routing is not None:
        changes["routing"] = _policy(spec.routing, base, folder)
    return spec.model_copy(update=changes).model_dump(exclude_defaults=True)


def _path(named: str, base: Path, folder: Path | None) -> str:
    """A path that is relative to the plan's folder, from another folder; a name that is no file's
    stays.
    """
    path = (base / Path(named).expanduser()).resolve()
    if not path.exists():
        return named
    return str(path) if folder is None else os.path.relpath(path, folder.resolve())


def _policy(policy: Mapping[str, Any], base: Path, folder: Path | None) -> dict[str, Any]:
    changed = {
        key: _path(policy[key], base, folder)
        for key in ("path", "trace")
        if isinstance(policy.get(key), str)
    }
    return {**policy, **changed}


def _requests(workload: WorkloadSpec, base: Path, folder: Path | None) -> dict[str, Any]:
    requests, changes = workload.requests, dict[str, Any]()
    if isinstance(requests, dict):
        tables = {
            key: _policy(value, base, folder)
            for key, value in requests.items()
            if isinstance(value, Mapping)
        }
        changes["requests"] = {**requests, **tables}
    elif requests not in available_files("workloads/requests"):
        changes["requests"] = _path(requests, base, folder)
    if workload.arrivals is not None:
        changes["arrivals"] = _policy(workload.arrivals, base, folder)
    return changes


def _workload(result: SearchResult) -> tuple[WorkloadSpec, list[str]]:
    """The plan's workload, cut to its busiest stretch; and what there is to say about that.

    A plan's stretch is in the time of the run; ``start_s`` is in the source's.
    """
    question, asked = result.question, result.question.workload
    if question.peak_s is None:
        return asked, []
    cut = _peak(result)
    if cut is None:
        text = (
            f"The plan is for the busiest {question.peak_s:g} s, which no start_s cuts out of "
            "these requests: here are all of them."
        )
        return asked, [text]
    lead_s = result.traffic.trace.arrival_s[result.traffic.lead]
    before = (
        f", behind those of the {lead_s:.3g} s before, which the plan serves and does not judge"
        if lead_s
        else ""
    )
    return cut, [f"The requests are those of the busiest {question.peak_s:g} s{before}."]


def _peak(result: SearchResult) -> WorkloadSpec | None:
    asked, wanted, seed, base = (
        result.question.workload,
        result.traffic.trace,
        result.question.seed,
        result.space.folder,
    )
    whole = load_requests(asked, base, seed)
    count = wanted.num_requests
    starts = np.flatnonzero(
        (whole.num_input == wanted.num_input[0]) & (whole.num_output == wanted.num_output[0])
    )
    for first in starts[starts + count <= whole.num_requests]:
        if not np.array_equal(whole.num_input[first : first + count], wanted.num_input):
            continue
        source_s = source_arrivals_s(asked, base, seed)
        begin = int(np.searchsorted(source_s, asked.start_s)) + int(first)
        end = begin + count
        changes: dict[str, Any] = {
            "start_s": float(source_s[begin]),
            "num_requests": count,
            "duration_s": None,
        }
        if is_generated(asked):
            # Lengths are drawn for all requests at once, so all must still be drawn.
            changes["num_requests"] = len(source_s) - begin
            if end < len(source_s):
                half = float(source_s[end - 1] + source_s[end]) / 2
                changes["duration_s"] = (half - float(source_s[begin])) / asked.rate_scale
        cut = asked.model_copy(update=changes)
        got = load_requests(cut, base, seed)
        same = np.array_equal(got.num_input, wanted.num_input) and np.array_equal(
            got.num_output, wanted.num_output
        )
        if same and np.allclose(got.arrival_s, wanted.arrival_s, rtol=0, atol=1e-6):
            return cut
    return None


def _explain_slo(question: Question) -> Iterator[str]:
    """Sources of the limits of each request, where the workload sets none."""
    if not question.workload.slo.is_set:
        for name, limits in question.targets.latencies.items():
            for level in list(limits)[-1:]:
                yield f"workload.slo.{name} is the plan's target for the {level}."


def commands(result: SearchResult, evaluation: Evaluation) -> list[Command]:
    """Commands that start an evaluation's servers, and the router in front of them."""
    spec = deployment_of(result, evaluation)
    plan = make_plan(spec, result.question.seed, "plan", result.space.folder)
    trace = result.traffic.trace
    host_gpus = result.space.host_gpus(*evaluation.candidate.sides)
    return list_commands(
        plan,
        spec.model or plan.placement.model.name,
        int(trace.num_input.max()),
        int((trace.num_input + trace.num_output).max()),
        host_gpus if host_gpus < plan.placement.cluster.gpus_per_node else None,
    )
