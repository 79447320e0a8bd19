"""Alpha-beta model of communication: latency by number of nodes, plus the busiest link's bytes over
its achieved rate (Hockney's model, per link).

The kernels of an exchange also copy: the calibration says how far this work of their
multiprocessors overlaps the links
(:class:`simulator.config.calibration.communication.ExchangeFit`). An all-reduce is the faster of
the engine's own kernel and NCCL's operation, which engines choose between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from simulator.base.arrays import Bools, Floats
from simulator.base.errors import UserError, did_you_mean
from simulator.base.frozen import Frozen
from simulator.base.quantities import Factor
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration, CollectiveFit, ExchangeFit
from simulator.config.calibration.communication import Load, doublings, passes_of
from simulator.config.host import HostRates
from simulator.cost.comm import Exchange, Operation, Vectors
from simulator.cost.compute import check_shares
from simulator.policies.messages import Messages
from simulator.policies.topology import Fabric

COLLECTIVE = "collective"
"""Kernels of an exchange that is a library's all-gather and reduce-scatter."""
LOW_LATENCY = "low_latency"
"""Kernels of DeepEP for few tokens, whose start is priced where the contents are unknown."""
_COLLECTIVES: dict[str, str] = {"dispatch": "all_gather", "combine": "reduce_scatter"}
_CUSTOM, _ALL_REDUCE = "custom_all_reduce", "all_reduce"


class AlphaBeta(Frozen):
    """The constants come from the calibration, one set for each kernel and operation."""

    dispatch_rate: Factor = 1.0
    """Factor on the rate between domains on the way to the experts, over that of the release whose
    kernels were calibrated: older libraries fill the network less."""
    combine_rate: Factor = 1.0
    """Factor on the rate between domains on the way back from the experts."""

    def prepare(
        self, fabric: Fabric, calibration: Calibration | HostRates, accelerator: AcceleratorSpec
    ) -> AlphaBetaModel:
        shares = check_shares(calibration, "communication", "alpha_beta")
        return AlphaBetaModel(fabric, shares, accelerator, self)


