"""Frozen plan: a deployment with every policy built, every expert placed, and every check passed.
Backends execute it.

It has two parts: the placement (:mod:`simulator.deployment.placement`), which prices depend on, and
the serving rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from simulator.base.contracts import Attributes
from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.base.plugins import build
from simulator.config.accelerator import Speeds
from simulator.config.calibration import Calibration, CalibrationFile
from simulator.config.cluster import ClusterSpec, load_cluster
from simulator.config.deployment import DeploymentSpec, ParallelSpec
from simulator.config.engine import (
    find_kv_transfer,
    find_sequences,
    name_release,
    resolve_scheduling,
)
from simulator.config.host import HostCalibration, HostRates, load_any_calibration
from simulator.cost.stages import make_sends
from simulator.cost.transfer import Transfer, make_transfer
from simulator.deployment.counterparts import choose_model
from simulator.deployment.expert_plan import plan_experts
from simulator.deployment.memory import Capacity, check_memory, does_fit
from simulator.deployment.offload_plan import plan_offload
from simulator.deployment.other_gpus import (
    check_tensor_groups,
    choose_smallest,
    load_others,
    prepare_others,
)
from simulator.deployment.placement import Placement, choose_precision, wire_links
from simulator.deployment.reduction import reduce_model
from simulator.deployment.refusals import (
    check_copies,
    check_degraded,
    check_degraded_gpus,
    check_drafts,
    check_formats,
    check_offload,
    check_overlap,
    check_pruning,
    check_rebalancing,
    check_recovery,
    check_sequences,
    check_stages,
)
from simulator.deployment.splits import Setup, check_splits, find_refusal
from simulator.policies.balancing import BalancingPolicy
from simulator.policies.contracts import (
    begin_scaling,
    check_scaling,
    find_keys,
    find_tier,
    list_changes,
    make_drafts,
    make_rules,
)
from simulator.policies.failures import Change, FailurePolicy, Machines
from simulator.policies.kv_tiers import Tier
from simulator.policies.order import Keys, OrderPolicy, Queued
from simulator.policies.rebalancing import RebalancingPolicy
from simulator.policies.recovery import RecoveryPolicy
from simulator.policies.recovery.restart import Restart
from simulator.policies.scaling import ScalingPolicy
from simulator.policies.scheduling import Rules
from simulator.work.layout import make_layout
from simulator.work.memory import CacheSize, cache_size
from simulator.workload.traces import RequestTrace

_LOOK_UP_BYTES = 48
"""Bytes in which a rank keeps whether a prefix block is in a tier of its cache
(:class:`simulator.engine.state.PrefixBlock`)."""
_MOST_LOOK_UP_BYTES = 16e9


def find_keys_of(order: OrderPolicy, trace: RequestTrace, where: str) -> Keys | None:
    """Find the keys by which an order lets the requests of a trace wait.

    Raises:
        UserError: with the place, if the trace lacks what the order needs.
    """
    requests = Queued(
        _lock(trace.arrival_s),
        _lock(trace.num_input),
        _lock(trace.num_output),
        Attributes((name, _lock(values)) for name, values in trace.attributes.items()),
    )
    try:
        return find_keys(order, requests)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _lock(values: np.ndarray) -> np.ndarray:
    """View of an array that other deployments see too, through which nobody can write."""
    view = values.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True)
class Serving:
    """Serving rules of a pool of replicas: numbers and policies that no step's price depends on."""

    replicas: int
    rules: Rules
    """Limits of a step, from the scheduling policy."""
    order: OrderPolicy
    """Order in which requests wait."""
    balancing: BalancingPolicy
    capacity: Capacity
    """Memory of a GPU, and its part for the KV cache."""
    rebalancing: RebalancingPolicy
    """Policy that rebalances experts during a run."""
    recovery: RecoveryPolicy
    """Policy that says how replicas recover from lost GPUs."""
    scaling: ScalingPolicy
    """Policy that says how many of the replicas serve."""
    tiers: tuple[Tier, ...] = ()
    """Memory below a GPU's own for prefix blocks, the fastest first."""

    @property
    def first_replicas(self) -> int:
        """Number of replicas that serve when the run begins."""
        return begin_scaling(self.scaling, self.replicas)


