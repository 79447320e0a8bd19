"""Models with fewer experts than were trained, and the choices of their tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats, Ints
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.base.streams import open_stream
from simulator.config.ffns.moe import MoE
from simulator.config.model import ModelSpec
from simulator.policies.contracts import draw_ids, reduce_experts
from simulator.policies.reduction import ReductionPolicy
from simulator.policies.routing import RecordedSequences, Router, router_facts

_PROBE_TOKENS = 4096
"""Tokens of an earlier time whose choices say which experts are left."""
_CHUNK_TOKENS = 4096
"""Tokens whose vacant choices are drawn at a time."""


def reduce_model(model: ModelSpec, policy: ReductionPolicy, where: str) -> ModelSpec:
    """Describe a model with the experts that are left of it.

    Raises:
        UserError: if it has no experts, or not so many.
    """
    moe = model.moe
    if moe is None:
        raise UserError(f"{where}: {model.name} is dense and has no experts; leave it out")
    if policy.num_experts > moe.num_experts:
        raise UserError(
            f"{where}: num_experts = {policy.num_experts}: {model.name} has {moe.num_experts} in a "
            "layer, must be at most as many"
        )
    top_k = min(moe.top_k, policy.num_experts) if policy.top_k is None else policy.top_k
    most = min(moe.top_k, policy.num_experts)
    if top_k > most:
        raise UserError(
            f"{where}: top_k = {top_k}: tokens of {model.name} use {moe.top_k} experts, and "
            f"{policy.num_experts} are left, must be at most {most}"
        )
    change = {
        "num_experts": policy.num_experts,
        "top_k": top_k,
        "num_groups": 1,  # experts are left wherever they lie
        "num_limited_groups": 1,
    }
    table = model.model_dump()
    for name, ffn in model.ffns.items():
        if ffn.experts is not None:
            table["ffns"][name] |= change
    words = f"{policy.num_experts} of {moe.num_experts} experts, top {top_k}"
    table |= {
        "name": f"{model.name}-{policy.num_experts}-of-{moe.num_experts}-experts-top-{top_k}",
        "title": f"{model.title or model.name}, {words}",
        "repositories": (),
        "published": None,
        "notes": f"Made, not released: {model.title or model.name} with {words}. {model.notes}",
    }
    return validate(ModelSpec, table, where)


@dataclass(frozen=True)
class ReducedRouter:
    """Router of a model with fewer experts: the whole model's choices, passed on to the experts
    that are left.
    """

    router: Router
    """The whole model's."""
    whole: MoE
    """The whole model's experts."""
    becomes_LE: Ints
    """Number of the expert that takes the tokens of each expert, ``[L, E]``; -1 where none does."""
    load_LN: Floats
    """Popularity of the experts that are left, ``[L, N]``."""
    top_k: int
    """Experts of a token."""
    seed: int

    @property
    def best_first(self) -> bool:
        """Whether a token's experts come best first."""
        return router_facts(self.router).best_first

    @property
    def num_domains(self) -> int:
        """Number of domains that the whole model's routing tells apart."""
        return router_facts(self.router).num_domains

    @property
    def num_stages(self) -> int:
        """Stages that the popularity of each kind of text passes through."""
        return router_facts(self.router).num_stages

    @cached_property
    def recorded(self) -> RecordedSequences | None:
        """Recorded sequences that requests take their experts from."""
        found = router_facts(self.router).recorded
        return None if found is None else self._reduce_sequences(found)

    def topk_ids(
        self, layer: int, run_lengths: Ints, rng: np.random.Generator
    ) -> NDArray[np.int16]:
        """Choose the experts of a batch of tokens in one layer, ``[T, K]``."""
        ids_TK = draw_ids(self.router, layer, run_lengths, rng, self.whole)
        return self._reduce(layer, ids_TK, rng)

    def draw_sequences(self, rng: np.random.Generator) -> RecordedSequences:
        """Draw sequences of each domain."""
        return self._reduce_sequences(self.router.draw_sequences(rng))  # type: ignore[attr-defined]

    def _reduce_sequences(self, found: RecordedSequences) -> RecordedSequences:
        ids_LTK = [
            self._reduce(layer, ids_TK, open_stream(self.seed, "reduced sequences", layer))
            for layer, ids_TK in enumerate(found.ids_LTK)
        ]
        return replace(found, ids_LTK=np.stack(ids_LTK), next_LTN=None)

    def _reduce(
        self, layer: int, ids_TK: NDArray[np.int16], rng: np.random.Generator
    ) -> NDArray[np.int16]:
        """Pass choices on to the experts that are left. What is vacant then, since its expert is
        gone or the token's already, is drawn from the rest by popularity, without repetition.
        """
        found_TK = self.becomes_LE[layer][ids_TK.astype(np.int64)]
        found_TK[find_repeated(found_TK)] = -1
        order_TK = np.argsort(found_TK < 0, axis=1, kind="stable")
        found_TK = np.take_along_axis(found_TK, order_TK, axis=1)[:, : self.top_k]
        vacant = np.flatnonzero((found_TK < 0).any(axis=1))
        log_N = np.log(self.load_LN[layer] + 0.5)  # an expert that nobody chose is chosen seldom
        for first in range(0, len(vacant), _CHUNK_TOKENS):
            own = vacant[first : first + _CHUNK_TOKENS]
            found_TK[own] = _fill_vacant(found_TK[own], log_N, rng)
        return found_TK.astype(np.int16)