@dataclass(frozen=True)
class AlphaBetaModel:
    """Alpha-beta model prepared for one fabric."""

    fabric: Fabric
    calibration: Calibration
    accelerator: AcceleratorSpec
    policy: AlphaBeta

    def exchange(
        self, operation: Operation, sent: Messages, vectors: Vectors | None = None
    ) -> Exchange:
        if not len(sent.number_M):
            return Exchange.empty()
        if vectors is not None:
            return self.exchanges(operation, [sent], vectors)[0]
        fit = self._exchange_fit(operation, LOW_LATENCY)
        start_s = float(fit.start_s(Load(0.0, 0.0, 0.0, 0.0, 0.0, self.fabric.num_nodes)))
        return Exchange(
            start_s, self.fabric.sum_by_link(sent) / self._achieved_L(fit, operation), sent
        )

    def exchanges(
        self, operation: Operation, sent_X: Sequence[Messages], vectors: Vectors
    ) -> list[Exchange]:
        if vectors.kernels == COLLECTIVE:
            return [self._price_gathered(operation, sent) for sent in sent_X]
        fit = self._exchange_fit(operation, vectors.kernels)
        multiprocessors = self.accelerator.num_multiprocessors
        # Kernels of the GPU's own post to its own card; changing rails before is what NCCL does.
        fabric = self.fabric.direct
        links_XL = np.stack([fabric.sum_by_link(sent) for sent in sent_X]) / self._achieved_L(
            fit, operation
        )
        wires_X = links_XL.max(axis=1)
        sums_X4R = np.stack([sent.list_sums(fabric.node_R) for sent in sent_X])
        sent_XR, received_XR, out_XR, in_XR = sums_X4R.transpose(1, 0, 2) / vectors.vector_bytes
        load = Load(
            tokens=vectors.tokens_R,
            copies=np.maximum(sent_XR, received_XR),
            crossing=np.maximum(out_XR, in_XR),
            vector_bytes=vectors.vector_bytes,
            num_experts=vectors.num_experts,
            num_nodes=fabric.num_nodes,
        )
        copying_X = fit.copying_s(load, multiprocessors).max(axis=1)
        carry_X = fit.overlapped_s(copying_X, wires_X)
        # Kernels that copy slower than the links carry leave every link idle in the same
        # proportion.
        latency_X = float(fit.start_s(load)) + fit.announce_s(
            load, carry_X[:, None], multiprocessors
        ).max(axis=1)
        if fit.num_sms:
            held_X = (latency_X + carry_X) * fit.num_sms / multiprocessors
        else:
            # Low-latency kernels leave while bytes are under way (DeepEP's receiving hook):
            # starting and copying remains.
            held_X = np.minimum(
                float(fit.start_s(load._replace(num_nodes=1))) + copying_X, latency_X + carry_X
            )
        slowed_XL = links_XL * (carry_X / np.where(wires_X > 0, wires_X, 1.0))[:, None]
        return [
            Exchange(float(latency_s), busy_L, sent, held_s=float(held_s), is_direct=True)
            if wires_s > 0
            else Exchange.empty()
            for latency_s, busy_L, sent, held_s, wires_s in zip(
                latency_X, slowed_XL, sent_X, held_X, wires_X, strict=True
            )
        ]

    def _achieved_L(self, fit: ExchangeFit, operation: Operation) -> Floats:
        """Bytes per second that each link achieves, ``[links]``."""
        rate = self.policy.dispatch_rate if operation == "dispatch" else self.policy.combine_rate
        return self._peaks_L * np.where(
            self._is_scale_up_L, fit.scale_up_fraction, fit.scale_out_fraction * rate
        )

    def _price_gathered(self, operation: Operation, sent: Messages) -> Exchange:
        """Price an exchange by collectives of a library: all ranks' tokens to all, or their sums
        back, each part as large as the largest.
        """
        if not len(sent.number_M):
            return Exchange.empty()
        name, everyone = _COLLECTIVES[operation], tuple(range(self.fabric.num_ranks))
        size = np.array([float(sent.number_M.max()) * sent.unit * len(everyone)])
        start_s, *busiest_s = (
            float(part[0])
            for part in self._parts_s(self._collective_fit(name), name, size, everyone)
        )
        links_s = self._spread_over_links(self.fabric.sum_by_link(sent) / self._peaks_L, busiest_s)
        # Engines overlap kernels that are made for it only, so these hold the GPU throughout.
        return Exchange(start_s, links_s, sent, held_s=start_s + float(links_s.max()))

    def all_reduce(self, num_bytes: float, ranks: tuple[int, ...]) -> Exchange:
        """Price an all-reduce by the fastest of the protocols of the engine and NCCL."""
        if len(ranks) == 1 or num_bytes == 0:
            return Exchange.empty()
        ways = (
            self._collective(fit, _ALL_REDUCE, num_bytes, ranks)
            for fit in self._all_reduce_fits(ranks)
        )
        return min(ways, key=lambda way: way.alone_s)

    def all_reduces_s(self, num_bytes: Floats, ranks: tuple[int, ...]) -> Floats:
        if len(ranks) == 1:
            return np.zeros(len(num_bytes))
        found = []
        for fit in self._all_reduce_fits(ranks):
            start_s, carry_s, out_s = self._parts_s(fit, _ALL_REDUCE, num_bytes, ranks)
            found.append(start_s + np.maximum(carry_s, out_s))
        return np.where(num_bytes > 0, np.min(found, axis=0), 0.0)

    def _collective(
        self, fit: CollectiveFit, name: str, num_bytes: float, ranks: tuple[int, ...]
    ) -> Exchange:
        start_s, *busiest_s = (
            float(part[0]) for part in self._parts_s(fit, name, np.array([num_bytes]), ranks)
        )
        ring, per_byte_L = self._ring(ranks)
        sent = ring.times(passes_of(name) * (len(ranks) - 1) / len(ranks) * num_bytes)
        return Exchange(start_s, self._spread_over_links(per_byte_L, busiest_s), sent)

    def _spread_over_links(self, load_L: Floats, busiest_s: list[float]) -> Floats:
        """Seconds of every link in proportion to its load, given those of the busiest link inside
        domains and between.
        """
        links_s = np.zeros(len(load_L))
        for here, seconds in zip(self._kinds, busiest_s, strict=True):
            most = float(load_L[here].max(initial=0.0))
            if most > 0:
                links_s[here] = load_L[here] / most * seconds
        return links_s

    def _parts_s(
        self, fit: CollectiveFit, name: str, num_bytes: Floats, ranks: tuple[int, ...]
    ) -> tuple[Floats, Floats, Floats]:
        """Seconds of latency, of the busiest link inside domains and of the busiest between, for
        messages of many sizes.
        """
        size, passes = len(ranks), passes_of(name)
        nodes = len(set(self.fabric.node_R[list(ranks)].tolist()))
        _, per_byte_L = self._ring(ranks)
        inside, between = self._kinds
        # Ring neighbours of one domain use their ports at the peak, of two domains or of two
        # sockets what joins these.
        inside_s, between_s = (
            float(per_byte_L[here].max(initial=0.0)) for here in (inside, between)
        )
        here = -(-size // nodes) if inside_s else 2
        port_s = inside_s or between_s
        start_s, carry_s = fit.parts_s(num_bytes, float(here), passes, 1.0 / port_s)
        if nodes == 1:
            return start_s, carry_s, np.zeros(len(num_bytes))
        share = passes * (size - 1) / size
        out_s = num_bytes * share * between_s / (fit.scale_out_fraction or 1.0)
        start_s = (
            start_s + fit.scale_out_latency_s + fit.latency_per_doubling_s * float(doublings(nodes))
        )
        return start_s, carry_s if inside_s else np.zeros(len(num_bytes)), out_s

    def _ring(self, ranks: tuple[int, ...]) -> tuple[Messages, Floats]:
        """Route one byte from each rank to the next around a ring: the messages, and the seconds of
        every link at its peak.

        Between domains NCCL forms as many rings as a domain has cards for the group; each takes its
        share of the byte, and enters and leaves every domain by another card.
        """
        if ranks not in self._rings:
            nodes = self.fabric.node_R[list(ranks)]
            members = [
                [rank for rank, at in zip(ranks, nodes, strict=True) if at == node]
                for node in dict.fromkeys(nodes.tolist())
            ]
            num_rings = min(map(len, members)) if len(members) > 1 else 1
            bytes_of: Counter[tuple[int, int]] = Counter()
            for turn in range(num_rings):
                ring = [rank for here in members for rank in here[turn:] + here[:turn]]
                bytes_of.update(zip(ring, ring[1:] + ring[:1], strict=True))
            sent = Messages.from_pairs(self.fabric.num_ranks, bytes_of).times(1.0 / num_rings)
            self._rings[ranks] = sent, self.fabric.sum_by_link(sent) / self._peaks_L
        return self._rings[ranks]

    @cached_property
    def _rings(self) -> dict[tuple[int, ...], tuple[Messages, Floats]]:
        """Rings of the groups priced so far."""
        return {}

    @cached_property
    def _peaks_L(self) -> Floats:
        return np.array([link.bytes_per_s for link in self.fabric.links])

    @cached_property
    def _is_scale_up_L(self) -> Bools:
        return np.array([link.kind == "scale_up" for link in self.fabric.links])

    @cached_property
    def _kinds(self) -> tuple[Bools, Bools]:
        """Masks of the links inside domains, and of those between."""
        return self._is_scale_up_L, ~self._is_scale_up_L

    def _exchange_fit(self, operation: Operation, kernels: str) -> ExchangeFit:
        known = self.calibration.exchange
        if kernels not in known:
            raise UserError(
                f"calibration '{self.calibration.title}' has no exchange kernels "
                f"'{kernels}'; {did_you_mean(kernels, known)}"
            )
        way: Literal["dispatch", "combine"] = "dispatch" if operation == "dispatch" else "combine"
        return known[kernels][way]

    def _collective_fit(self, name: str) -> CollectiveFit:
        known = self.calibration.collective
        if name not in known:
            raise UserError(
                f"calibration '{self.calibration.title}' has no collective "
                f"'{name}'; {did_you_mean(name, known)}"
            )
        return known[name]

    def _all_reduce_fits(self, ranks: tuple[int, ...]) -> list[CollectiveFit]:
        """Calibrated all-reduces: NCCL's, and inside one domain the engine's own kernel."""
        fits = [self._collective_fit(_ALL_REDUCE)]
        in_one = len(set(self.fabric.node_R[list(ranks)].tolist())) == 1
        return fits + (
            [self.calibration.collective[_CUSTOM]]
            if in_one and _CUSTOM in self.calibration.collective
            else []
        )
