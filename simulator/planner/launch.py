"""The commands that start a deployment's servers on its machines, and the sentences that go with
them, whatever the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from simulator.base.plugins import available, build
from simulator.config.pruning import pruning_text
from simulator.deployment.plan import DeploymentPlan
from simulator.planner.serving import Engine, Place, Role, Server, Weights, places, weights_of

_NAMES: dict[Role, str] = {
    "both": "server",
    "prompts": "prompt server",
    "decoding": "decode server",
}

_HOST_GPUS = 8
"""That one machine holds at most; larger fast domains are racks of them."""


class Command(NamedTuple):
    """One line (or a file and a line) for a shell."""

    name: str
    """What it starts, and where."""
    command: str
    not_expressed: tuple[str, ...] = ()
    flags_read: str = ""
    """In which release its flags were read, when and where, in a sentence; empty without a
    command."""


def launch(
    plan: DeploymentPlan,
    model: str,
    longest_prompt: int,
    longest_tokens: int,
    host_gpus: int | None = None,
) -> list[Command]:
    """What starts all servers of a deployment, and the router in front of them.

    Args:
        model: how the deployment names its model.
        longest_prompt: tokens of the traffic's longest prompt, and of its longest request, output
            included.
        host_gpus: GPUs that are rented on one node; absent = whole nodes of the cluster.
    """
    spec = plan.spec
    name = spec.engine.partition("@")[0]
    if name not in available("planner.serving"):
        known = ", ".join(available("planner.serving"))
        return [
            Command(
                "servers",
                "",
                (f"No commands are known for the engine '{spec.engine}', only for {known}.",),
            )
        ]
    engine: Engine = build("planner.serving", {"kind": name}, "plan")
    weights = weights_of(plan, model, engine.quantises)
    pools: list[tuple[Role, DeploymentPlan]] = (
        [("both", plan)]
        if plan.prefill is None
        else [("prompts", plan.prefill), ("decoding", plan)]
    )
    node_gpus = host_gpus or min(
        plan.placement.cluster.gpus_per_node, plan.placement.cluster.num_gpus
    )
    placed = places(
        [(role, pool.serving.replicas, pool.placement.layout.num_gpus) for role, pool in pools],
        node_gpus,
    )
    given: list[Command] = []
    for role, pool in pools:
        server = Server(pool, role, weights, longest_prompt, longest_tokens)
        said = [*engine.not_expressed(server), *_said(server)]
        given += _started(engine, server, placed[role], tuple(said))
    given = [one._replace(flags_read=engine.server_program.said) for one in given]
    fronts = {
        role: [(place.hosts[0], place.first_gpu) for place in group]
        for role, group in placed.items()
    }
    command = (
        engine.router(fronts, spec.balancing["kind"]) if sum(map(len, fronts.values())) > 1 else ""
    )
    if command:
        unbalanced = engine.unbalanced(spec.balancing["kind"])
        said = [unbalanced] if unbalanced else []
        flags_read = engine.router_program.said
        given.append(Command("router in front of all servers", command, tuple(said), flags_read))
    general = (*_about(weights, spec.engine), *_general(plan, node_gpus, placed))
    return [given[0]._replace(not_expressed=(*general, *given[0].not_expressed)), *given[1:]]


def _started(
    engine: Engine, server: Server, where: list[Place], said: tuple[str, ...]
) -> list[Command]:
    """The commands of one pool: one for all replicas that differ in their host only."""
    name = _NAMES[server.role]
    first = where[0]
    nodes = engine.nodes_to_start(first)
    if len(first.hosts) > 1:
        span = f"{first.hosts[0]} to {first.hosts[-1]}"
        if len(where) > 1:
            others = ", ".join(place.hosts[0] for place in where[1:])
            said = (
                *said,
                (
                    f"The other {name}s begin on {others}: the same commands with "
                    "their own nodes' names."
                ),
            )
        names = [
            f"{name} on {span}" + (f": node {n + 1} of {nodes}" if nodes > 1 else "")
            for n in range(nodes)
        ]
        return [
            Command(text, engine.start(server, first, n), said if n == 0 else ())
            for n, text in enumerate(names)
        ]
    alike: dict[tuple[int, ...], list[Place]] = {}
    for place in where:
        alike.setdefault(place.gpus, []).append(place)
    given: list[Command] = []
    for gpus, group in alike.items():
        hosts = [place.hosts[0] for place in group]
        on = hosts[0] if len(hosts) == 1 else f"each of {len(hosts)} nodes ({', '.join(hosts)})"
        which = f", GPU{'s' if len(gpus) > 1 else ''} {', '.join(map(str, gpus))}" if gpus else ""
        given.append(
            Command(
                f"{name} on {on}{which}",
                engine.start(server, group[0], 0),
                said if not given else (),
            )
        )
    return given


def _about(weights: Weights, engine: str) -> Iterator[str]:
    if weights.note:
        yield weights.note
    if "@" in engine:
        yield (
            f"The plan is for the release {engine.partition('@')[2]}; "
            "others take other times, and flags differ."
        )


def _said(server: Server) -> Iterator[str]:
    """What no engine's flags say."""
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


def _general(plan: DeploymentPlan, node_gpus: int, placed: Mapping[Role, list[Place]]) -> list[str]:
    """About the cluster as a whole."""
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
