"""Simulated steps of the models that ``moesim trace record train`` trains, as this machine's
calibration has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simulator.base.errors import UserError
from simulator.base.machine import name_machine
from simulator.config.host import HostRates
from simulator.config.model import ModelSpec
from simulator.config.training import TrainingDeployment, TrainingSpec
from simulator.deployment.training.plan import plan_model
from simulator.engine.training import run_training_step
from simulator.runtime.recording.models import Shape
from simulator.step.training import price_micro_batch

_CLUSTER = "this-machine"


def simulate_steps(models: Mapping[str, ModelSpec], shape: Shape, seed: int) -> dict[str, float]:
    """Simulate a step of each model on one rank, with experts that are used evenly, as the loss for
    balance has it.

    Returns:
        Seconds by model; empty where the calibration is of another machine, or has no training.
    """
    training = TrainingSpec(sequence_tokens=shape.context, global_batch=shape.batch)
    found = {}
    for name, model in models.items():
        spec = TrainingDeployment(
            name=name,
            model=model.name,
            cluster=_CLUSTER,
            num_gpus=1,
            micro_batch=shape.batch,
            dtype="fp32",
            dispatch_dtype="fp32",
            dispatch={"kind": "per_rank"},
            zero=0,
            overlap_gradients=False,
            routing={"kind": "uniform"} if model.moe is not None else None,
        )
        try:
            plan = plan_model(spec, model, training, seed, "trace record train", Path())
        except UserError:
            return {}
        rates = plan.placement.calibration
        if not isinstance(rates, HostRates) or not _is_here(rates):
            return {}
        found[name] = run_training_step(plan, price_micro_batch(plan)).step_s
    return found


def _is_here(rates: HostRates) -> bool:
    """Whether times are of this machine."""
    return rates.host.machine == name_machine()
