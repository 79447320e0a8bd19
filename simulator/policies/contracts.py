"""Calls of policies that refuse, as a ``UserError``, what breaks the promises of their family."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, Protocol, TypeGuard, TypeVar, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import create_model

from simulator.base.arrays import Bools, Floats, Ints
from simulator.base.contracts import (
    ask,
    check_call,
    describe_value,
    has_method,
    is_array,
    is_shipped,
    method_name,
)
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, validate
from simulator.base.quantities import MOST_WIDTH, YEAR_S
from simulator.config.cluster import ClusterSpec
from simulator.config.ffns.moe import MoE
from simulator.policies.balancing import Asked, BalancingPolicy, LoadBalancer, Rule, Snapshot
from simulator.policies.caching import CachingPolicy, ExpertUses
from simulator.policies.dispatch import DispatchPolicy, ExecutableDispatch, Rows
from simulator.policies.failures import Change, FailurePolicy, Machines
from simulator.policies.kv_tiers import Tier, TierPolicy
from simulator.policies.order import Keys, OrderPolicy, Queued, RankedOrder, Waiting
from simulator.policies.overflow import OverflowPolicy, RoutedTokens
from simulator.policies.pipelining import Pass, PassKind, PipeliningPolicy
from simulator.policies.placement import PairPlacement, Placed, PlacementPolicy
from simulator.policies.prefetching import Predictor, PrefetchingPolicy
from simulator.policies.rebalancing import ExpertLoad, RebalancingPolicy
from simulator.policies.recovery import Loss, RecoveryPolicy
from simulator.policies.reduction import ReductionPolicy
from simulator.policies.replica_choice import Copies, Origins, ReplicaChoicePolicy, ReplicaChooser
from simulator.policies.routing import Router, RoutingPolicy
from simulator.policies.scaling import PoolLoad, ScalingPolicy
from simulator.policies.scheduling import Rules, SchedulingPolicy
from simulator.policies.speculation import MOST_DRAFTED, Drafts, SpeculationPolicy
from simulator.policies.spilling import SpillingPolicy, Spills
from simulator.policies.topology import Fabric, TopologyPolicy

_MOST_OF_TIER = 1e18
"""Most bytes of a tier, and bytes per second: more than any store has."""
Item = TypeVar("Item")


def _is_index(found: object, count: int, least: int = 0) -> bool:
    """Whether something is a whole number from ``least`` on, below ``count``."""
    if isinstance(found, bool) or not isinstance(found, int | np.integer):
        return False
    return bool(least <= found < count)


def _are_within(
    found: object, shape: tuple[int | None, ...], low: int, high: int
) -> TypeGuard[NDArray[np.integer]]:
    """Whether something is an array of whole numbers from ``low`` on, below ``high``."""
    return is_array(found, shape, whole=True) and (
        not found.size or bool(found.min() >= low and found.max() < high)
    )


def _are_seconds(found: object, after_s: float = 0.0) -> bool:
    """Whether something is a finite number, at least ``after_s``."""
    return isinstance(found, float | int) and after_s <= found < math.inf


def _is_iterator(what: str) -> Callable[[object], str]:
    return lambda found: "" if isinstance(found, Iterator) else f"an iterator of {what}"


def _hold(
    name: str, items: Iterator[Item], explain: Callable[[object, Item | None], str]
) -> Iterator[Item]:
    """Check the items that a user's own iterator yields, each when it is taken.

    Args:
        name: of the method that made it.
        explain: describes what a wrong item must be instead, given the one before it.
    """
    last: Item | None = None

    def explain_next(found: object) -> str:
        return "" if found is None else explain(found, last)

    while (found := check_call(name, lambda: next(items, None), explain_next)) is not None:
        last = found
        yield found


# Experts


def prepare_router(
    policy: RoutingPolicy, moe: MoE, num_layers: int, rng: np.random.Generator
) -> Router:
    """Prepare a routing policy for a model."""
    explain = has_method("topk_ids")
    return ask(RoutingPolicy.prepare, policy, moe, num_layers, rng, explain=explain)


def draw_ids(
    router: Router,
    layer: int,
    run_lengths: Ints,
    rng: np.random.Generator,
    moe: MoE,
    num_choices: int = 0,
) -> NDArray[np.int16]:
    """Draw the experts of a batch of tokens in one layer, ``[T, K]``, or ``[T, num_choices]`` of a
    router that ranks so many.
    """
    shape = (int(run_lengths.sum()), num_choices or moe.top_k)

    def explain(ids_TK: object) -> str:
        if (
            _are_within(ids_TK, shape, 0, moe.num_experts)
            and (np.diff(np.sort(ids_TK, axis=1), axis=1) > 0).all()
        ):
            return ""
        return f"int16 ids of shape {shape}, from 0 to {moe.num_experts - 1} and distinct in a row"

    found = ask(Router.topk_ids, router, layer, run_lengths, rng, explain=explain)
    return np.asarray(found, dtype=np.int16)


def admit_pairs(policy: OverflowPolicy, tokens: RoutedTokens) -> NDArray[np.integer]:
    """Choose the experts that compute a step's tokens in one layer, ``[T, K]``, -1 where a pair is
    dropped.
    """
    return ask(
        OverflowPolicy.admit,
        policy,
        tokens,
        explain=lambda found: find_overflow_fault(found, tokens),
    )


def find_overflow_fault(found: object, tokens: RoutedTokens) -> str:
    """Describe what admitted experts must be; empty where they are."""
    shape, ids_TJ = (len(tokens.ids_TJ), tokens.top_k), tokens.ids_TJ
    if is_array(found, shape, whole=True):
        is_own_TKJ = found[:, :, None] == ids_TJ[:, None, :]
        is_known_TK = is_own_TKJ.any(axis=2) | (found == -1)
        if is_known_TK.all() and (is_own_TKJ.sum(axis=1) <= 1).all():
            return ""
    return f"whole numbers of shape {shape}, each -1 or one of its token's ids_TJ, each id once"


def place_experts(
    policy: PlacementPolicy,
    load_LE: Floats,
    num_ranks: int,
    rng: np.random.Generator,
    pairs_LEE: Floats | None = None,
) -> Placed:
    """Place the experts of every layer, by the pairs that tokens choose together where the policy
    looks at them.
    """

    def explain(placed: object) -> str:
        layers, experts = load_LE.shape
        fault = find_placement_fault(placed, load_LE.shape, num_ranks)
        wanted = (
            f"a Placed with whole numbers expert_LP and rank_LP of shape ({layers}, slots): each "
            f"of {experts} experts in every layer, and as many slots on each of {num_ranks} ranks, "
            "give or take one"
        )
        return f"{wanted}: {fault}" if fault else ""

    if pairs_LEE is not None and isinstance(policy, PairPlacement):
        method = PairPlacement.place_pairs
        found = ask(method, policy, load_LE, pairs_LEE, num_ranks, rng, explain=explain)
    else:
        found = ask(PlacementPolicy.place, policy, load_LE, num_ranks, rng, explain=explain)
    return _as_whole_numbers(found)


def _as_whole_numbers(placed: Placed) -> Placed:
    """Convert a placement's arrays to the type that compiled code takes."""
    return Placed(
        np.asarray(placed.expert_LP, dtype=np.int64),
        np.asarray(placed.rank_LP, dtype=np.int64),
        placed.num_ranks,
    )


