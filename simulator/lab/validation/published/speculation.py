"""Drafts that mixtures of experts verify: experts that neighbouring tokens share, what a step with
drafts takes, and how much sooner tokens come.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import lru_cache
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import NonNegativeInt

from simulator.base.errors import UserError
from simulator.base.quantities import value_range
from simulator.config.dtypes import DType
from simulator.deployment.expert_plan import POOL_TOKENS, ExpertPlan
from simulator.deployment.plan import DeploymentPlan
from simulator.engine import timeline as engine
from simulator.lab.validation.extrapolation import ASSUMED
from simulator.lab.validation.published import Reply, extrapolate
from simulator.lab.validation.published._rows import Case, Count, ModelName, RowTopic, half_band
from simulator.lab.validation.published._runs import make, parts_of, status_of, tell_shares
from simulator.policies.speculation import Drafts
from simulator.results.phases import STEP_PHASES
from simulator.step.prices import Prices
from simulator.workload.traces import RequestTrace

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Sequences among which the most favourable number is looked for."""
_OFFSETS = 64
"""Places in the pool of expert choices at which the experts of a step are counted."""
_BAND = (10, 90)
"""Percentiles over the layers that the band of shared experts ends at, as of routing skew."""
_ACCEPTED = np.linspace(0.0, 1.0, 10_001)


class _Row(Case):
    model: ModelName
    cluster: str
    """Cluster file."""
    tp: Count
    weight_dtype: DType
    expert_dtype: DType
    drafter: Literal["module", "ngram"]
    drafted: Count
    """Tokens of a draft."""
    kept: Annotated[float, value_range(1, 65, "tokens")]
    """Tokens that a sequence gets of a step, on average."""
    sequences: NonNegativeInt
    """Sequences at once; 0 = as many as make the most of drafts."""
    input: Count
    output: Count
    figure: Literal["shared", "read", "step", "speedup", "slowdown"]
    """Share of a token's experts that the token before it has too; expert weights that a step with
    drafts reads, its seconds, and the seconds of a token, over those without; or the reverse."""
    assumed: str = ""
    """Assumptions where the source says nothing."""


class _Decoding(NamedTuple):
    """Requests that all decode at once."""

    plan: DeploymentPlan
    step_s: float
    token_s: float
    shares: dict[str, float]
    """Shares of the steps' time by phase."""


class Speculation(RowTopic):
    """``model, cluster, tp, weight_dtype, expert_dtype, drafter, drafted, kept, sequences, input,
    output, figure``: steps that verify drafts beside steps that do not.
    """

    row: ClassVar[type[Case]] = _Row
    title: ClassVar[str] = "speculative decoding"

    def plan_key(self, case: _Row) -> Hashable:
        return case.model, case.cluster, case.tp

    def predict(self, case: _Row) -> Reply:
        reply = _share(case) if case.figure in ("shared", "read") else _compare(case)
        if not case.assumed:
            return reply
        return reply._replace(status=extrapolate(reply.status, f"assumed: {case.assumed}"))


def _describe(case: _Row, *, drafts: bool) -> dict[str, object]:
    """Deployment of a row, with or without drafts."""
    accepted = [Drafts((one,) * case.drafted).mean_kept for one in _ACCEPTED]
    each = float(np.interp(case.kept, accepted, _ACCEPTED))
    speculation = {"kind": case.drafter, "tokens": case.drafted, "accepted": each}
    return {
        "model": case.model,
        "cluster": case.cluster,
        "engine": "any",
        "parallel": {"tp": case.tp},
        "weight_dtype": case.weight_dtype,
        "expert_dtype": case.expert_dtype,
        "speculation": speculation if drafts else {"kind": "none"},
    }


