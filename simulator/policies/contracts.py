"""Calls of policies that refuse, as a ``UserError``, what breaks the promises of their family."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

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
from simulator.base.quantities import (
    MOST_WIDTH,
    YEAR_S,
    Ratio,
    Sequences,
    StepCount,
    Steps,
    StepsAhead,
    TokenBudget,
)
from simulator.config.cluster import ClusterSpec
from simulator.config.ffns.moe import MoE
from simulator.policies.balancing import Asked, BalancingPolicy, LoadBalancer, Rule, Snapshot
from simulator.policies.caching import CachingPolicy, ExpertUses
from simulator.policies.dispatch import DispatchPolicy, ExecutableDispatch, Rows
from simulator.policies.faults import (
    count_slots,
    find_overflow_fault,
)
from simulator.policies.faults import (
    find_placement_fault as find_fault,
)
from simulator.policies.kv_tiers import Tier, TierPolicy
from simulator.policies.order import Keys, OrderPolicy, Queued, Waiting
from simulator.policies.overflow import OverflowPolicy, RoutedTokens
from simulator.policies.placement import Placed, PlacementPolicy
from simulator.policies.prefetching import Predictor, PrefetchingPolicy
from simulator.policies.rebalancing import ExpertLoad, RebalancingPolicy
from simulator.policies.reduction import ReductionPolicy
from simulator.policies.replica_choice import Copies, Origins, ReplicaChoicePolicy, ReplicaChooser
from simulator.policies.routing import Router, RoutingPolicy
from simulator.policies.scaling import ScalingPolicy
from simulator.policies.scheduling import Rules, SchedulingPolicy
from simulator.policies.speculation import MOST_DRAFTED, Drafts, SpeculationPolicy
from simulator.policies.spilling import SpillingPolicy, Spills
from simulator.policies.topology import Fabric, TopologyPolicy

_MOST_OF_TIER = 1e18
"""Most bytes of a tier, and bytes per second: more than any store has."""


def prepare_router(
    policy: RoutingPolicy, moe: MoE, num_layers: int, rng: np.random.Generator
) -> Router:
    """Prepare a routing policy for a model."""
    explain = has_method("topk_ids")
    found: Router = ask(policy, "prepare", moe, num_layers, rng, explain=explain)
    return found


def draw_ids(
    router: Router,
    layer: int,
    run_lengths: NDArray[np.int64],
    rng: np.random.Generator,
    moe: MoE,
    num_choices: int = 0,
) -> NDArray[np.int16]:
    """Draw the experts of a batch of tokens in one layer, ``[T, K]``, or ``[T, num_choices]`` of a
    router that ranks so many.
    """
    shape = (int(run_lengths.sum()), num_choices or moe.top_k)

    def explain(ids_TK: Any) -> str:
        fits = is_array(ids_TK, shape, whole=True) and (
            not ids_TK.size
            or (
                ids_TK.min() >= 0
                and ids_TK.max() < moe.num_experts
                and bool((np.diff(np.sort(ids_TK, axis=1), axis=1) > 0).all())
            )
        )
        wanted = (
            f"int16 ids of shape {shape}, from 0 to {moe.num_experts - 1} and distinct in a row"
        )
        return "" if fits else wanted

    found = ask(router, "topk_ids", layer, run_lengths, rng, explain=explain)
    return np.asarray(found, dtype=np.int16)


def admit_pairs(policy: OverflowPolicy, tokens: RoutedTokens) -> NDArray[np.integer[Any]]:
    """Choose the experts that compute a step's tokens in one layer, ``[T, K]``, -1 where a pair is
    dropped.
    """
    explain = partial(find_overflow_fault, tokens=tokens)
    found: NDArray[np.integer[Any]] = ask(policy, "admit", tokens, explain=explain)
    return found


def place_experts(
    policy: PlacementPolicy,
    load_LE: NDArray[np.float64],
    num_ranks: int,
    rng: np.random.Generator,
    pairs_LEE: NDArray[np.float64] | None = None,
) -> Placed:
    """Place the experts of every layer, by the pairs that tokens choose together where they are
    given.
    """

    def explain(placed: Any) -> str:
        layers, experts = load_LE.shape
        fault = (
            find_fault(placed, load_LE.shape, num_ranks)
            if isinstance(placed, Placed)
            else "this is none"
        )
        wanted = (
            f"a Placed with whole numbers expert_LP and rank_LP of shape ({layers}, slots): each "
            f"of {experts} experts in every layer, and as many slots on each of {num_ranks} ranks, "
            "give or take one"
        )
        return f"{wanted}: {fault}" if fault else ""

    if pairs_LEE is None:
        found = ask(policy, "place", load_LE, num_ranks, rng, explain=explain)
    else:
        found = ask(policy, "place_pairs", load_LE, pairs_LEE, num_ranks, rng, explain=explain)
    return as_whole_numbers(found)


def as_whole_numbers(placed: Placed) -> Placed:
    """Convert a placement's arrays to the type that compiled code takes."""
    return Placed(
        np.asarray(placed.expert_LP, dtype=np.int64),
        np.asarray(placed.rank_LP, dtype=np.int64),
        placed.num_ranks,
    )


