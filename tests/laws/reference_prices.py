"""What the reference's steps take: read from the same tables as the engine's."""

import numpy as np

from simulator.engine.state import start_ranks, start_requests
from simulator.engine.step_log import LOG_COLUMNS
from simulator.engine.timeline import STREAMS
from simulator.step import prices as pieces
from tests.tables import price_filling

MOST_TOKENS = 1100
"""Tokens of a data-parallel rank in the largest step of any case."""


def fill_from(tables):
    """What the engine asks for a pool's table."""

    def fill(pool, stream):
        assert pool.max_tokens <= MOST_TOKENS
        return tables.start(price_large(pool.plan), stream)

    return fill


def price_large(plan):
    """Prices of steps that are large enough for any case, so that a placement has one table."""
    return pieces.Prices(plan.placement, MOST_TOKENS)


class Prices:
    """Prices of steps of a deployment's pools, of which the reference says what each rank
    computes.
    """

    def __init__(self, plan, trace, tables):
        names = ("both",) if plan.prefill is None else ("decode", "prefill")
        plans = dict(zip(names, plan.pools, strict=True))
        self._prices = {name: price_large(pool) for name, pool in plans.items()}
        self._tables = {
            name: tables.start(prices, STREAMS[name]) for name, prices in self._prices.items()
        }
        self._requests = start_requests(trace, with_prefixes=False)
        self._ranks = {name: make_ranks(pool, trace) for name, pool in plans.items()}

    def __call__(self, name, parts_d):
        requests, ranks = self._requests, self._ranks[name]
        ranks.each.num_running[:] = [len(parts) for parts in parts_d]
        number = 0
        for d, parts in enumerate(parts_d):
            for i, part in enumerate(parts):
                request = requests.each[number]
                request.num_input = part.num_input
                request.generated = part.generated
                request.computed = part.computed
                ranks.running[d, i], ranks.chunk[d, i] = number, part.num_tokens
                number += 1
        table, prices, stream = self._tables[name], self._prices[name], STREAMS[name]
        return price_filling(table, prices, stream, requests, ranks, np.zeros(len(LOG_COLUMNS)))


def make_ranks(plan, trace):
    """Room for any batch of a replica."""
    layout = plan.placement.layout
    return start_ranks(layout.attention_dp * layout.pp, trace.num_requests, 0, 0, layout.pp)
