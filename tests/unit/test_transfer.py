"""What moving a prompt's cache between pools costs, on links small enough to reckon by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.config.cluster import LinkSpec, load_cluster
from simulator.config.deployment import PrefillPoolSpec
from simulator.config.engine import KVTransfer
from simulator.cost.transfer import Transfer, make_transfer
from simulator.work.layout import Layout
from simulator.work.memory import CacheSize
from tests.cases import cases

CACHE = CacheSize(bytes_per_token=1000.0, bytes_per_sequence=0.0)
ALONE = Layout(tp=1, attention_dp=1, ep=1)
FAST, SLOW = LinkSpec(bytes_per_s=8e9, latency_s=1e-6), LinkSpec(bytes_per_s=2e9, latency_s=5e-6)
TRANSFER = Transfer(
    sent=CACHE,
    received=CACHE,
    receivers=1,
    decode_dp=1,
    wire="scale_out",
    peak_bytes_per_s=1e9,
    wire_fraction=1.0,
    latency_s=0.0,
    handshake_s=0.0,
    recomputes_last=False,
    reserves_first=False,
    num_layers=40,
    layerwise=True,
)


def cluster(name, scale_out):
    return load_cluster(name, "test")[0].model_copy(update={"scale_out": scale_out})


@pytest.mark.parametrize("wires", [(FAST, SLOW), (SLOW, FAST), (SLOW, SLOW)])
def test_two_clusters_exchange_at_the_pace_of_the_slower_ones_wires(wires):
    clusters = tuple(map(cluster, ("h100-sxm-8", "h200-sxm-8"), wires))
    spec = PrefillPoolSpec(wire_fraction=0.5, handshake_s=1e-3)
    found = make_transfer(spec, clusters, (ALONE, ALONE), CACHE, 2, 40, KVTransfer(handshake_s=0.5))
    assert found.wire == "scale_out"
    assert found.bytes_per_s == pytest.approx(1e9)
    assert found.latency_s == pytest.approx(5e-6)
    assert found.handshake_s == 1e-3, "the deployment's own"
    assert found.send_s(3000) == found.receive_s(3000) == pytest.approx(3e-3)


def test_a_stage_sends_beside_its_own_share_of_the_computing():
    """Each of four stages has 2 s of 8 s of computing, in which its links carry 2 of 10 s."""
    assert replace(TRANSFER, stages=4).left_s(10.0, 8.0) == pytest.approx(8.0)
    assert TRANSFER.left_s(10.0, 8.0) == pytest.approx(2.0)


seconds = st.floats(0.0, 100.0)


@cases(60)
@given(seconds, seconds, st.integers(1, 16), st.integers(1, 8))
def test_a_pipeline_leaves_what_each_of_its_stages_would_leave_by_itself(
    busy_s, computing_s, layers, stages
):
    whole = replace(TRANSFER, num_layers=layers * stages, stages=stages)
    stage = replace(TRANSFER, num_layers=layers)
    left_s = whole.left_s(busy_s, computing_s * stages)
    assert left_s == pytest.approx(stage.left_s(busy_s, computing_s))
    assert busy_s / layers - 1e-9 <= left_s <= busy_s
