"""Routed experts of a plan: the choices of tokens, and the placement of experts."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Ints
from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.base.home import fetch
from simulator.base.plugins import build
from simulator.base.recent import Recent
from simulator.base.streams import open_stream
from simulator.config.deployment import DeploymentSpec
from simulator.config.ffns.moe import MoE
from simulator.config.model import ModelSpec, complete_routing
from simulator.deployment.reduction import count_pairs, reduce_router
from simulator.policies.contracts import draw_ids, place_experts, prepare_router
from simulator.policies.dispatch import DispatchPolicy
from simulator.policies.overflow import OverflowPolicy, count_next_choices, may_drop
from simulator.policies.placement import PairPlacement, Placed, PlacementPolicy
from simulator.policies.reduction import ReductionPolicy
from simulator.policies.replica_choice import ReplicaChoicePolicy
from simulator.policies.replica_choice.turns import Turns
from simulator.policies.routing import (
    DomainRouter,
    RankingRouter,
    RecordedSequences,
    Router,
    router_facts,
)
from simulator.policies.spilling import SpillingPolicy, may_spill
from simulator.policies.spilling.none import Never
from simulator.work.layout import Layout

POOL_TOKENS = 4096
"""Tokens whose expert choices are drawn once for each MoE layer; steps take their choices from this
pool. Larger steps scale it up, or wrap around it where choices are dropped."""
_RUN_TOKENS = 256
"""Tokens of one run in the pool: consecutive tokens of one sequence, as far as the routing policy
lets them share experts."""
_MOST_PAIRS = 1 << 25
"""Most token-expert pairs of a step that are counted one by one: 256 MiB an array, and more than
8,192 tokens on each of 320 ranks have with eight experts each."""
_PLACED = Recent[tuple[Hashable, ...], Placed](most=256)
"""Placements made lately, shared by plans that place the same loads alike."""


class _Drawn(NamedTuple):
    """Expert choices drawn for a plan."""

    topk_ids_LTK: NDArray[np.int16]
    """Pool that steps take their choices from."""
    next_LTN: NDArray[np.int16] | None
    """Next best experts of the pool's tokens, ``None`` where nobody asks for them."""
    yesterday_LTK: NDArray[np.int16]
    """Choices of other tokens at an earlier time, which placements are made for."""
    recorded: RecordedSequences | None
    domains: DrawnDomains | None


_POOLS = Recent[tuple[Hashable, ...], _Drawn](most=32)
"""Choices and loads drawn lately, shared by plans of the same model, routing and seed."""


@dataclass(frozen=True)
class DrawnDomains:
    """Sequences drawn for each domain of a routing policy, when a trace asks for them."""

    router: DomainRouter
    seed: int

    @property
    def num_kinds(self) -> int:
        """Number of kinds of text that use experts of their own."""
        return self.router.num_domains // router_facts(self.router).num_stages

    @property
    def drifts(self) -> bool:
        """Whether popularity within a domain changes with time."""
        return router_facts(self.router).num_stages > 1

    @cached_property
    def sequences(self) -> RecordedSequences:
        """Sequences of all domains; drawing them takes about a second for a large model."""
        return self.router.draw_sequences(open_stream(self.seed, "domains"))


