"""Recommendations as a scenario that ``moesim run`` takes as it is, and as commands that start the
servers.

Sentences beside the commands say what these cannot express.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from simulator.base.data import available_files
from simulator.base.writing import toml_text
from simulator.config.capacity import Question, Spare
from simulator.config.failures import FailureRates
from simulator.config.named import join_name, split_name
from simulator.config.workload import LogSpec, WorkloadSpec
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.planner.conditions import choose_slo
from simulator.planner.evaluations import best_of_each, deployment_of, text_of
from simulator.planner.explore import Evaluation
from simulator.planner.launch import Command, list_commands, prepare_launch
from simulator.planner.launch_files import list_files
from simulator.planner.search import SearchResult
from simulator.planner.space import inline_keys
from simulator.results.answer.handover import (
    COMPARED,
    RECOMMENDED,
    TRAFFIC,
    Handover,
    HandoverFile,
    ServingCommand,
)

_MOST_RECOMMENDED = 5
_PATHS = ("path", "trace", "weights")
"""Keys whose values lead to files."""
_UNSAID = (
    "speculation",
    "overflow",
    "rebalancing",
    "offload",
    "reduction",
    "spilling",
    "replica_choice",
    "recovery",
    "scaling",
    "exchange_chunks",
    "speeds",
)
"""Keys of a deployment that launch commands are not made from."""
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
        traffic=result.traffic.trace if result.traffic.workload is None else None,
        scenarios=tuple(
            HandoverFile(file=file, text=scenario_text(result, shown, target))
            for file, shown in files.items()
        ),
        commands=tuple(
            ServingCommand(
                deployment=(deployment := text_of(result, evaluation)),
                name=f"{deployment}: {one.name}",
                model=name,
                command=one.command,
                not_expressed=(*one.not_expressed, *_list_own_keys(result, evaluation)),
                flags_read=one.flags_read,
            )
            for name, evaluation in best_of_each(result).items()
            for one in commands(result, evaluation)
        ),
        serving=tuple(file for best in result.met[:1] for file in _list_serving(result, best)),
    )


def _list_own_keys(result: SearchResult, evaluation: Evaluation) -> list[str]:
    """Sentences on keys of the question's own that no launch command says."""
    table = result.space.variants[evaluation.candidate.shape.model].table
    return [
        f"No flag here says {key}."
        for key in inline_keys({name: table[name] for name in _UNSAID if name in table})
    ]


def _tell_shares(rates: FailureRates) -> str:
    """Shares of failures that take nodes and switches, as keys of a run's; empty without any."""
    if not rates.node_share + rates.switch_share:
        return ""
    return (
        f", node_share = {rates.node_share:g}, switch_share = {rates.switch_share:g}, "
        f"nodes_per_switch = {rates.nodes_per_switch}"
    )


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
        comments.append("The price of a GPU-hour contains the electricity.")
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
        "deployments": [
            _relocate(
                deployment_of(result, one, text_of(result, one)).model_dump(exclude_defaults=True),
                base,
                folder,
            )
            for one in evaluations
        ],
    }
    head = (
        f"Recommended for the plan '{question.name}', the best first. "
        "moesim run takes this file as it is."
    )
    if folder is not None:
        comments.append("Paths are relative to this file: move it together with what they lead to.")
    return toml_text(table, "\n".join([head, *comments]), _EXACT)


def _relocate(value: object, base: Path, folder: Path | None, key: str = "") -> object:
    """A value of a deployment with all paths in it as they hold from another folder."""
    if isinstance(value, Mapping):
        return {name: _relocate(one, base, folder, name) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_relocate(one, base, folder) for one in value]
    if not isinstance(value, str) or key not in (*_PATHS, "model"):
        return value
    named, changes = split_name(value) if key == "model" else (value, {})
    if key == "model" and not named.endswith((".toml", ".json")):
        return value
    return join_name(_path(named, base, folder), changes)


def _path(named: str, base: Path, folder: Path | None) -> str:
    """A path that is relative to the plan's folder, from another folder; a name that is no file's
    stays.
    """
    path = (base / os.path.expanduser(named)).resolve()
    if not path.exists():
        return named
    return str(path) if folder is None else os.path.relpath(path, folder.resolve())


def _requests(workload: WorkloadSpec, base: Path, folder: Path | None) -> dict[str, object]:
    requests, changes = workload.requests, dict[str, object]()
    if isinstance(requests, dict):
        tables = {
            key: _relocate(value, base, folder)
            for key, value in requests.items()
            if isinstance(value, Mapping)
        }
        changes["requests"] = {**requests, **tables}
    elif isinstance(requests, LogSpec):
        changes["requests"] = requests.model_copy(
            update={"file": _path(requests.file, base, folder)}
        )
    elif requests != TRAFFIC and requests not in available_files("workloads/requests"):
        changes["requests"] = _path(requests, base, folder)
    if workload.arrivals is not None:
        changes["arrivals"] = _relocate(workload.arrivals, base, folder)
    return changes


def _workload(result: SearchResult) -> tuple[WorkloadSpec, list[str]]:
    """The workload of the requests that the finalists were simulated on, lead-in included; and what
    there is to say about it.
    """
    question, traffic = result.question, result.traffic
    comments = []
    if question.peak_s is not None:
        comments.append(f"The requests are those of the busiest {question.peak_s:g} s.")
    if traffic.lead:
        before = f"{traffic.lead:,} requests that arrive before judge_from_s"
        comments.append(f"The {before} are served and not judged: the cluster fills.")
    found = traffic.workload
    if found is None:
        found = WorkloadSpec(requests=TRAFFIC)
        comments.append(f"No start_s cuts them out, so {TRAFFIC} beside this file holds them.")
    return found.model_copy(update={"judge_from_s": traffic.judge_from_s}), comments


def _explain_slo(question: Question) -> Iterator[str]:
    """Sources of the limits of each request, where the workload sets none."""
    if not question.workload.slo.is_set:
        for name, limits in question.targets.latencies.items():
            for level in list(limits)[-1:]:
                yield f"workload.slo.{name} is the plan's target for the {level}."


def commands(result: SearchResult, evaluation: Evaluation) -> list[Command]:
    """Commands that start an evaluation's servers, and the router in front of them."""
    return list_commands(*_choose_servers(result, evaluation))


def _list_serving(result: SearchResult, evaluation: Evaluation) -> list[HandoverFile]:
    """List files of the same commands; none where they are not known."""
    launch = prepare_launch(*_choose_servers(result, evaluation))
    if launch is None:
        return []
    return list_files(launch, text_of(result, evaluation), commands(result, evaluation))


def _choose_servers(
    result: SearchResult, evaluation: Evaluation
) -> tuple[DeploymentPlan, str, int, int, int | None]:
    """Find what :func:`prepare_launch` takes of an evaluation."""
    spec = deployment_of(result, evaluation)
    plan = make_plan(spec, result.question.seed, "plan", result.space.folder)
    trace = result.traffic.trace
    host_gpus = result.space.host_gpus(*evaluation.candidate.sides)
    return (
        plan,
        spec.model or plan.placement.model.name,
        int(trace.num_input.max()),
        int((trace.num_input + trace.num_output).max()),
        host_gpus if host_gpus < plan.placement.cluster.gpus_per_node else None,
    )
