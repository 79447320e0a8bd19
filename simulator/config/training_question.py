"""A plan's question about training: these models, on these machines, in so many days."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import model_validator

from simulator.base.errors import did_you_mean
from simulator.base.frozen import Frozen, Policy, SomeOf
from simulator.base.kinds import PolicyOf
from simulator.base.quantities import Gpus, Label, Price, Share, value_range
from simulator.config.job import Job, check_names_differ
from simulator.config.named import ClusterName, ModelName
from simulator.config.pairing import DenseOf, MoeOf, check_one_model, model_text
from simulator.config.training import OptimizerSpec, TrainingDType, TrainingSpec

Days = Annotated[float, value_range(1e-3, 3660, "days")]


class TrainingTargets(Frozen):
    """Limits that a training must keep."""

    days: Days
    """Most days until all tokens are trained on."""


class TrainedModel(Frozen):
    """A model that would do the job."""

    name: Label = ""
    """Name in the answer; absent = the model's."""
    model: ModelName = ""
    """Name of a model, or the path of a TOML file or a Hugging Face ``config.json``; absent =
    ``dense_of`` or ``moe_of`` says which one is made."""
    dense_of: DenseOf | None = None
    """Dense counterpart of a mixture of experts, in the place of ``model``."""
    moe_of: MoeOf | None = None
    """Mixture of experts for a dense model, in the place of ``model``."""
    dtype: TrainingDType = "bf16"
    """Number format that matrix products compute in."""
    routing: Annotated[Policy, PolicyOf("routing")] | None = None
    """Routing policy: which experts tokens choose; absent = the model's own default."""

    _names_one_model = model_validator(mode="after")(check_one_model)

    @property
    def title(self) -> str:
        """Name in the answer."""
        return self.name or model_text(self)


class TrainingCluster(Frozen):
    """Machines that could be rented, or are there."""

    cluster: ClusterName
    """Name of a cluster file without a number of GPUs: ``h100-sxm``."""
    max_gpus: Gpus = 1024
    """Most GPUs of this kind."""
    price_per_gpu_hour: Price | None = None
    """Price of one GPU for one hour, in the cluster file's currency; absent = the cluster
    file's."""


class TrainingQuestion(Job):
    """Input of ``moesim plan`` about training."""

    NOUN = "plan of training"
    FAMILY = "workloads/training_plans"
    TABLES = "[training], [targets], [[models]] and [[clusters]]"
    TAKEN = "moesim plan takes"

    training: TrainingSpec
    """Batch of a step, and tokens in all."""
    targets: TrainingTargets
    """Limits that a training must keep."""
    models: SomeOf[TrainedModel]
    """Models that would do the job."""
    clusters: SomeOf[TrainingCluster]
    """Machines to train on."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Optimizer and the bytes that it keeps."""
    uptime: Share = 1.0
    """Share of the time that trains, failures and checkpoints taken off."""

    @model_validator(mode="after")
    def _can_be_answered(self) -> Self:
        if self.training.total_tokens is None:
            raise ValueError(
                "training.total_tokens is missing: how long a training takes depends on it"
            )
        titles = [one.title for one in self.models]
        check_names_differ("models", titles)
        quality = self.training.quality
        if quality is not None and quality.as_good_as not in titles:
            raise ValueError(
                f"training.quality.as_good_as names '{quality.as_good_as}', and there is none of "
                f"that name; {did_you_mean(quality.as_good_as, titles)}"
            )
        return self
