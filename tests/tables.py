"""Step tables that tests share: filling one takes a thousand times as long as a short run by it."""

import hashlib
import pickle
from dataclasses import replace

import numpy as np

from simulator.engine.step_price import price_step
from simulator.engine.table import fill_entry, start_table


class Tables:
    """Step tables by the placement that they price, each entry filled once."""

    def __init__(self):
        self._known = {}

    def fill(self, pool, stream):
        """What :func:`simulator.engine.timeline.serve` asks for a pool's table: whoever is first to
        ask for an entry fills it.
        """
        return self.start(pool.prices, stream)

    def start(self, prices, stream="steps"):
        """A table with the entries that were asked for until now."""
        placed = pickle.dumps(replace(prices.placement, name=""))
        key = (hashlib.blake2b(placed).digest(), prices.max_tokens, stream)
        if key not in self._known:
            self._known[key] = start_table(prices)
        return self._known[key]


def price_filling(table, prices, stream, requests, ranks, row):
    """Seconds of a formed step, which are written into its row; entries that they lack are
    filled.
    """
    while np.isnan(step_s := price_step(requests, ranks, table, row)):
        fill_entry(table, prices, stream, *table.wanted.tolist())
    return step_s