def find_repeated(ids_TK: Ints) -> Bools:
    """Find choices that stand in their row before, ``[T, K]``."""
    order_TK = np.argsort(ids_TK, axis=1, kind="stable")
    sorted_TK = np.take_along_axis(ids_TK, order_TK, axis=1)
    repeated_TK = np.zeros(ids_TK.shape, dtype=bool)
    repeated_TK[:, 1:] = sorted_TK[:, 1:] == sorted_TK[:, :-1]
    found_TK = np.zeros(ids_TK.shape, dtype=bool)
    np.put_along_axis(found_TK, order_TK, repeated_TK, axis=1)
    return found_TK


def _fill_vacant(ids_TK: Ints, log_N: Floats, rng: np.random.Generator) -> Ints:
    """Draw the experts of vacant choices (-1, the last ones of each row) by their weights'
    logarithms: the largest of these plus Gumbel noise (Kool et al., arXiv:1903.06059).
    """
    keys_TN = log_N + rng.gumbel(size=(len(ids_TK), len(log_N)))
    token, choice = np.nonzero(ids_TK >= 0)
    keys_TN[token, ids_TK[token, choice]] = -np.inf
    drawn_TK = np.argsort(-keys_TN, axis=1, kind="stable")[:, : ids_TK.shape[1]]
    taken_T = (ids_TK >= 0).sum(axis=1)
    place_TK = np.maximum(np.arange(ids_TK.shape[1]) - taken_T[:, None], 0)
    return np.where(ids_TK >= 0, ids_TK, np.take_along_axis(drawn_TK, place_TK, axis=1))


def reduce_router(
    router: Router, whole: MoE, left: MoE, num_layers: int, policy: ReductionPolicy, seed: int
) -> ReducedRouter:
    """Pass a router's choices on to the experts that are left by the choices of earlier tokens."""
    runs = np.full(_PROBE_TOKENS // 256, 256, dtype=np.int64)
    becomes, loads = [], []
    for layer in range(num_layers):
        ids_TK = draw_ids(router, layer, runs, open_stream(seed, "reduction"), whole)
        load_E = np.bincount(ids_TK.ravel(), minlength=whole.num_experts).astype(np.float64)
        becomes_E = reduce_experts(policy, load_E, count_pairs(ids_TK, whole.num_experts))
        kept = becomes_E >= 0
        becomes.append(becomes_E)
        loads.append(np.bincount(becomes_E[kept], weights=load_E[kept], minlength=left.num_experts))
    return ReducedRouter(router, whole, np.stack(becomes), np.stack(loads), left.top_k, seed)


def count_pairs(ids_TK: NDArray[np.int16], num_experts: int) -> Floats:
    """Count the tokens that chose both of two experts, ``[E, E]``."""
    uses_TE = np.zeros((len(ids_TK), num_experts), dtype=np.float32)
    np.put_along_axis(uses_TE, ids_TK.astype(np.int64), 1.0, axis=1)
    return np.asarray(uses_TE.T @ uses_TE, dtype=np.float64)