@dataclass(frozen=True)
class DeploymentPlan:
    """Plan to execute: placement, serving rules, and changes during the run."""

    spec: DeploymentSpec
    placement: Placement
    serving: Serving
    prefill: DeploymentPlan | None = None
    """Pool that computes prompts, where this one only decodes."""
    transfer: Transfer | None = None
    """Transfers of caches from the prefill pool to this one."""
    failures: tuple[FailurePolicy, ...] = ()
    """Failures during the run, in either pool."""

    @property
    def pools(self) -> tuple[DeploymentPlan, ...]:
        """Plans of this pool and of its prefill pool."""
        return (self,) if self.prefill is None else (self, self.prefill)

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self.spec.name

    @property
    def keeps_prefixes(self) -> bool:
        """Whether blocks of prompts stay in the KV cache for requests that begin alike. Models that
        carry a state, or whose every layer keeps a window only, have none that grow by blocks.
        """
        has_state = any(one.state_elements() for one in self.placement.model.mixers.values())
        grows = self.serving.capacity.cache.bytes_per_token > 0
        return self.spec.prefix_caching and grows and not has_state

    @property
    def draws_hits(self) -> bool:
        """Whether it is drawn which experts tokens find where some are offloaded: no band knows how
        real tokens repeat their experts.
        """
        experts = self.placement.experts
        return self.placement.offload is not None and experts is not None and not experts.recorded

    @property
    def steps_ahead(self) -> int:
        """Number of steps that are formed while another one runs: none with a pipeline, whose
        batches are all in flight anyway, and on a processor, where vLLM turns it off
        (``vllm/platforms/cpu.py`` of 0.14.0).
        """
        placement = self.placement
        is_host = isinstance(placement.calibration, HostRates)
        is_off = placement.layout.pp > 1 or is_host
        return 0 if is_off else self.serving.rules.steps_ahead

    def check_prefixes(self, trace: RequestTrace, where: str) -> None:
        """Refuse a trace with more prefix blocks than can be looked up at every rank, and tiers
        that hold none of them.

        Raises:
            UserError: with the bytes that it would take, or that a block takes.
        """
        if not (self.keeps_prefixes and len(trace.prefix_ids)):
            return
        self._check_tiers(trace, where)
        num_blocks = int(trace.prefix_ids.max()) + 1
        num_ranks = self.serving.replicas * self.placement.layout.attention_dp
        num_tiers = 1 + len(self.serving.tiers)
        num_bytes = num_blocks * num_ranks * num_tiers * _LOOK_UP_BYTES
        if num_bytes > _MOST_LOOK_UP_BYTES:
            raise UserError(
                f"{where}: what each of {num_ranks:,} ranks has cached of {num_blocks:,} prefix "
                f"blocks takes {num_bytes / 1e9:.3g} GB of this machine's memory, of which at most "
                f"{_MOST_LOOK_UP_BYTES / 1e9:.3g} are used; take fewer requests (num_requests), "
                "fewer replicas, or prefix_caching = false"
            )

    def _check_tiers(self, trace: RequestTrace, where: str) -> None:
        tokens = trace.prefix_block_tokens
        num_bytes = tokens * self.serving.capacity.cache.bytes_per_token
        for number, tier in enumerate(self.serving.tiers):
            if tier.memory_bytes < num_bytes:
                raise UserError(
                    f"{where} [kv_tiers.{number}]: its {tier.memory_bytes:.3g} bytes hold none of "
                    f"the trace's prefix blocks of {tokens:,} tokens, each of {num_bytes:.3g} "
                    "bytes on a GPU; make it larger, or leave it out"
                )

    def find_keys(self, trace: RequestTrace) -> Keys | None:
        """Find the keys by which requests wait; ``None`` where they are served as they come.

        Raises:
            UserError: if the trace lacks what the order needs.
        """
        return find_keys_of(self.serving.order, trace, f"deployment '{self.name}' [order]")

    @property
    def num_gpus(self) -> int:
        """GPUs of all replicas of all pools."""
        return sum(pool.serving.replicas * pool.placement.layout.num_gpus for pool in self.pools)

    @property
    def machines(self) -> dict[str, Machines]:
        """GPUs of each pool, by its name: ``both``, or ``decode`` and ``prefill``."""
        names = ("both",) if self.prefill is None else ("decode", "prefill")
        found: dict[str, Machines] = {}
        for name, pool in zip(names, self.pools, strict=True):
            cluster = pool.placement.cluster
            before = sum(one.num_gpus for one in found.values() if one.cluster == cluster.name)
            found[name] = Machines(
                pool.serving.replicas,
                pool.placement.layout.num_gpus,
                cluster.gpus_per_node,
                cluster.name,
                before,
            )
        return found

    def list_first(self) -> list[int]:
        """List the replicas that serve when the run begins, by their numbers among those of all
        pools.
        """
        found: list[int] = []
        first = 0
        for pool in self.pools:
            found += range(first, first + pool.serving.first_replicas)
            first += pool.serving.replicas
        return found

    def list_failures(self) -> list[Iterator[Change]]:
        """List the failures and recoveries of each policy, in order of time."""
        return [
            list_changes(policy, self.machines, self.placement.rng("failures", number))
            for number, policy in enumerate(self.failures)
        ]


