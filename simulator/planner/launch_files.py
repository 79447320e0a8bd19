"""Files that start a deployment's servers: a shell script for each kind of server, and a manifest
for Kubernetes, of the same commands.

Kubernetes: "Schedule GPUs" and the API's reference of Deployment and Service;
``leaderworkerset.x-k8s.io/v1`` as of its resource definition, with the label and the environment
that it gives to pods (``api/leaderworkerset/v1/leaderworkerset_types.go``): the first pod of a
group serves, and the others know its address and their own number.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from simulator.base.findings import Finding
from simulator.base.writing import yaml_lines
from simulator.planner.launch import NAMES, ROUTER, Command, Launch
from simulator.planner.serving import Place, Server
from simulator.planner.serving.engines import Engine
from simulator.results.answer.handover import MANIFEST, HandoverFile, by_flag

_STOP_ALL = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\ntrap exit INT TERM"
"""Lines with which servers end when their script does."""
_LEADER, _NUMBER = "LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX"
_API = "leaderworkerset"


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
            f"{name[0].upper()}{name[1:]} of {title}.", rows, notes[name]
        )
        for name, rows in scripts.items()
    }
    if engine.starts_each_node or not launch.spans_nodes:
        all_notes = list(dict.fromkeys(chain.from_iterable(notes.values())))
        found[MANIFEST] = _write_manifest(launch, title, all_notes)
    return [HandoverFile(file=file, text=text) for file, text in found.items()]


def _comment(sentences: Iterable[str]) -> str:
    wrapped = (
        textwrap.wrap(
            one,
            98,
            subsequent_indent="  " if one.startswith("- ") else "",
            break_on_hyphens=False,
            break_long_words=False,
        )
        for one in sentences
    )
    return "\n".join(f"# {line}" for line in chain.from_iterable(wrapped))


def _write_script(title: str, rows: Sequence[tuple[str, str]], notes: Sequence[str]) -> str:
    """A script of all commands, those with the same flags in a loop over a table of what differs.

    Args:
        rows: hosts, and the commands that are given there.
    """
    hosts = list(dict.fromkeys(host for host, _ in rows))
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for host, command in rows:
        setup, _, line = command.rpartition("\n")
        words = [shlex.quote(word) for word in shlex.split(line)]
        flags = (word for word in words if word.startswith("--"))
        groups.setdefault((setup, *flags), []).append([host, *words])
    told = [title, *(["Not in its flags:"] if notes else []), *(f"- {note}" for note in notes)]
    parts = ["#!/usr/bin/env bash", _comment(told), "set -eu"]
    if len(hosts) > 1:
        parts.append(f'host="${{1:?say which host this is: {", ".join(hosts)}}}"')
    parts += [_STOP_ALL] if len(rows) > 1 else []
    for (setup, *_), lines in groups.items():
        parts += [setup] if setup else []
        parts.append(_loop(lines, len(hosts) > 1) if len(rows) > 1 else by_flag(_join(lines[0])))
    return "\n".join([*parts, *(["wait"] if len(rows) > 1 else [])]) + "\n"


def _join(line: Sequence[str]) -> str:
    return " ".join(line[1:])


def _loop(lines: Sequence[Sequence[str]], is_of_hosts: bool) -> str:
    """A loop over lines of one host, or over those of several of which one's are started."""
    names = {
        at: _name_word(lines[0], at)
        for at, words in enumerate(zip(*lines, strict=True))
        if at and len(set(words)) > 1
    }
    shared = list(lines[0])
    for at, name in names.items():
        assigned = re.match(r"[A-Z_]+=", shared[at])
        shared[at] = f'{assigned[0] if assigned else ""}"${name}"'
    table = [
        " ".join([line[0]] * is_of_hosts + [re.sub(r"^[A-Z_]+=", "", line[at]) for at in names])
        for line in lines
    ]
    return "\n".join(
        [
            f"while read -r {' '.join(['at'] * is_of_hosts + [*names.values()]) or '_'}; do",
            *(['  [ "$at" = "$host" ] || continue'] if is_of_hosts else []),
            textwrap.indent(f"{by_flag(_join(shared))} &", "  "),
            "done <<'END'",
            *table,
            "END",
        ]
    )


