"""The frozen plan: a deployment with every policy built, every expert placed, and every check
passed. Backends execute it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.base.plugins import build
from simulator.base.streams import open_stream
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration, CalibrationFile, pruned_entry
from simulator.config.cluster import ClusterSpec, load_cluster
from simulator.config.deployment import DeploymentSpec
from simulator.config.ffn import DenseFFN, MoE
from simulator.config.host import HostCalibration, HostRates, load_any_calibration
from simulator.config.model import ModelSpec, load_model
from simulator.cost.comm import CommModel
from simulator.cost.compute import ComputeModel
from simulator.cost.stages import Sends, make_sends
from simulator.cost.transfer import Transfer, make_transfer
from simulator.deployment.memory import Capacity, check_memory
from simulator.policies.balancing import BalancingPolicy
from simulator.policies.dispatch import DispatchPolicy
from simulator.policies.placement import Placed
from simulator.policies.scheduling import Rules
from simulator.policies.topology import Fabric
from simulator.work.layout import Layout, make_layout
from simulator.work.memory import CacheSize, Precision, cache_size

POOL_TOKENS = 4096
"""Tokens whose expert choices are drawn once for each MoE layer; steps take theirs from this pool,
larger ones scale it up."""
_RUN_TOKENS = 256
"""Tokens of one run in the pool: consecutive tokens of one sequence, as far as the routing policy
lets them share experts."""

_MOST_POOLS = 8
_MOST_PLACED = 256
_PLACED: dict[tuple[Any, ...], Placed] = {}
_FABRICS: dict[tuple[str, int], Fabric] = {}
_POOLS: dict[tuple[str, int, str, int], tuple[NDArray[np.int16], NDArray[np.float64]]] = {}


@dataclass(frozen=True)
class ExpertPlan:
    """The routed experts of a plan."""

    topk_ids_LTK: NDArray[np.int16]
    """The pool, ``[L, POOL_TOKENS, K]``, in an order in which neighbours are independent (a decode
    batch)."""
    placed: Placed
    """On the ``ep`` expert-parallel ranks."""
    dispatch: DispatchPolicy
    routing: Policy
    """The policy's table, the model's default filled in."""
    routing_source: str


@dataclass(frozen=True)
class Plan:
    """What to execute."""

    spec: DeploymentSpec
    model: ModelSpec
    cluster: ClusterSpec
    accelerator: AcceleratorSpec
    calibration: Calibration | HostRates
    layout: Layout
    replicas: int
    precision: Precision
    fabric: Fabric
    compute: ComputeModel
    comm: CommModel
    rules: Rules
    balancing: BalancingPolicy
    capacity: Capacity
    experts: ExpertPlan | None
    """``None`` for a dense model."""
    seed: int
    prefill: Plan | None = None
    """The pool that computes prompts, where this one only decodes."""
    transfer: Transfer | None = None
    """From one to the other."""
    sends: Sends | None = None
    """From each stage of a pipeline to the next; ``None`` without one."""

    @property
    def pools(self) -> tuple[Plan, ...]:
        """The plan itself, and its prefill pool's."""
        return (self,) if self.prefill is None else (self, self.prefill)

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self.spec.name

    @property
    def num_gpus(self) -> int:
        """GPUs of all replicas of all pools."""
        return sum(pool.replicas * pool.layout.num_gpus for pool in self.pools)

    def rng(self, purpose: str, *numbers: int) -> np.random.Generator:
        """The random numbers of one use, which deployments of one seed share
        (:func:`~simulator.base.streams.open_stream`).
        """
        return open_stream(self.seed, purpose, *numbers)


def make_plan(spec: DeploymentSpec, seed: int, where: str, folder: Path) -> Plan:
    """Build and check everything that a deployment names.

    Args:
        where: the scenario's file, for errors.
        folder: what paths in the deployment are relative to.

    Raises:
        UserError: if a name is unknown, the split is impossible, or the model does not fit.
    """
    place = f"{where} [deployments '{spec.name}']"
    if spec.prefill is None:
        return _make_pool(spec, seed, place, folder, 0)
    pool = spec.prefill
    changes = {
        "parallel": pool.parallel,
        "replicas": pool.replicas,
        "scheduling": pool.scheduling,
        "overlap": pool.overlap,
    }
    changes |= {"prefill": None, "cluster": pool.cluster or spec.cluster}
    if (
        pool.parallel.ep or 1
    ) == 1:  # its experts are split like dense blocks, so the decode pool's copies are not there
        changes["placement"] = {"kind": "contiguous"}
    if pool.cluster is not None:
        changes |= {"calibration": None, "price_per_gpu_hour": None}
    prefill = _make_pool(spec.model_copy(update=changes), seed, f"{place} [prefill]", folder, 0)
    decode = _make_pool(
        spec, seed, place, folder, prefill.num_gpus if prefill.cluster.name == spec.cluster else 0
    )
    transfer = make_transfer(
        pool,
        (prefill.cluster, decode.cluster),
        (prefill.layout, decode.layout),
        _mean_cache(decode),
        prefill.num_gpus + decode.num_gpus,
        decode.model.num_layers,
    )
    return replace(decode, prefill=prefill, transfer=transfer)