@dataclass(frozen=True)
class ExpertPlan:
    """Routed experts of a plan."""

    topk_ids_LTK: NDArray[np.int16]
    """Pool of expert choices, ``[L, POOL_TOKENS, K]``: runs of ``run_tokens`` consecutive tokens of
    one sequence, and neighbouring runs are independent (a decode batch)."""
    placed: Placed
    """Placement on the ``ep`` expert-parallel ranks."""
    overflow: OverflowPolicy
    dispatch: DispatchPolicy
    routing: Policy
    """Table of the routing policy, with the model's default filled in."""
    routing_source: str
    """Source of the routing's parameters, for notes."""
    replica_choice: ReplicaChoicePolicy = field(default_factory=Turns)
    """Choice among the copies of an expert."""
    spilling: SpillingPolicy = field(default_factory=Never)
    """Spilling of excess tokens to other ranks within a step."""
    next_LTN: NDArray[np.int16] | None = None
    """Next best experts of the pool's tokens, behind those that they chose, ``[L, POOL_TOKENS,
    N]``; ``None`` where the overflow policy asks for none."""
    recorded: RecordedSequences | None = None
    """Recorded sequences whose experts requests take token by token; ``None`` where all take theirs
    from the pool, or by their domain."""
    domains: DrawnDomains | None = None
    """Sequences of each domain of a routing policy that tells some apart."""
    earlier_LTK: NDArray[np.int16] | None = None
    """Choices of other tokens at an earlier time, ``[L, T, K]``; ``None`` where nobody asks."""
    run_tokens: int = 1
    """Tokens of a run: one, and those of a draft, which steps verify together."""
    pool_order: Ints | None = None
    """Place of each of the pool's tokens in runs of one sequence, ``[POOL_TOKENS]``; ``None`` where
    nobody asks."""

    @property
    def top_k(self) -> int:
        """Experts of a token, ``K``."""
        return int(self.topk_ids_LTK.shape[2])

    @property
    def num_experts(self) -> int:
        """Experts of a layer, ``E``."""
        return int(self.placed.expert_LP.max()) + 1

    @property
    def runs_LTK(self) -> NDArray[np.int16]:
        """Pool of expert choices in runs of consecutive tokens of one sequence."""
        assert self.pool_order is not None, "is asked for by the offloading of experts"
        return self.topk_ids_LTK[:, np.argsort(self.pool_order)]


def plan_experts(
    spec: DeploymentSpec,
    model: ModelSpec,
    layout: Layout,
    token_budget: int,
    seed: int,
    place: str,
    folder: Path,
    whole: MoE | None = None,
    reduction: ReductionPolicy | None = None,
    run_tokens: int = 1,
) -> ExpertPlan | None:
    """Draw a model's expert choices and place its experts; ``None`` for a dense model.

    Args:
        whole: experts of the model that ``reduction`` made this one of; ``None`` = its own.
        token_budget: most tokens of a step on a data-parallel rank.
        run_tokens: tokens of a sequence that a decode step computes.
        place: of the deployment, for errors.
        folder: what paths are relative to.

    Raises:
        UserError: if the routing does not fit the model, a dense one is given a routing or an
            overflow, or steps are too large to count what overflows.
    """
    moe = model.moe
    if moe is None:
        for name in ("routing", "overflow"):
            if getattr(spec, name) is not None:
                raise UserError(
                    f"{place} [{name}]: {model.name} is dense and routes nothing; leave it out"
                )
        return None
    own = (model.routing, model.routing_source)
    routing, source = complete_routing(*((spec.routing, "the scenario") if spec.routing else own))
    routing = _with_path(routing, folder)
    overflow = _build_overflow(spec, token_budget * layout.attention_dp * moe.top_k, place)
    where = f"{place} [routing]"
    next_choices = count_next_choices(overflow)
    pools = _Pools(
        moe, whole, reduction, model.num_moe_layers, routing, seed, where, next_choices, run_tokens
    )
    drawn = pools.draw_once() if pools.is_seed_only else pools.draw()
    return ExpertPlan(
        topk_ids_LTK=drawn.topk_ids_LTK,
        placed=pools.place_all(spec.placement, drawn.yesterday_LTK, layout.ep, place),
        overflow=overflow,
        dispatch=build("dispatch", spec.dispatch or {}, f"{place} [dispatch]"),
        routing=routing,
        routing_source=source,
        replica_choice=_build_replica_choice(spec, overflow, place),
        spilling=_build_spilling(spec, layout, place),
        next_LTN=drawn.next_LTN,
        recorded=drawn.recorded,
        domains=drawn.domains,
        earlier_LTK=drawn.yesterday_LTK if spec.offload else None,
        run_tokens=run_tokens,
        pool_order=_draw_order(seed, run_tokens) if spec.offload else None,
    )


