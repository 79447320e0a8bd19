"""Facts about a deployment for the report: the model's counts, memory, policies, and the source of
every number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from simulator.base.findings import Finding, tell
from simulator.config.calibration import CalibrationFile, CollectiveFit, ExchangeFit, Fit, PrunedFit
from simulator.config.engine import find_engine
from simulator.config.host import ExchangeTable, MatrixTable, Steps, load_any_calibration
from simulator.config.pairing import describe_pairing
from simulator.config.sparsity import choose_experts
from simulator.deployment.fits import fits_of
from simulator.deployment.memory import memory_rules
from simulator.deployment.notes import describe_module, describe_policies, notes_of, policy_text
from simulator.deployment.plan import DeploymentPlan


def facts_of(plan: DeploymentPlan) -> dict[str, Any]:
    """Collect the deployment's entry in ``run.json``; plain numbers and texts."""
    placement = plan.placement
    model = placement.model
    capacity = plan.serving.capacity
    return {
        "model": model.name,
        "model_title": model.title or model.name,
        "is_rumour": model.is_rumour,
        "max_context_tokens": model.max_context_tokens,
        "is_moe": model.moe is not None,
        "pairing": describe_pairing(plan.spec),
        "cluster": placement.cluster.name,
        "cluster_title": placement.cluster.title,
        "accelerator": placement.accelerator.title,
        "num_gpus": plan.num_gpus,
        "replicas": sum(pool.serving.replicas for pool in plan.pools),
        "first_replicas": sum(pool.serving.first_replicas for pool in plan.pools),
        "first_numbers": plan.list_first(),
        "layout": describe_layout(plan),
        **describe_policies(plan),
        "max_sequences": plan.serving.rules.max_sequences,
        "token_budget": plan.serving.rules.token_budget,
        "num_batches": placement.layout.num_batches,
        "weight_dtype": _weights_text(plan),
        "pruning": policy_text(plan.spec.pruning.model_dump(exclude_defaults=True))
        if plan.spec.pruning
        else None,
        "kv_dtype": placement.precision.kv,
        "total_parameters": model.num_parameters,
        "active_parameters": model.num_active_parameters,
        "published_total": model.published.total_parameters if model.published else None,
        "published_active": model.published.active_parameters if model.published else None,
        "model_note": " ".join(model.notes.split()),
        "memory": {
            "weights_bytes": capacity.weights_bytes - capacity.module_bytes,
            "module_bytes": capacity.module_bytes,
            "kv_bytes": capacity.kv_bytes,
            "reserve_bytes": capacity.reserve_bytes,
            "total_bytes": capacity.total_bytes,
        },
        "hits_by_layer": _list_hits(plan),
        "kv_tokens": capacity.tokens * placement.layout.attention_dp,
        "assumptions": [
            row._asdict() for row in _list_assumptions(plan) + _list_prefill_assumptions(plan)
        ],
        "warnings": tell(
            one for pool in plan.pools for one in (*notes_of(pool), *warnings_of(pool))
        ),
        "currency": placement.cluster.currency,
    }


def _list_hits(plan: DeploymentPlan) -> list[float] | None:
    """Share of a sequence's experts that are in the GPU's memory, by MoE layer; ``None`` where it
    holds all.
    """
    if plan.placement.offload is None:
        return None
    uses = plan.placement.offload.replay(1)
    hits_L = uses.held_SL.sum(axis=0) / np.maximum(uses.used_SL.sum(axis=0), 1)
    return [round(float(share), 4) for share in hits_L]


