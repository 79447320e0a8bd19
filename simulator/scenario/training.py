"""A training scenario: the batch of a step, and the deployments that train on it, as written in a
TOML file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from simulator.base.quantities import Label, Seed
from simulator.config.training import TrainingDeployment, TrainingSpec
from simulator.config.user_file import UserFile, check_names_differ
from simulator.scenario.user_table import Overrides, read_user_table

FAMILY = "workloads/training"
"""Folder of the training scenarios that ship."""


class TrainingScenario(UserFile):
    """Input of ``moesim run`` for a training: one batch, and the deployments to compare on it."""

    name: Label
    """Name of the scenario; absent = the file's."""
    seed: Seed = 0
    """Seed of all random numbers."""
    notes: Label = ""
    """Remarks in free text."""
    training: TrainingSpec
    """Batch that every deployment trains on."""
    deployments: Annotated[tuple[TrainingDeployment, ...], Field(strict=False, min_length=1)]
    """Deployments to compare."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        check_names_differ("deployments", [one.name for one in self.deployments])
        return self


def load_training(
    source: TrainingScenario | str | Path | Mapping[str, Any],
    overrides: Overrides = (),
    seed: int | None = None,
) -> TrainingScenario:
    """Read a training scenario, validate it, and override its keys.

    Args:
        source: path of a TOML file, name of a shipped one, or the same keys as a table.
        overrides: values by dotted path, ``{"training.global_batch": 512}``, or texts as of the
            command line.
        seed: seed of all random numbers; ``None`` = the scenario's own.

    Raises:
        UserError: if the file is missing or wrong, or an override names no place.

    >>> load_training("mixtral_vs_llama2_training").training.sequence_tokens
    4096
    """
    if isinstance(source, TrainingScenario):
        table = source.model_dump(mode="json", exclude_unset=True)
        found = read_user_table(table, overrides, seed, "", "")
        return TrainingScenario.read(found.table, source.where, source.folder, found.changed)
    found = read_user_table(source, overrides, seed, FAMILY, "training scenario")
    return TrainingScenario.read(*found)