def _draw_order(seed: int, run_tokens: int) -> Ints:
    """Draw the order in which the pool's neighbouring runs are independent; what is left of the
    pool comes last.
    """
    starts = open_stream(seed, "pool order").permutation(POOL_TOKENS // run_tokens) * run_tokens
    runs = (starts[:, None] + np.arange(run_tokens)).ravel()
    return np.concatenate([runs, np.arange(len(runs), POOL_TOKENS)])


def _build_overflow(spec: DeploymentSpec, most_pairs: int, place: str) -> OverflowPolicy:
    """Build the overflow policy, for steps of up to ``most_pairs`` token-expert pairs."""
    where = f"{place} [overflow]"
    policy: OverflowPolicy = build("overflow", spec.overflow or {"kind": "none"}, where)
    if may_drop(policy) and most_pairs > _MOST_PAIRS:
        raise UserError(
            f"{where}: is counted token by token, and a step has up to {most_pairs:,} token-expert "
            f"pairs, must be at most {_MOST_PAIRS:,}; lower the scheduling's token_budget"
        )
    return policy


def _build_replica_choice(
    spec: DeploymentSpec, overflow: OverflowPolicy, place: str
) -> ReplicaChoicePolicy:
    """Build the choice among copies, which the room of ranks must be known before."""
    where = f"{place} [replica_choice]"
    policy: ReplicaChoicePolicy = build("replica_choice", spec.replica_choice, where)
    if getattr(overflow, "sees_ranks", False) and getattr(policy, "sees_load", False):
        raise UserError(
            f"{where}: a choice of copies by load and an overflow by rank wait for each other; "
            "leave one of them out"
        )
    return policy


def _build_spilling(spec: DeploymentSpec, layout: Layout, place: str) -> SpillingPolicy:
    where = f"{place} [spilling]"
    policy: SpillingPolicy = build("spilling", spec.spilling, where)
    if may_spill(policy) and not layout.travels:
        raise UserError(
            f"{where}: tokens that do not travel to their experts cannot be spilled; split "
            "attention by data (attention_dp)"
        )
    return policy


@dataclass(frozen=True)
class _Pools:
    """Draws of a plan's expert choices: those of its tokens, and earlier loads, which placements
    are made for.
    """

    moe: MoE
    whole: MoE | None
    """Experts before any were taken away; ``None`` where none were."""
    reduction: ReductionPolicy | None
    """Reduction to fewer experts; ``None`` where none are taken away."""
    num_layers: int
    routing: Policy
    seed: int
    place: str
    next_choices: int | None
    """Experts behind the chosen ones that are drawn too; ``None`` draws the chosen ones in no
    particular order."""
    run_tokens: int
    """Tokens of a sequence that stay together in the pool."""

    @property
    def is_seed_only(self) -> bool:
        """Whether draws depend on the seed and the model alone, and can be shared: the policy is
        shipped and reads no file.
        """
        kind = self.routing.get("kind")
        fields = [value for key, value in self.routing.items() if key != "kind"]
        return (
            isinstance(kind, str)  # what else it may be is refused when the policy is built
            and "." not in kind
            and all(isinstance(value, int | float | dict) for value in fields)
        )

    def draw(self) -> _Drawn:
        """Draw the pool, and an earlier load."""
        seed, moe, layers = self.seed, self.moe, range(self.num_layers)
        policy = build("routing", self.routing, self.place)
        whole = self.whole or moe
        router = prepare_router(policy, whole, self.num_layers, open_stream(seed, "routing"))
        if self.reduction is not None:
            router = reduce_router(router, whole, moe, self.num_layers, self.reduction, seed)
        drawn, num_choices = self._rank_choices(router)
        length = _RUN_TOKENS - _RUN_TOKENS % self.run_tokens
        runs = np.diff([*range(0, POOL_TOKENS, length), POOL_TOKENS])
        order = _draw_order(seed, self.run_tokens)
        # The same stream in every layer, so that a token keeps its domain (or its place in a
        # recording) from layer to layer.
        today = [
            draw_ids(drawn, n, runs, open_stream(seed, "tokens"), moe, num_choices)[order]
            for n in layers
        ]
        yesterday = [draw_ids(router, n, runs, open_stream(seed, "yesterday"), moe) for n in layers]
        facts = router_facts(router)
        has_domains = max(facts.num_domains, facts.num_stages) > 1
        has_next = num_choices > moe.top_k
        return _Drawn(
            np.stack([ids_TJ[:, : moe.top_k] for ids_TJ in today]),
            np.stack([ids_TJ[:, moe.top_k :] for ids_TJ in today]) if has_next else None,
            np.stack(yesterday),
            facts.recorded,
            DrawnDomains(cast(DomainRouter, drawn), seed) if has_domains else None,
        )

    def _rank_choices(self, router: Router) -> tuple[Router, int]:
        """Make the router return as many experts of a token as are asked for, best first.

        Returns:
            The router, and the number of experts that it returns.

        Raises:
            UserError: if the routing does not know which experts come next.
        """
        top_k, wanted = self.moe.top_k, self.next_choices
        if wanted is None or (not wanted and router_facts(router).best_first):
            return router, top_k
        if not isinstance(router, RankingRouter):
            kind = self.routing.get("kind")
            raise UserError(
                f"{self.place}: routing kind '{kind}' knows the chosen experts only, and the "
                "overflow asks for their order or for the next ones; use a routing that draws "
                "experts (uniform, zipf, lognormal, group_limited), or leave that out"
            )
        num_choices = min(top_k + wanted, router.num_candidates)
        return router.rank_choices(num_choices), num_choices

    def place_all(
        self, policy: Policy, yesterday_LTK: NDArray[np.int16], ep: int, place: str
    ) -> Placed:
        """Place the experts; once for all plans that place the same loads alike."""
        built: PlacementPolicy = build("placement", policy, f"{place} [placement]")
        make = partial(self._place, built, yesterday_LTK, ep)
        if not self.is_seed_only or "." in policy["kind"]:
            return make()
        return _PLACED.get((*self._key, repr(sorted(policy.items())), ep), make)

    def _place(self, policy: PlacementPolicy, yesterday_LTK: NDArray[np.int16], ep: int) -> Placed:
        """Place the experts by the load of earlier tokens, and by their pairs where asked for."""
        num_experts = self.moe.num_experts
        load_LE = np.array(
            [np.bincount(ids.ravel(), minlength=num_experts) for ids in yesterday_LTK], np.float64
        )
        pairs = None
        if isinstance(policy, PairPlacement):
            pairs = np.stack([count_pairs(ids_TK, num_experts) for ids_TK in yesterday_LTK])
        return place_experts(policy, load_LE, ep, open_stream(self.seed, "placement"), pairs)

    @property
    def _key(self) -> tuple[Hashable, ...]:
        return (
            self.moe.model_dump_json(),
            None if self.whole is None else self.whole.model_dump_json(),
            repr(self.reduction),
            self.num_layers,
            repr(sorted(self.routing.items())),
            self.seed,
            self.next_choices,
            self.run_tokens,
        )

    def draw_once(self) -> _Drawn:
        """Draw once for all plans that ask for the same: splits of one model share draws, which
        take seconds.
        """
        return _POOLS.get(self._key, self._draw_for_all)

    def _draw_for_all(self) -> _Drawn:
        drawn = self.draw()
        drawn.topk_ids_LTK.flags.writeable = drawn.yesterday_LTK.flags.writeable = False
        return drawn


def _with_path(routing: Policy, folder: Path) -> Policy:
    """Resolve a recorded routing's path, which is relative to the scenario's folder."""
    trace = routing.get("trace")
    if isinstance(trace, str) and (path := fetch(folder / trace)).exists():
        return {**routing, "trace": str(path)}
    return routing
