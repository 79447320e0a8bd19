"""A plan's question about training, read from a file or by the name of a shipped one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.base.errors import UserError
from simulator.config.cluster import load_kind
from simulator.config.training_question import TrainingQuestion
from simulator.scenario.user_table import Overrides, read_user_table

FAMILY = "workloads/training_plans"
"""Folder of the questions that ship."""


def load_training_question(
    source: TrainingQuestion | str | Path | Mapping[str, Any],
    overrides: Overrides = (),
    seed: int | None = None,
) -> TrainingQuestion:
    """Read a question about training, validate it, and look up its machines.

    Args:
        source: path of a TOML file, name of a shipped one, or the same keys as a table.
        overrides: values by dotted path, ``{"targets.days": 30}``, or texts as of the command line.
        seed: seed of all random numbers; ``None`` = the question's own.

    Raises:
        UserError: if the file is missing or wrong, an override names no place, or machines do not
            exist or have no price.
    """
    if isinstance(source, TrainingQuestion):
        table = source.model_dump(mode="json", exclude_unset=True)
        found = read_user_table(table, overrides, seed, "", "")
        found = found._replace(where=source.where, folder=source.folder)
    else:
        found = read_user_table(source, overrides, seed, FAMILY, "plan of training")
    if "deployments" in found.table:
        raise UserError(
            f"{found.where}{found.changed}: is a training scenario, which moesim run takes; a plan "
            "of training has [targets], [[models]] and [[clusters]] instead of [[deployments]]"
        )
    question = TrainingQuestion.read(*found)
    for offer in question.clusters:
        cluster, _ = load_kind(offer.cluster, found.where)
        if offer.price_per_gpu_hour is None and cluster.price_per_gpu_hour is None:
            raise UserError(
                f"{found.where} [clusters]: the file of '{offer.cluster}' has no price; give "
                "price_per_gpu_hour, 0 for machines that are there anyway"
            )
    return question