def warnings_of(plan: DeploymentPlan) -> Iterator[Finding]:
    """Find what a reader must know before believing the numbers."""
    placement, model = plan.placement, plan.placement.model
    if model.is_rumour:
        yield Finding("warning.rumour", model=model.title or model.name)
    nodes = placement.fabric.num_nodes
    for name, fit in fits_of(plan).items():
        if isinstance(fit, ExchangeFit) and fit.outside(nodes=nodes):
            yield Finding("warning.nodes", what=name, nodes=nodes, most=fit.domain["nodes"][1])
    yield from _find_pruning(plan)
    if plan.spec.reduction is not None:
        yield Finding("warning.fewer_experts")
    assumed = [name for name, fit in fits_of(plan).items() if fit.kind == "assumed"]
    if _ENGINE in assumed and _fits_other_releases(plan):
        assumed.remove(_ENGINE)
        yield Finding("warning.release", what=_ENGINE, engine=plan.spec.engine.replace("@", " "))
    if placement.layout.pp > 1:
        yield Finding("warning.pipeline", stages=placement.layout.pp)
    if assumed:
        yield Finding("warning.assumed", what=assumed, accelerator=placement.accelerator.title)


def _find_pruning(plan: DeploymentPlan) -> Iterator[Finding]:
    """Find where products with pruned matrices are priced beyond what was measured."""
    pruning, fit = plan.spec.pruning, fits_of(plan).get("pruned matrices")
    if pruning is None or not isinstance(fit, PrunedFit):
        return
    if fit.outside(sparsity=pruning.sparsity):
        measured = fit.domain["sparsity"]
        yield Finding("warning.sparsity", sparsity=pruning.sparsity, measured=measured)
    if "rows" in fit.domain:
        yield Finding("warning.pruned_rows", rows=fit.domain["rows"])
    if choose_experts(pruning) is not None:
        yield Finding("warning.pruned_experts")
    yield Finding("warning.pruned_quality")


_ENGINE = "engine overhead"


class Assumption(NamedTuple):
    """A number that was taken from elsewhere."""

    what: str
    value: str
    """The number in words, with its unit."""
    kind: str
    """Certainty of the number: assumed, fitted, measured or published."""
    source: str


def _fits_other_releases(plan: DeploymentPlan) -> bool:
    """Whether the plan's accelerator family has measured points of the engine, though not of its
    release.
    """
    calibration = load_any_calibration(plan.placement.accelerator.calibration, plan.name)
    engine = plan.spec.engine.partition("@")[0]
    return (
        isinstance(calibration, CalibrationFile)
        and engine in calibration.engine
        and calibration.engine[engine].kind != "assumed"
    )


def _list_assumptions(plan: DeploymentPlan) -> list[Assumption]:
    return [
        *(_describe_fit(what, fit) for what, fit in fits_of(plan).items()),
        *_describe_chances(plan),
        *_describe_stages(plan),
        _describe_peaks(plan),
        _describe_memory(plan),
        *_describe_price(plan),
    ]


def _describe_fit(what: str, fit: Fit) -> Assumption:
    value = _fit_text(fit)
    if fit.median_error is not None:
        value += f"; median error {fit.median_error:.0%} on what it was fitted on"
    if fit.spread is not None:
        value += f"; spread {fit.spread:.0%} between rounds"
    return Assumption(what, value, fit.kind, fit.source)


def _describe_chances(plan: DeploymentPlan) -> Iterator[Assumption]:
    """Drafts that are kept, and experts that tokens choose."""
    placement = plan.placement
    if placement.drafts.num_tokens:
        yield Assumption(
            "drafts",
            f"{policy_text(plan.spec.speculation)}: {placement.drafts.mean_kept:.2f} tokens a "
            f"decode{describe_module(plan)}",
            "assumed",
            "the scenario: how many tokens are kept depends on model and text",
        )
    if placement.experts is not None:
        routing, source = placement.experts.routing, placement.experts.routing_source
        source = " ".join(source.split())
        if routing["kind"] == "replay":
            kind = "measured"
        elif plan.spec.routing is not None or source.lower().startswith("assumed"):
            kind = "assumed"
        else:
            kind = "measured" if source.startswith("Measured") else "published"
        yield Assumption("routing", policy_text(routing), kind, source)


