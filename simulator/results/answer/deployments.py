"""Deployments of an answer: candidates that meet the targets, what misses them, points of the
Pareto front, and sizes of the cluster.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.results.answer.parts import Banded, Part

BACKLOG = "backlog"
"""Name of the implied target: that requests leave as fast as they come."""


class TargetWords(NamedTuple):
    """Words for a target."""

    text: str
    """Words in a sentence."""
    heading: str
    """Heading of its column."""


TARGETS = {
    "ttft_s": TargetWords("time to first token", "TTFT"),
    "tpot_s": TargetWords("time per output token", "TPOT"),
    "e2e_s": TargetWords("time to the last token", "E2E"),
    "attainment": TargetWords("share of requests within their limits", "within limits"),
    "output_tokens_per_s": TargetWords("output tokens per second", "output tokens/s"),
    BACKLOG: TargetWords("backlog of requests", "backlog"),
}
"""Targets by name, without the level behind a dot."""


class DeploymentRow(Banded):
    """A deployment on a cluster: what it is, what it costs and what was measured of it. Beside the
    fields stand the figures of the targets (``ttft_s.p90``, in seconds or as shares), with bands.
    """

    deployment: str
    """The deployment in words."""
    model: str
    """Name of the model."""
    is_moe: bool
    """Whether the model is a mixture of experts."""
    kind: str = ""
    """Kind of model: MoE, dense or pruned."""
    is_pruned: bool = False
    """Whether weights of the model are pruned."""
    quality: float | None = None
    """Quality score of the model as the question states it."""
    cluster: str = ""
    """Name of the cluster."""
    gpus: int = 0
    """GPUs of the cluster."""
    gpus_used: int | None = None
    """GPUs that the replicas take up."""
    replicas: int = 0
    """Replicas; of the decode pool where prompts have a pool of their own."""
    prefill_replicas: int = 0
    """Replicas of the prefill pool."""
    spare_replicas: int | None = None
    """Spare replicas beside these, of all pools; null where no availability is asked for."""
    token_budget: int = 0
    """Tokens of a step at most."""
    too_long_share: float = 0.0
    """Share of the requests that are longer than the model's context."""
    cost_per_hour: float
    """Cost per hour of the whole cluster, electricity included, in the plan's currency. The band
    ``needed_cost_per_hour`` is of the cluster that the deployment would need, and
    ``needed_gpus`` of its size, were it chosen knowing the simulator's error."""
    cost_power_per_hour: float = 0.0
    """Cost of electricity per hour where it is paid apart, in the plan's currency."""
    cost_per_million_output_tokens: float = 0.0
    """Cost of a million output tokens at the planned traffic, in the plan's currency."""
    cost_per_million_tokens: float = 0.0
    """Cost of a million tokens, prompts included, in the plan's currency."""
    cost_joules_per_output_token: float = 0.0
    """Energy of an output token, in joules: an upper bound."""
    worst_target: str = ""
    """Name of the target that is missed by most, or kept by least."""
    worst_ratio: float
    """Measured over limit of that target; above 1 it is missed."""
    preempted_share: float = 0.0
    """Share of the requests that lost their KV blocks to others and were computed again."""
    output_tokens_per_s: float = 0.0
    """Output tokens per second of the whole cluster."""
    output_tokens_per_s_per_gpu: float = 0.0
    """Output tokens per second of one GPU."""
    band: str | None = None
    """Method of the bands: "simulated" or "closed form"; null without bands."""
    is_best_probability: float | None = None
    """Probability that the deployment is the cheapest; of equals the first counts."""
    none_cheaper_probability: float | None = None
    """Probability that no other deployment costs less."""

    def has_figure(self, name: str) -> bool:
        """Whether a figure of that name may stand in the row."""
        known = super().has_figure(name.removeprefix("needed_"))
        return known or name.partition(".")[0] in TARGETS

    def measured_value(self, target: str) -> float | None:
        """Find the value measured for a target, in its unit; ``None`` where there is none."""
        return getattr(self, target, None)

    @property
    def is_estimated(self) -> bool:
        """Whether the bands are estimated analytically."""
        return self.band not in (None, "simulated")


class RecommendedRow(DeploymentRow):
    """The recommended deployment."""

    headroom: float | None = None
    """Times the planned traffic that it carries with every target met, all of it or a stretch."""
    headroom_is_least: bool = False
    """Whether it may carry more than these requests can tell."""


class WhyNot(Part):
    """Obstacle that stops a model, or every model of a plan."""

    text: str
    """The reason in words."""
    deployment: str | None = None
    """The deployment that misses least, in words; null where none could be run."""
    target: str | None = None
    """Name of the target that it misses by most."""
    measured: float | None = None
    """Value that was measured for that target, in its unit."""
    times_over: float | None = None
    """Measured over limit of that target."""
    bound: str = ""
    """The limit that bounds the cluster's size, as the question has it."""
    row: DeploymentRow | None = None
    """The deployment on the largest cluster within the limits."""


class ParetoPoint(Banded):
    """A deployment at one load: its speed for a user against what a GPU makes."""

    model: str
    """Name of the model."""
    is_moe: bool
    """Whether the model is a mixture of experts."""
    is_pruned: bool = False
    """Whether weights of the model are pruned."""
    cluster: str
    """Name of the kind of machines."""
    deployment: str
    """The deployment and its load in words."""
    tokens_per_s_user: float
    """Output tokens per second of one user."""
    tokens_per_s_gpu: float
    """Output tokens per second of one GPU."""
    cost_per_million_output_tokens: float = 0.0
    """Cost of a million output tokens, in the plan's currency."""
    kind: str
    """Method by which it was found: "closed form" or "simulated"."""
    is_pooled: bool = False
    """Whether prompts have GPUs of their own."""

    @property
    def is_simulated(self) -> bool:
        """Whether it was simulated."""
        return self.kind == "simulated"


class SmallerSize(Part):
    """The next smaller cluster, and what fails there."""

    gpus: int
    """GPUs of the cluster."""
    worst_target: str
    """Name of the target that is missed by most."""
    worst_ratio: float
    """Measured over limit of that target."""
    measured: float
    """Value that was measured for that target, in its unit."""


class AlsoMeets(SmallerSize):
    """A smaller cluster that meets every target, though one between the two misses some."""

    sampling_error: float
    """Standard error of the ratio, which this many requests leave."""


class LargerSize(Part):
    """The next larger cluster, and the best deployment on it."""

    gpus: int
    """GPUs of the cluster."""
    cost_per_hour: float
    """Cost per hour, in the plan's currency."""
    deployment: str | None = None
    """The best deployment there, in words; null where none that was tried meets the targets."""
    worst_target: str | None = None
    """Name of its binding SLO, the target nearest to its limit."""
    worst_ratio: float | None = None
    """Measured over limit of that target."""


class Sizes(Part):
    """The clusters next to the recommended one in size."""

    smaller: SmallerSize | None = None
    """The next smaller one within the limits."""
    larger: LargerSize | None = None
    """The next larger one within the limits."""
    also_meets: AlsoMeets | None = None
    """A smaller one that meets the targets, where sizes between the two do not."""