def find_placement_fault(placed: object, shape: tuple[int, ...], num_ranks: int) -> str:
    """First fault of a placement, with its layer; empty where it has none."""
    num_layers, num_experts = shape
    if not isinstance(placed, Placed):
        return "this is none"
    expert_LP, rank_LP = placed.expert_LP, placed.rank_LP
    if placed.num_ranks != num_ranks:
        return f"num_ranks is {placed.num_ranks}"
    if not is_array(expert_LP, (num_layers, None), whole=True):
        return "expert_LP is not of that shape"
    if not is_array(rank_LP, expert_LP.shape, whole=True):
        return "rank_LP is not of the shape of expert_LP"
    if not _are_within(rank_LP, rank_LP.shape, 0, num_ranks):
        return f"rank_LP holds ranks beyond 0 to {num_ranks - 1}"
    for layer, (expert_P, slots_R) in enumerate(zip(expert_LP, count_slots(placed), strict=True)):
        if wrong := sorted(set(expert_P.tolist()) ^ set(range(num_experts))):
            has = "lacks" if wrong[0] in range(num_experts) else "has"
            return f"layer {layer} {has} expert {wrong[0]}"
        if np.ptp(slots_R) > 1:
            return (
                f"layer {layer} has {slots_R.max()} slots on rank {slots_R.argmax()} and "
                f"{slots_R.min()} on rank {slots_R.argmin()}"
            )
    return ""


