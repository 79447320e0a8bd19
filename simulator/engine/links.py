"""Links that all traffic of a deployment shares, where ranks are simulated: steps, experts that
move beside them, and caches on their way from pool to pool.

Replicas that share no link have links of their own, which take fewer events. With a prefill pool
caches join all replicas.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import simpy
from simpy.events import Event

from simulator.base.columns import Columns
from simulator.base.plugins import build
from simulator.cost.comm import Exchange
from simulator.cost.transfer import Transfer
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.by_ranks import Fidelity
from simulator.engine.fabric import FluidWires, MessageWires, Wires, make_wires
from simulator.engine.loop_state import LoopState
from simulator.engine.state import Floats, Ints
from simulator.policies.topology import Fabric, Link
from simulator.results.tables import WiresShared

# Most that caches on their way between pools and the exchanges of steps slow each other, where they
# are priced with the links to themselves.
#
# Of a link that both need, each has half. Beside steps that exchange for a share ``x`` of their
# time a cache is on the links for at most ``1 + x`` times its seconds ``t``, in which the exchanges
# lose ``x t``: less, as far as ranks use other links then, or wait for a latency. Caches that meet
# each other at a receiver are not counted: they are priced as one queue before all receivers.


def bound_sharing(plan: DeploymentPlan, requests: Columns, steps: Columns) -> WiresShared | None:
    """Bound how much longer a run's caches and steps would take on links that they share; ``None``
    without a prefill pool.
    """
    transfer, prefill = plan.transfer, plan.prefill
    if transfer is None or prefill is None:
        return None
    layout = prefill.placement.layout
    wider = max(1.0, transfer.receivers / (layout.tp * layout.pp))
    num_bytes = float(requests["transfer_bytes"].sum())
    carried_s = num_bytes / transfer.receivers * wider / transfer.bytes_per_s
    pool_S = steps["pool"].to_numpy()
    duration_S = steps["duration_s"].to_numpy()
    exchange_S = (steps["dispatch_s"] + steps["combine_s"] + steps["collective_s"]).to_numpy()
    share, slower = {}, {}
    for name in ("decode", "prefill"):
        busy_s = float(duration_S[pool_S == name].sum())
        share[name] = float(exchange_S[pool_S == name].sum()) / busy_s if busy_s else 0.0
        slower[name] = carried_s * share[name] / busy_s if busy_s else 0.0
    return WiresShared(sum(share.values()), slower["decode"], slower["prefill"])


# Links that all replicas of a deployment lie on: whose ports are whose, and which switches' links
# several replicas share.
#
# A replica is priced as if it began with a node and a leaf switch. Where it lies decides which
# links between switches its messages cross, so ports are its own and paths between switches are
# those of the whole cluster.


@dataclass(frozen=True)
class Located:
    """Fabric of one replica within the joined one."""

    own: Fabric
    """Fabric that its exchanges are priced on."""
    fabric: Fabric
    """Paths of its messages over the joined fabric's links."""
    port_L: Ints
    """Place in the joined fabric of each of its own links; -1 for links that several ranks
    share."""
    shared_S: Ints
    """Places of the shared links that its messages cross."""

    def place(self, exchange: Exchange) -> Exchange:
        """Place an exchange of the replica's ranks on the joined fabric: its ports are busy as
        priced, and shared links as if it had the same share of their rate as of its ports'.
        """
        if not exchange.busy_s.size:
            return exchange
        busy_s, is_port = np.zeros(len(self.fabric.links)), self.port_L >= 0
        busy_s[self.port_L[is_port]] = exchange.busy_s[is_port]
        if len(self.shared_S):
            crossed_s = _list_seconds(self.fabric, exchange)
            for place in self.shared_S:
                kind = self.fabric.links[place].kind
                busy_s[place] = crossed_s[place] * self._find_slowdown(exchange, kind)
        return replace(exchange, busy_s=busy_s)

    def _find_slowdown(self, exchange: Exchange, kind: str) -> float:
        """Ratio of the seconds that the exchange takes of its fastest link of a kind to those at
        the link's full rate.
        """
        full_s = _list_seconds(self.own, exchange)
        is_own = (full_s > 0.0) & np.array([link.kind == kind for link in self.own.links])
        if not is_own.any():
            return 1.0
        return float((exchange.busy_s[is_own] / full_s[is_own]).min())


