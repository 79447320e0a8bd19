"""Certainty of an answer: confidence, sensitivity, and mixtures of experts against dense models at
the same targets.
"""

from __future__ import annotations

from simulator.results.answer.deployments import DeploymentRow
from simulator.results.answer.parts import Band, Banded, Part, make_band


class FigureBand(Part):
    """A figure of the recommended deployment with its 80 % band, in its unit."""

    value: float
    """Simulated value, in the target's unit."""
    low: float | None = None
    """Lower end of the band."""
    high: float | None = None
    """Upper end of the band."""

    @property
    def band(self) -> Band | None:
        """80 % band of the value, in the target's unit; ``None`` where there is none."""
        return make_band(self.low, self.high)


class Source(Part):
    """A source of uncertainty."""

    name: str = ""
    """Name of the source."""
    low: float | None = None
    """Lower end of its 80 % band, as a factor."""
    high: float | None = None
    """Upper end of its 80 % band, as a factor."""
    text: str = ""
    """Description in words."""


class Confidence(Part):
    """Bands of the recommended deployment, and probabilities that the choice is right."""

    needed_cost_low: float | None = None
    """Lower end of the 80 % band of the cost per hour of the cluster that would be needed, were its
    size chosen knowing the simulator's error; of GPUs where machines have no price."""
    needed_cost_high: float | None = None
    """Upper end of that band; null where no cluster within the limits is enough."""
    fails: float | None = None
    """Probability that no cluster within the limits meets the targets."""
    starts: float | None = None
    """Probability that weights and one of the longest requests fit in a GPU's memory."""
    meets_targets: float | None = None
    """Probability that the recommended deployment meets every target as it is; null where it is
    drawn which experts tokens find where some are offloaded."""
    headroom_low: float | None = None
    """Times the traffic that it carries where the calibration is too fast."""
    headroom_high: float | None = None
    """Times the traffic that it carries where the calibration is too slow."""
    cheaper_than_second: float | None = None
    """Probability that it costs less than the second choice."""
    as_dear_as_second: float | None = None
    """Probability that it costs as much as the second choice; also where no size of either does."""
    dearer_than_second: float | None = None
    """Probability that it costs more than the second choice."""
    second: str | None = None
    """The second choice in words."""
    moe_beats_dense: float | None = None
    """Probability that the mixture of experts that is cheapest then costs less than any dense
    model."""
    moe_costs_no_more_than_dense: float | None = None
    """Probability that it costs no more than any dense model."""
    figures: dict[str, FigureBand] = {}
    """Figures of the recommended deployment by name."""
    sources: tuple[Source, ...] = ()
    """Sources of the uncertainty."""

    @property
    def needed_cost_band(self) -> Band | None:
        """The 80 % band of the cost of the cluster that would be needed."""
        return make_band(self.needed_cost_low, self.needed_cost_high)


class Brief(Part):
    """A deployment in brief."""

    model: str
    """Name of the model."""
    deployment: str
    """The deployment in words."""
    gpus: int
    """GPUs of the cluster."""
    cost_per_hour: float
    """Cost per hour, in the plan's currency."""


class SensitivityRow(Banded):
    """The best deployment under one change of the question."""

    name: str = ""
    """Name of the change."""
    change: str
    """The change in words."""
    cost_per_hour: float | None = None
    """Cost per hour of the best deployment then; null where none meets the targets."""
    base_cost_per_hour: float | None = None
    """Cost per hour of the best deployment without the change."""
    cost_ratio: float | None = None
    """Cost with the change over that without; of GPUs where machines have no price."""
    deployment: str | None = None
    """The best deployment in words."""
    flips: bool = False
    """Whether another model or other machines are the best choice then."""
    best_moe: Brief | None = None
    """The best mixture of experts then."""
    best_dense: Brief | None = None
    """The best dense model then."""
    cost_moe_over_dense: float | None = None
    """Cost of the cheapest mixture of experts over that of the cheapest dense model."""
    note: str = ""
    """Note about the row."""


class RatePoint(Banded):
    """The cheapest mixture of experts and dense model at one rate of requests."""

    rate: float
    """Times the planned traffic."""
    requests_per_s: float
    """Requests per second."""
    moe_cost_per_hour: float | None = None
    """Cost per hour of the cheapest mixture of experts; null where none meets the targets."""
    dense_cost_per_hour: float | None = None
    """Cost per hour of the cheapest dense model."""
    cost_ratio: float | None = None
    """Cost of the cheapest mixture of experts over that of the cheapest dense model."""


class Flip(Part):
    """A change at which the cheaper kind of model changes."""

    what: str
    """Changed quantity: "traffic", or the name of a sensitivity row."""
    before: str
    """The cheaper kind before: moe or dense."""
    after: str
    """The cheaper kind after: moe or dense."""
    rate: float | None = None
    """Times the planned traffic; null for other changes."""
    requests_per_s: float | None = None
    """Requests per second; null for other changes."""
    change: str | None = None
    """Change in words; null for traffic."""


class Comparison(Banded):
    """Mixtures of experts against dense models at the same targets."""

    moe: DeploymentRow | None = None
    """The cheapest mixture of experts."""
    dense: DeploymentRow | None = None
    """The cheapest dense model."""
    pruned: DeploymentRow | None = None
    """The cheapest pruned model."""
    pruned_cost_ratio: float | None = None
    """Cost of the cheapest pruned model over that of the cheapest dense one."""
    cost_ratio: float | None = None
    """Cost of the cheapest mixture of experts over that of the cheapest dense model."""
    rates: tuple[RatePoint, ...] = ()
    """The cheapest mixture of experts and dense model at several rates of requests."""
    flips: tuple[Flip, ...] = ()
    """Points at which the cheaper kind changes."""
    text: str = ""
    """The comparison in a sentence."""
