"""Causes of one step's seconds: its program priced as it is, and again without one cause after the
other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cost.comm import Exchange
from simulator.engine.experts_table import Lockstep
from simulator.policies.topology import Fabric
from simulator.step.expert_choices import UniformTokens
from simulator.step.operations import list_operations, pass_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch, Busy, Operation, PricedBatch, PricedPart, Start, Together

Floats = NDArray[np.float64]
EXCHANGING = ("dispatch", "combine")
"""Phases in which tokens travel to experts and back."""
_CHANGED = (Start, Together)
_ROUNDING = 1e-9
"""Share of an exchange that is left by adding up its parts in another order."""


class Exposed(NamedTuple):
    """Seconds of exchanges that no computation hides."""

    links_s: float
    """Seconds with links of a kind that all carry the same, and without latency."""
    busiest_s: float
    """Seconds that the busiest link adds."""
    latency_s: float
    """Seconds that latency adds."""

    @property
    def total_s(self) -> float:
        """Seconds of all three."""
        return self.links_s + self.busiest_s + self.latency_s


class StepCauses(NamedTuple):
    """Seconds of one step by cause."""

    phases: dict[str, float]
    """Seconds by phase, mean over ranks (:data:`simulator.results.phases.STEP_PHASES`)."""
    below_s: float
    """Seconds of ``experts`` that would not pass were all experts in the GPU's memory."""
    uneven_s: float
    """Seconds of ``wait`` that the mean rank waits since experts are loaded unevenly."""
    chance_s: float
    """Seconds of it at the same tokens, were every expert slot equally likely; never more."""
    jitter_s: float
    """Seconds of ``wait`` for ranks that take longer by chance at equal work."""
    exchanges: Exposed
    """Seconds of ``dispatch`` and ``combine``."""
    collectives: Exposed
    """Seconds of ``collective``."""
    hidden_s: float
    """Seconds of exchanges behind computation."""
    layer_L: Floats
    """Seconds by which the slowest rank's experts exceed the mean rank's in each MoE layer,
    ``[L]``."""
    rank_R: Floats
    """Seconds of each rank's experts in all layers, ``[R]``."""

    @property
    def duration_s(self) -> float:
        """Seconds of the step."""
        return sum(self.phases.values())


def find_causes(prices: Prices, batch: Batch, offset: int, rng: np.random.Generator) -> StepCauses:
    """Price a batch with and without each cause.

    Args:
        offset: index of its first token in the pool of recorded choices.
        rng: for the expert slots of uniform routing.
    """
    priced, layout = prices.price_batch(batch, offset), prices.placement.layout
    program = list_operations(prices, priced)

    def run(changed: list[Operation]) -> dict[str, float]:
        return Lockstep(changed, layout.num_ranks).run()

    def find_uneven(changed: list[Operation], phases: dict[str, float]) -> float:
        return max(0.0, phases["wait"] - run(_even_out(changed))["wait"])

    phases, chance_s = run(program), 0.0
    uneven_s = find_uneven(program, phases)
    if uneven_s > 0.0:
        uniform = list_operations(prices, _route_uniformly(prices, priced, rng))
        chance_s = find_uneven(uniform, run(uniform))
    calm = run(_change_exchanges(program, lambda one: replace(one, stagger_s=0.0)))
    swift = _change_exchanges(program, lambda one: replace(one, latency_s=0.0))
    swift_s = run(swift)
    even_s = run(_change_exchanges(swift, lambda one: _share_links(prices.placement.fabric, one)))
    exchanges = _divide(phases, swift_s, even_s, EXCHANGING)
    hidden_s = _sum_alone(program) - exchanges.total_s
    layer_L, rank_R = _measure_layers(priced, layout.num_ranks)
    return StepCauses(
        phases,
        _measure_below(prices, batch, offset, phases["experts"]),
        uneven_s,
        min(chance_s, uneven_s),
        max(0.0, phases["wait"] - calm["wait"]),
        exchanges,
        _divide(phases, swift_s, even_s, ("collective",)),
        hidden_s if hidden_s > _ROUNDING * exchanges.total_s else 0.0,
        layer_L,
        rank_R,
    )


