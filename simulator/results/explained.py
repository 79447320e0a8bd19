"""Explanation of a run, as ``run.json`` holds it under ``explanation``."""

from __future__ import annotations

from dataclasses import dataclass

PIECES = {
    "attention": "attention, evenly spread",
    "dense": "dense blocks, evenly spread",
    "experts": "routed experts, evenly loaded",
    "below": "experts below the GPU's memory",
    "chance": "experts uneven by chance",
    "skew": "experts uneven beyond chance",
    "unevenness": "requests uneven between ranks",
    "jitter": "ranks slower at equal work",
    "bubble": "stages of the pipeline waiting",
    "links": "exchanges with even links",
    "busiest_link": "the busiest link beyond the mean",
    "collectives": "all-reduces and sends between stages",
    "latency": "latency of exchanges",
    "host": "the engine's own work",
    "slow_gpus": "GPUs slower than usual",
    "slow_wires": "links slower than usual",
    "stops": "steps cut off by failures",
    "between": "between steps: moves, hangs, new groups, reads",
}
"""Pieces of a token's time in the order of the waterfall, with their words: from what perfect
balance and free links would cost to all of it."""
RESOURCES = {
    "memory": "memory bandwidth",
    "arithmetic": "arithmetic",
    "kernels": "what else kernels do",
    "network": "network bandwidth",
    "latency": "network latency",
    "engine": "the engine's own work",
    "below": "the memory below the GPU's",
}
"""Resources that may be faster, with their words: those of
:class:`~simulator.config.accelerator.Speeds`, and the links."""
LIMITS = {
    **RESOURCES,
    "measured": "steps as they were measured",
    "slower": "slower GPUs and links",
    "outside": "stops and transfers",
}
"""Limits of a token's time, with their words."""

LEAST_GAIN = 0.01
"""Share by which a metric must be better for a change to help: fidelities agree no better."""


@dataclass(frozen=True)
class Waterfall:
    """Time of a token of one pool, in pieces that add up to it."""

    pool: str
    """Pool, named as in :data:`~simulator.results.tables.STEP_COLUMNS`."""
    token: str
    """Kind of token: ``output``: mean over all output tokens but each request's first, of the
    seconds from its predecessor; ``prompt``: mean over prompt tokens, of the seconds in which a
    replica runs steps."""
    token_s: float
    """Seconds of a token."""
    pieces: dict[str, float]
    """Seconds by piece, in the order of :data:`PIECES`; those that cannot occur are left out."""
    prompts: dict[str, float]
    """Part of each piece that is of prompts of other requests: what it takes longer than it would
    for the decodes of its steps alone. 0 of a ``prompt`` token, which waits for none."""
    limits: dict[str, float]
    """Share of the token's time by limit (:data:`LIMITS`), the largest first; they add up to 1.
    That of a resource is the elasticity of the time to it."""
    doubled: dict[str, float]
    """Share of the token's time that each resource (:data:`RESOURCES`), twice as fast, would save
    were the steps the same: at most half its share in ``limits``, but where a library goes over to
    another protocol."""
    hidden_s: float
    """Seconds of exchanges behind computation, which are in no piece."""
    layers_s: list[float]
    """Seconds of ``chance`` and ``skew`` by MoE layer; empty for a dense model."""
    ranks: list[float]
    """Ratio of each rank's time in routed experts to the mean rank's; empty for a dense model."""

    @property
    def prompts_s(self) -> float:
        """Seconds of prompts of other requests."""
        return sum(self.prompts.values())

    @property
    def binding(self) -> str:
        """Limit with the largest share."""
        return next(iter(self.limits))


@dataclass(frozen=True)
class Queue:
    """Wait of requests before their first step."""

    share: float
    """Share of the time from arrival to last token."""
    limited_by: str
    """Limit that kept requests waiting for the longest time, of
    :data:`~simulator.results.tables.ADMISSION_LIMITS`."""


@dataclass(frozen=True)
class Tried:
    """Change of a deployment, tried by simulating it."""

    text: str
    """Change in words."""
    overrides: list[str]
    """Change as ``path=value`` texts, which ``--set`` takes."""
    value: float | None = None
    """Metric with the change; ``None`` where it was not simulated."""
    gain: float | None = None
    """Share by which the metric is better with the change, below 0 where it is worse."""
    band: list[float] | None = None
    """80 % band of the gain, going by how far off the simulator was elsewhere and by another seed;
    ``None`` where the gain is less than :data:`LEAST_GAIN`."""
    reason: str = ""
    """Reason why it was not simulated; empty where it was."""
    resource: str = ""
    """Resource that is twice as fast, of :data:`RESOURCES`; empty of other changes."""
    offered_by: list[str] | None = None
    """Engines that have a way to do it, where the deployment's has none: none at all, if empty;
    ``None`` where its own has one, or none is needed."""

    @property
    def is_sure(self) -> bool:
        """Whether it helps throughout its band."""
        return self.band is not None and self.band[0] > 0


@dataclass(frozen=True)
class Changes:
    """Changes of a deployment that were tried, each by itself."""

    metric: str
    """Metric that they are ranked by, of :data:`~simulator.results.metrics.METRICS`."""
    value: float
    """Metric without any change."""
    stretch: list[str]
    """Overrides that all were simulated with, since the trace is long; empty where it is not."""
    num_requests: int
    """Requests that all were simulated with."""
    tried: list[Tried]
    """Changes, those that help most first, those that were not simulated last."""


@dataclass(frozen=True)
class Explained:
    """Explanation of one deployment's run."""

    waterfalls: tuple[Waterfall, ...]
    """Time of a token in each pool."""
    queue: Queue
    """Wait of requests before their first step."""
    changes: Changes
    """Changes that may help, as far as they do."""
