"""Scenarios: the deployments to compare, and the traffic that they serve or the batch that they
train on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, TypeVar

from pydantic import PrivateAttr, model_validator

from simulator.base.errors import UserError, did_you_mean
from simulator.base.frozen import SomeOf
from simulator.config.deployment import DeploymentSpec
from simulator.config.execution import ExecutionSpec
from simulator.config.job import Job, check_names_differ
from simulator.config.training import TrainingDeployment, TrainingSpec
from simulator.config.workload import WorkloadSpec


class Scenario(Job):
    """Input of ``moesim run`` and ``moesim execute``: one workload, and the deployments to compare
    on it.
    """

    NOUN = "scenario"
    FAMILY = "workloads"
    TABLES = "[workload] and [[deployments]]"
    TAKEN = "moesim run takes"

    _where: str = PrivateAttr(default="scenario")
    workload: WorkloadSpec
    """Traffic that every deployment serves."""
    execution: ExecutionSpec = ExecutionSpec()
    """Steps that ``moesim execute`` runs for real; ``moesim run`` does not look at them."""
    deployments: SomeOf[DeploymentSpec]
    """Deployments to compare."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        check_names_differ("deployments", [one.name for one in self.deployments])
        return self


class TrainingScenario(Job):
    """Input of ``moesim run`` and ``moesim execute`` for a training: one batch, and the deployments
    to compare on it.
    """

    NOUN = "training scenario"
    FAMILY = "workloads/training"
    TABLES = "[training] and [[deployments]]"
    TAKEN = "moesim run takes, one at a time and without a sweep"

    training: TrainingSpec
    """Batch that every deployment trains on."""
    deployments: SomeOf[TrainingDeployment]
    """Deployments to compare."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        check_names_differ("deployments", [one.name for one in self.deployments])
        return self


Deployment = TypeVar("Deployment", DeploymentSpec, TrainingDeployment)


def choose_deployments(
    deployments: Sequence[Deployment], names: Sequence[str], where: str
) -> list[Deployment]:
    """Choose deployments by name, in the scenario's order; all, if ``names`` is empty.

    Raises:
        UserError: if there is none of a name.
    """
    known = [one.name for one in deployments]
    for name in names:
        if name not in known:
            raise UserError(
                f"--deployment {name}: {where} has none of that name; {did_you_mean(name, known)}"
            )
    return [one for one in deployments if not names or one.name in names]