def count_slots(placed: Placed) -> Ints:
    """Slots of each rank in each layer, ``[L, R]``."""
    counts = [np.bincount(rank_P, minlength=placed.num_ranks) for rank_P in placed.rank_LP]
    return np.stack(counts)


def decide_placement(
    policy: RebalancingPolicy, load: ExpertLoad, rng: np.random.Generator
) -> Placed | None:
    """Decide the next placement of experts; ``None`` to leave them."""
    before, shape = load.placed, load.placed.expert_LP.shape
    slots_R = count_slots(before)

    def explain(placed: object) -> str:
        if placed is None or (
            isinstance(placed, Placed)
            and not find_placement_fault(placed, load.load_LE.shape, before.num_ranks)
            and placed.expert_LP.shape == shape
            and np.array_equal(count_slots(placed), slots_R)
        ):
            return ""
        return (
            f"None or a Placed with expert_LP and rank_LP of shape {shape}, each of "
            f"{load.load_LE.shape[1]} experts in every layer, and as many slots on each rank as "
            "before"
        )

    found = ask(RebalancingPolicy.decide, policy, load, rng, explain=explain)
    return None if found is None else _as_whole_numbers(found)


def count_copies(policy: DispatchPolicy, rank_TK: Ints, source_T: Ints, node_R: Ints) -> Floats:
    """Count the hidden vectors that each rank sends to each other one, ``[R, R]``."""
    shape = (len(node_R), len(node_R))

    def explain(copies_SR: object) -> str:
        if (
            is_array(copies_SR, shape, whole=False)
            and (copies_SR >= 0).all()
            and not np.diagonal(copies_SR).any()
        ):
            return ""
        return (
            f"numbers of shape {shape}, none below 0 and the diagonal 0 (what stays on a rank does "
            "not travel)"
        )

    found = ask(DispatchPolicy.copies, policy, rank_TK, source_T, node_R, explain=explain)
    return np.asarray(found, dtype=np.float64)


def list_rows(policy: ExecutableDispatch, rank_TK: Ints, node_R: Ints) -> Rows:
    """List the rows that a rank sends for its tokens."""
    num_tokens, top_k = rank_TK.shape

    def explain(rows: object) -> str:
        if (
            isinstance(rows, Rows)
            and _are_within(rows.token_N, (None,), 0, num_tokens)
            and _are_within(rows.rank_N, rows.token_N.shape, 0, len(node_R))
            and _are_within(rows.choice_NW, (*rows.token_N.shape, None), -1, top_k)
        ):
            return ""
        return (
            f"Rows with whole numbers token_N below {num_tokens}, rank_N below {len(node_R)} and "
            f"choice_NW below {top_k}, padded with -1"
        )

    return ask(ExecutableDispatch.rows, policy, rank_TK, node_R, explain=explain)


def prepare_replica_choice(policy: ReplicaChoicePolicy, copies: Copies) -> ReplicaChooser:
    """Prepare the choice among the copies of one layer."""
    return ask(ReplicaChoicePolicy.prepare, policy, copies, explain=has_method("choose"))


def choose_replicas(chooser: ReplicaChooser, ids_TK: Ints, origins: Origins) -> Ints:
    """Choose the slot of every token-expert pair, ``[T, K]``."""

    def explain(slot_TK: object) -> str:
        if is_array(slot_TK, ids_TK.shape, whole=True) and ((slot_TK >= 0) == (ids_TK >= 0)).all():
            return ""
        return f"slots of shape {ids_TK.shape}, -1 exactly where an id is"

    return ask(ReplicaChooser.choose, chooser, ids_TK, origins, explain=explain)


