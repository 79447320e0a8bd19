"""Which links each topology's messages cross, on clusters small enough to draw."""

import itertools

import numpy as np
import pytest

from simulator.policies.messages import Messages
from simulator.policies.topology.leaf_spine import LeafSpine
from simulator.policies.topology.nvlink_domain import NVLinkDomain
from simulator.policies.topology.pcie import PCIe
from simulator.policies.topology.rails import Rails
from simulator.policies.topology.switch import Switch
from tests.cases import seeds


def path(fabric, source, destination):
    return [fabric.links[link].name for link in fabric.path_SRH[source, destination] if link >= 0]


LEAVES = LeafSpine(oversubscription=2.0, nodes_per_leaf=2)
EACH = (Rails(), NVLinkDomain(), LeafSpine(), PCIe(), Switch())


@pytest.mark.parametrize(
    ("topology", "num_gpus", "ends", "links"),
    [
        *((one, 4, (1, 2), ["gpu 1 scale_up out", "gpu 2 scale_up in"]) for one in EACH),
        (Rails(), 8, (1, 5), ["gpu 1 scale_out out", "gpu 5 scale_out in"]),
        (
            Rails(),
            8,
            (1, 6),
            [
                "gpu 1 scale_up out",
                "gpu 2 scale_up in",
                "gpu 2 scale_out out",
                "gpu 6 scale_out in",
            ],
        ),
        (LEAVES, 16, (0, 5), ["gpu 0 scale_out out", "gpu 5 scale_out in"]),
        (
            LEAVES,
            16,
            (0, 9),
            [
                "gpu 0 scale_out out",
                "leaf 0 scale_out out",
                "leaf 1 scale_out in",
                "gpu 9 scale_out in",
            ],
        ),
        (PCIe(gpus_per_socket=2), 4, (0, 1), ["gpu 0 scale_up out", "gpu 1 scale_up in"]),
        (
            PCIe(gpus_per_socket=2),
            4,
            (0, 2),
            [
                "gpu 0 scale_up out",
                "socket 0 scale_up out",
                "socket 1 scale_up in",
                "gpu 2 scale_up in",
            ],
        ),
        (Switch(), 8, (0, 1), ["gpu 0 scale_out out", "gpu 1 scale_out in"]),
    ],
)
def test_a_message_crosses_the_links_of_its_topology(tiny, topology, num_gpus, ends, links):
    """On nodes of four."""
    assert path(topology.wire(tiny.cluster(num_gpus, 4), num_gpus), *ends) == links


def test_leaves_have_less_than_their_cards_together(tiny):
    rates = {link.name: link.bytes_per_s for link in LEAVES.wire(tiny.cluster(16, 4), 16).links}
    assert rates["leaf 0 scale_out out"] == rates["gpu 0 scale_out out"] * 2 * 4 / 2.0


def test_own_cards_cross_rails_in_the_switches(tiny):
    direct = Rails().wire(tiny.cluster(8, 4), 8).direct
    assert path(direct, 1, 6) == ["gpu 1 scale_out out", "gpu 6 scale_out in"]
    leaves = LeafSpine().wire(tiny.cluster(16, 4), 16)
    assert leaves.direct is leaves


def test_rails_of_a_node_that_is_not_full_leave_by_a_card_that_is_there(tiny):
    fabric = Rails().wire(tiny.cluster(8, 4), 6)
    for source, destination in itertools.permutations(range(6), 2):
        cards = [name for name in path(fabric, source, destination) if "scale_out out" in name]
        for name in cards:
            assert fabric.node_R[int(name.split()[1])] == fabric.node_R[source]


def test_a_socket_lies_in_one_node(tiny):
    """Nodes of 6 with sockets of 4: ranks 4, 5 and 6, 7 are neighbours by number, but in different
    boxes.
    """
    fabric = PCIe(gpus_per_socket=4).wire(tiny.cluster(12, 6), 12)
    nodes_of = {}
    for source, destination in itertools.permutations(range(12), 2):
        for name in path(fabric, source, destination):
            if name.startswith("socket"):
                nodes_of.setdefault(name, set()).update(
                    {int(fabric.node_R[source]), int(fabric.node_R[destination])}
                )
    assert nodes_of
    assert all(len(nodes) == 1 for nodes in nodes_of.values())


def across_leaves(fabric):
    """What each link carries when every GPU of two leaves sends each of the other leaf one byte."""
    far = np.arange(16)[:, None] // 8 != np.arange(16) // 8
    return fabric.sum_by_link(Messages.from_matrix(far.astype(float)))


@seeds(0, 20)
def test_flows_collide_on_the_uplinks_that_their_hash_says(tiny, seed):
    """All bytes cross some uplink of either leaf; the busiest carries more than an even share, and
    one spine as much as all.
    """
    cluster = tiny.cluster(16, 4)
    even, hashed, single = (
        LeafSpine(oversubscription=2.0, spines=spines, hash_seed=seed).wire(cluster, 16)
        for spines in (None, 4, 1)
    )
    busy_s = []
    for fabric, count in ((even, 2), (hashed, 8), (single, 2)):
        shared = [n for n, link in enumerate(fabric.links) if link.rank < 0]
        assert len(shared) == 2 * count
        carried, rates = (
            across_leaves(fabric)[shared],
            [fabric.links[n].bytes_per_s for n in shared],
        )
        assert carried.reshape(4, -1).sum(axis=1) == pytest.approx([64.0] * 4)
        busy_s.append((carried / rates).max())
    assert busy_s[0] == pytest.approx(busy_s[2])
    assert busy_s[0] * (1 + 1e-9) < busy_s[1] < 4 * busy_s[0]


def test_a_flow_keeps_to_one_spine(tiny):
    """It comes down from the spine that it went up to, and other seeds hash it elsewhere."""
    found = []
    for seed in (1, 2):
        fabric = LeafSpine(spines=4, hash_seed=seed).wire(tiny.cluster(16, 4), 16)
        names = [
            [fabric.links[link].name for link in path]
            for path in fabric.path_SRH[:8, 8:, 1:3].reshape(-1, 2)
        ]
        ups, downs = ([int(name.split()[1]) for name in ends] for ends in zip(*names, strict=True))
        assert [up % 4 for up in ups] == [down % 4 for down in downs]
        assert set(ups) == {0, 1, 2, 3}
        assert set(downs) == {4, 5, 6, 7}
        found.append(ups)
    assert found[0] != found[1]
