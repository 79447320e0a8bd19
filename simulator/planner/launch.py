"""The commands that start a deployment's servers on its machines, and the sentences that go with
them, whatever the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from simulator.base.findings import Finding
from simulator.config.sparsity import pruning_text
from simulator.deployment.notes import policy_text
from simulator.deployment.plan import DeploymentPlan
from simulator.planner.serving import (
    Place,
    Role,
    Server,
    find_weights,
    place_replicas,
)
from simulator.planner.serving.engines import ENGINES, Engine

NAMES: dict[Role, str] = {
    "both": "server",
    "prompts": "prompt server",
    "decoding": "decode server",
}
"""Servers by what they compute."""

ROUTER = "router"
_HOST_GPUS = 8
"""GPUs that one machine holds at most; larger fast domains are racks of them."""


class Command(NamedTuple):
    """One line (or a file and a line) for a shell."""

    name: str
    """Servers that it starts, and their hosts."""
    command: str
    not_expressed: tuple[str, ...] = ()
    flags_read: str = ""
    """Release in which its flags were read, with day and files, in a sentence; empty without a
    command."""


class Launch(NamedTuple):
    """Servers of a deployment, an entry for each pool, and where their replicas are."""

    engine: Engine
    servers: dict[Role, Server]
    places: dict[Role, list[Place]]
    node_gpus: int
    """GPUs that are rented on one node."""

    @property
    def plan(self) -> DeploymentPlan:
        """Plan of the pool that decodes."""
        return next(one.plan for role, one in self.servers.items() if role != "prompts")

    @property
    def spans_nodes(self) -> bool:
        """Whether some replica is on several nodes."""
        return any(len(place.hosts) > 1 for places in self.places.values() for place in places)

    @property
    def router(self) -> str:
        """The command that starts the router; empty where there is none."""
        servers = {
            role: [(place.hosts[0], place.first_gpu) for place in places]
            for role, places in self.places.items()
        }
        if sum(map(len, servers.values())) == 1:
            return ""
        return self.engine.start_router(servers, self.plan.spec.balancing["kind"])


def prepare_launch(
    plan: DeploymentPlan,
    model: str,
    longest_prompt: int,
    longest_tokens: int,
    host_gpus: int | None = None,
) -> Launch | None:
    """Find the servers of a deployment and their places; ``None`` where its engine's commands are
    not known.

    Args:
        model: how the deployment names its model.
        longest_prompt: tokens of the traffic's longest prompt, and of its longest request, output
            included.
        host_gpus: GPUs that are rented on one node; absent = whole nodes of the cluster.
    """
    engine = ENGINES.get(plan.spec.engine.partition("@")[0])
    if engine is None:
        return None
    weights = find_weights(plan, model, engine.programs.quantises)
    pools: dict[Role, DeploymentPlan] = {"both": plan}
    if plan.prefill is not None:
        pools = {"prompts": plan.prefill, "decoding": plan}
    cluster = plan.placement.cluster
    node_gpus = host_gpus or min(cluster.gpus_per_node, cluster.num_gpus)
    placed = place_replicas(
        [
            (role, pool.serving.replicas, pool.placement.layout.num_gpus)
            for role, pool in pools.items()
        ],
        node_gpus,
    )
    servers = {
        role: Server(pool, role, weights, longest_prompt, longest_tokens)
        for role, pool in pools.items()
    }
    return Launch(engine, servers, placed, node_gpus)


def list_commands(
    plan: DeploymentPlan,
    model: str,
    longest_prompt: int,
    longest_tokens: int,
    host_gpus: int | None = None,
) -> list[Command]:
    """The commands that start all servers of a deployment, and the router in front of them; takes
    what :func:`prepare_launch` does.
    """
    launch = prepare_launch(plan, model, longest_prompt, longest_tokens, host_gpus)
    if launch is None:
        note = Finding("launch.unknown_engine", engine=plan.spec.engine, known=tuple(ENGINES))
        return [Command("servers", "", (str(note),))]
    engine, programs = launch.engine, launch.engine.programs
    given: list[Command] = []
    for role, server in launch.servers.items():
        found = *engine.list_unexpressed(server), *_find_notes(server, engine)
        given += _start_pool(engine, server, launch.places[role], tuple(map(str, found)))
    given = [one._replace(flags_read=programs.server.sentence) for one in given]
    if command := launch.router:
        notes = tuple(filter(None, [engine.describe_router(plan.spec.balancing["kind"])]))
        flags_read = programs.router.sentence
        given.append(Command(f"{ROUTER} in front of all servers", command, notes, flags_read))
    general = map(str, _find_general(launch))
    return [given[0]._replace(not_expressed=(*general, *given[0].not_expressed)), *given[1:]]


def _start_pool(
    engine: Engine, server: Server, places: list[Place], notes: tuple[str, ...]
) -> list[Command]:
    """The commands of one pool: one for all replicas that differ in their host only."""
    name, first = NAMES[server.role], places[0]
    if len(first.hosts) > 1:
        if others := [place.hosts[0] for place in places[1:]]:
            notes += (str(Finding("launch.other_hosts", name=name, hosts=others)),)
        return [
            Command(text, engine.start_server(server, first, n), () if n else notes)
            for n, text in enumerate(_name_nodes(name, first, engine.count_starts(first)))
        ]
    alike: dict[tuple[int, ...], list[str]] = {}
    for place in places:
        alike.setdefault(place.gpus, []).append(place.hosts[0])
    given: list[Command] = []
    for gpus, hosts in alike.items():
        on = hosts[0] if len(hosts) == 1 else f"each of {len(hosts)} nodes ({', '.join(hosts)})"
        which = f", GPU{'s' if len(gpus) > 1 else ''} {', '.join(map(str, gpus))}" if gpus else ""
        place = next(one for one in places if one.gpus == gpus)
        command = engine.start_server(server, place, 0)
        given.append(Command(f"{name} on {on}{which}", command, () if given else notes))
    return given


def _name_nodes(name: str, place: Place, count: int) -> list[str]:
    span = f"{name} on {place.hosts[0]} to {place.hosts[-1]}"
    if count == 1:
        return [span]
    return [f"{span}: node {n + 1} of {count}" for n in range(count)]


def _find_notes(server: Server, engine: Engine) -> Iterator[Finding]:
    """Find choices and limits that no flags express."""
    plan, spec, programs = server.plan, server.plan.spec, engine.programs
    pruning, model, kv_dtype = spec.pruning, plan.placement.model, plan.placement.precision.kv
    if pruning is not None:
        yield Finding("launch.pruned", pruning=pruning_text(pruning), kind=pruning.kind)
    if server.is_placed_by_load:
        slots, ep = server.num_slots, plan.placement.layout.ep
        yield Finding("launch.placed_by_load", slots=slots, rank_slots=slots // ep)
    limit, longest = model.max_context_tokens, server.longest_tokens
    if limit is not None and longest > limit:
        yield Finding("launch.too_long", longest=longest, model=model.name, limit=limit)
    yield Finding("launch.cache", tokens=plan.serving.capacity.tokens)
    if kv_dtype not in programs.cache:
        title = programs.server.title
        yield Finding("launch.cache_format", dtype=kv_dtype, title=title, known=[*programs.cache])
    if engine.name == "vllm" and server.is_by_priority:
        yield Finding("launch.vllm_priority")
    elif spec.order["kind"] != "first_come" and not (
        engine.name == "sglang" and server.is_by_prefix
    ):
        yield Finding("launch.order", order=policy_text(spec.order))
    if spec.kv_tiers and server.role != "decoding" and not server.host_bytes:
        yield Finding("launch.kv_tiers", tiers=[policy_text(table) for table in spec.kv_tiers])


def _find_general(launch: Launch) -> Iterator[Finding]:
    """Find what to know of the weights and of the cluster as a whole."""
    plan, node_gpus = launch.plan, launch.node_gpus
    weights = next(iter(launch.servers.values())).weights
    release, cluster = plan.spec.engine.partition("@")[2], plan.placement.cluster
    if weights.note:
        yield Finding("launch.weights", note=weights.note)
    if release:
        yield Finding("launch.release", release=release)
    if cluster.num_gpus > plan.num_gpus:
        yield Finding("launch.free", cluster_gpus=cluster.num_gpus, gpus=plan.num_gpus)
    nodes = len(
        {host for group in launch.places.values() for place in group for host in place.hosts}
    )
    if nodes > math.ceil(cluster.num_gpus / node_gpus):
        yield Finding("launch.across_nodes", nodes=nodes, node_gpus=node_gpus)
    if node_gpus > _HOST_GPUS:
        yield Finding("launch.large_domain", gpus=node_gpus)
    if nodes > 1:
        yield Finding("launch.node_names")
    if launch.spans_nodes and not launch.engine.starts_each_node:
        yield Finding("launch.no_manifest", title=launch.engine.programs.server.title)
    yield Finding("launch.open")