@dataclass(frozen=True)
class JoinedFabric:
    """Links and paths of all GPUs of a deployment, those of the decode pool first where they are on
    one cluster.
    """

    fabric: Fabric
    gpu_of: Mapping[tuple[str, int], int]
    """First GPU of each replica, by the name of its pool and its number there."""
    located: Mapping[tuple[str, int], Located]
    """Fabric of each replica, by the name of its pool and its number there."""
    between: Fabric | None = None
    """Paths of caches from a prefill pool's GPUs to the decode pool's."""

    def list_groups(self) -> list[set[tuple[str, int]]]:
        """List the groups of replicas whose messages cross links that others of the group cross;
        one of all where caches join them.
        """
        if self.between is not None:
            return [set(self.located)]
        groups: list[tuple[set[int], set[tuple[str, int]]]] = []
        for key, one in self.located.items():
            links, members = set(one.shared_S.tolist()), {key}
            apart = []
            for found in groups:
                if found[0] & links:
                    links, members = links | found[0], members | found[1]
                else:
                    apart.append(found)
            groups = [*apart, (links, members)]
        return [members for _, members in groups]


def join_fabric(plan: DeploymentPlan) -> JoinedFabric:
    """Join the fabrics of all replicas of all pools of a plan.

    Raises:
        UserError: if a topology cannot be built for as many GPUs.
    """
    machines, first_of = plan.machines, {}
    wired: list[Fabric] = []
    for name, pool in zip(machines, plan.pools, strict=True):
        cluster = pool.placement.cluster
        if cluster.name not in first_of:
            own = [one for one in machines.values() if one.cluster == cluster.name]
            num_gpus = max(one.first_gpu + one.num_gpus for one in own)
            where = f"deployment '{name}': cluster '{cluster.name}' [topology]"
            first_of[cluster.name] = sum(one.num_ranks for one in wired)
            wired.append(build("topology", cluster.topology, where).wire(cluster, num_gpus))
    whole = _join(wired)
    gpu_of = {
        (name, replica): first_of[one.cluster] + one.first_gpu + replica * one.gpus_per_replica
        for name, one in machines.items()
        for replica in range(one.num_replicas)
    }
    fabrics = {name: pool.placement.fabric for name, pool in zip(machines, plan.pools, strict=True)}
    links, ports = list(whole.links), {}
    for (name, replica), first in gpu_of.items():
        ports[name, replica] = _map_ports(fabrics[name], first, links)
    whole = replace(whole, links=tuple(links))
    between = None
    if plan.transfer is not None:
        gpus = {
            name: [first_of[one.cluster] + one.first_gpu + gpu for gpu in range(one.num_gpus)]
            for name, one in machines.items()
        }
        between = _bridge(whole, gpus["prefill"], gpus["decode"], plan.transfer)
        whole = replace(whole, links=between.links)
    located = {
        key: _locate(fabrics[key[0]], whole, first, ports[key]) for key, first in gpu_of.items()
    }
    return JoinedFabric(whole, gpu_of, located, between)