def _make_pool(spec: DeploymentSpec, seed: int, place: str, folder: Path, taken_gpus: int) -> Plan:
    """One pool of replicas on a cluster of which ``taken_gpus`` serve another one."""
    model = load_model(spec.model, place, folder)
    cluster, accelerator = load_cluster(spec.cluster, place)
    cluster = cluster.with_speed(spec.network_speed).with_price(spec.price_per_gpu_hour)
    loaded = load_any_calibration(spec.calibration or accelerator.calibration, place)
    usual = {
        name: getattr(spec, name) or getattr(loaded, name)
        for name in ("compute", "communication", "dispatch")
    }
    spec = spec.model_copy(update=usual)
    if isinstance(loaded, CalibrationFile):
        loaded.check_engine(spec.engine, place)
    layout = make_layout(spec.parallel, model, place)
    free_gpus = cluster.num_gpus - taken_gpus
    besides = f" besides {taken_gpus} for prefill" if taken_gpus else ""
    has = f"cluster '{cluster.name}' has {cluster.num_gpus}"
    if layout.num_gpus > free_gpus:
        raise UserError(f"{place} [parallel]: needs {layout.num_gpus} GPUs{besides}, but {has}")
    replicas = spec.replicas or free_gpus // layout.num_gpus
    if replicas * layout.num_gpus > free_gpus:
        raise UserError(
            f"{place}: {replicas} replicas need {replicas * layout.num_gpus} GPUs{besides}, but {has}"
        )
    if spec.overlap == "two_batch" and not (model.moe is not None and layout.travels):
        raise UserError(
            f'{place}: overlap = "two_batch" computes while tokens travel to experts, and here none do: '
            + (f"{model.name} is dense" if model.moe is None else "it takes attention_dp > 1")
        )
    precision = _precision(spec, model)
    _check_pruning(spec, model, precision, loaded, place)
    rules: Rules = build("scheduling", spec.scheduling, f"{place} [scheduling]").rules()
    _check_stages(spec, layout, cluster, loaded, rules, place)
    fabric = _wired(cluster, layout.num_ranks, place)
    capacity = check_memory(spec, model, accelerator, layout, precision, place)
    calibration = (
        loaded.on(layout.num_ranks, capacity.weights_bytes * layout.num_ranks)
        if isinstance(loaded, HostCalibration)
        else loaded.on(spec.engine)
    )
    sends = None
    if layout.pp > 1 and isinstance(calibration, Calibration):
        sends = make_sends(layout, _wired(cluster, layout.num_gpus, place), calibration)
    return Plan(
        spec=spec,
        model=model,
        cluster=cluster,
        accelerator=accelerator,
        calibration=calibration,
        layout=layout,
        replicas=replicas,
        precision=precision,
        fabric=fabric,
        compute=build("cost.compute", spec.compute or {}, f"{place} [compute]").prepare(
            accelerator, calibration
        ),
        comm=build("cost.comm", spec.communication or {}, f"{place} [communication]").prepare(
            fabric, calibration, accelerator
        ),
        rules=rules,
        balancing=build("balancing", spec.balancing, f"{place} [balancing]"),
        capacity=capacity,
        experts=_plan_experts(spec, model, layout, seed, place, folder),
        seed=seed,
        sends=sends,
    )


def _mean_cache(plan: Plan) -> CacheSize:
    """Of one sequence on a GPU: the mean one, where stages of a pipeline keep different layers."""
    pp = plan.layout.pp
    if pp == 1:
        return plan.capacity.cache
    whole = cache_size(plan.model, replace(plan.layout, pp=1), plan.precision)
    return CacheSize(whole.bytes_per_token / pp, whole.bytes_per_sequence / pp)