def _name_word(line: Sequence[str], at: int) -> str:
    """A shell variable for a word, after what it is assigned to or the flag before it."""
    variable, is_assigned, _ = line[at].partition("=")
    named = variable if is_assigned else line[at - 1].lstrip("-")
    return re.sub(r"\W", "_", named).lower()


def _write_manifest(launch: Launch, title: str, notes: Iterable[str]) -> str:
    """The servers of each pool, and a service in front of them."""
    facts = {"has_router": bool(launch.router), "spans_nodes": launch.spans_nodes}
    head = [f"{title}.", str(Finding("launch.manifest", **facts)), "Not in the flags:"]
    documents = [
        document
        for role, server in launch.servers.items()
        for document in _list_objects(
            launch.engine, server, NAMES[role].replace(" ", "-"), launch.places[role]
        )
    ]
    texts = ("\n".join(yaml_lines(document)) for document in documents)
    return "\n---\n".join([_comment([*head, *(f"- {note}" for note in notes)]), *texts]) + "\n"


def _list_objects(
    engine: Engine, server: Server, name: str, places: Sequence[Place]
) -> Iterator[Mapping[str, object]]:
    nodes, port = len(places[0].hosts), engine.find_port(0)
    alone = Place((_LEADER,) * nodes, ())
    lines = [engine.start_server(server, alone, node) for node in range(min(nodes, 3))]
    serving = {
        "ports": [{"name": "http", "containerPort": port}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}},
    }
    first = _make_pod(engine, server, name, lines[0], nodes, serving)
    meta, selected = {"metadata": {"name": name}}, {"app": name}
    if nodes == 1:
        spec = {"replicas": len(places), "selector": {"matchLabels": selected}, "template": first}
        yield {"apiVersion": "apps/v1", "kind": "Deployment", **meta, "spec": spec}
    else:
        selected = {f"{_API}.sigs.k8s.io/name": name, f"{_API}.sigs.k8s.io/worker-index": "0"}
        others = _make_pod(engine, server, name, _number_node(lines[1:]), nodes, {})
        group = {"size": nodes, "leaderTemplate": first, "workerTemplate": others}
        spec = {"replicas": len(places), "leaderWorkerTemplate": group}
        kind = {"apiVersion": f"{_API}.x-k8s.io/v1", "kind": "LeaderWorkerSet"}
        yield {**kind, **meta, "spec": spec}
    ports = [{"name": "http", "port": port, "targetPort": "http"}]
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{name}-http"},
        "spec": {"selector": selected, "ports": ports},
    }


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


def _make_pod(
    engine: Engine,
    server: Server,
    name: str,
    command: str,
    nodes: int,
    serving: Mapping[str, object],
) -> dict[str, object]:
    """A pod's template; its own address takes the place of the host in the environment, and the
    first pod's that in flags.
    """
    program, layout = engine.programs.server, server.plan.placement.layout
    setup, _, line = command.rpartition("\n")
    line = re.sub(f"(=?){_LEADER}", lambda found: "=$POD_IP" if found[1] else f"${_LEADER}", line)
    start = "exec env " if re.match(r"[A-Z_]+=", line) else "exec "
    gpus = {f"{'amd' if server.is_amd else 'nvidia'}.com/gpu": layout.num_gpus // nodes}
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    container = {
        "name": name,
        "image": f"IMAGE-WITH-{program.title}-{program.release}".replace(" ", "-"),
        "command": ["sh", "-c"],
        "args": [f"{setup}\n{start}{by_flag(line)}".lstrip()],
        **({"env": [address]} if "$POD_IP" in line else {}),
        **serving,
        "resources": {"requests": gpus, "limits": gpus},
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    volume = {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
    return {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [container], "volumes": [volume]},
    }