def make_plan(spec: DeploymentSpec, seed: int, where: str, folder: Path) -> DeploymentPlan:
    """Build and check everything that a deployment names.

    Args:
        where: the scenario's file, for errors.
        folder: what paths in the deployment are relative to.

    Raises:
        UserError: if a name is unknown, the split is impossible, or the model does not fit.
    """
    place = f"{where} [deployments '{spec.name}']"
    plan = _make_pools(spec, seed, place, folder)
    check_degraded_gpus(spec, plan.machines.values(), place)
    for machines, pool in zip(plan.machines.values(), plan.pools, strict=True):
        placed = pool.placement
        check_tensor_groups(
            placed.cluster, machines, placed.layout.tp, placed.accelerator.name, place
        )
    failures = []
    for number, table in enumerate(spec.failures):
        in_table = f"{place} [failures.{number}]"
        failures.append(build("failures", table, in_table))
        try:
            list_changes(failures[-1], plan.machines, plan.placement.rng("failures", number))
        except UserError as error:
            raise UserError(f"{in_table}: {error}") from None
    return replace(plan, failures=tuple(failures))


def _make_pools(spec: DeploymentSpec, seed: int, place: str, folder: Path) -> DeploymentPlan:
    if spec.prefill is None:
        return _make_pool(spec, seed, place, folder, 0, 0)
    pool = spec.prefill
    changes = {
        "parallel": pool.parallel,
        "replicas": pool.replicas,
        "scheduling": pool.scheduling,
        "overlap": pool.overlap,
    }
    own = pool.scheduling or {}
    if "kind" not in own and not find_kv_transfer(spec.engine).prefill_works_ahead:
        changes["scheduling"] = {"steps_ahead": 0, **own}
    changes |= {"prefill": None, "cluster": pool.cluster or spec.cluster, "idle_gpus": 0}
    changes["speculation"] = {"kind": "none"}  # nothing decodes there
    changes["rebalancing"], changes["scaling"] = {"kind": "none"}, pool.scaling
    changes["recovery"] = _choose_prefill_recovery(spec.recovery, pool.parallel)
    if (
        pool.parallel.ep or 1
    ) == 1:  # its experts are split like dense blocks, so the decode pool's copies are not there
        changes["placement"] = {"kind": "contiguous"}
    if pool.cluster is not None:
        changes |= {"calibration": None, "price_per_gpu_hour": None, "degraded": ()}
    first_gpu = None if changes["cluster"] == spec.cluster else 0
    prefill = _make_pool(
        spec.model_copy(update=changes), seed, f"{place} [prefill]", folder, 0, first_gpu
    )
    decode = _make_pool(
        spec.model_copy(update={"kv_tiers": ()}),  # nothing but decodes comes there
        seed,
        place,
        folder,
        prefill.num_gpus if prefill.placement.cluster.name == spec.cluster else 0,
        0,
    )
    transfer = make_transfer(
        pool,
        (prefill.placement.cluster, decode.placement.cluster),
        (prefill.placement.layout, decode.placement.layout),
        _mean_cache(decode),
        prefill.num_gpus + decode.num_gpus,
        decode.placement.model.num_layers,
        find_kv_transfer(spec.engine),
    )
    whole = decode.spec.model_copy(update={"kv_tiers": spec.kv_tiers})
    return replace(decode, spec=whole, prefill=prefill, transfer=transfer)


def _choose_prefill_recovery(table: Policy, parallel: ParallelSpec) -> Policy:
    """Recovery of a prefill pool: a restart at the same times where its ranks need each other."""
    if table["kind"] == "restart" or parallel.ep == parallel.num_ranks > parallel.tp:
        return table
    keys = set(Restart.model_fields) & set(table)
    return {"kind": "restart", **{key: table[key] for key in keys}}