def _describe_stages(plan: DeploymentPlan) -> Iterator[Assumption]:
    sends = plan.placement.sends
    if sends is not None:
        rates = [f"{crossing.port_bytes_per_s / 1e9:,.0f} GB/s" for crossing in sends.crossings]
        value = (
            f"as the all-gather of two GPUs over {', '.join(dict.fromkeys(rates))} a "
            f"GPU, {plan.placement.layout.pp - 1} times a step"
        )
        yield Assumption("ways between stages", value, sends.fit.kind, sends.fit.source)


def _describe_peaks(plan: DeploymentPlan) -> Assumption:
    accelerator, dtype = plan.placement.accelerator, plan.placement.precision.weights
    value = (
        f"{accelerator.flops_per_s(dtype) / 1e12:,.0f} TFLOP/s dense in {dtype}, "
        f"{accelerator.memory_bytes_per_s / 1e12:.2f} TB/s"
    )
    source = accelerator.sources.get("memory_bytes_per_s", "")
    return Assumption("accelerator peaks", value, "published", source)


def _describe_price(plan: DeploymentPlan) -> Iterator[Assumption]:
    cluster = plan.placement.cluster
    if cluster.price_per_gpu_hour is not None:
        source = cluster.sources.get("price_per_gpu_hour", "")
        if plan.spec.price_per_gpu_hour is not None:
            source = "assumed: the deployment's own price_per_gpu_hour"
        kind = "published" if source and not source.lower().startswith("assumed") else "assumed"
        value = f"{cluster.price_per_gpu_hour:.2f} {cluster.currency} a GPU-hour"
        yield Assumption("price", value, kind, source)


def _list_prefill_assumptions(plan: DeploymentPlan) -> list[Assumption]:
    """List the assumptions of a prefill pool's prices beyond the decode pool's, and of the
    transfers between them.
    """
    transfer, pool = plan.transfer, plan.spec.prefill
    if plan.prefill is None or transfer is None or pool is None:
        return []
    known = _list_assumptions(plan)
    rows = [
        row._replace(what=f"{row.what}, prefill pool")
        for row in _list_assumptions(plan.prefill)
        if row not in known
    ]
    when = (
        "layer by layer while the prompt is computed"
        if pool.layerwise
        else "when the prompt is done"
    )
    wire = transfer.wire.replace("_", "-")
    value = (
        f"{wire} links at {pool.wire_fraction:.0%} of their "
        f"peak, {transfer.bytes_per_s / 1e9:,.1f} GB/s a "
        f"GPU, {transfer.latency_s * 1e6:,.1f} us, {when}"
    )
    source = (
        "deployment, or its default: between 87 of 100 GB/s and 190 of 400 GB/s published by "
        "Mooncake's transfer engine"
    )
    rows.append(Assumption("KV cache transfers", value, "assumed", source))
    fit = plan.prefill.placement.calibration.pools
    shown = (
        "in the decode pool's first step for a request, which computes the prompt's last token "
        "again"
        if transfer.recomputes_last
        else "when the decode pool takes a request in"
    )
    before = f"{transfer.handshake_s * 1e3:.1f} ms between the prompt and its transfer"
    value = f"{before}, shown {shown}"
    spec = find_engine(plan.spec.engine)
    source = "" if spec is None else spec.sources.get("hand_over", "")
    if fit is not None:
        low, high = fit.ttft_band
        value += (
            f"; measured first tokens took {low:.2f} to {high:.2f} times as long in 80 % of cases, "
            "which nothing explains"
        )
        source = f"{source}; band: {fit.source}"
    return [*rows, Assumption("first tokens from a prefill pool", value, "assumed", source)]


_SHARES = {
    "of_total": "of the whole may be used",
    "before_loading": "of what is free before loading goes to weights and KV cache",
    "left": "of what is then left goes to the KV cache",
}