def count_copies(
    policy: DispatchPolicy,
    rank_TK: NDArray[np.int64],
    source_T: NDArray[np.int64],
    node_R: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Count the hidden vectors that each rank sends to each other one, ``[R, R]``."""
    num_ranks = len(node_R)

    def explain(copies_SR: Any) -> str:
        fits = is_array(copies_SR, (num_ranks, num_ranks), whole=False) and not (
            (copies_SR < 0).any() or np.diagonal(copies_SR).any()
        )
        wanted = (
            f"numbers of shape ({num_ranks}, {num_ranks}), none below 0 and the diagonal 0 (what "
            "stays on a rank does not travel)"
        )
        return "" if fits else wanted

    found = ask(policy, "copies", rank_TK, source_T, node_R, explain=explain)
    return np.asarray(found, dtype=np.float64)


def list_rows(
    policy: ExecutableDispatch, rank_TK: NDArray[np.int64], node_R: NDArray[np.int64]
) -> Rows:
    """List the rows that a rank sends for its tokens."""

    def explain(rows: Any) -> str:
        fits = isinstance(rows, Rows) and all(
            is_array(values, shape, whole=True)
            and (not values.size or (values.min() >= low and values.max() < high))
            for values, shape, low, high in (
                (rows.token_N, (None,), 0, len(rank_TK)),
                (rows.rank_N, np.shape(rows.token_N), 0, len(node_R)),
                (rows.choice_NW, (*np.shape(rows.token_N), None), -1, rank_TK.shape[1]),
            )
        )
        wanted = (
            f"Rows with whole numbers token_N below {len(rank_TK)}, rank_N below {len(node_R)} and "
            f"choice_NW below {rank_TK.shape[1]}, padded with -1"
        )
        return "" if fits else wanted

    found: Rows = ask(policy, "rows", rank_TK, node_R, explain=explain)
    return found


def prepare_balancer(
    policy: BalancingPolicy, num_replicas: int, rng: np.random.Generator
) -> Rule | LoadBalancer:
    """Prepare a balancing policy for one run."""
    has_choose = has_method("choose")

    def explain(found: Any) -> str:
        if not isinstance(found, Rule):
            return has_choose(found)
        are_loads = all(isinstance(load, int | float) and load >= 0 for load in found[:3])
        return "" if are_loads else "a Rule whose loads are numbers of at least 0"

    found: Rule | LoadBalancer = ask(policy, "prepare", num_replicas, rng, explain=explain)
    return found


def find_keys(policy: OrderPolicy, requests: Queued) -> Keys | None:
    """Find the keys by which requests wait; ``None`` to serve first who comes first.

    Raises:
        UserError: if the trace lacks what the order needs.
    """
    count = len(requests.num_input)

    def explain(found: Any) -> str:
        if found is None:
            return ""
        if not isinstance(found, Keys):
            return f"Keys of {count} numbers, or None"
        if not isinstance(found.per_second, Real) or not math.isfinite(found.per_second):
            return "Keys whose per_second is a finite number"
        if is_array(found.offset_N, (count,), whole=False):
            return ""
        offset_N, wrong = found.offset_N, describe_value(found.offset_N)
        is_shaped = isinstance(offset_N, np.ndarray) and offset_N.shape == (count,)
        if is_shaped and offset_N.dtype.kind == "f":
            place = int(np.argmin(np.isfinite(offset_N)))
            wrong = f"{offset_N[place]} for request {place}"
        return f"Keys whose offset_N is {count} finite numbers, not {wrong}"

    found: Keys | None = ask(policy, "keys", requests, explain=explain)
    return found


def ranks_again(policy: OrderPolicy) -> bool:
    """Whether an order is asked for the keys of waiting requests before each step."""
    return hasattr(policy, "rank")


def rank_waiting(policy: OrderPolicy, waiting: Waiting) -> NDArray[np.float64]:
    """Find the keys of requests that wait at a rank now."""
    count = len(waiting.key)

    def explain(found: Any) -> str:
        fits = is_array(found, (count,), whole=False)
        return "" if fits else f"an array of {count} finite numbers"

    return np.asarray(ask(policy, "rank", waiting, explain=explain), dtype=np.float64)


def find_tier(policy: TierPolicy, cluster: ClusterSpec) -> Tier:
    """Find the memory that a tier of the KV cache has on each GPU of a cluster."""

    def explain(found: Any) -> str:
        if not isinstance(found, Tier):
            return "a Tier"
        for name, value in found._asdict().items():
            least = 0.0 if name == "latency_s" else math.ulp(0.0)
            if not isinstance(value, float | int) or not least <= value <= _MOST_OF_TIER:
                above = "from 0" if least == 0 else "above 0"
                return f"a Tier whose {name} is a number {above} to {_MOST_OF_TIER:g}"
        return ""

    found: Tier = ask(policy, "tier", cluster, explain=explain)
    return found


def list_turns(
    policy: BalancingPolicy, rule: Rule, num_requests: int, num_replicas: int
) -> NDArray[np.int64]:
    """List the replicas of requests in order of arrival, ``[N]``; empty where load decides.

    Raises:
        UserError: if the policy is a user's own, and they are no replicas.
    """
    if rule.turns is None:
        return np.zeros(0, dtype=np.int64)
    found = rule.turns(num_requests)
    fits = is_array(found, (num_requests,), whole=True) and (
        not num_requests or (found.min() >= 0 and found.max() < num_replicas)
    )
    if not fits and not is_shipped(type(policy)):
        raise UserError(
            f"{method_name(policy, 'prepare')} must return a Rule whose turns({num_requests}) are "
            f"{num_requests} whole numbers from 0 to {num_replicas - 1}"
        )
    return np.ascontiguousarray(found, dtype=np.int64)


def choose_replica(balancer: LoadBalancer, request: Asked, snapshot: Snapshot) -> int:
    """Choose the replica of a request."""
    count = len(snapshot.outstanding)

    def explain(chosen: Any) -> str:
        is_whole = isinstance(chosen, int | np.integer) and not isinstance(chosen, bool)
        fits = is_whole and 0 <= chosen < count
        return "" if fits else f"a whole number from 0 to {count - 1}"

    return int(ask(balancer, "choose", request, snapshot, explain=explain))


def list_looks(policy: RebalancingPolicy | ScalingPolicy) -> Iterator[float]:
    """Yield the times at which a policy is asked during a run, in order."""

    def explain(found: Any) -> str:
        return "" if isinstance(found, Iterator) else "an iterator of seconds"

    looks: Iterator[float] = ask(policy, "looks", explain=explain)
    return looks if is_shipped(type(policy)) else _hold_looks(policy, looks)


def _hold_looks(
    policy: RebalancingPolicy | ScalingPolicy, looks: Iterator[float]
) -> Iterator[float]:
    """Check a user's own times, each when it is taken."""
    name = method_name(policy, "looks")
    now_s: float | None = None

    def explain(found: Any) -> str:
        fits = found is None or (
            isinstance(found, float | int)
            and 0 <= found < float("inf")
            and (now_s is None or found > now_s)
        )
        return "" if fits else "seconds from 0 on" if now_s is None else f"seconds after {now_s:g}"

    while True:
        found = check_call(name, lambda: next(looks, None), explain)
        if found is None:
            return
        now_s = float(found)
        yield now_s


def decide_placement(
    policy: RebalancingPolicy, load: ExpertLoad, rng: np.random.Generator
) -> Placed | None:
    """Decide the next placement of experts; ``None`` to leave them."""
    before = load.placed
    slots_R = count_slots(before)

    def explain(placed: Any) -> str:
        fits = placed is None or (
            isinstance(placed, Placed)
            and not find_fault(placed, load.load_LE.shape, before.num_ranks)
            and placed.expert_LP.shape == before.expert_LP.shape
            and np.array_equal(count_slots(placed), slots_R)
        )
        wanted = (
            f"None or a Placed with expert_LP and rank_LP of shape {before.expert_LP.shape}, each "
            f"of {load.load_LE.shape[1]} experts in every layer, and as many slots on each rank as "
            "before"
        )
        return "" if fits else wanted

    found = ask(policy, "decide", load, rng, explain=explain)
    return None if found is None else as_whole_numbers(found)


class _RulesRange(Frozen):
    """Ranges of :class:`~simulator.policies.scheduling.Rules`."""

    token_budget: TokenBudget
    max_sequences: Sequences
    mixes_phases: bool
    splits_prompts: bool
    refuses_long: bool
    reserves_output: bool
    checks_known: bool
    watermark: Ratio
    finds_full: bool
    frees_partial_first: bool
    output_share: Ratio
    ignores_share: bool
    least_output_share: Ratio
    output_share_decay: Ratio
    retract_steps: StepCount
    steps_ahead: StepsAhead
    poll_steps: Steps
    balance_steps: StepCount
    wait_steps: StepCount
    wait_share: Ratio
    knows_ends: bool
    rank_choice: Literal[0, 1, 2, 3, 4]


def make_rules(policy: SchedulingPolicy) -> Rules:
    """Read the rules of a scheduling policy."""

    def explain(rules: Any) -> str:
        return "" if isinstance(rules, Rules) else "simulator.policies.scheduling.Rules"

    found: Rules = ask(policy, "rules", explain=explain)
    if not is_shipped(type(policy)):
        validate(_RulesRange, found._asdict(), method_name(policy, "rules"))
    return found


def make_drafts(policy: SpeculationPolicy) -> Drafts:
    """Read the drafts of a speculation policy."""

    def explain(drafts: Any) -> str:
        fits = (
            isinstance(drafts, Drafts)
            and len(drafts.accepted) <= MOST_DRAFTED
            and all(0 <= probability <= 1 for probability in drafts.accepted)
            and all(
                isinstance(size, int) and 0 <= size <= MOST_WIDTH
                for size in (drafts.num_layers, drafts.vocab_size)
            )
            and 0 <= drafts.launch_s <= YEAR_S
        )
        wanted = (
            f"Drafts with at most {MOST_DRAFTED} probabilities from 0 to 1 as accepted, whole "
            "numbers from 0 as num_layers and vocab_size, and a launch_s of at least 0"
        )
        return "" if fits else wanted

    found: Drafts = ask(policy, "drafts", explain=explain)
    return found


def wire_cluster(policy: TopologyPolicy, cluster: ClusterSpec, num_ranks: int) -> Fabric:
    """Build the links of the first ``num_ranks`` GPUs of a cluster."""

    def explain(fabric: Any) -> str:
        fits = (
            isinstance(fabric, Fabric)
            and is_array(fabric.node_R, (num_ranks,), whole=True)
            and is_array(fabric.path_SRH, (num_ranks, num_ranks, None), whole=True)
            and fabric.path_SRH.max(initial=-1) < len(fabric.links)
            and all(link.bytes_per_s > 0 and link.latency_s >= 0 for link in fabric.links)
        )
        wanted = (
            f"a Fabric whose path_SRH is whole numbers of shape ({num_ranks}, {num_ranks}, hops), "
            f"each a place in links or -1, and whose node_R has {num_ranks} entries"
        )
        return "" if fits else wanted

    found: Fabric = ask(policy, "wire", cluster, num_ranks, explain=explain)
    return found


def rate_experts(policy: CachingPolicy, uses: ExpertUses) -> NDArray[np.float64]:
    """Rate how much each expert is worth a slot, ``[L, E]``."""
    found = ask(policy, "rate_experts", uses, explain=_explain_rates(uses.last_LE.shape))
    return np.asarray(found, dtype=np.float64)


def prepare_predictor(
    policy: PrefetchingPolicy, earlier_LTK: NDArray[np.int16], num_experts: int
) -> Predictor:
    """Prepare a prefetching policy for a model."""
    found: Predictor = ask(
        policy, "prepare", earlier_LTK, num_experts, explain=has_method("predict")
    )
    return found


def predict_experts(predictor: Predictor, used_LE: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Rate how likely each expert is needed, ``[L, E]``."""
    found = ask(predictor, "predict", used_LE, explain=_explain_rates(used_LE.shape))
    return np.asarray(found, dtype=np.float64)


def _explain_rates(shape: tuple[int, ...]) -> Any:
    def explain(found: Any) -> str:
        fits = is_array(found, shape, whole=False) and bool(np.isfinite(found).all())
        return "" if fits else f"finite numbers of shape {shape}"

    return explain


def reduce_experts(
    policy: ReductionPolicy, load_E: NDArray[np.float64], pairs_EE: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Ask what becomes of each expert of one layer, ``[E]``."""

    def explain(becomes_E: Any) -> str:
        fits = is_array(becomes_E, load_E.shape, whole=True) and (
            set(np.unique(becomes_E).tolist()) - {-1} == set(range(policy.num_experts))
        )
        wanted = f"numbers of shape {load_E.shape}, all of 0 to {policy.num_experts - 1} among them"
        return "" if fits else f"{wanted}, or -1"

    found: NDArray[np.int64] = ask(policy, "reduce", load_E, pairs_EE, explain=explain)
    return found


def prepare_replica_choice(policy: ReplicaChoicePolicy, copies: Copies) -> ReplicaChooser:
    """Prepare the choice among the copies of one layer."""
    found: ReplicaChooser = ask(policy, "prepare", copies, explain=has_method("choose"))
    return found


def choose_replicas(
    chooser: ReplicaChooser,
    ids_TK: NDArray[np.int64],
    origins: Origins,
) -> NDArray[np.int64]:
    """Choose the slot of every token-expert pair, ``[T, K]``."""

    def explain(slot_TK: Any) -> str:
        fits = is_array(slot_TK, ids_TK.shape, whole=True) and bool(
            ((slot_TK >= 0) == (ids_TK >= 0)).all()
        )
        return "" if fits else f"slots of shape {ids_TK.shape}, -1 exactly where an id is"

    found: NDArray[np.int64] = ask(chooser, "choose", ids_TK, origins, explain=explain)
    return found


def spill_pairs(
    policy: SpillingPolicy, pairs_P: NDArray[np.int64], rank_P: NDArray[np.int64], num_ranks: int
) -> Spills:
    """Choose what is spilled in one layer of a step."""

    def explain(found: Any) -> str:
        wanted = (
            f"Spills of whole numbers: slots below {len(pairs_P)}, other ranks below {num_ranks} "
            "than theirs, none twice for a slot, and no more pairs than a slot has"
        )
        return "" if _fits(found, pairs_P, rank_P, num_ranks) else wanted

    found: Spills = ask(policy, "spill", pairs_P, rank_P, num_ranks, explain=explain)
    return found


def _fits(
    found: Any, pairs_P: NDArray[np.int64], rank_P: NDArray[np.int64], num_ranks: int
) -> bool:
    """Whether spills keep what is promised of them."""
    if not isinstance(found, Spills) or not is_array(found.slot_X, (None,), whole=True):
        return False
    slot_X, rank_X, pairs_X = found
    if not all(is_array(one, slot_X.shape, whole=True) for one in (rank_X, pairs_X)):
        return False
    if not len(slot_X):
        return True
    if slot_X.min() < 0 or slot_X.max() >= len(pairs_P) or pairs_X.min() < 0:
        return False
    spilled_P = np.bincount(slot_X, weights=pairs_X, minlength=len(pairs_P))
    return bool(
        rank_X.min() >= 0
        and rank_X.max() < num_ranks
        and (rank_P[slot_X] != rank_X).all()
        and len(set(zip(slot_X.tolist(), rank_X.tolist(), strict=True))) == len(slot_X)
        and (spilled_P <= pairs_P).all()
    )
