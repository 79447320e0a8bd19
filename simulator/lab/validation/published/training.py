"""Published throughputs of training: model FLOPs per second of a GPU."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.dtypes import DType
from simulator.config.training import TrainingDeployment, TrainingSpec
from simulator.deployment.training.memory import check_training_memory
from simulator.deployment.training.plan import TrainingPlan, make_training_plan
from simulator.engine.training import find_band, run_training_step
from simulator.lab.validation import OK
from simulator.lab.validation.published import Reply
from simulator.lab.validation.published._rows import Case, Count, GpuName, ModelName, RowTopic
from simulator.step.training import price_micro_batch
from simulator.work.flops import trained_flops

_WHERE = "published"
_RECOMPUTE = ("none", "selective", "experts", "full")
"""Activations made again, the least first: what a row does not say is the least that fits."""


class _Row(Case):
    model: ModelName
    gpu: GpuName
    num_gpus: Count
    precision: DType
    """Number format that matrices compute in."""
    sequence_tokens: Count
    global_batch: Count
    tp: Count
    pp: Count
    micro_batch: Count = 1
    cp: Count = 1
    ep: Count = 1
    chunks: Count = 1
    """Chunks of layers on each stage; with more than one, they are interleaved."""
    schedule: str = "one_f_one_b"
    """Pipelining policy where there is one chunk."""
    balanced: Annotated[bool, Field(strict=False)] = False
    """Whether tokens were forced to use experts evenly."""
    recompute: Literal["", "none", "selective", "experts", "full"] = ""
    """Activations made again; empty = the source does not say, and the least that fits is taken."""


class Training(RowTopic):
    """``model, gpu, num_gpus, precision, sequence_tokens, global_batch, tp, pp``: model TFLOP/s of
    a GPU.
    """

    row: ClassVar[type[Case]] = _Row
    title: ClassVar[str] = "training throughput"

    def plan_key(self, case: _Row) -> Hashable:
        return case

    def predict(self, case: _Row) -> Reply:
        plan, recompute = _find_plan(case)
        step = run_training_step(plan, price_micro_batch(plan))
        flops = trained_flops(plan.model, case.sequence_tokens) * case.global_batch
        rate = flops / step.step_s / case.num_gpus / 1e12
        parts = ", ".join(
            f"{name} {seconds / step.step_s:.0%}"
            for name, seconds in step.mean_parts.items()
            if seconds >= 0.005 * step.step_s
        )
        because = f"recompute {recompute}; {parts}"
        return Reply.from_times(rate, find_band(plan, step), OK, because)


def _find_plan(case: _Row) -> tuple[TrainingPlan, str]:
    """Find the plan that makes the fewest activations again and fits, and how many it makes.

    Raises:
        UserError: if no plan fits, or the split is impossible.
    """
    training = TrainingSpec(
        sequence_tokens=case.sequence_tokens, global_batch=case.global_batch, total_tokens=None
    )
    for recompute in [case.recompute] if case.recompute else _RECOMPUTE:
        spec = validate(TrainingDeployment, _describe(case) | {"recompute": recompute}, _WHERE)
        plan = make_training_plan(spec, training, 0, _WHERE, Path())
        try:
            check_training_memory(plan, 1.0, _WHERE)
        except UserError as error:
            refusal = error
            continue
        return plan, recompute
    raise refusal


def _describe(case: _Row) -> dict[str, object]:
    interleaved = {"kind": "interleaved", "chunks": case.chunks}
    parallel = {"tp": case.tp, "cp": case.cp, "pp": case.pp}
    described = {
        "name": _WHERE,
        "model": case.model,
        "cluster": case.gpu,
        "num_gpus": case.num_gpus,
        "dtype": case.precision,
        "micro_batch": case.micro_batch,
        "pipelining": interleaved if case.chunks > 1 else {"kind": case.schedule},
        "parallel": parallel | ({"ep": case.ep} if case.ep > 1 else {}),
    }
    return described | ({"routing": {"kind": "uniform"}} if case.balanced else {})