def _describe_memory(plan: DeploymentPlan) -> Assumption:
    """Describe the memory of a GPU that the KV cache does not get, and how far logs are from it."""
    capacity, spec = plan.serving.capacity, plan.spec
    value = (
        f"{capacity.step_bytes / 1e9:.1f} GB a GPU for the largest step, communication and "
        f"libraries; {capacity.share:.1%} {_SHARES[capacity.kind]}"
    )
    low, high = capacity.off_bytes
    rules, engine = memory_rules(spec.engine, plan.placement.accelerator), find_engine(spec.engine)
    has_share = spec.memory_fraction is not None or spec.free_memory_fraction is not None
    if high == low or engine is None:
        source, kind = "deployment, or its default", "assumed"
    else:
        source, kind = f"{engine.title}: {engine.sources.get('memory', '')}", rules.off_kind
        source += "; the share is the deployment's" if has_share else ""
        said = "is" if kind == "fitted" else "is assumed to be"
        off = f"{low / 1e9:+.1f} to {high / 1e9:+.1f} GB off"
        value += f"; an engine's KV cache {said} {off} in 80 % of cases"
    return Assumption("memory held back", value, kind, source)


def describe_layout(plan: DeploymentPlan) -> str:
    """Describe the split of each pool and its number of replicas: ``TP 8, 1 replica``."""
    texts = []
    for pool in plan.pools:
        count = pool.serving.replicas
        texts.append(f"{pool.placement.layout.text()}, {count} replica{'s' if count > 1 else ''}")
    return texts[0] if len(texts) == 1 else f"decode: {texts[0]}; prefill: {texts[1]}"


def _fit_text(fit: Fit) -> str:
    if isinstance(fit, ExchangeFit):
        return (
            f"{fit.latency_s * 1e6:.1f} us in a node, {fit.scale_out_latency_s * 1e6:.1f} us + "
            f"{fit.latency_per_doubling_s * 1e6:.1f} us a doubling across nodes; "
            f"{fit.scale_up_fraction:.0%} / {fit.scale_out_fraction:.0%} of the links' peaks"
        )
    if isinstance(fit, CollectiveFit):
        first = min(fit.protocols.values(), key=lambda way: way.latency_s)
        protocols = ", ".join(name.replace("_", " ") for name in fit.protocols)
        return (
            f"{first.latency_s * 1e6:.1f} us + {first.latency_per_rank_s * 1e6:.2f} us a rank, "
            f"then by size as the fastest of {protocols}"
        )
    if isinstance(fit, MatrixTable):
        return (
            f"{len(fit.rows) * len(fit.sizes) * len(fit.working_bytes)} measured "
            "products, interpolated"
        )
    if isinstance(fit, ExchangeTable):
        return (
            f"{fit.latency_s * 1e6:,.0f} us empty, {fit.seconds[-1] * 1e6:,.0f} us "
            f"with {fit.num_bytes[-1] / 1e3:,.0f} kB a rank"
        )
    if isinstance(fit, Steps):
        return f"{fit.seconds['call'] * 1e6:.1f} us a call, and by " + ", ".join(
            key for key in fit.seconds if key != "call"
        )
    numbers = fit.model_dump(exclude={"kind", "source", "median_error", "spread"})
    return ", ".join(
        _number_text(key, value) for key, value in numbers.items() if isinstance(value, float | int)
    )


def _number_text(key: str, value: float) -> str:
    if key.endswith("_s"):
        return f"{key.removesuffix('_s').replace('_', ' ')} {value * 1e6:.1f} us"
    if key.endswith("_fraction"):
        return f"{key.removesuffix('_fraction')} {value:.0%} of peak"
    return f"{key.replace('_', ' ')} {value:g}"


def _weights_text(plan: DeploymentPlan) -> str:
    precision = plan.placement.precision
    if plan.placement.model.moe is not None and precision.experts != precision.weights:
        return f"{precision.weights}, experts {precision.experts}"
    return precision.weights
