"""The answer of a plan as typed parts: what ``plan.json`` holds, and what words, pages and tables
read.
"""

from __future__ import annotations

from simulator.results.answer.certainty import Comparison, Confidence, SensitivityRow
from simulator.results.answer.crossover import CrossoverMap
from simulator.results.answer.deployments import (
    DeploymentRow,
    ParetoPoint,
    RecommendedRow,
    Sizes,
    WhyNot,
)
from simulator.results.answer.failures import Idle, LossRow, SpareGpus, SpareRow
from simulator.results.answer.handover import Basis, Handover
from simulator.results.answer.parts import Part, Undetermined

__all__ = [
    "Answer",
    "Basis",
    "Comparison",
    "Confidence",
    "CrossoverMap",
    "DeploymentRow",
    "Handover",
    "Idle",
    "LossRow",
    "ModelEntry",
    "ParetoPoint",
    "RecommendedRow",
    "RuledOut",
    "SensitivityRow",
    "Sizes",
    "SpareGpus",
    "SpareRow",
    "TrafficFacts",
    "WhyNot",
]


class ModelEntry(Part):
    """A model of the question, whole or pruned."""

    name: str
    """Name of the model."""
    is_moe: bool
    """Whether it is a mixture of experts."""


class RuledOut(Part):
    """A reason for which candidates were not simulated."""

    reason: str
    """The reason in words."""
    count: int
    """Candidates that it ruled out."""
    example: str
    """One of them in words."""


class TrafficFacts(Part):
    """The requests that every deployment was judged by."""

    rate_per_s: float
    """Requests per second on average."""
    asked_rate_per_s: float | None = None
    """Requests per second that the arrival process is asked for; absent where requests come as they
    were recorded."""
    num_requests: int
    """Requests that are judged."""
    lead_requests: int = 0
    """Requests that are served before them and not judged."""
    lasts_s: float | None = None
    """Seconds within which the judged requests arrive."""
    stay_s: float | None = None
    """Seconds that a request stays where the targets are just kept."""
    is_steady: bool | None = None
    """Whether they arrive for long enough to show a steady state."""
    notes: tuple[str, ...] = ()
    """Notes of the reader: rows that were left out, repaired or assumed."""
    num_on_stretch: int | None = None
    """Requests of the stretch on which losses, headroom, bands and what-ifs are simulated; null
    where that is all of them."""
    lengthened_from: int | None = None
    """Requests that the workload asks for, where more were generated."""
    mean_input: float = 0.0
    """Prompt tokens of a request on average."""
    mean_output: float = 0.0
    """Output tokens of a request on average."""


class Answer(Part):
    """The answer of a plan: what to deploy, what else would do, and what that depends on."""

    name: str
    """Name of the question."""
    seed: int = 0
    """Seed of the question."""
    currency: str = "USD"
    """Currency of every cost."""
    targets: dict[str, float] = {}
    """Limits by target (``ttft_s.p90``), in seconds, as shares or in tokens per second."""
    models: tuple[ModelEntry, ...] = ()
    """Models of the question, whole and pruned."""
    spare: SpareGpus = SpareGpus()
    """GPUs that the recommended cluster holds free for failures."""
    clusters: tuple[str, ...] = ()
    """Names of the kinds of machines."""
    num_simulated: int = 0
    """Deployments that were simulated for their size."""
    num_legal: int = 0
    """Deployments that could keep the targets."""
    num_ruled_out: int = 0
    """Deployments that were ruled out before, or by a single trial."""
    ruled_out: tuple[RuledOut, ...] = ()
    """Reasons for which they were."""
    traffic: TrafficFacts | None = None
    """The requests that every deployment was judged by."""
    clusters_ruled_out: dict[str, str] = {}
    """Reasons by kind of machines that the limits exclude."""
    why_not_models: dict[str, WhyNot] = {}
    """Obstacle of each model with which no deployment meets the targets."""
    best_of_each_model: dict[str, DeploymentRow] = {}
    """The cheapest deployment of each model that meets the targets."""
    candidates: tuple[DeploymentRow, ...] = ()
    """Deployments that meet the targets, the best first."""
    pareto: tuple[ParetoPoint, ...] = ()
    """Speed for a user against what a GPU makes."""
    crossover: CrossoverMap | None = None
    """Map of the loads at which a mixture of experts beats a dense model; null without a pair of
    them."""
    recommended: RecommendedRow | None = None
    """The recommended deployment; null where none meets the targets."""
    sizes: Sizes | None = None
    """The clusters next to the recommended one in size."""
    basis: dict[str, Basis] = {}
    """Sources of the numbers of the best deployment of each model, by deployment."""
    handover: Handover | None = None
    """Scenario files, and commands that start the servers."""
    why_not: WhyNot | None = None
    """Obstacle of every deployment, where none meets the targets."""
    sensitivity: tuple[SensitivityRow, ...] = ()
    """The best deployment under changes of the question."""
    losses: tuple[LossRow, ...] = ()
    """The recommended deployment with GPUs or nodes lost."""
    idle: Idle | None = None
    """Idle part of the recommended cluster."""
    spare_nodes: tuple[SpareRow, ...] = ()
    """Clusters that keep every target with GPUs or nodes lost."""
    confidence: Confidence | None = None
    """Confidence in the recommendation."""
    moe_vs_dense: Comparison | None = None
    """Mixtures of experts against dense models at the same targets."""
    undetermined: tuple[Undetermined, ...] = ()
    """Figures that these requests do not determine."""
    headline: str = ""
    """The answer in a sentence."""
    reasons: tuple[str, ...] = ()
    """Further answers to a buyer's questions, a sentence each."""
    findings: tuple[dict[str, str], ...] = ()
    """Kind, severity, and section of the page of each of these."""

    def other_models(self) -> list[DeploymentRow]:
        """The best deployments of the models that are not recommended, the cheapest first."""
        best = self.recommended and self.recommended.model
        rows = [row for row in self.best_of_each_model.values() if row.model != best]
        return sorted(rows, key=lambda row: (row.cost_per_hour, row.gpus))
