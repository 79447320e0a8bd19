"""Transfer of a prompt's KV cache from the replica that computed it to the one that decodes."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.base.arrays import Bools, Ints
from simulator.base.jit import jit_inner
from simulator.config.cluster import ClusterSpec, LinkSpec
from simulator.config.deployment import PrefillPoolSpec
from simulator.config.engine import KVTransfer
from simulator.work.layout import Layout
from simulator.work.memory import CacheSize


@dataclass(frozen=True)
class Transfer:
    """KV transfers over one kind of link. Each data-parallel rank sends one cache after the
    other, its tensor-parallel ranks in parallel.
    """

    sent: CacheSize
    """Cache of a sequence that each sending GPU puts on its link."""
    received: CacheSize
    """Cache of a sequence that each receiving GPU stores: exactly its share."""
    receivers: int
    """GPUs that store a share of one cache."""
    decode_dp: int
    """Data-parallel ranks of a decode replica, which receive at the same time."""
    wire: str
    """``scale_up`` or ``scale_out``."""
    peak_bytes_per_s: float
    """Peak bytes per second of one GPU's link, of the slower of both ends."""
    wire_fraction: float
    """Share of the peak that transfers achieve."""
    latency_s: float
    """Seconds of a transfer in which no link is busy."""
    handshake_s: float
    """Seconds from the end of a prompt until its cache leaves."""
    recomputes_last: bool
    """Whether the decode pool computes the last token of a prompt again
    (:class:`~simulator.config.engine.KVTransfer`)."""
    reserves_first: bool
    """Whether a prompt is computed only once the decode pool has room for its cache."""
    num_layers: int
    layerwise: bool
    stages: int = 1
    """Pipeline stages of the prefill pool, each of which computes and sends its own layers."""

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second achieved by one GPU."""
        return self.peak_bytes_per_s * self.wire_fraction

    def num_bytes(self, num_tokens: int) -> float:
        """Bytes of a prompt's cache on all receiving GPUs."""
        return self.received.bytes_for(num_tokens) * self.receivers

    def send_s(self, num_tokens: int) -> float:
        """Seconds for which the sending GPUs' links are busy."""
        return self.sent.bytes_for(num_tokens) / self.bytes_per_s

    def receive_s(self, num_tokens: int) -> float:
        """Seconds for which the receiving GPUs' links are busy."""
        return self.received.bytes_for(num_tokens) / self.bytes_per_s

    def is_transferred(self, num_output: Ints) -> Bools:
        """Whether requests of so many output tokens go on to the decode pool, ``[N]``."""
        return (num_output > 1) | self.recomputes_last

    def left_s(self, busy_s: float, computing_s: float) -> float:
        """Seconds that these links are still busy when the prompt is done
        (:func:`seconds_left`).
        """
        return float(seconds_left(busy_s, computing_s, self.layers, self.stages))

    @property
    def layers(self) -> int:
        """Layers that are sent one by one while the prompt is computed; 0 where all are sent at its
        end.
        """
        return self.num_layers if self.layerwise else 0


@jit_inner
def seconds_left(busy_s: float, computing_s: float, layers: int, stages: int) -> float:
    """Seconds of ``busy_s`` on the links that are left when the prompt, computed for
    ``computing_s``, is done.

    Sent layer by layer, the last layer's cache is always left, and the links carry as much as they
    can of the others meanwhile.

    Args:
        layers: layers that are sent one by one; 0 where all are sent at the prompt's end.
        stages: pipeline stages of the prefill pool, each of which computes and sends its own
            layers.
    """
    if layers == 0:
        return busy_s
    return max(busy_s * stages / layers, busy_s - computing_s / stages)


def make_transfer(
    spec: PrefillPoolSpec,
    clusters: tuple[ClusterSpec, ClusterSpec],
    layouts: tuple[Layout, Layout],
    cache: CacheSize,
    num_gpus: int,
    num_layers: int,
    hand_over: KVTransfer,
) -> Transfer:
    """Price transfers from a prefill pool to a decode pool.

    The fast links carry them where both pools lie in one fast domain, otherwise the links between
    domains.

    Args:
        clusters: of the prefill and of the decode pool.
        layouts: of the prefill and of the decode pool.
        cache: cache of a sequence on one GPU of the decode pool.
        num_gpus: GPUs of both pools.
        hand_over: the engine's protocol between them.
    """
    prefill, decode = clusters
    in_one_domain = prefill.name == decode.name and num_gpus <= decode.gpus_per_node
    wires = [_wire(cluster, in_one_domain) for cluster in clusters]
    senders, receivers = (layout.tp * layout.pp for layout in layouts)
    share = receivers / senders
    return Transfer(
        sent=CacheSize(cache.bytes_per_token * share, cache.bytes_per_sequence * share),
        received=cache,
        receivers=receivers,
        decode_dp=layouts[1].attention_dp,
        wire="scale_up" if in_one_domain else "scale_out",
        peak_bytes_per_s=min(wire.bytes_per_s for wire in wires),
        wire_fraction=spec.wire_fraction,
        latency_s=max(wire.latency_s for wire in wires),
        handshake_s=hand_over.handshake_s if spec.handshake_s is None else spec.handshake_s,
        recomputes_last=hand_over.recomputes_last,
        reserves_first=hand_over.reserves_first or spec.layerwise,
        num_layers=num_layers,
        layerwise=spec.layerwise,
        stages=layouts[0].pp,
    )


def _wire(cluster: ClusterSpec, is_fast: bool) -> LinkSpec:
    return cluster.scale_up if is_fast or cluster.scale_out is None else cluster.scale_out
