"""A scenario: one workload and the deployments to compare on it, as written in a TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, model_validator

from simulator.base.errors import UserError, did_you_mean
from simulator.base.quantities import Label, Seed
from simulator.config.deployment import DeploymentSpec
from simulator.config.execution import ExecutionSpec
from simulator.config.user_file import UserFile, check_names_differ
from simulator.config.workload import WorkloadSpec
from simulator.scenario.user_table import Overrides, read_user_table


class Scenario(UserFile):
    """Input of ``moesim run`` and ``moesim execute``: one workload, and the deployments to compare
    on it.
    """

    _where: str = PrivateAttr(default="scenario")
    name: Label
    """Name of the scenario; absent = the file's."""
    seed: Seed = 0
    """Seed of all random numbers."""
    notes: Label = ""
    """Remarks in free text."""
    workload: WorkloadSpec
    """Traffic that every deployment serves."""
    execution: ExecutionSpec = ExecutionSpec()
    """Steps that ``moesim execute`` runs for real; ``moesim run`` does not look at them."""
    deployments: Annotated[tuple[DeploymentSpec, ...], Field(strict=False, min_length=1)]
    """Deployments to compare."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        check_names_differ("deployments", [one.name for one in self.deployments])
        return self

    def choose_deployments(self, names: Sequence[str]) -> list[DeploymentSpec]:
        """Deployments of these names, in the scenario's order; all of them without any.

        Raises:
            UserError: if there is none of a name.
        """
        known = [deployment.name for deployment in self.deployments]
        for name in names:
            if name not in known:
                raise UserError(
                    f"--deployment {name}: {self.where} has none of that name; "
                    f"{did_you_mean(name, known)}"
                )
        return [entry for entry in self.deployments if not names or entry.name in names]


def load_scenario(
    source: Scenario | str | Path | Mapping[str, Any],
    overrides: Overrides = (),
    seed: int | None = None,
) -> Scenario:
    """Read a scenario, validate it, and override its keys.

    Args:
        source: path of a TOML file, name of a shipped one, or the same keys as a table (paths in
            it are relative to the current folder). A scenario is changed by ``overrides``.
        overrides: values by dotted path, ``{"workload.num_requests": 1000}``; ``*`` means every
            entry of a list: ``{"deployments.*.engine": "sglang"}``. Or texts as of the command
            line: ``["workload.num_requests=1000"]``.
        seed: seed of all random numbers; ``None`` = the scenario's own.

    Raises:
        UserError: if the file is missing or wrong, or an override names no place.

    >>> scenario = load_scenario("mixtral_vs_llama2", {"workload.num_requests": 100}, seed=7)
    >>> scenario.workload.num_requests, scenario.seed
    (100, 7)
    """
    if isinstance(source, Scenario):
        found = read_user_table(
            source.model_dump(mode="json", exclude_unset=True), overrides, seed, "", ""
        )
        return Scenario.read(found.table, source.where, source.folder, found.changed)
    found = read_user_table(source, overrides, seed, "workloads", "scenario")
    if "deployments" not in found.table and ("targets" in found.table or "clusters" in found.table):
        raise UserError(
            f"{found.where}{found.changed}: is a plan, which moesim plan takes; "
            "a scenario has [[deployments]]"
        )
    return Scenario.read(*found)
