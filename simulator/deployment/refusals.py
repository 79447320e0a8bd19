"""Refusals of combinations that cannot be simulated, before anything is built."""

from __future__ import annotations

from collections.abc import Collection

from simulator.base.errors import UserError
from simulator.base.plugins import policy_class
from simulator.config.calibration import CalibrationFile, find_pruned_fit
from simulator.config.cluster import ClusterSpec
from simulator.config.deployment import DeploymentSpec, OffloadSpec
from simulator.config.dtypes import COMPUTED_HERE
from simulator.config.host import HostCalibration
from simulator.config.model import ModelSpec
from simulator.config.sparsity import Pruning, Unstructured, choose_dense, choose_experts
from simulator.deployment.placement import Placement
from simulator.policies.contracts import count_slots
from simulator.policies.failures import Machines
from simulator.policies.rebalancing import RebalancingPolicy, migration_rules
from simulator.policies.scheduling import Rules
from simulator.policies.speculation import Drafts
from simulator.work.layout import Layout
from simulator.work.memory import Precision, expert_bytes_per_layer


def check_offload(
    spec: OffloadSpec | None,
    model: ModelSpec,
    cluster: ClusterSpec,
    layout: Layout,
    precision: Precision,
    pruning: Pruning | None,
    place: str,
) -> None:
    """Refuse experts that cannot be offloaded.

    Args:
        place: of the deployment, for errors.

    Raises:
        UserError: if the model is dense, the replica has several GPUs, or the cluster lacks the
            memory or the processor that is asked for.
    """
    if spec is None:
        return
    where = f"{place} [offload]"
    if model.moe is None:
        raise UserError(
            f"{where}: {model.name} is dense and has no experts to offload; leave it out"
        )
    if layout.num_gpus > 1:
        raise UserError(
            f"{where}: experts of replicas of one GPU are offloaded, and this one has "
            f"{layout.num_gpus}; leave parallel or offload out"
        )
    num_experts = model.moe.num_experts
    if spec.slots > num_experts:
        raise UserError(f"{where}: slots must be at most the {num_experts} experts of a layer")
    _check_host(spec, cluster, num_experts, where)
    layer_bytes = expert_bytes_per_layer(
        model.moe, model.hidden_size, layout, precision, pruning=pruning
    )
    _check_room(spec, cluster, model.num_moe_layers * layer_bytes, precision.experts, where)


def _check_host(spec: OffloadSpec, cluster: ClusterSpec, num_experts: int, where: str) -> None:
    """Refuse a memory or a processor that the cluster's file does not have."""
    host = cluster.host
    tiers = [] if host is None else list(host.tiers)
    if spec.tier not in tiers:
        raise UserError(
            f"{where}: cluster '{cluster.name}' has no [host.{spec.tier}] in its file; "
            + (f'tier = "{tiers[0]}" is there' if tiers else "add one, with its source")
        )
    is_needed = spec.uploads is not None and spec.uploads < num_experts
    if is_needed and (host is None or host.processor is None):
        raise UserError(
            f"{where}: uploads = {spec.uploads} leaves experts to a processor, and cluster "
            f"'{cluster.name}' has no [host.processor]; leave uploads out"
        )


def _check_room(
    spec: OffloadSpec, cluster: ClusterSpec, needed: float, dtype: str, where: str
) -> None:
    """Refuse experts of ``needed`` bytes that the memory below has no room for."""
    tiers = {} if cluster.host is None else cluster.host.tiers
    room = {name: tier.memory_bytes for name, tier in tiers.items()}
    if needed <= room[spec.tier]:
        return
    wider = spec.tier == "dram" and room.get("storage", 0.0) >= needed
    raise UserError(
        f"{where}: the experts take {needed / 1e9:,.1f} GB in {dtype}, and [host.{spec.tier}] of "
        f"cluster '{cluster.name}' has {room[spec.tier] / 1e9:,.1f} GB; "
        + ('tier = "storage" would do' if wider else "a narrower expert_dtype may do")
    )


_MOST_SEQUENCES = 1 << 26
"""Most sequences at once of all replicas: a GiB of the engine's state."""


def check_sequences(replicas: int, layout: Layout, rules: Rules, place: str) -> None:
    """Refuse more sequences than the engine's state holds."""
    sequences = replicas * layout.attention_dp * rules.max_sequences
    if sequences > _MOST_SEQUENCES:
        raise UserError(
            f"{place} [scheduling]: max_sequences ({rules.max_sequences:,}) of "
            f"{replicas * layout.attention_dp:,} data-parallel ranks are {sequences:,} sequences "
            f"at once, must be at most {_MOST_SEQUENCES:,}"
        )


