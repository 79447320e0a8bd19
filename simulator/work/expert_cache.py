"""Replay of expert choices through a cache: which experts of each step are in fast memory, which
are brought there, and which are computed where they lie.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats, Ints
from simulator.base.jit import jit
from simulator.policies.caching import CachingPolicy, ExpertUses
from simulator.policies.contracts import predict_experts, prepare_predictor, rate_experts
from simulator.policies.prefetching import PrefetchingPolicy


class CacheRules(NamedTuple):
    """Rules of a cache of experts."""

    slots: int
    """Experts of each layer that stay in fast memory."""
    uploads: int
    """Most missing experts of one layer that a step brings to fast memory; the others are computed
    where they lie."""
    caching: CachingPolicy
    prefetching: PrefetchingPolicy


class CacheUses(NamedTuple):
    """Experts that steps used, counted by step and MoE layer, ``[S, L]`` each."""

    used_SL: Ints
    """Distinct experts that the step's tokens chose."""
    held_SL: Ints
    """Experts of these that were in the cache."""
    ahead_SL: Ints
    """Experts of these that had been fetched ahead."""
    uploaded_SL: Ints
    """Experts of these that were brought to fast memory when the layer asked for them."""
    below_SL: Ints
    """Experts of these that were computed where they lie."""
    fetched_SL: Ints
    """Experts that were fetched ahead, needed or not."""
    pairs_SL: Ints
    """Token-expert pairs of the step."""
    below_pairs_SL: Ints
    """Token-expert pairs that were computed where their experts lie."""

    @property
    def hit_rate(self) -> float:
        """Share of the experts that steps used which were in the cache."""
        return float(self.held_SL.sum() / max(self.used_SL.sum(), 1))


def spread_streams(ids_LTK: NDArray[np.int16], num_streams: int) -> NDArray[np.int16]:
    """Let each step serve one token of each of ``num_streams`` streams of consecutive tokens,
    ``[S, L, X]`` with the choices of all a step's tokens behind each other; tokens that fill no
    whole step are left out.
    """
    layers, tokens, top_k = ids_LTK.shape
    steps = tokens // num_streams
    ids_LNSK = ids_LTK[:, : steps * num_streams].reshape(layers, num_streams, steps, top_k)
    return ids_LNSK.transpose(2, 0, 1, 3).reshape(steps, layers, num_streams * top_k)


def replay_cache(
    rules: CacheRules, ids_SLX: NDArray[np.int16], earlier_LTK: NDArray[np.int16], num_experts: int
) -> CacheUses:
    """Replay steps through the caches of all layers.

    Args:
        ids_SLX: experts that the tokens of each step chose in each layer.
        earlier_LTK: choices of earlier tokens, which policies learn from.
    """
    cache = ExpertCache(rules, earlier_LTK, num_experts)
    rows = [_count_step(*cache.take_step(ids_LX)) for ids_LX in ids_SLX]
    shape = (0, len(CacheUses._fields), len(earlier_LTK))
    counts_SCL = np.array(rows, dtype=np.int64) if rows else np.zeros(shape, dtype=np.int64)
    return CacheUses(*counts_SCL.transpose(1, 0, 2))


def begins_empty(rules: CacheRules, earlier_LTK: NDArray[np.int16], num_experts: int) -> bool:
    """Whether a cache has no expert before its first step."""
    return not ExpertCache(rules, earlier_LTK, num_experts).held_LE.any()


class StepExperts(NamedTuple):
    """Experts of one step in every layer, ``[L, E]`` each, by where they were."""

    used_LE: Bools
    """Experts that its tokens chose."""
    held_LE: Bools
    """Experts of these that were in the cache."""
    ahead_LE: Bools
    """Experts of these that had been fetched ahead."""
    uploaded_LE: Bools
    """Experts of these that are brought to fast memory now."""
    below_LE: Bools
    """Experts of these that are computed where they lie."""
    fetched_LE: Bools
    """Experts that were fetched ahead, needed or not."""
    pairs_LE: Ints
    """Tokens of each expert."""


