"""Seconds of a layer's passes, by which splits are ranked before any is simulated.

A pass through a layer depends on the ranks that share it, the micro-batch and what is computed
again, not on pipeline and number of GPUs. So layers of each kind are priced once for all splits
that share these, and a step follows in closed form: ``m + (p - 1) / v`` micro-batches through the
longest stage.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from simulator.config.model import LayerRun, ModelSpec
from simulator.deployment.training.plan import TrainingPlan
from simulator.planner.training.space import Split
from simulator.policies.pipelining import PassKind
from simulator.step.program import Busy, Together
from simulator.step.training import price_micro_batch
from simulator.work.trained import Chunk

_PASSES: tuple[PassKind, ...] = ("forward", "backward")
_LAYERS_OF_A_KIND = 2
"""Layers of each kind that are priced: they differ by the experts that tokens choose."""


class LayerTimes(NamedTuple):
    """Seconds of one micro-batch, forward and backward."""

    layers_s: float
    """All layers."""
    head_s: float
    """Output matrix, which the last stage has."""


def shorten_model(model: ModelSpec) -> ModelSpec:
    """Shorten a model to a few layers of each kind, in their order."""
    kinds = dict.fromkeys(model.layer_names)
    pattern = tuple(kind for kind in kinds for _ in range(_LAYERS_OF_A_KIND))
    fields = {name: getattr(model, name) for name in ModelSpec.model_fields}
    return ModelSpec.model_construct(**(fields | {"layers": (LayerRun(pattern=pattern),)}))


def time_layers(plan: TrainingPlan, model: ModelSpec) -> LayerTimes:
    """Time all layers of a model by those of its shortened one, every exchange with wires of its
    own.

    Args:
        plan: of the shortened model.
    """
    prices, counts = price_micro_batch(plan), Counter(model.layer_names)
    layers_s = head_s = 0.0
    for number, kind in enumerate(plan.model.layer_names):
        weight = counts[kind] / _LAYERS_OF_A_KIND
        chunk = Chunk(range(number, number + 1), number == 0, number == plan.model.num_layers - 1)
        for way in _PASSES:
            for operation in prices.list_operations(chunk, way):
                assert isinstance(operation, Busy | Together), "trainings start nothing ahead"
                seconds = _time_operation(operation)
                if operation.layer < 0:
                    head_s += seconds
                else:
                    layers_s += weight * seconds
    return LayerTimes(layers_s, head_s)


def _time_operation(operation: Busy | Together) -> float:
    if isinstance(operation, Busy):
        return float(operation.seconds_R.max())
    return max(exchange.alone_s for exchange in operation.exchanges)


def estimate_step(times: LayerTimes, split: Split, batch: int) -> float:
    """Estimate the seconds of a step in closed form; gradients and the optimizer are left out.

    Args:
        batch: sequences of a step.
    """
    stage_s = times.layers_s / split.pp + times.head_s
    rounds = split.count_micro_batches(batch) + (split.pp - 1) / split.chunks
    return rounds * stage_s