def check_overlap(spec: DeploymentSpec, model: ModelSpec, layout: Layout, place: str) -> None:
    """Refuse overlaps of computation with exchanges that are not there."""
    keys = [f'overlap = "{spec.overlap}"'] * (spec.overlap != "none")
    keys += [f"exchange_chunks = {spec.exchange_chunks}"] * (spec.exchange_chunks > 1)
    if not keys:
        return
    if model.moe is None or not layout.travels:
        raise UserError(
            f"{place}: {keys[0]} computes while tokens travel to experts, and here none do: "
            + (f"{model.name} is dense" if model.moe is None else "it takes attention_dp > 1")
        )
    if spec.overlap == "shared_experts" and not model.moe.num_shared_experts:
        raise UserError(
            f"{place}: {keys[0]} computes shared experts while tokens travel, and {model.name} has "
            "none; leave it out"
        )
    if spec.overlap == "two_batch" and spec.exchange_chunks > 1:
        raise UserError(
            f"{place}: {keys[1]} of halves ({keys[0]}) are not simulated; leave one of them out"
        )


def check_drafts(
    spec: DeploymentSpec,
    drafts: Drafts,
    model: ModelSpec,
    layout: Layout,
    calibration: CalibrationFile | HostCalibration,
    place: str,
) -> None:
    """Refuse deployments with drafts that are not simulated."""
    where = f"{place} [speculation]: drafts"
    if drafts.num_layers > model.num_layers:
        raise UserError(
            f"{place} [speculation]: a module of {drafts.num_layers} layers like the model's last "
            f"ones, and {model.name} has {model.num_layers}; take fewer layers"
        )
    if layout.pp > 1:
        raise UserError(f"{where} in a pipeline are not simulated; leave pp or speculation out")
    if spec.overlap != "none":
        raise UserError(
            f'{where} with overlap = "{spec.overlap}" are not simulated; leave one of them out'
        )
    if isinstance(calibration, HostCalibration):
        raise UserError(
            f"{where} are for accelerators: processes of one machine run no drafting module; "
            "leave speculation out"
        )


def check_rebalancing(spec: DeploymentSpec, layout: Layout, where: str) -> None:
    """Refuse to rebalance experts where none can move, or where moving them is not simulated."""
    if spec.rebalancing["kind"] == "none":
        return
    if not layout.travels:
        raise UserError(
            f"{where}: every GPU has its part of all tokens, or there are no routed experts, and "
            "moving some is not simulated; it takes attention_dp > 1 and ep > 1, or leave "
            "rebalancing out"
        )
    if layout.pp > 1:
        raise UserError(
            f"{where}: moving experts in a pipeline is not simulated; leave pp or rebalancing out"
        )


def check_copies(policy: RebalancingPolicy, where: str) -> None:
    """Refuse to rebalance by a placement that has no slots for copies of experts."""
    placement = migration_rules(policy).placement
    if placement is None:  # the policy moves experts by itself
        return
    kind = placement["kind"]
    is_own = "." in kind  # and may have as many slots by itself
    keys = policy_class("placement", kind, where).model_fields
    if not is_own and "num_slots" not in keys:
        raise UserError(
            f"{where}: placement '{kind}' has no slots for copies of experts, and the deployment "
            'has some; use placement.kind = "eplb", or leave num_slots out of the deployment\'s '
            "own placement"
        )


def check_recovery(spec: DeploymentSpec, placement: Placement, where: str) -> None:
    """Refuse recoveries that are not simulated, or that no ranks can go on from."""
    table, layout = spec.recovery, placement.layout
    if table.get("requests") == "retry" and spec.prefill is not None:
        raise UserError(
            f'{where}: requests = "retry" is not simulated with a prefill pool; '
            'use "resume" or "lose"'
        )
    if table["kind"] == "restart":
        return
    if placement.experts is None or not layout.travels or layout.moe_tp > 1 or layout.pp > 1:
        raise UserError(
            f"{where}: only ranks that hold whole experts and requests of their own go on without "
            "others; it takes attention_dp > 1, ep = tp x attention_dp and pp = 1, or kind = "
            '"restart"'
        )
    slots_R = count_slots(placement.experts.placed)
    if (slots_R != slots_R[0, 0]).any():
        raise UserError(
            f"{where}: ranks have from {slots_R.min()} to {slots_R.max()} slots of experts; it "
            "takes as many on each, with a num_slots that the number of ranks divides"
        )


def check_degraded(
    cluster: ClusterSpec, layout: Layout, calibration: CalibrationFile | HostCalibration, place: str
) -> None:
    """Refuse slower GPUs and links where they are not simulated."""
    if not cluster.degraded:
        return
    if layout.pp > 1:
        raise UserError(
            f"{place} [degraded]: stages of a pipeline are priced alike, so that slower GPUs in "
            "one are not simulated; leave pp or degraded out"
        )
    if isinstance(calibration, HostCalibration):
        raise UserError(
            f"{place} [degraded]: processes of one machine are priced by times that were measured "
            "on it as it was; leave degraded out"
        )


def check_degraded_gpus(spec: DeploymentSpec, machines: Collection[Machines], place: str) -> None:
    """Refuse slower GPUs and nodes beyond those that a deployment uses of its cluster.

    Args:
        machines: of its pools.
    """
    there = [one for one in machines if one.cluster == spec.cluster]
    num_gpus = max(one.first_gpu + one.num_gpus for one in there)
    num_nodes = max(one.num_nodes for one in there)
    for number, one in enumerate(spec.degraded):
        for what, value, count in (("gpu", one.gpu, num_gpus), ("node", one.node, num_nodes)):
            if value is not None and value >= count:
                raise UserError(
                    f"{place} [degraded.{number}]: {what} = {value}: the deployment uses "
                    f"{count:,}, numbered from 0 to {count - 1:,}"
                )