class ExpertCache:
    """Experts of every layer that are in fast memory, step after step."""

    def __init__(self, rules: CacheRules, earlier_LTK: NDArray[np.int16], num_experts: int) -> None:
        self._rules = rules
        shape = (len(earlier_LTK), num_experts)
        earlier_LE = np.stack(
            [np.bincount(ids.ravel(), minlength=num_experts) for ids in earlier_LTK]
        )
        self._uses = ExpertUses(
            np.zeros(shape, np.int64), np.zeros(shape, np.int64), earlier_LE.astype(np.float64)
        )
        self._predictor = prepare_predictor(rules.prefetching, earlier_LTK, num_experts)
        self._steps = 0
        rates_LE = rate_experts(rules.caching, self._uses)
        self.held_LE = _choose_most(rates_LE, np.ones(shape, np.bool_), rules.slots)
        """Experts that are in fast memory."""

    def take_step(self, ids_LX: NDArray[np.integer]) -> StepExperts:
        """Find one step's experts, and keep what is worth it for the next.

        Args:
            ids_LX: experts that the step's tokens chose in each layer.
        """
        pairs_LE = _count_pairs(ids_LX, self.held_LE.shape[1])
        used_LE = pairs_LE > 0
        hits_LE = used_LE & self.held_LE
        fetched_LE = self._fetch_ahead(used_LE)
        ahead_LE = used_LE & fetched_LE
        missing_LE = used_LE & ~hits_LE & ~ahead_LE
        rates_LE = self._rate(pairs_LE)
        uploaded_LE = missing_LE
        if self._rules.uploads < used_LE.shape[1]:
            uploaded_LE = _choose_most(pairs_LE + _rank(rates_LE), missing_LE, self._rules.uploads)
        below_LE = missing_LE & ~uploaded_LE
        arrived_LE = self.held_LE | ahead_LE | uploaded_LE
        self.held_LE = _choose_most(rates_LE, arrived_LE, self._rules.slots)
        return StepExperts(used_LE, hits_LE, ahead_LE, uploaded_LE, below_LE, fetched_LE, pairs_LE)

    def _fetch_ahead(self, used_LE: Bools) -> Bools:
        """Choose the experts that are fetched before their layer asks for them, ``[L, E]``."""
        most = self._rules.prefetching.experts
        if most == 0:
            return np.zeros_like(used_LE)
        rates_LE = predict_experts(self._predictor, used_LE)
        return _choose_most(rates_LE, ~self.held_LE, most)

    def _rate(self, pairs_LE: Ints) -> Floats:
        """Count the step's uses, and rate how much each expert is worth a slot now."""
        self._steps += 1
        _note_uses(pairs_LE, self._steps, self._uses.last_LE, self._uses.count_LE)
        return rate_experts(self._rules.caching, self._uses)


@jit
def _count_step(
    used_LE: Bools,
    held_LE: Bools,
    ahead_LE: Bools,
    uploaded_LE: Bools,
    below_LE: Bools,
    fetched_LE: Bools,
    pairs_LE: Ints,
) -> Ints:
    """Count a step's experts by layer, ``[8, L]`` in the order of :class:`CacheUses`."""
    counts_CL = np.zeros((8, len(used_LE)), dtype=np.int64)
    for layer in range(len(used_LE)):
        for expert in range(used_LE.shape[1]):
            counts_CL[0, layer] += used_LE[layer, expert]
            counts_CL[1, layer] += held_LE[layer, expert]
            counts_CL[2, layer] += ahead_LE[layer, expert]
            counts_CL[3, layer] += uploaded_LE[layer, expert]
            counts_CL[4, layer] += below_LE[layer, expert]
            counts_CL[5, layer] += fetched_LE[layer, expert]
            counts_CL[6, layer] += pairs_LE[layer, expert]
            counts_CL[7, layer] += pairs_LE[layer, expert] * below_LE[layer, expert]
    return counts_CL


@jit
def _count_pairs(ids_LX: NDArray[np.integer], num_experts: int) -> Ints:
    """Count the tokens of each expert in each layer, ``[L, E]``."""
    pairs_LE = np.zeros((len(ids_LX), num_experts), dtype=np.int64)
    for layer in range(len(ids_LX)):
        for place in range(ids_LX.shape[1]):
            pairs_LE[layer, ids_LX[layer, place]] += 1
    return pairs_LE


@jit
def _note_uses(pairs_LE: Ints, step: int, last_LE: Ints, count_LE: Ints) -> None:
    """Note the step of each expert's last use, and its steps with tokens."""
    for layer in range(len(pairs_LE)):
        for expert in range(pairs_LE.shape[1]):
            if pairs_LE[layer, expert] > 0:
                last_LE[layer, expert] = step
                count_LE[layer, expert] += 1


@jit
def _choose_most(rates_LE: Floats, among_LE: Bools, most: int) -> Bools:
    """Choose up to ``most`` experts of each layer by value, ``[L, E]``, of equal ones the first; a
    value of 0 or less is never chosen.
    """
    chosen_LE = np.zeros(rates_LE.shape, dtype=np.bool_)
    rates_N = np.empty(rates_LE.shape[1])
    for layer in range(len(rates_LE)):
        count = 0
        for expert in range(rates_LE.shape[1]):
            if among_LE[layer, expert] and rates_LE[layer, expert] > 0.0:
                rates_N[count] = rates_LE[layer, expert]
                count += 1
        least, num_least = 0.0, 0  # value that decides, and how many of it are chosen
        if count > most > 0:
            rates_N[:count].sort()
            least = rates_N[count - most]
            while num_least < most and rates_N[count - most + num_least] == least:
                num_least += 1
        for expert in range(rates_LE.shape[1]):
            rate = rates_LE[layer, expert]
            if most == 0 or rate < least or rate <= 0.0 or not among_LE[layer, expert]:
                continue
            if rate == least:
                num_least -= 1
            chosen_LE[layer, expert] = rate > least or (rate == least and num_least >= 0)
    return chosen_LE


def _rank(rates_LE: Floats) -> Floats:
    """Order of values from 0 to below 1, ``[L, E]``, which decides between experts with equally
    many tokens.
    """
    order_LE: Ints = rates_LE.argsort(axis=1).argsort(axis=1)
    return np.asarray(order_LE / rates_LE.shape[1], dtype=np.float64)