def _share(case: _Row) -> Reply:
    """Count the experts of neighbouring tokens in the pool that steps take theirs from."""
    verifying, alone = (make(_describe(case, drafts=drafts)) for drafts in (True, False))
    experts = verifying.placement.experts
    if experts is None:
        raise UserError(f"{case.model} has no experts")
    shared_L = _find_shared(experts)
    moe = verifying.placement.model.moe
    assert moe is not None, "it has routed experts"
    because = (
        f"{shared_L.mean():.1%} of a token's experts are those of the token before it, by chance "
        f"{moe.top_k / moe.num_experts:.2%}"
    )
    status = status_of(verifying)
    if case.figure == "shared":
        low, high = np.percentile(shared_L, _BAND)
        return Reply(float(shared_L.mean()), float(low), float(high), status, because)
    with_L, without_L = (
        _find_read(plan, max(1, case.sequences) * tokens)
        for plan, tokens in ((verifying, 1 + case.drafted), (alone, 1))
    )
    ratio_L = with_L / without_L
    low, high = np.percentile(ratio_L, _BAND)
    return Reply(float(with_L.mean() / without_L.mean()), float(low), float(high), status, because)


def _find_shared(experts: ExpertPlan) -> np.ndarray:
    """Share of a token's experts that the token before it in a run has too, ``[L]``."""
    ids_LTK, run = experts.topk_ids_LTK, experts.run_tokens
    before = np.arange(POOL_TOKENS - 1)
    before = before[before % run < run - 1]
    both = ids_LTK[:, before, :, None] == ids_LTK[:, before + 1, None, :]
    return np.asarray(both.any(axis=3).mean(axis=(1, 2)))


def _find_read(plan: DeploymentPlan, num_tokens: int) -> np.ndarray:
    """Bytes of experts that a rank reads for so many tokens, ``[L]``."""
    prices = Prices(plan.placement, num_tokens)
    tokens_d = np.array([num_tokens])
    offsets = np.linspace(0, POOL_TOKENS, _OFFSETS, endpoint=False).astype(int).tolist()
    return np.array(
        [
            np.mean(
                [
                    step.read_bytes
                    for step in prices.experts.steps(tokens_d, [(layer, at) for at in offsets])
                ]
            )
            for layer in range(plan.placement.model.num_moe_layers)
        ]
    )


def _compare(case: _Row) -> Reply:
    """Serve the same requests with drafts and without."""
    counts = (case.sequences,) if case.sequences else _BATCHES
    found = [_serve_both(case, count) for count in counts]
    ratios = [alone.token_s / drafting.token_s for alone, drafting in found]
    best = int(np.argmax(ratios))
    alone, drafting = found[best]
    value = {
        "step": drafting.step_s / alone.step_s,
        "speedup": ratios[best],
        "slowdown": 1.0 / ratios[best],
    }[case.figure]
    parts = [pd.Series({"parts": parts_of(one.plan, one.shares)}) for one in (alone, drafting)]
    wide = float(np.exp(max(half_band(*parts), np.log(ASSUMED.high) if case.assumed else 0.0)))
    because = (
        f"{counts[best]} at once: steps of {alone.step_s * 1e3:.1f} ms without and "
        f"{drafting.step_s * 1e3:.1f} ms with drafts ({tell_shares(drafting.shares)})"
    )
    return Reply(value, value / wide, value * wide, status_of(drafting.plan), because)


def _serve_both(case: _Row, count: int) -> tuple[_Decoding, _Decoding]:
    """Serve ``count`` requests without drafts and with them."""
    alone, drafting = (
        _serve(json.dumps(_describe(case, drafts=drafts)), count, case.input, case.output)
        for drafts in (False, True)
    )
    return alone, drafting


@lru_cache(maxsize=64)
def _serve(deployment: str, count: int, num_input: int, num_output: int) -> _Decoding:
    """Serve so many requests that all come at once."""
    plan = make(json.loads(deployment))
    trace = RequestTrace(
        np.zeros(count), np.full(count, num_input), np.full(count, num_output), "published"
    )
    served = engine.serve(plan, trace, ingress_delay_s=0.0)
    requests, steps = served.requests_table(), served.steps_of("both")
    steps = steps[steps["prefill_tokens"] == 0]
    whole_s = float(steps["duration_s"].sum())
    decoding_s = requests["finish_s"] - requests["first_token_s"]
    return _Decoding(
        plan,
        whole_s / float(steps["num_steps"].sum()),
        float(decoding_s.mean()) / (num_output - 1),
        {phase: float(steps[f"{phase}_s"].sum()) / whole_s for phase in STEP_PHASES},
    )