def check_stages(
    spec: DeploymentSpec,
    layout: Layout,
    cluster: ClusterSpec,
    calibration: CalibrationFile | HostCalibration,
    rules: Rules,
    place: str,
) -> None:
    """Refuse pipelines that are not simulated."""
    if layout.pp == 1:
        return
    ranks, per_node = layout.num_ranks, cluster.gpus_per_node
    where = f"{place} [parallel]: pp = {layout.pp}"
    if isinstance(calibration, HostCalibration):
        raise UserError(
            f"{where}: processes of one machine run no pipeline: "
            "nothing says what handing on takes there; leave pp out"
        )
    if spec.overlap != "none":
        raise UserError(
            f'{where} with overlap = "{spec.overlap}": no engine does both; leave one of them out'
        )
    if layout.num_gpus > per_node and per_node % ranks and ranks % per_node:
        raise UserError(
            f"{where}: stages of {ranks} GPUs neither divide nodes of {per_node} nor fill them, "
            "so that some would lie across nodes and others not; "
            "choose a tp x attention_dp that does"
        )
    if rules.balance_steps or rules.wait_steps:
        raise UserError(
            f"{where}: balance_steps and wait_steps hold prompts of one batch back, "
            f"not of {layout.pp}; leave them out"
        )


def check_pruning(
    spec: DeploymentSpec,
    model: ModelSpec,
    precision: Precision,
    calibration: CalibrationFile | HostCalibration,
    place: str,
) -> None:
    """Refuse pruning that the model has no place for, or whose speed nobody has published."""
    pruning = spec.pruning
    if pruning is None:
        return
    _check_pruned_blocks(pruning, model, place)
    if choose_experts(pruning) and spec.offload is not None:
        raise UserError(
            f"{place} [pruning]: pruned experts that are offloaded are not simulated; leave "
            "offload out, or prune dense blocks"
        )
    if isinstance(calibration, HostCalibration):
        if pruning.kernels not in ("csr", "two_four", "block"):
            raise UserError(
                f"{place} [pruning]: on a processor what is left is stored row by "
                "row; leave out format"
            )
        return
    table = calibration.pruned
    dtype = precision.weights if choose_dense(pruning) else precision.experts
    if find_pruned_fit(table, pruning.kernels, dtype) is None:
        known = ", ".join(
            f"{kernels} ({', '.join(sorted(dtypes))})" for kernels, dtypes in sorted(table.items())
        )
        raise UserError(
            f"{place} [pruning]: unsupported: nobody has published how fast products with {dtype} "
            f"matrices pruned '{pruning.kernels}' are on {calibration.title}; "
            f"there are: {known or 'none'}"
        )


def check_formats(
    precision: Precision, calibration: CalibrationFile | HostCalibration, place: str
) -> None:
    """Refuse weights in formats that processors neither compute nor were timed in."""
    if not isinstance(calibration, HostCalibration):
        return
    for key, dtype in (("weight_dtype", precision.weights), ("expert_dtype", precision.experts)):
        if dtype not in COMPUTED_HERE:
            raise UserError(
                f"{place}: {key} = \"{dtype}\" was not timed on '{calibration.machine}', where "
                f"shards compute in {', '.join(COMPUTED_HERE)}; say {key} = "
                f'"{calibration.dtype}", in which products were timed, or name a cluster of '
                "accelerators"
            )


def _check_pruned_blocks(pruning: Pruning, model: ModelSpec, place: str) -> None:
    """Refuse to prune blocks that the model lacks, or whose places indices are too narrow for."""
    dense = [ffn for ffn in model.ffns.values() if ffn.is_prunable]
    moe = model.moe
    for wanted, has_it, words in (
        (pruning.blocks == "dense", bool(dense), "dense feed-forward blocks"),
        (pruning.blocks == "experts", moe is not None, "routed experts"),
        (pruning.blocks == "all", bool(dense) or moe is not None, "feed-forward blocks"),
    ):
        if wanted and not has_it:
            raise UserError(
                f"{place} [pruning]: prunes {words}, and {model.name} has none; leave it out"
            )
    if not isinstance(pruning, Unstructured):
        return
    pruned = dense if choose_dense(pruning) else []
    linears = [one for ffn in pruned for one in ffn.linears(model.hidden_size)]
    if moe is not None and choose_experts(pruning):
        linears += moe.expert_linears(model.hidden_size)
    for linear in linears:
        least = pruning.least_index_bits(linear.out_features, linear.in_features)
        if pruning.index_bits < least:
            raise UserError(
                f"{place} [pruning]: index_bits = {pruning.index_bits}: a matrix has "
                f"{linear.out_features:,} rows and {linear.in_features:,} columns, which takes "
                f"{least} in {pruning.format}"
            )
