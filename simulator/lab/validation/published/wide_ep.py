"""Mixtures of experts spread over many GPUs: tokens per second of a node, and gains of balancing,
overlap and spreading.

Figures of this kind are steady states of one full batch, so one step of it is run. Whatever a
source does not say was filled in from the systems that such figures are of (SGLang's and
DeepSeek's): two batches overlapped, 32 redundant experts placed by EPLB unless routing is balanced
by hand, low-latency kernels for decode.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat

from simulator.base.errors import UserError
from simulator.config.dtypes import DType
from simulator.config.ffns.moe import MoE
from simulator.config.model import load_model
from simulator.lab.validation import OK
from simulator.lab.validation.extrapolation import Band
from simulator.lab.validation.hardware import cluster_of
from simulator.lab.validation.published import Reply, extrapolate
from simulator.lab.validation.published._rows import Case, Count, GpuName, ModelName, RowTopic
from simulator.lab.validation.published._runs import (
    band_of,
    make_once,
    run_step,
    status_of,
    tell_shares,
)

_REDUNDANT = 32
"""Redundant experts in SGLang's and DeepSeek's deployments."""
_MOST_SEQUENCES = 256
"""Largest batch of a GPU where it is as large as the cache allows: that of SGLang's report."""
_MOST_TOKENS = 1 << 20
"""Largest number of tokens of a GPU in one step."""
_TIMED_ALONE = "kernels that compute beside an exchange were timed alone"
_FIRST_DEEPEP = {"kind": "alpha_beta", "dispatch_rate": 44 / 58, "combine_rate": 47 / 57}
"""DeepEP's kernels for prompts over four nodes: what its first release reached over what the one of
June 2025 does, by its own page (44 and 47 GB/s; 58 and 57). The later one was calibrated."""


class _Case(Case):
    """One system under one batch."""

    model: ModelName
    gpu: GpuName
    engine: str
    precision: DType | None = None
    """Format of the weights; by default as released."""
    num_gpus: Count
    ep: Count = 1
    phase: Literal["prefill", "decode"]
    sequences: NonNegativeInt
    """Sequences of a GPU; 0 = as many as its cache holds."""
    new: Count
    """Tokens of each sequence that the step computes."""
    context: NonNegativeInt
    """Tokens of each sequence that are in the cache."""
    emitted: PositiveFloat
    """Tokens that count, of each sequence and step."""
    balanced: bool
    """Whether routing is balanced by hand."""
    eplb: bool
    two_batch: bool
    """Whether two batches overlap."""
    first_deepep: bool = False
    """Whether it ran the first release of DeepEP, as deployments before June 2025 did."""


class _Row(_Case):
    per: Literal["node", "gpu", "ratio"]
    """Unit of the figure: tokens per second of a node or a GPU, or a ratio to the same with the
    ``against_`` columns."""
    against_num_gpus: Count | None = None
    against_ep: Count | None = None
    against_sequences: NonNegativeInt | None = None
    against_new: Count | None = None
    against_context: NonNegativeInt | None = None
    against_emitted: PositiveFloat | None = None
    against_eplb: bool | None = None
    against_two_batch: bool | None = None
    assumed: str = ""
    """Assumption made where the source does not say something."""

    def parts(self) -> tuple[Case, ...]:
        case = _Case(**{name: getattr(self, name) for name in _Case.model_fields})
        if self.per != "ratio":
            return (case,)
        changes = {
            name.removeprefix("against_"): value
            for name in type(self).model_fields
            if name.startswith("against_") and (value := getattr(self, name)) is not None
        }
        return case, case.model_copy(update=changes)

    def join(self, *replies: Any) -> Reply:
        if len(replies) == 1:
            return _one(replies[0], self.per)
        above, below = replies
        return _ratio(above, below, self.assumed)


class _Rate(NamedTuple):
    """Speed of a case."""

    tokens_per_s: float
    """Tokens per second of one GPU."""
    gpus_of_a_node: int
    """GPUs in a box: a rack's NVLink domain holds many boxes of 4."""
    low: float
    """Factor of the step's time at the low end of its band."""
    high: float
    """Factor of the step's time at the high end of its band."""
    status: str
    because: str


_SGLANG_SHARE = 0.835
"""``--mem-fraction-static`` of the published decode nodes (sglang #6017; 0.85 of prefill nodes).
SGLang's own leaves too little for so many data-parallel ranks."""


