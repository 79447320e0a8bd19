"""Step tables that tests share: filling one takes a thousand times as long as a short run by it."""

from simulator.engine.table import make_table

_LEFT_OUT = {"name", "replicas", "balancing", "scheduling", "failures", "prefill"}
"""What a deployment says that no price hangs on, but by the tokens of its largest step."""


class Tables:
    """Tables of plans as they were made, each filled once. Replicas, the cache, rules of batching
    and failures may have been replaced since, but nothing that has a price.
    """

    def __init__(self):
        self._known = {}

    def fill(self, pool, stream):
        """What :func:`simulator.engine.timeline.serve` asks for a pool's table."""
        return self.make(pool.prices, stream)

    def make(self, prices, stream="steps"):
        """As :func:`simulator.engine.table.make_table` does."""
        plan = prices.plan
        key = (
            plan.spec.model_dump_json(exclude=_LEFT_OUT),
            plan.layout,
            plan.drafts,
            plan.seed,
            prices.max_tokens,
            stream,
        )
        if key not in self._known:
            self._known[key] = make_table(prices, stream)
        return self._known[key]
