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
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from simulator.base.findings import Finding, environment
from simulator.base.reading import read_bytes
from simulator.planner.launch import NAMES, ROUTER, Command, Launch
from simulator.planner.serving import Place
from simulator.results.answer.handover import MANIFEST, HandoverFile, by_flag

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
