"""Training on a machine whose ranks are processes on its cores: its measured times, and what they
do not cover.
"""

from __future__ import annotations

import json

from simulator.base.errors import UserError
from simulator.config.host import HostCalibration, HostRates
from simulator.config.model import ModelSpec
from simulator.config.training import TrainingDeployment
from simulator.work.layout import Layout
from simulator.work.trained import Chunk, count_parameters

_TRAINED_HERE: dict[str, object] = {
    "dtype": "fp32",
    "dispatch_dtype": "fp32",
    "zero": 0,
    "recompute": "none",
    "overlap_gradients": False,
    "tp": 1,
    "cp": 1,
    "pp": 1,
}
"""Keys of a deployment whose shards train on processors."""
_VALUE_BYTES = 4.0
"""Bytes of a weight in single precision, which shards train in."""


def choose_host_rates(
    host: HostCalibration, spec: TrainingDeployment, model: ModelSpec, layout: Layout, place: str
) -> HostRates:
    """Choose the measured times of a deployment's ranks.

    Args:
        layout: block of ranks that share a micro-batch.
        place: of the deployment, for errors.

    Raises:
        UserError: if training was not timed, or not of the kind that the deployment asks for.
    """
    check_runs_here(spec, place)
    if spec.num_gpus > host.num_cores:
        raise UserError(
            f"{place}: num_gpus ({spec.num_gpus}) must be at most the {host.num_cores} cores of "
            f"'{host.machine}': trainings were timed with a core for each rank"
        )
    own = count_parameters(model, layout, Chunk(range(model.num_layers), True, True))
    num_bytes = _VALUE_BYTES * (own.dense + own.expert) * spec.num_gpus
    rates = host.choose_tables(spec.num_gpus, num_bytes)
    _ = rates.training
    return rates


def check_runs_here(spec: TrainingDeployment, place: str) -> None:
    """Refuse what shards on processors do not do in a training, and so is not timed there.

    Raises:
        UserError: naming the key, and the value that it must have.
    """
    asked = {**spec.model_dump(), **spec.parallel.model_dump()}
    for key, value in _TRAINED_HERE.items():
        if asked[key] != value:
            raise UserError(
                f"{place}: {key} = {json.dumps(asked[key])} can be simulated on accelerators, but "
                f"neither executed nor timed on processors; say {key} = {json.dumps(value)}"
            )