def _make_pool(
    spec: DeploymentSpec,
    seed: int,
    place: str,
    folder: Path,
    taken_gpus: int,
    first_gpu: int | None,
) -> DeploymentPlan:
    """Build one pool of replicas.

    Args:
        taken_gpus: GPUs of its cluster that serve another pool.
        first_gpu: number of its first GPU in the cluster; ``None`` where it is not known yet, since
            the pool before it is made later.
    """
    model, whole, reduction = choose_model(spec, place, folder), None, None
    if spec.reduction is not None:
        reduction = build("reduction", spec.reduction, f"{place} [reduction]")
        whole, model = model.moe, reduce_model(model, reduction, f"{place} [reduction]")
    cluster, accelerator = load_cluster(spec.cluster, place)
    speeds = spec.speeds
    cluster = cluster.with_speed(spec.network_speed, speeds.latency, speeds.below)
    cluster = cluster.with_price(spec.price_per_gpu_hour).degrade(spec.degraded)
    loaded = load_any_calibration(spec.calibration or accelerator.calibration, place)
    usual = {
        name: getattr(spec, name) or getattr(loaded, name)
        for name in ("compute", "communication", "dispatch")
    }
    others, named = load_others(cluster, accelerator, place), spec.compute
    accelerator = accelerator.with_speed(speeds.memory, speeds.arithmetic)
    spec = spec.model_copy(update=usual)
    if isinstance(loaded, CalibrationFile):
        loaded.check_engine(spec.engine, place)
        spec = spec.model_copy(update={"engine": name_release(spec.engine)})
    elif speeds != Speeds():
        raise UserError(
            f"{place} [speeds]: what is priced by times of a machine has no parts of its own to "
            "be faster; leave speeds out"
        )
    elif cluster.host is None:
        cluster = cluster.model_copy(update={"host": loaded.machine_below})
    layout = make_layout(spec.parallel, model, place)
    free_gpus = cluster.num_gpus - taken_gpus - spec.idle_gpus
    apart = [(taken_gpus, "for prefill"), (spec.idle_gpus, "that are idle")]
    besides = " and".join(f" {count} {what}" for count, what in apart if count)
    besides = f" besides{besides}" if besides else ""
    has = f"cluster '{cluster.name}' has {cluster.num_gpus}"
    if layout.num_gpus > free_gpus:
        raise UserError(f"{place} [parallel]: needs {layout.num_gpus} GPUs{besides}, but {has}")
    replicas = spec.replicas or free_gpus // layout.num_gpus
    if replicas * layout.num_gpus > free_gpus:
        raise UserError(
            f"{place}: {replicas} replicas need {replicas * layout.num_gpus} "
            f"GPUs{besides}, but {has}"
        )
    check_overlap(spec, model, layout, place)
    precision = choose_precision(spec, model)
    check_formats(precision, loaded, place)
    check_pruning(spec, model, precision, loaded, place)
    check_offload(spec.offload, model, cluster, layout, precision, spec.pruning, place)
    asked, speculation = spec.scheduling, spec.speculation["kind"]
    scheduling = resolve_scheduling(
        asked, spec.engine, accelerator, layout.attention_dp, spec.usage, speculation
    )
    spec = spec.model_copy(update={"scheduling": scheduling})
    rules = make_rules(build("scheduling", scheduling, f"{place} [scheduling]"))
    check_sequences(replicas, layout, rules, place)
    drafts = make_drafts(build("speculation", spec.speculation, f"{place} [speculation]"))
    if drafts.num_tokens:
        check_drafts(spec, drafts, model, layout, loaded, place)
    check_stages(spec, layout, cluster, loaded, rules, place)
    check_degraded(cluster, layout, loaded, place)
    fabric = wire_links(cluster, layout.num_ranks, place)
    last = cluster.num_gpus if first_gpu is None else first_gpu + replicas * layout.num_gpus
    smallest = choose_smallest(cluster, accelerator, others, last)
    setup = Setup(spec, model, smallest, layout, precision, rules, cluster.host, drafts)
    capacity = _check_start(setup, place, loaded)
    most = find_sequences(
        asked, spec.engine, capacity.tokens, model.max_context_tokens, speculation
    )
    if most is not None:
        rules = rules._replace(max_sequences=most)
        spec = spec.model_copy(update={"scheduling": {**scheduling, "max_sequences": most}})
    calibration = (
        loaded.choose_tables(layout.num_ranks, capacity.weights_bytes * layout.num_ranks)
        if isinstance(loaded, HostCalibration)
        else loaded.choose_engine(spec.engine).with_speeds(speeds)
    )
    sends = None
    if layout.pp > 1 and isinstance(calibration, Calibration):
        sends = make_sends(layout, wire_links(cluster, layout.num_gpus, place), calibration)
    experts = plan_experts(
        spec,
        model,
        layout,
        rules.token_budget,
        seed,
        place,
        folder,
        whole,
        reduction,
        1 + drafts.num_tokens,
    )
    num_experts = model.moe.num_experts if model.moe is not None else 0
    offload = plan_offload(spec.offload, experts, cluster.host, num_experts, place)
    placement = Placement(
        name=spec.name,
        model=model,
        cluster=cluster,
        accelerator=accelerator,
        calibration=calibration,
        layout=layout,
        precision=precision,
        pruning=spec.pruning,
        overlap=spec.overlap,
        exchange_chunks=spec.exchange_chunks,
        drafts=drafts,
        experts=experts,
        fabric=fabric,
        compute=build("cost.compute", spec.compute or {}, f"{place} [compute]").prepare(
            accelerator, calibration
        ),
        comm=build("cost.comm", spec.communication or {}, f"{place} [communication]").prepare(
            fabric, calibration, accelerator
        ),
        sends=sends,
        seed=seed,
        others=prepare_others(spec, model, precision, others, named, place),
        offload=offload,
    )
    order = build("order", spec.order, f"{place} [order]")
    balancing = build("balancing", spec.balancing, f"{place} [balancing]")
    has_copies = experts is not None and experts.placed.expert_LP.shape[1] > num_experts
    check_rebalancing(spec, layout, f"{place} [rebalancing]")
    rebalancing = build("rebalancing", spec.rebalancing, f"{place} [rebalancing]")
    if has_copies:
        check_copies(rebalancing, f"{place} [rebalancing]")
    recovery: RecoveryPolicy = build("recovery", spec.recovery, f"{place} [recovery]")
    check_recovery(spec, placement, f"{place} [recovery]")
    scaling: ScalingPolicy = build("scaling", spec.scaling, f"{place} [scaling]")
    check_scaling(scaling, replicas, f"{place} [scaling]")
    tiers = _make_tiers(spec, cluster, place)
    serving = Serving(
        replicas, rules, order, balancing, capacity, rebalancing, recovery, scaling, tiers
    )
    plan = DeploymentPlan(spec, placement, serving)
    if tiers and not plan.keeps_prefixes:
        why = "the model has a state, or no layer that attends to all tokens"
        why = why if spec.prefix_caching else "prefix_caching is false"
        raise UserError(f"{place} [kv_tiers]: no prefix is cached, since {why}; leave out kv_tiers")
    return plan


