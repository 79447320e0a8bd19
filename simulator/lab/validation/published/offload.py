"""Decode and prefill rates of one GPU whose experts lie in main memory, as engines for one user
publish them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar

from simulator.config.dtypes import DType
from simulator.deployment.placement import Placement
from simulator.lab.validation.extrapolation import ASSUMED
from simulator.lab.validation.published import Reply, extrapolate
from simulator.lab.validation.published._rows import Case, Count, ModelName, RowTopic
from simulator.lab.validation.published._runs import make_once, run_step, status_of, tell_shares

_WHY = "what the machine achieves of its memory's and its processor's peaks is of other rows"


class _Row(Case):
    model: ModelName
    cluster: str
    """Cluster file with ``[host]``."""
    weight_dtype: DType
    expert_dtype: DType
    cached: int
    """Experts of each layer in the GPU's memory."""
    uploads: int
    """Most experts that a layer brings in a step."""
    new: Count
    """Tokens that the step computes."""
    context: int
    """Tokens in the cache already."""
    top_k: Count | None = None
    """Experts of a token, where the engine leaves some out."""


class Offload(RowTopic):
    """``model, cluster, weight_dtype, expert_dtype, cached, uploads, new, context``: tokens per
    second of one sequence's step.
    """

    row: ClassVar[type[Case]] = _Row
    title: ClassVar[str] = "experts below the GPU's memory"

    def plan_key(self, case: _Row) -> Hashable:
        return case.model_copy(update={"new": 1, "context": 0})

    def predict(self, case: _Row) -> Reply:
        plan = make_once(_describe(case))
        if case.top_k is not None:
            plan = replace(plan, placement=_leave_out(plan.placement, case.top_k))
        step = run_step(plan, 1, case.new, case.context)
        status = extrapolate(status_of(plan), _WHY)
        because = f"step of {step.seconds * 1e3:.1f} ms: {tell_shares(step.phases)}"
        return Reply.from_times(
            case.new / step.seconds, (ASSUMED.low, ASSUMED.high), status, because
        )


def _describe(case: _Row) -> dict[str, object]:
    """Deployment of a row."""
    caching = {"kind": "popularity"} if case.uploads == 0 else {"kind": "lru"}
    return {
        "model": case.model,
        "cluster": case.cluster,
        "engine": "any",
        "weight_dtype": case.weight_dtype,
        "expert_dtype": case.expert_dtype,
        "offload": {"slots": case.cached, "uploads": case.uploads, "caching": caching},
    }


def _leave_out(placement: Placement, top_k: int) -> Placement:
    """Let every token use only the first ``top_k`` of the experts that it chose."""
    model, experts, offload = placement.model, placement.experts, placement.offload
    assert experts is not None, "only mixtures of experts are offloaded"
    assert offload is not None, "every row offloads experts"
    ffns = {
        name: ffn if ffn.experts is None else ffn.model_copy(update={"top_k": top_k})
        for name, ffn in model.ffns.items()
    }
    return replace(
        placement,
        model=model.model_copy(update={"ffns": ffns}),
        experts=replace(experts, topk_ids_LTK=experts.topk_ids_LTK[:, :, :top_k]),
        offload=replace(
            offload,
            ids_LTK=offload.ids_LTK[:, :, :top_k],
            earlier_LTK=offload.earlier_LTK[:, :, :top_k],
        ),
    )
