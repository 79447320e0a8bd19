"""Step tables that tests share: filling one takes a thousand times as long as a short run by it."""

import numpy as np

from simulator.engine import experts_table
from simulator.engine.shards import digest_placement
from simulator.engine.table import fill_entry, price_step, start_table
from simulator.step.mixes import single_mix


class Tables:
    """Step tables by the placement that they price, each entry filled once."""

    def __init__(self):
        self._known = {}

    def fill(self, pool, stream):
        """What :func:`simulator.engine.timeline.serve` asks for a pool's table: whoever is first to
        ask for an entry fills it. Where the engine would fill it for several mixes, it is whole.
        """
        table = self.start(pool.prices, stream)
        if pool.profiles is not None:
            fill_all(table, pool.prices, stream)
        return table

    def start(self, prices, stream="steps"):
        """A table of one mix, with the entries that were asked for until now."""
        draws = experts_table._MOST_DRAWS
        key = (digest_placement(prices.placement), prices.max_tokens, stream, draws)
        if key not in self._known:
            self._known[key] = start_table(single_mix(prices))
        return self._known[key]


def fill_all(table, prices, stream):
    """Fill the entries that a table of one mix lacks."""
    for place in np.argwhere(~table.is_filled).tolist():
        fill_entry(table, single_mix(prices), stream, *place)


def price_filling(table, prices, stream, requests, ranks, row):
    """Seconds of a formed step, which are written into its row; entries that they lack are
    filled.
    """
    while np.isnan(step_s := price_step(requests, ranks, table, 0, row)):
        fill_entry(table, single_mix(prices), stream, *table.wanted.tolist())
    return step_s