def _bridge(whole: Fabric, senders: list[int], receivers: list[int], transfer: Transfer) -> Fabric:
    """Find the paths between the GPUs of two pools: by their cards, unless the fast links carry
    caches; also inside a node, and between clusters.
    """
    links, wire = list(whole.links), transfer.wire
    missing = max(0, 2 - whole.direct.path_SRH.shape[2])
    paths = np.pad(whole.direct.path_SRH, ((0, 0), (0, 0), (0, missing)), constant_values=-1)
    ports: list[dict[int, int]] = [{}, {}]
    node_R = whole.node_R
    for side, gpus in enumerate((senders, receivers)):
        for gpu in gpus:
            port = _find_port(whole, gpu, wire, is_out=side == 0)
            ports[side][gpu] = len(links) if port is None else port
            if port is None:
                links.append(Link(f"gpu {gpu} {wire}", wire, transfer.peak_bytes_per_s, 0.0, gpu))
    for source in senders:
        for destination in receivers:
            is_there = paths[source, destination, 0] >= 0
            if is_there and (wire == "scale_up" or node_R[source] != node_R[destination]):
                continue
            paths[source, destination] = -1
            paths[source, destination, :2] = ports[0][source], ports[1][destination]
    return Fabric(tuple(links), paths, node_R)


def _find_port(whole: Fabric, gpu: int, wire: str, *, is_out: bool) -> int | None:
    """Find the port by which a GPU's messages leave its node, or come to it; ``None`` where the
    fabric has no other node.
    """
    path_SRH, others = whole.direct.path_SRH, whole.node_R != whole.node_R[gpu]
    found = path_SRH[gpu, others] if is_out else path_SRH[others, gpu]
    own = [
        int(link)
        for link in np.unique(found)
        if link >= 0 and (whole.links[link].rank, whole.links[link].kind) == (gpu, wire)
    ]
    return own[0] if own else None


def _join(wired: list[Fabric]) -> Fabric:
    """Put the fabrics of several clusters side by side, without paths between them."""
    if len(wired) == 1:
        return wired[0]
    num_ranks = sum(one.num_ranks for one in wired)
    hops = max(one.direct.path_SRH.shape[2] for one in wired)
    path_SRH = np.full((num_ranks, num_ranks, hops), -1, dtype=np.int64)
    links: list[Link] = []
    nodes: list[Ints] = []
    first = 0
    for one in wired:
        own, width = slice(first, first + one.num_ranks), one.direct.path_SRH.shape[2]
        shifted = np.where(one.direct.path_SRH < 0, -1, one.direct.path_SRH + len(links))
        path_SRH[own, own, :width] = shifted
        links += [link._replace(rank=link.rank + first * (link.rank >= 0)) for link in one.links]
        nodes.append(one.node_R + (nodes[-1].max() + 1 if nodes else 0))
        first += one.num_ranks
    return Fabric(tuple(links), path_SRH, np.concatenate(nodes))


def _map_ports(own: Fabric, first_gpu: int, links: list[Link]) -> Ints:
    """Find the place of each of a replica's links that are one rank's; those that the whole fabric
    lacks are added to its ``links``.
    """
    free: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for place, link in enumerate(links):
        free[link.rank, link.kind].append(place)
    port_L = np.full(len(own.links), -1, dtype=np.int64)
    for place, link in enumerate(own.links):
        if link.rank < 0:
            continue
        found = free[link.rank + first_gpu, link.kind]
        if not found:
            found.append(len(links))
            links.append(link._replace(rank=link.rank + first_gpu))
        port_L[place] = found.pop(0)
    return port_L


def _locate(own: Fabric, whole: Fabric, first_gpu: int, port_L: Ints) -> Located:
    is_shared = np.array([link.rank < 0 for link in whole.links])
    ranks = slice(first_gpu, first_gpu + own.num_ranks)

    def cross(own_SRH: Ints, whole_SRH: Ints) -> Ints:
        """Find paths that leave and arrive by the replica's own ports, and cross the shared links
        of the whole fabric before the last of these.
        """
        shape = *own_SRH.shape[:2], own_SRH.shape[2] + whole_SRH.shape[2]
        path_SRH = np.full(shape, -1)
        for pair in np.ndindex(shape[:2]):
            ports = [int(port_L[link]) for link in own_SRH[pair] if link >= 0 and port_L[link] >= 0]
            shared = [int(link) for link in whole_SRH[pair] if link >= 0 and is_shared[link]]
            path = [*ports[:-1], *shared, *ports[-1:]]
            path_SRH[pair][: len(path)] = path
        longest = max(1, int((path_SRH >= 0).sum(axis=2).max(initial=0)))
        return path_SRH[:, :, :longest]

    path_SRH = cross(own.path_SRH, whole.path_SRH[ranks, ranks])
    direct_SRH = None
    if own.own_card_SRH is not None:
        direct_SRH = cross(own.own_card_SRH, whole.direct.path_SRH[ranks, ranks])
    fabric = Fabric(whole.links, path_SRH, own.node_R, direct_SRH)
    crossed = np.unique(path_SRH[path_SRH >= 0])
    return Located(own, fabric, port_L, crossed[is_shared[crossed]])