def _measure_below(prices: Prices, batch: Batch, offset: int, experts_s: float) -> float:
    """Measure by how much longer the experts of a batch take since some lie below the GPU's memory.

    Args:
        experts_s: seconds that they take.
    """
    if prices.placement.offload is None:
        return 0.0
    whole = Prices(replace(prices.placement, offload=None), prices.max_tokens)
    program = list_operations(whole, whole.price_batch(batch, offset))
    held = Lockstep(program, whole.placement.layout.num_ranks).run()
    return max(0.0, experts_s - held["experts"])


def price_step(prices: Prices, batch: Batch, offset: int, *, with_drafts: bool = True) -> float:
    """Price a batch in seconds, with the passes that draft for it or without."""
    programs = [(1, list_operations(prices, prices.price_batch(batch, offset)))]
    programs += [
        (count, pass_operations(own, own.price_batch(passed, offset)))
        for own, passed, count in (prices.list_passes(batch) if with_drafts else ())
    ]
    num_ranks = prices.placement.layout.num_ranks
    return sum(
        count * sum(Lockstep(program, num_ranks).run().values()) for count, program in programs
    )


def _even_out(program: list[Operation]) -> list[Operation]:
    """Let every rank's experts take as long as the mean rank's."""
    return [
        one._replace(seconds_R=np.full_like(one.seconds_R, one.seconds_R.mean()))
        if isinstance(one, Busy) and one.phase == "experts"
        else one
        for one in program
    ]


def _change_exchanges(
    program: list[Operation], change: Callable[[Exchange], Exchange]
) -> list[Operation]:
    return [
        one._replace(exchanges=tuple(map(change, one.exchanges)))
        if isinstance(one, _CHANGED)
        else one
        for one in program
    ]


def _share_links(fabric: Fabric, exchange: Exchange) -> Exchange:
    """Let the links of each kind that an exchange uses carry the same."""
    busy_L = exchange.busy_s.copy()
    kind_L = np.array([link.kind for link in fabric.links])
    for kind in set(kind_L.tolist()) if busy_L.size else ():
        is_used = (kind_L == kind) & (busy_L > 0)
        if is_used.any():
            busy_L[is_used] = busy_L[is_used].mean()
    return replace(exchange, busy_s=busy_L)


def _divide(
    whole: dict[str, float],
    swift: dict[str, float],
    even: dict[str, float],
    names: tuple[str, ...],
) -> Exposed:
    """Divide the seconds of some phases by what is left of them without latency, and with even
    links besides.
    """
    whole_s, swift_s, even_s = (sum(one[name] for name in names) for one in (whole, swift, even))
    swift_s = min(swift_s, whole_s)
    even_s = min(even_s, swift_s)
    return Exposed(even_s, swift_s - even_s, whole_s - swift_s)


def _route_uniformly(prices: Prices, priced: PricedBatch, rng: np.random.Generator) -> PricedBatch:
    """Price the same tokens with every expert slot equally likely."""
    placement = prices.placement
    experts = placement.experts
    assert experts is not None
    parts = []
    for part, steps in priced.parts:
        tokens = UniformTokens(experts, placement.layout, part.tokens_d, rng)
        places = [(layer, 0) for layer in range(len(steps))]
        parts.append(PricedPart(part, prices.experts.price_tokens(tokens, places)))
    return PricedBatch(priced.batch, tuple(parts))


def _sum_alone(program: list[Operation]) -> float:
    """Sum the seconds that exchanges of tokens would take by themselves."""
    return sum(
        one.exchanges[0].alone_s
        for one in program
        if isinstance(one, _CHANGED) and one.phase in EXCHANGING
    )


def _measure_layers(priced: PricedBatch, num_ranks: int) -> tuple[Floats, Floats]:
    """Measure how uneven each layer is, ``[L]``, and how long each rank's experts take, ``[R]``."""
    layer_L = np.zeros(len(priced.parts[0].steps))
    rank_R = np.zeros(num_ranks)
    for _, steps in priced.parts:
        for layer, step in enumerate(steps):
            layer_L[layer] += step.experts_R.max() - step.experts_R.mean()
            rank_R += step.experts_R
    return layer_L, rank_R