def _check_stages(
    spec: DeploymentSpec,
    layout: Layout,
    cluster: ClusterSpec,
    calibration: CalibrationFile | HostCalibration,
    rules: Rules,
    place: str,
) -> None:
    """Refuse what a pipeline cannot be simulated with."""
    if layout.pp == 1:
        return
    ranks, per_node, where = (
        layout.num_ranks,
        cluster.gpus_per_node,
        f"{place} [parallel]: pp = {layout.pp}",
    )
    if isinstance(calibration, HostCalibration):
        raise UserError(
            f"{where}: processes of one machine run no pipeline: nothing says what handing on takes there; leave pp out"
        )
    if spec.overlap != "none":
        raise UserError(
            f'{where} with overlap = "{spec.overlap}": no engine does both; leave one of them out'
        )
    if layout.num_gpus > per_node and per_node % ranks and ranks % per_node:
        raise UserError(
            f"{where}: stages of {ranks} GPUs neither divide nodes of {per_node} nor fill them, so that some would lie across "
            "nodes and others not; choose a tp x attention_dp that does"
        )
    if rules.balance_steps or rules.wait_steps:
        raise UserError(
            f"{where}: balance_steps and wait_steps hold prompts of one batch back, not of {layout.pp}; leave them out"
        )


def _wired(cluster: ClusterSpec, num_ranks: int, place: str) -> Fabric:
    """The links of a replica; once for all plans on the same machines."""
    key = (cluster.model_dump_json(exclude={"name", "num_gpus"}), num_ranks)
    if key not in _FABRICS:
        topology = build(
            "topology", cluster.topology, f"{place}: cluster '{cluster.name}' [topology]"
        )
        if len(_FABRICS) >= _MOST_PLACED:
            del _FABRICS[next(iter(_FABRICS))]
        _FABRICS[key] = topology.wire(cluster, num_ranks)
    return _FABRICS[key]


def _precision(spec: DeploymentSpec, model: ModelSpec) -> Precision:
    weights = spec.weight_dtype or model.weight_dtype
    experts = spec.expert_dtype or spec.weight_dtype or model.expert_dtype or model.weight_dtype
    wide = "fp32" if weights == "fp32" else "bf16"
    narrow = experts in ("fp8", "fp8_block", "mxfp4", "nvfp4")
    dispatch = spec.dispatch_dtype or ("fp8" if narrow else wide)
    return Precision(weights, experts, spec.kv_dtype or wide, dispatch, spec.combine_dtype or wide)


def _check_pruning(
    spec: DeploymentSpec,
    model: ModelSpec,
    precision: Precision,
    calibration: CalibrationFile | HostCalibration,
    place: str,
) -> None:
    pruning = spec.pruning
    if pruning is None:
        return
    if not any(isinstance(ffn, DenseFFN) for ffn in model.ffns.values()):
        raise UserError(
            f"{place} [pruning]: prunes dense feed-forward blocks, and {model.name} has none; leave it out"
        )
    if isinstance(calibration, HostCalibration):
        if pruning.kernels not in ("csr", "two_four", "block"):
            raise UserError(
                f"{place} [pruning]: on a processor what is left is stored row by row; leave out format"
            )
        return
    table, dtype = calibration.pruned, precision.weights
    if pruned_entry(table, pruning.kernels, dtype) is None:
        known = ", ".join(
            f"{kernels} ({', '.join(sorted(dtypes))})" for kernels, dtypes in sorted(table.items())
        )
        raise UserError(
            f"{place} [pruning]: unsupported: nobody has published how fast products with {dtype} matrices pruned "
            f"'{pruning.kernels}' are on {calibration.title}; there are: {known or 'none'}"
        )


def _plan_experts(
    spec: DeploymentSpec, model: ModelSpec, layout: Layout, seed: int, place: str, folder: Path
) -> ExpertPlan | None:
    moe = model.moe
    if moe is None:
        if spec.routing is not None:
            raise UserError(
                f"{place} [routing]: {model.name} is dense and routes nothing; leave it out"
            )
        return None
    routing, source = spec.routing, "the scenario"
    if routing is None:
        if model.routing is None:
            raise UserError(
                f"{place}: {model.name} names no default routing; add a [deployments.routing] table"
            )
        routing, source = model.routing, model.routing_source
    routing = _with_path(routing, folder)
    pools = _Pools(moe, model.num_moe_layers, routing, seed, f"{place} [routing]")
    today_LTK, load_LE = pools.drawn_before() if pools.follow_from_the_seed else pools.draw()
    return ExpertPlan(
        topk_ids_LTK=today_LTK,
        placed=pools.placed(spec.placement, load_LE, layout.ep, place),
        dispatch=build("dispatch", spec.dispatch or {}, f"{place} [dispatch]"),
        routing=routing,
        routing_source=source,
    )