def spill_pairs(policy: SpillingPolicy, pairs_P: Ints, rank_P: Ints, num_ranks: int) -> Spills:
    """Choose what is spilled in one layer of a step."""

    def explain(found: object) -> str:
        if do_spills_fit(found, pairs_P, rank_P, num_ranks):
            return ""
        return (
            f"Spills of whole numbers: slots below {len(pairs_P)}, other ranks below {num_ranks} "
            "than theirs, none twice for a slot, and no more pairs than a slot has"
        )

    return ask(SpillingPolicy.spill, policy, pairs_P, rank_P, num_ranks, explain=explain)


def do_spills_fit(found: object, pairs_P: Ints, rank_P: Ints, num_ranks: int) -> bool:
    """Whether spills keep what is promised of them."""
    if not isinstance(found, Spills) or not is_array(found.slot_X, (None,), whole=True):
        return False
    slot_X, rank_X, pairs_X = found
    if not (
        _are_within(slot_X, slot_X.shape, 0, len(pairs_P))
        and _are_within(rank_X, slot_X.shape, 0, num_ranks)
        and _are_within(pairs_X, slot_X.shape, 0, int(pairs_P.max(initial=0)) + 1)
    ):
        return False
    spilled_P = np.bincount(slot_X, weights=pairs_X, minlength=len(pairs_P))
    return bool(
        (rank_P[slot_X] != rank_X).all()
        and len(set(zip(slot_X.tolist(), rank_X.tolist(), strict=True))) == len(slot_X)
        and (spilled_P <= pairs_P).all()
    )


def reduce_experts(policy: ReductionPolicy, load_E: Floats, pairs_EE: Floats) -> Ints:
    """Ask what becomes of each expert of one layer, ``[E]``."""
    numbers = range(policy.num_experts)

    def explain(becomes_E: object) -> str:
        if is_array(becomes_E, load_E.shape, whole=True) and set(np.unique(becomes_E).tolist()) - {
            -1
        } == {*numbers}:
            return ""
        return f"numbers of shape {load_E.shape}, all of 0 to {numbers[-1]} among them, or -1"

    return ask(ReductionPolicy.reduce, policy, load_E, pairs_EE, explain=explain)


def rate_experts(policy: CachingPolicy, uses: ExpertUses) -> Floats:
    """Rate how much each expert is worth a slot, ``[L, E]``."""
    explain = _are_numbers(uses.last_LE.shape)
    found = ask(CachingPolicy.rate_experts, policy, uses, explain=explain)
    return np.asarray(found, dtype=np.float64)


def prepare_predictor(
    policy: PrefetchingPolicy, earlier_LTK: NDArray[np.int16], num_experts: int
) -> Predictor:
    """Prepare a prefetching policy for a model."""
    explain = has_method("predict")
    return ask(PrefetchingPolicy.prepare, policy, earlier_LTK, num_experts, explain=explain)


def predict_experts(predictor: Predictor, used_LE: Bools) -> Floats:
    """Rate how likely each expert is needed, ``[L, E]``."""
    found = ask(Predictor.predict, predictor, used_LE, explain=_are_numbers(used_LE.shape))
    return np.asarray(found, dtype=np.float64)


def _are_numbers(shape: tuple[int, ...]) -> Callable[[object], str]:
    wanted = f"finite numbers of shape {shape}"
    return lambda found: "" if is_array(found, shape, whole=False) else wanted


# Requests


def prepare_balancer(
    policy: BalancingPolicy, num_replicas: int, rng: np.random.Generator
) -> Rule | LoadBalancer:
    """Prepare a balancing policy for one run."""

    def explain(found: object) -> str:
        if not isinstance(found, Rule):
            return has_method("choose")(found)
        are_loads = all(isinstance(load, int | float) and load >= 0 for load in found[:3])
        return "" if are_loads else "a Rule whose loads are numbers of at least 0"

    return ask(BalancingPolicy.prepare, policy, num_replicas, rng, explain=explain)