def _make_tiers(spec: DeploymentSpec, cluster: ClusterSpec, place: str) -> tuple[Tier, ...]:
    found = []
    for number, table in enumerate(spec.kv_tiers):
        where = f"{place} [kv_tiers.{number}]"
        policy = build("kv_tiers", table, where)
        try:
            found.append(find_tier(policy, cluster))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return tuple(found)


def _check_start(
    setup: Setup, place: str, calibration: CalibrationFile | HostCalibration
) -> Capacity:
    """Refuse splits that the engine does not start with, and deployments that do not fit; the
    alternatives in either message satisfy both.
    """

    def is_legal(other: Setup) -> bool:
        return isinstance(calibration, HostCalibration) or find_refusal(other) is None

    if not is_legal(setup):
        check_splits(setup, place, does_fit)
    return check_memory(setup, place, is_legal)


def _mean_cache(plan: DeploymentPlan) -> CacheSize:
    """Cache of one sequence on a GPU: the mean GPU's, where stages of a pipeline keep different
    layers.
    """
    pp = plan.placement.layout.pp
    if pp == 1:
        return plan.serving.capacity.cache
    whole = cache_size(
        plan.placement.model, replace(plan.placement.layout, pp=1), plan.placement.precision
    )
    return CacheSize(whole.bytes_per_token / pp, whole.bytes_per_sequence / pp)