@dataclass(frozen=True)
class _Pools:
    """The expert choices of a plan: today's tokens, and yesterday's loads, which placements go
    by.
    """

    moe: MoE
    num_layers: int
    routing: Policy
    seed: int
    place: str

    @property
    def follow_from_the_seed(self) -> bool:
        """Whether they can be shared: the policy is shipped and reads no file."""
        fields = [value for key, value in self.routing.items() if key != "kind"]
        return "." not in self.routing["kind"] and all(
            isinstance(value, int | float) for value in fields
        )

    def draw(self) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """``topk_ids_LTK`` and ``load_LE``."""
        seed, moe, layers = self.seed, self.moe, range(self.num_layers)
        router = build("routing", self.routing, self.place).prepare(
            moe, self.num_layers, open_stream(seed, "routing")
        )
        runs = np.full(POOL_TOKENS // _RUN_TOKENS, _RUN_TOKENS, dtype=np.int64)
        order = open_stream(seed, "pool order").permutation(POOL_TOKENS)
        # The same stream in every layer, so that a token keeps its domain (or its place in a
        # recording) from layer to layer.
        today = [
            _checked(
                router.topk_ids(n, runs, open_stream(seed, "tokens")), moe, self.routing, self.place
            )[order]
            for n in layers
        ]
        load_LE = np.empty((len(layers), moe.num_experts))
        for layer in layers:
            ids = router.topk_ids(layer, runs, open_stream(seed, "yesterday"))
            load_LE[layer] = np.bincount(ids.ravel(), minlength=moe.num_experts)
        return np.stack(today), load_LE

    def placed(self, policy: Policy, load_LE: NDArray[np.float64], ep: int, place: str) -> Placed:
        """Where experts are; once for all plans that place the same loads alike."""
        placement = build("placement", policy, f"{place} [placement]")
        key = (*self._key, repr(sorted(policy.items())), ep)
        if not self.follow_from_the_seed or "." in policy["kind"]:
            return placement.place(load_LE, ep, open_stream(self.seed, "placement"))  # type: ignore[no-any-return]
        if key not in _PLACED:
            if len(_PLACED) >= _MOST_PLACED:
                del _PLACED[next(iter(_PLACED))]
            _PLACED[key] = placement.place(load_LE, ep, open_stream(self.seed, "placement"))
        return _PLACED[key]

    @property
    def _key(self) -> tuple[str, int, str, int]:
        return (
            self.moe.model_dump_json(),
            self.num_layers,
            repr(sorted(self.routing.items())),
            self.seed,
        )

    def drawn_before(self) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """The same, drawn once for all plans that ask for it: splits of one model share it, and
        drawing takes seconds.
        """
        key = self._key
        if key not in _POOLS:
            if len(_POOLS) >= _MOST_POOLS:
                del _POOLS[next(iter(_POOLS))]
            today_LTK, load_LE = self.draw()
            today_LTK.flags.writeable = load_LE.flags.writeable = False
            _POOLS[key] = today_LTK, load_LE
        return _POOLS[key]


def _checked(
    topk_ids_TK: NDArray[np.int16], moe: MoE, routing: Policy, place: str
) -> NDArray[np.int16]:
    """What a router returned, if it is what a router must return: a user's own policy may not."""
    wanted = (POOL_TOKENS, moe.top_k)
    found = np.shape(topk_ids_TK)
    if found != wanted:
        raise UserError(
            f"{place}: '{routing['kind']}' must return ids of shape {wanted}, returned {found}"
        )
    if topk_ids_TK.min() < 0 or topk_ids_TK.max() >= moe.num_experts:
        raise UserError(
            f"{place}: '{routing['kind']}' must return ids from 0 to {moe.num_experts - 1}"
        )
    return topk_ids_TK


def _with_path(routing: Policy, folder: Path) -> Policy:
    """Paths are relative to the scenario's folder."""
    trace: Any = routing.get("trace")
    if isinstance(trace, str) and (folder / trace).exists():
        return {**routing, "trace": str(folder / trace)}
    return routing