def list_turns(policy: BalancingPolicy, rule: Rule, num_requests: int, num_replicas: int) -> Ints:
    """List the replicas of requests in order of arrival, ``[N]``; empty where load decides.

    Raises:
        UserError: if the policy is a user's own, and they are no replicas.
    """
    if rule.turns is None:
        return np.zeros(0, dtype=np.int64)
    found = rule.turns(num_requests)
    fits = _are_within(found, (num_requests,), 0, num_replicas)
    if not fits and not is_shipped(type(policy)):
        raise UserError(
            f"{method_name(policy, 'prepare')} must return a Rule whose turns({num_requests}) are "
            f"{num_requests} whole numbers from 0 to {num_replicas - 1}"
        )
    return np.ascontiguousarray(found, dtype=np.int64)


def choose_replica(balancer: LoadBalancer, request: Asked, snapshot: Snapshot) -> int:
    """Choose the replica of a request."""
    count = len(snapshot.outstanding)
    chosen = ask(
        LoadBalancer.choose,
        balancer,
        request,
        snapshot,
        explain=lambda found: (
            "" if _is_index(found, count) else f"a whole number from 0 to {count - 1}"
        ),
    )
    return int(chosen)


def find_keys(policy: OrderPolicy, requests: Queued) -> Keys | None:
    """Find the keys by which requests wait; ``None`` to serve first who comes first.

    Raises:
        UserError: if the trace lacks what the order needs.
    """
    count = len(requests.num_input)

    def explain(found: object) -> str:
        if found is None:
            return ""
        if not isinstance(found, Keys):
            return f"Keys of {count} numbers, or None"
        if not isinstance(found.per_second, Real) or not math.isfinite(found.per_second):
            return "Keys whose per_second is a finite number"
        offset_N, wrong = found.offset_N, describe_value(found.offset_N)
        if is_array(offset_N, (count,), whole=False):
            return ""
        is_shaped = isinstance(offset_N, np.ndarray) and offset_N.shape == (count,)
        if is_shaped and offset_N.dtype.kind == "f":
            number = int(np.argmin(np.isfinite(offset_N)))
            wrong = f"{offset_N[number]} for request {number}"
        return f"Keys whose offset_N is {count} finite numbers, not {wrong}"

    return ask(OrderPolicy.keys, policy, requests, explain=explain)


def rank_waiting(policy: OrderPolicy, waiting: Waiting) -> Floats:
    """Find the keys of requests that wait at a rank now, of an order that changes."""
    assert isinstance(policy, RankedOrder)
    count = len(waiting.key)
    found = ask(
        RankedOrder.rank,
        policy,
        waiting,
        explain=lambda found: (
            "" if is_array(found, (count,), whole=False) else f"an array of {count} finite numbers"
        ),
    )
    return np.asarray(found, dtype=np.float64)


# Steps


_FIELDS: dict[str, Any] = {
    name: (kind, ...) for name, kind in get_type_hints(Rules, include_extras=True).items()
}
_RULES_RANGE = create_model("_RULES_RANGE", __base__=Frozen, **_FIELDS)


def make_rules(policy: SchedulingPolicy) -> Rules:
    """Read the rules of a scheduling policy."""
    wanted = "simulator.policies.scheduling.Rules"
    rules = ask(
        SchedulingPolicy.rules,
        policy,
        explain=lambda found: "" if isinstance(found, Rules) else wanted,
    )
    if not is_shipped(type(policy)):
        validate(_RULES_RANGE, rules._asdict(), method_name(policy, "rules"))
    return rules


def make_drafts(policy: SpeculationPolicy) -> Drafts:
    """Read the drafts of a speculation policy."""

    def explain(drafts: object) -> str:
        if (
            isinstance(drafts, Drafts)
            and len(drafts.accepted) <= MOST_DRAFTED
            and all(0 <= probability <= 1 for probability in drafts.accepted)
            and _is_index(drafts.num_layers, MOST_WIDTH + 1)
            and _is_index(drafts.vocab_size, MOST_WIDTH + 1)
            and 0 <= drafts.launch_s <= YEAR_S
        ):
            return ""
        return (
            f"Drafts with at most {MOST_DRAFTED} probabilities from 0 to 1 as accepted, whole "
            "numbers from 0 as num_layers and vocab_size, and a launch_s of at least 0"
        )

    return ask(SpeculationPolicy.drafts, policy, explain=explain)


