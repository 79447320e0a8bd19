"""The commands that start a deployment's servers on its machines, and the sentences that go with
them, whatever the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from simulator.base.plugins import available, build
from simulator.config.sparsity import pruning_text
from simulator.deployment.notes import policy_text
from simulator.deployment.plan import DeploymentPlan
from simulator.planner.serving import (
    Engine,
    Place,
    Role,
    Server,
    Weights,
    find_weights,
    load_programs,
    place_replicas,
)

_NAMES: dict[Role, str] = {
    "both": "server",
    "prompts": "prompt server",
    "decoding": "decode server",
}

_HOST_GPUS = 8
"""GPUs that one machine holds at most; larger fast domains are racks of them."""
_OPEN = (
    "Servers and routers listen on every network of their node (0.0.0.0) and ask for no key: "
    "whoever reaches a port can use the model. Keep the ports behind a firewall, or give --host "
    "an inner address."
)


class Command(NamedTuple):
    """One line (or a file and a line) for a shell."""

    name: str
    """Servers that it starts, and their hosts."""
    command: str
    not_expressed: tuple[str, ...] = ()
    flags_read: str = ""
    """Release in which its flags were read, with day and files, in a sentence; empty without a
    command."""


def list_commands(
    plan: DeploymentPlan,
    model: str,
    longest_prompt: int,
    longest_tokens: int,
    host_gpus: int | None = None,
) -> list[Command]:
    """The commands that start all servers of a deployment, and the router in front of them.

    Args:
        model: how the deployment names its model.
        longest_prompt: tokens of the traffic's longest prompt, and of its longest request, output
            included.
        host_gpus: GPUs that are rented on one node; absent = whole nodes of the cluster.
    """
    spec = plan.spec
    name, balancing = spec.engine.partition("@")[0], spec.balancing["kind"]
    if name not in available("planner.serving"):
        known = ", ".join(available("planner.serving"))
        note = f"No commands are known for the engine '{spec.engine}', only for {known}."
        return [Command("servers", "", (note,))]
    engine: Engine = build("planner.serving", {"kind": name}, "plan")
    programs = load_programs(name)
    weights = find_weights(plan, model, engine.quantises)
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
    given: list[Command] = []
    for role, pool in pools.items():
        server = Server(pool, role, weights, longest_prompt, longest_tokens)
        notes = (*engine.list_unexpressed(server), *_list_notes(server))
        if name == "vllm" and server.is_by_priority:
            notes += ("Each request says its priority (the API's 'priority'), the least first.",)
        elif spec.order["kind"] != "first_come" and not (name == "sglang" and server.is_by_prefix):
            order = policy_text(spec.order)
            notes += (f"The plan orders requests by {order}; no flag here says so.",)
        if spec.kv_tiers and role != "decoding" and not server.host_bytes:
            tiers = "; ".join(policy_text(table) for table in spec.kv_tiers)
            notes += (f"The plan keeps prefix blocks in {tiers}; no flag here says so.",)
        given += _start_pool(engine, server, placed[role], notes)
    given = [one._replace(flags_read=programs.server.sentence) for one in given]
    servers = {
        role: [(place.hosts[0], place.first_gpu) for place in places]
        for role, places in placed.items()
    }
    is_single = sum(map(len, servers.values())) == 1
    if not is_single and (command := engine.start_router(servers, balancing)):
        notes = tuple(filter(None, [engine.describe_router(balancing)]))
        flags_read = programs.router.sentence
        given.append(Command("router in front of all servers", command, notes, flags_read))
    general = (
        *_describe_weights(weights, spec.engine),
        *_describe_cluster(plan, node_gpus, placed),
        _OPEN,
    )
    return [given[0]._replace(not_expressed=(*general, *given[0].not_expressed)), *given[1:]]


def _start_pool(
    engine: Engine, server: Server, places: list[Place], notes: tuple[str, ...]
) -> list[Command]:
    """The commands of one pool: one for all replicas that differ in their host only."""
    name, first = _NAMES[server.role], places[0]
    if len(first.hosts) > 1:
        others = ", ".join(place.hosts[0] for place in places[1:])
        if others:
            notes += (
                f"The other {name}s begin on {others}: the same commands with "
                "their own nodes' names.",
            )
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


def _describe_weights(weights: Weights, engine: str) -> Iterator[str]:
    if weights.note:
        yield weights.note
    if "@" in engine:
        yield (
            f"The plan is for the release {engine.partition('@')[2]}; "
            "others take other times, and flags differ."
        )


def _list_notes(server: Server) -> Iterator[str]:
    """Choices and limits that no engine's flags express, in sentences."""
    plan = server.plan
    if plan.spec.pruning is not None:
        yield (
            "The weights must be a checkpoint that is pruned already "
            f"({pruning_text(plan.spec.pruning)}); no flag prunes. "
            + (
                (
                    "Whether a release has kernels for it is to be looked up: "
                    "the plan takes cuSPARSELt's or Sparse-Marlin's speed."
                )
                if plan.spec.pruning.kind == "two_four"
                else (
                    "Released engines have no kernels for it: the plan takes the speed of the "
                    "kernels that were published with it."
                )
            )
        )
    if server.is_placed_by_load:
        yield (
            f"The plan places {server.num_slots} expert slots "
            f"({server.num_slots // plan.placement.layout.ep} a rank) by the loads of an earlier "
            "day; the engine begins in the order of the experts and moves them once it has "
            "measured loads of its own."
        )
    model = plan.placement.model
    limit = model.max_context_tokens
    if limit is not None and server.longest_tokens > limit:
        yield (
            f"The longest request has {server.longest_tokens:,} tokens and {model.name} takes "
            f"{limit:,}: the server refuses what is longer."
        )
    yield (
        f"The plan counts on {plan.serving.capacity.tokens:,} tokens of KV cache on each "
        "data-parallel rank: compare with what the server says when it has started, "
        "and raise or lower its share of memory."
    )


def _describe_cluster(
    plan: DeploymentPlan, node_gpus: int, placed: Mapping[Role, list[Place]]
) -> list[str]:
    """Sentences on the cluster as a whole."""
    placement = plan.placement
    said = []
    left = placement.cluster.num_gpus - plan.num_gpus
    if left:
        said.append(
            f"The cluster has {placement.cluster.num_gpus} GPUs, of which the servers "
            f"take {plan.num_gpus}: {left} are held free."
        )
    used = len({host for group in placed.values() for place in group for host in place.hosts})
    if used > math.ceil(placement.cluster.num_gpus / node_gpus):
        said.append(
            f"Whole replicas take {used} nodes of {node_gpus} GPUs, more than the cluster has: "
            "some must lie across nodes."
        )
    if node_gpus > _HOST_GPUS:
        said.append(
            f"The cluster counts a fast domain of {node_gpus} GPUs as one node. "
            "Where its machines hold fewer (4 in an NVL72 rack), a server that takes more than "
            "one of them is started as over several nodes."
        )
    if used > 1:
        said.append("node0, node1 and so on stand for the machines' own names.")
    return said