def _list_seconds(fabric: Fabric, exchange: Exchange) -> Floats:
    """Seconds that each link needs for an exchange's bytes at its full rate, ``[links]``."""
    paths = fabric.direct if exchange.is_direct else fabric
    rates = np.array([link.bytes_per_s for link in fabric.links])
    seconds: Floats = paths.sum_by_link(exchange.sent) / rates
    return seconds


class LocatedWires:
    """Links of one replica, which lie among those of others."""

    def __init__(self, wires: Wires, located: Located) -> None:
        self._wires, self._located = wires, located

    def carry(self, exchange: Exchange) -> Event:
        """Start an exchange of the replica's ranks."""
        return self._wires.carry(self._located.place(exchange))

    def leave(self, wires: Wires) -> None:
        """Carry later exchanges, of a step that was cut off, on links that nobody else uses."""
        self._wires = wires


class SharedWires:
    """Links of the replicas of all pools."""

    def __init__(self, env: simpy.Environment, state: LoopState, fidelity: Fidelity) -> None:
        """Begin with idle links."""
        self._env, self._fidelity, self._state = env, fidelity, state
        self.joined: JoinedFabric | None = None
        """Links of all replicas; ``None`` where these share none."""
        self.between: Wires | None = None
        """Links between all GPUs, where caches travel from pool to pool."""
        self._shared: dict[tuple[str, int], FluidWires | MessageWires] = {}
        """Links of each replica that shares some, by its pool and number."""
        plan = state.plan
        if plan.transfer is not None or _may_share(plan):
            joined = join_fabric(plan)
            for group in joined.list_groups():
                if len(group) > 1:
                    self.joined, shared = joined, self._make_apart(joined.fabric)
                    self._shared |= dict.fromkeys(group, shared)
                    if joined.between is not None:
                        self.between = shared.share(joined.between)
        self._wires = [
            [self._make(place, replica) for replica in range(pool.num_replicas)]
            for place, pool in enumerate(state.pools)
        ]

    def find(self, place: int, replica: int) -> Wires:
        """Find the links of a replica of the pool at a place."""
        return self._wires[place][replica]

    def leave(self, place: int, replica: int) -> None:
        """Leave the links of a replica to what is left of a step that was cut off; what begins
        later has others. Of shared ones, it ends its exchange under way only.
        """
        before = self._wires[place][replica]
        if isinstance(before, LocatedWires) and self.joined is not None:
            key = self._state.names[place], replica
            before.leave(self._make_apart(self.joined.located[key].fabric))
        self._wires[place][replica] = self._make(place, replica)

    def _make(self, place: int, replica: int) -> Wires:
        key = self._state.names[place], replica
        if key not in self._shared or self.joined is None:
            return self._make_apart(self._state.pools[place].plan.placement.fabric)
        located = self.joined.located[key]
        return LocatedWires(self._shared[key].share(located.fabric), located)

    def _make_apart(self, fabric: Fabric) -> FluidWires | MessageWires:
        return make_wires(self._env, self._fidelity, fabric)


def _may_share(plan: DeploymentPlan) -> bool:
    """Whether replicas may share links: there are several, on a fabric with links of several
    ranks.
    """
    return any(
        pool.serving.replicas > 1 and any(link.rank < 0 for link in pool.placement.fabric.links)
        for pool in plan.pools
    )