_KINDS: tuple[PassKind, ...] = get_args(PassKind)


def find_schedule_fault(
    policy: PipeliningPolicy, num_stages: int, num_micro_batches: int
) -> str | None:
    """Find the first way in which a schedule breaks its promises; ``None`` where it keeps them."""
    places = policy.place_chunks(num_stages)
    chunks = Counter(place.stage for place in places)
    if set(chunks) != set(range(num_stages)) or len(set(chunks.values())) != 1:
        return f"place_chunks puts {dict(chunks)} chunks on stages, must be equally many on each"
    if len(set(places)) != len(places):
        return "place_chunks puts two chunks at one place"
    for stage in range(num_stages):
        counts = Counter(
            one for turn in policy.list_turns(stage, num_stages, num_micro_batches) for one in turn
        )
        for chunk in range(chunks[stage]):
            for number in range(num_micro_batches):
                found = {kind: counts[Pass(kind, number, chunk)] for kind in _KINDS}
                halves = found["input"] == found["weight"] == 1 - found["backward"]
                if found["forward"] != 1 or not halves:
                    return (
                        f"micro-batch {number} goes through chunk {chunk} of stage {stage} "
                        f"{found['forward']} times forward, {found['backward']} backward, "
                        f"{found['input']} input, {found['weight']} weight; must be once forward, "
                        "and once backward or once input and weight"
                    )
    return None


# Machines


def wire_cluster(policy: TopologyPolicy, cluster: ClusterSpec, num_ranks: int) -> Fabric:
    """Build the links of the first ``num_ranks`` GPUs of a cluster."""

    def explain(fabric: object) -> str:
        if (
            isinstance(fabric, Fabric)
            and is_array(fabric.node_R, (num_ranks,), whole=True)
            and is_array(fabric.path_SRH, (num_ranks, num_ranks, None), whole=True)
            and fabric.path_SRH.max(initial=-1) < len(fabric.links)
            and all(link.bytes_per_s > 0 and link.latency_s >= 0 for link in fabric.links)
        ):
            return ""
        return (
            f"a Fabric whose path_SRH is whole numbers of shape ({num_ranks}, {num_ranks}, hops), "
            f"each a place in links or -1, and whose node_R has {num_ranks} entries"
        )

    return ask(TopologyPolicy.wire, policy, cluster, num_ranks, explain=explain)


def find_tier(policy: TierPolicy, cluster: ClusterSpec) -> Tier:
    """Find the memory that a tier of the KV cache has on each GPU of a cluster."""

    def explain(found: object) -> str:
        if not isinstance(found, Tier):
            return "a Tier"
        for name, value in found._asdict().items():
            least = 0.0 if name == "latency_s" else math.ulp(0.0)
            if not isinstance(value, float | int) or not least <= value <= _MOST_OF_TIER:
                above = "from 0" if least == 0 else "above 0"
                return f"a Tier whose {name} is a number {above} to {_MOST_OF_TIER:g}"
        return ""

    return ask(TierPolicy.tier, policy, cluster, explain=explain)


class _Timed(Protocol):
    """Policy that is asked at times of its own."""

    def looks(self) -> Iterator[float]:
        """Yield the times at which it is asked."""
        ...


def list_looks(policy: RebalancingPolicy | ScalingPolicy) -> Iterator[float]:
    """Yield the times at which a policy is asked during a run, in order."""
    looks = ask(_Timed.looks, policy, explain=_is_iterator("seconds"))
    if is_shipped(type(policy)):
        return looks

    def explain(found: object, last_s: float | None) -> str:
        if _are_seconds(found, last_s or 0.0) and found != last_s:
            return ""
        return "seconds from 0 on" if last_s is None else f"seconds after {last_s:g}"

    return map(float, _hold(method_name(policy, "looks"), looks, explain))