class WideEP(RowTopic):
    """``model, gpu, engine, num_gpus, phase, sequences, new, context, emitted, balanced, eplb,
    two_batch, per``: one full batch.
    """

    row: ClassVar[type[Case]] = _Row
    title: ClassVar[str] = "wide expert parallelism"

    def plan_key(self, case: _Case) -> Hashable:
        return case.model_copy(update={"sequences": 0, "new": 1, "context": 0, "emitted": 1.0})

    def predict(self, case: _Case) -> _Rate:
        return _run(case)


def _deployment(case: _Case, moe: MoE) -> dict[str, object]:
    """The system as a user would write it."""
    dispatch = "per_expert" if case.phase == "decode" else "per_node"
    found: dict[str, object] = {
        "model": case.model,
        "cluster": cluster_of(case.gpu, case.num_gpus),
        "engine": case.engine,
        "weight_dtype": case.precision,
        "parallel": {"attention_dp": case.num_gpus, "ep": case.ep},
        "dispatch": {"kind": "all_gather" if case.ep == 1 else dispatch},
    }
    if case.engine.startswith("sglang"):
        found["memory_fraction"] = _SGLANG_SHARE
    if case.balanced:
        found["routing"] = {"kind": "uniform"}
    if case.eplb or case.ep > 1:
        found["placement"] = _placement(case, moe)
    if case.two_batch:
        found["overlap"] = "two_batch"
    if case.first_deepep and case.ep > 1 and case.phase == "prefill":
        found["communication"] = _FIRST_DEEPEP
    return found


def _placement(case: _Case, moe: MoE) -> dict[str, object]:
    """The published deployments' redundant experts, or as many more as fill the ranks' slots, by
    nodes in prefill, as there. Without EPLB experts in order, which SGLang makes redundant only
    where they are no multiple of the ranks.
    """
    slots = {"num_slots": -(-(moe.num_experts + _REDUNDANT) // case.ep) * case.ep}
    if not case.eplb:
        return {"kind": "contiguous", **(slots if moe.num_experts % case.ep else {})}
    if case.phase == "decode" or moe.num_groups == 1:
        return {"kind": "eplb", **slots}
    nodes = {"num_groups": moe.num_groups, "num_nodes": -(-case.num_gpus // 8)}
    return {"kind": "eplb", **slots, **nodes}


def _run(case: _Case) -> _Rate:
    """Speed of a case.

    Raises:
        UserError: if the deployment is impossible, or its model has no experts.
    """
    moe = load_model(case.model, case.model).moe
    if moe is None:
        raise UserError(f"{case.model} has no experts to spread")
    plan, sequences = make_once(_deployment(case, moe)), case.sequences
    if not sequences:
        room = plan.serving.capacity.tokens // (case.context + case.new)
        sequences = int(np.clip(room, 1, _MOST_SEQUENCES))
    if sequences * case.new > _MOST_TOKENS:
        raise UserError(
            f"{sequences * case.new:,} tokens of a GPU in one step are more than fit in its memory"
        )
    step = run_step(plan, sequences, case.new, case.context)
    low, high = band_of(plan, step.shares)
    status = status_of(plan)
    if case.two_batch:
        wide = Band(low, high).widen()
        low, high = wide.low, wide.high
        status = extrapolate(status, _TIMED_ALONE)
    gpus_per_node = plan.placement.cluster.gpus_per_node
    in_node = 4 if gpus_per_node > 8 else gpus_per_node
    because = (
        f"{sequences} sequences a GPU, step of {step.seconds * 1e3:.1f} ms: "
        f"{tell_shares(step.shares)}; busiest rank {step.imbalance:.2f} x the mean"
    )
    return _Rate(sequences * case.emitted / step.seconds, in_node, low, high, status, because)


def _one(rate: _Rate, per: str) -> Reply:
    value = rate.tokens_per_s * (rate.gpus_of_a_node if per == "node" else 1)
    return Reply.from_times(value, (rate.low, rate.high), rate.status, rate.because)


def _ratio(above: _Rate, below: _Rate, assumed: str) -> Reply:
    value = above.tokens_per_s / below.tokens_per_s
    status = next((rate.status for rate in (above, below) if rate.status != OK), OK)
    if assumed:
        status = extrapolate(status, assumed)
    logs = (max(math.log(rate.high), -math.log(rate.low)) for rate in (above, below))
    wide = math.exp(math.hypot(*logs))
    because = f"{above.because} against {below.because}"
    return Reply(value, value / wide, value * wide, status, because)
