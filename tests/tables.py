"""Step tables that tests share: filling one takes a thousand times as long as a short run by it."""

import hashlib
import pickle
from dataclasses import replace

from simulator.engine.table import make_table


class Tables:
    """Step tables by the placement that they price, each filled once."""

    def __init__(self):
        self._known = {}

    def fill(self, pool, stream):
        """What :func:`simulator.engine.timeline.serve` asks for a pool's table."""
        return self.make(pool.prices, stream)

    def make(self, prices, stream="steps"):
        """As :func:`simulator.engine.table.make_table` does."""
        placed = pickle.dumps(replace(prices.placement, name=""))
        key = (hashlib.blake2b(placed).digest(), prices.max_tokens, stream)
        if key not in self._known:
            self._known[key] = make_table(prices, stream)
        return self._known[key]