def list_changes(
    policy: FailurePolicy, machines: Mapping[str, Machines], rng: np.random.Generator
) -> Iterator[Change]:
    """Yield a policy's failures and recoveries, in order of time."""
    changes = ask(FailurePolicy.changes, policy, machines, rng, explain=_is_iterator("Change"))
    if is_shipped(type(policy)):
        return changes

    def explain(found: object, last: Change | None) -> str:
        now_s = 0.0 if last is None else last.at_s
        wrong = _find_wrong_key(found, machines, now_s)
        known = " or ".join(
            f"'{pool}' with replicas 0 to {own.num_replicas - 1}" for pool, own in machines.items()
        )
        return wrong and f"a Change at {now_s:g} s or later, of pool {known}: {wrong}"

    return _hold(method_name(policy, "changes"), changes, explain)


def _find_wrong_key(found: object, machines: Mapping[str, Machines], now_s: float) -> str:
    """First wrong field of a change, with its value; empty where all are right."""
    if not isinstance(found, Change):
        return "this is none"
    if found.pool not in machines:
        return f"pool is {found.pool!r}"
    if not _are_seconds(found.at_s, now_s):
        return f"at_s is {found.at_s!r}"
    own = machines[found.pool]
    for replica in found.replicas:
        if not isinstance(replica, int | np.integer) or not 0 <= replica < own.num_replicas:
            return f"replicas hold {replica!r}"
    for gpu in found.gpus:
        is_whole = isinstance(gpu, int | np.integer)
        if not is_whole or gpu // own.gpus_per_replica not in found.replicas:
            return f"gpus hold {gpu!r}, of no such replica"
    return ""


def find_interruption(policy: RecoveryPolicy, loaded_bytes: float) -> float:
    """Find the seconds for which a replica forms no step when ranks are left out or join."""
    found = ask(
        RecoveryPolicy.interrupt_s,
        policy,
        loaded_bytes,
        explain=lambda found: "" if _are_seconds(found) else "seconds from 0 on",
    )
    return float(found)


def shrink_experts(policy: RecoveryPolicy, loss: Loss) -> Placed | None:
    """Place the experts of a replica on the ranks that it has left; ``None`` where it stops."""
    ranks_per_group = loss.placed.num_ranks // len(loss.lost_D)
    num_left = int((~loss.lost_D).sum()) * ranks_per_group

    def explain(placed: object) -> str:
        if placed is None or not find_placement_fault(placed, loss.load_LE.shape, num_left):
            return ""
        return (
            f"None or a Placed on {num_left} ranks with each of {loss.load_LE.shape[1]} experts in "
            "every layer, and slots that differ by at most one from rank to rank"
        )

    found = ask(RecoveryPolicy.shrink, policy, loss, explain=explain)
    return None if found is None else _as_whole_numbers(found)


def begin_scaling(policy: ScalingPolicy, most: int) -> int:
    """Find the number of replicas that serve when a run begins, of ``most``.

    Raises:
        UserError: if the policy asks for more replicas than there can be.
    """
    return int(ask(ScalingPolicy.begin, policy, most, explain=_is_count(most)))


def decide_replicas(policy: ScalingPolicy, loads: Sequence[PoolLoad], most: int) -> int:
    """Decide how many replicas shall serve from now on, from 1 to ``most``.

    Args:
        loads: as :meth:`simulator.policies.scaling.ScalingPolicy.decide` takes them.
    """
    return int(ask(ScalingPolicy.decide, policy, loads, most, explain=_is_count(most)))


def _is_count(most: int) -> Callable[[object], str]:
    wanted = f"a whole number from 1 to {most}"
    return lambda found: "" if _is_index(found, most + 1, least=1) else wanted


def scales(policy: ScalingPolicy, most: int) -> bool:
    """Whether ever fewer than ``most`` replicas may serve, failures aside."""
    return begin_scaling(policy, most) < most or next(list_looks(policy), None) is not None


def check_scaling(policy: ScalingPolicy, most: int, where: str) -> None:
    """Refuse scaling that asks for replicas that there are not.

    Args:
        where: place of the policy, for errors.
    """
    try:
        scales(policy, most)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
