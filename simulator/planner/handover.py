"""Recommendations as a scenario that ``moesim run`` takes as it is, and as commands that start the
servers.

Sentences beside the commands say what these cannot express.
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from simulator.base.data import available_files
from simulator.base.findings import Finding, environment
from simulator.base.reading import read_bytes
from simulator.base.writing import toml_text
from simulator.config.capacity import Question, Spare
from simulator.config.failures import FailureRates
from simulator.config.named import join_name, split_name
from simulator.config.workload import LogSpec, WorkloadSpec
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.planner.conditions import choose_slo
from simulator.planner.evaluations import best_of_each, deployment_of, text_of
from simulator.planner.explore import Evaluation
from simulator.planner.launch import NAMES, ROUTER, Command, Launch, list_commands, prepare_launch
from simulator.planner.search import SearchResult
from simulator.planner.serving import Place
from simulator.planner.space import inline_keys
from simulator.results.answer.handover import (
    COMPARED,
    MANIFEST,
    RECOMMENDED,
    TRAFFIC,
    Handover,
    HandoverFile,
    ServingCommand,
    by_flag,
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


# Files that start a deployment's servers: a shell script for each kind of server, and a manifest
# for Kubernetes, of the same commands.
#
# Kubernetes: "Schedule GPUs" and the API's reference of Deployment and Service;
# ``leaderworkerset.x-k8s.io/v1`` as of its resource definition, with the label and the environment
# that it gives to pods (``api/leaderworkerset/v1/leaderworkerset_types.go``): the first pod of a
# group serves, and the others know its address and their own number.


_STOP_ALL = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\ntrap exit INT TERM"
"""Lines with which servers end when their script does."""
_LEADER, _NUMBER = "LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX"
_TEMPLATE = Path(__file__).parent / "serving" / "kubernetes.yaml.j2"


def list_files(launch: Launch, title: str, commands: Iterable[Command]) -> list[HandoverFile]:
    """The scripts, and the manifest where its engine needs no other launcher.

    Args:
        title: the deployment in words.
        commands: as :func:`list_commands` has them, for what they do not express.
    """
    engine, scripts = launch.engine, dict[str, list[tuple[str, str]]]()
    for role, server in launch.servers.items():
        scripts[NAMES[role]] = [
            (place.hosts[node], engine.start_server(server, place, node))
            for place in launch.places[role]
            for node in range(engine.count_starts(place))
        ]
    if launch.router:
        scripts[ROUTER] = [("", launch.router)]
    notes = {
        name: [note for one in commands if one.name.startswith(name) for note in one.not_expressed]
        for name in scripts
    }
    found = {
        f"serve/{name.replace(' ', '-')}.sh": _write_script(
            rows, [f"{title}: {name}", *notes[name]]
        )
        for name, rows in scripts.items()
    }
    if engine.starts_each_node or not launch.spans_nodes:
        facts = {"has_router": bool(launch.router), "spans_nodes": launch.spans_nodes}
        told = [title, str(Finding("launch.manifest", **facts)), *chain(*notes.values())]
        found[MANIFEST] = _write_manifest(launch, told)
    return [HandoverFile(file=file, text=text) for file, text in found.items()]


def _comment(title: str, *notes: str) -> str:
    """A title, and what is to be known besides."""
    fill = partial(textwrap.fill, width=100, break_on_hyphens=False, break_long_words=False)
    head = fill(title, initial_indent="# ", subsequent_indent="# ")
    points = [fill(one, initial_indent="# - ", subsequent_indent="#   ") for one in notes]
    return "\n".join([head, *dict.fromkeys(points)])


def _write_script(rows: Sequence[tuple[str, str]], told: Sequence[str]) -> str:
    """A script of all commands, those with the same flags in a loop over a table of what differs.

    Args:
        rows: hosts, and the commands that are given there.
    """
    parts = ["#!/usr/bin/env bash", _comment(*told), "set -eu"]
    if len(rows) == 1:
        return "\n".join([*parts, by_flag(rows[0][1]), ""])
    first, *others = dict.fromkeys(host for host, _ in rows)
    usage = f":?say which host this is: {', '.join([first, *others])}" if others else f":-{first}"
    parts += [f'host="${{1{usage}}}"', _STOP_ALL]
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for host, command in rows:
        setup, _, line = command.rpartition("\n")
        words = [shlex.quote(word) for word in shlex.split(line)]
        flags = (word for word in words if word.startswith("--"))
        groups.setdefault((setup, *flags), []).append([host, *words])
    for (setup, *_), lines in groups.items():
        parts += [*filter(None, [setup]), _loop(lines)]
    return "\n".join([*parts, "wait", ""])


def _loop(lines: Sequence[Sequence[str]]) -> str:
    """A loop over lines, each a host and its words, that starts those of this host."""
    columns = enumerate(zip(*lines, strict=True))
    differing = [at for at, words in columns if at and len(set(words)) > 1]
    shared, names = list(lines[0]), ["at"]
    for at in differing:
        # A word is called after what it is assigned to, or after the flag before it.
        key, is_assigned, _ = shared[at].rpartition("=")
        names.append(re.sub(r"\W", "_", key or shared[at - 1].lstrip("-")).lower())
        shared[at] = f'{key}{is_assigned}"${names[-1]}"'
    table = (
        " ".join([line[0], *(line[at].rpartition("=")[2] for at in differing)]) for line in lines
    )
    start = textwrap.indent(by_flag(" ".join(shared[1:])), "  ")
    return (
        f'while read -r {" ".join(names)}; do\n  [ "$at" = "$host" ] || continue\n{start} &\n'
        "done <<'END'\n" + "\n".join(table) + "\nEND"
    )


def _write_manifest(launch: Launch, told: Iterable[str]) -> str:
    """The servers of each pool, and a service in front of them."""
    engine, program, pools = launch.engine, launch.engine.programs.server, []
    for role, server in launch.servers.items():
        places = launch.places[role]
        nodes = len(places[0].hosts)
        alone = Place((_LEADER,) * nodes, ())
        first, *others = (engine.start_server(server, alone, n) for n in range(min(nodes, 3)))
        pools.append(
            {
                "name": NAMES[role].replace(" ", "-"),
                "image": f"IMAGE-WITH-{program.title}-{program.release}",
                "vendor": "amd" if server.is_amd else "nvidia",
                "nodes": nodes,
                "replicas": len(places),
                "gpus": server.plan.placement.layout.num_gpus // nodes,
                "port": engine.find_port(0),
                "first": _start_in_pod(first),
                "others": _start_in_pod(_number_node(others)),
            }
        )
    made = environment().overlay(trim_blocks=True, lstrip_blocks=True)
    template = made.from_string(read_bytes(_TEMPLATE).decode())
    return template.render(head=_comment(*told), pools=pools)


def _number_node(lines: Sequence[str]) -> str:
    """The command of any node behind the first, of those of the first two such: numbers that differ
    rise evenly with the node's.
    """
    pairs = zip(*(line.split(" ") for line in lines), strict=True)
    return " ".join(
        words[0]
        if len(set(words)) == 1
        else f"$(({words[0]} + {int(words[1]) - int(words[0])} * ({_NUMBER} - 1)))"
        for words in pairs
    )


def _start_in_pod(command: str) -> str:
    """A command in which the pod's own address takes the place of the host in the environment, and
    the first pod's that in flags.
    """
    setup, _, line = command.rpartition("\n")
    line = re.sub(f"(=?){_LEADER}", lambda found: "=$POD_IP" if found[1] else f"${_LEADER}", line)
    start = "exec env " if re.match(r"[A-Z_]+=", line) else "exec "
    return f"{setup}\n{start}{by_flag(line)}".lstrip()
