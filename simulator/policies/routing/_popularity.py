"""Router of every policy that knows popularities only: it draws experts token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats, Ints
from simulator.base.jit import jit_inner
from simulator.config.ffns.moe import MoE
from simulator.policies.routing import RecordedSequences

LARGEST_INCLUSION = 0.98
"""Largest share of the tokens that may choose one expert: a router's score is never certain."""

_SMALLEST_SHARE = 1e-9
"""Smallest share of an expert that was never seen, so that ``K`` experts can always be found."""

_CHUNK_SCORES = 1 << 19
"""Scores held at once (2 MB in float32), so that a batch of any size fits in memory and stays in
cache."""

_SEQUENCES, _SEQUENCE_TOKENS = 16, 256
"""Sequences drawn for each domain, and tokens of one: as many as steps take their experts from
where requests are of no domain."""
_STAGE_SEQUENCES = 4
"""Sequences drawn for each stage of a domain: steps take tokens of two stages at any time, and
drawing all takes four times as long as without stages."""

MAX_TOPICS = 16
"""Most topics that affinity groups the experts of a layer into; DeepSeek-V2-Lite's 64 experts then
fall in fours."""


@dataclass(frozen=True)
class PopularityRouter:
    """Router that draws ``K`` distinct experts for each token, each with the probability of its
    popularity.

    A token's score of an expert is the log-odds of the expert's probability plus logistic noise,
    and the ``K`` best win: Pareto sampling (Rosén 1997, "On sampling with probability proportional
    to size"), whose inclusion probabilities are within 1-3 % of those asked for. Drawing one after
    the other in proportion to popularity (Gumbel top-k) would flatten it by 5-15 %. With ``K = 1``
    that is exact, and used: the score is the log of the probability plus Gumbel noise.
    """

    moe: MoE
    handicap_DLCE: NDArray[np.float32]
    """Factor of the noise that gives the key ``exp(-score)``, for each domain, layer, topic and
    expert: the odds against the expert, ``(1 - p) / p``, or ``1 / p`` where ``K = 1``."""
    topic_cdf_DLC: Floats
    """Cumulative probability of the topics, for each domain and layer."""
    num_stages: int = 1
    """Stages of each kind of text's popularity, each a domain (:class:`RecordedSequences`)."""
    stage_s: float = math.inf
    """Seconds from one stage to the next."""
    hold_L: Floats | None = None
    """Probability in each layer that a token keeps the previous token's noise for an expert, and
    its topic; ``None`` = 0. Keeping does not depend on the outcome, so popularity is the same with
    and without."""
    repeat_L: Floats | None = None
    """Probability in each layer that a token keeps all of the previous token's noise at once;
    ``None`` = 0."""
    num_ranked: int = 0
    """Experts of a token that are returned, best first; 0 = the ``K`` that it chooses, in no
    particular order."""

    def topk_ids(
        self, layer: int, run_lengths: Ints, rng: np.random.Generator
    ) -> NDArray[np.int16]:
        """Choose the experts of a batch of tokens (:class:`simulator.policies.routing.Router`), at
        the first stage of their popularity.
        """
        return self._draw(layer, run_lengths[run_lengths > 0], None, rng)

    @property
    def num_candidates(self) -> int:
        """Number of experts that a token may choose from."""
        return self.moe.num_candidates

    def rank_choices(self, num_choices: int) -> PopularityRouter:
        """Make a router of the same tokens that returns their ``num_choices`` best experts."""
        return replace(self, num_ranked=num_choices)

    @property
    def num_domains(self) -> int:
        """Number of domains, each with popular experts of its own."""
        return len(self.handicap_DLCE)

    def draw_sequences(self, rng: np.random.Generator) -> RecordedSequences:
        """Draw sequences of each domain that requests of it can take by position."""
        num_domains, num_layers = self.handicap_DLCE.shape[:2]
        each = _SEQUENCES if self.num_stages == 1 else _STAGE_SEQUENCES
        length_Q = np.full(num_domains * each, _SEQUENCE_TOKENS, dtype=np.int64)
        domain_Q = np.arange(num_domains).repeat(each)
        domain_T, seed = domain_Q.repeat(length_Q), int(rng.integers(1 << 62))
        ids = [
            self._draw(layer, length_Q, domain_T, np.random.default_rng(seed))
            for layer in range(num_layers)
        ]
        names = tuple(str(number + 1) for number in range(num_domains))
        start_Q = np.cumsum(length_Q) - length_Q
        chosen_LTK, next_LTN = np.split(np.stack(ids), [self.moe.top_k], axis=2)
        return RecordedSequences(
            np.ascontiguousarray(chosen_LTK),
            start_Q,
            names,
            domain_Q,
            next_LTN=next_LTN if next_LTN.size else None,
            is_drawn=True,
            num_stages=self.num_stages,
            stage_s=self.stage_s,
        )

    def _draw(
        self, layer: int, lengths: Ints, domain_T: Ints | None, rng: np.random.Generator
    ) -> NDArray[np.int16]:
        """Draw the experts of runs of tokens in one layer.

        Args:
            domain_T: domain of each token; by default one is drawn for each run.
        """
        num_tokens = int(lengths.sum())
        is_first_T = np.zeros(num_tokens, dtype=bool)
        is_first_T[np.cumsum(lengths) - lengths] = True
        if domain_T is None:
            domain_T = self._domains(lengths, rng)
        # Layers called with one stream share the domains of their runs, as layers of one text do,
        # and nothing else.
        rng = np.random.default_rng([int(rng.integers(1 << 62)), layer])
        hold, repeat = (
            0.0 if chance_L is None else float(chance_L[layer])
            for chance_L in (self.hold_L, self.repeat_L)
        )
        holds = max(hold, repeat) > 0 and len(lengths) < num_tokens
        repeats_T = np.zeros(num_tokens, dtype=bool)
        if holds and repeat > 0:
            repeats_T = (rng.random(num_tokens) < repeat) & ~is_first_T
        topic_T = self._topics(layer, domain_T, is_first_T, repeats_T, hold, rng)

        num_choices = self.num_ranked or self.moe.top_k
        topk_ids_TK = np.empty((num_tokens, num_choices), dtype=np.int16)
        last_noise_E = np.empty(self.moe.num_experts, dtype=np.float32)
        chunk = max(1, _CHUNK_SCORES // self.moe.num_experts)
        for start in range(0, num_tokens, chunk):
            part = slice(start, start + chunk)
            noise_TE = self._noise(len(domain_T[part]), rng)
            if holds:
                _take_over(noise_TE, last_noise_E, is_first_T[part], repeats_T[part], hold, rng)
                last_noise_E = noise_TE[-1].copy()
            noise_TE *= self.handicap_DLCE[domain_T[part], layer, topic_T[part]]
            topk_ids_TK[part] = choose(noise_TE, self.moe, self.num_ranked)
        return topk_ids_TK

    def _noise(self, num_tokens: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Draw ``exp`` of minus the noise: the odds of a uniform number, or an exponential one
        where ``K = 1``.
        """
        shape = (num_tokens, self.moe.num_experts)
        if self.moe.top_k == 1:
            return rng.standard_exponential(shape, dtype=np.float32)
        uniform_TE = rng.random(shape, dtype=np.float32)
        return uniform_TE / (1 - uniform_TE)

    def _domains(self, lengths: Ints, rng: np.random.Generator) -> Ints:
        num_kinds = len(self.handicap_DLCE) // self.num_stages
        if num_kinds == 1:
            return np.zeros(int(lengths.sum()), dtype=np.int64)
        kinds = rng.integers(num_kinds, size=len(lengths))
        return np.repeat(kinds * self.num_stages, lengths)

    def _topics(
        self,
        layer: int,
        domain_T: Ints,
        is_first_T: Bools,
        repeats_T: Bools,
        hold: float,
        rng: np.random.Generator,
    ) -> Ints:
        num_tokens = len(domain_T)
        if self.topic_cdf_DLC.shape[2] == 1:
            return np.zeros(num_tokens, dtype=np.int64)
        # The last topic takes what rounding leaves.
        drawn_TC = rng.random(num_tokens)[:, None] >= self.topic_cdf_DLC[domain_T, layer, :-1]
        topic_T: Ints = drawn_TC.sum(axis=1)
        is_new_T = is_first_T | (~repeats_T & (rng.random(num_tokens) >= hold))
        return topic_T[np.maximum.accumulate(np.where(is_new_T, np.arange(num_tokens), 0))]


def by_popularity(moe: MoE, share_DLE: Floats) -> PopularityRouter:
    """Make a router whose tokens are independent, with these shares of the token-expert pairs (any
    scale).
    """
    chance_DLE = inclusion(share_DLE, moe.top_k)
    return PopularityRouter(
        moe, _handicap(moe, chance_DLE[:, :, None, :]), np.ones((*share_DLE.shape[:2], 1))
    )


def with_affinity(
    moe: MoE, share_DLE: Floats, affinity: float, rng: np.random.Generator
) -> PopularityRouter:
    """Make a router whose experts of one topic are used together, with nearly the shares that are
    asked for.

    The experts of every layer are dealt into topics; a token has one topic, drawn in proportion to
    the topic's popularity, and picks an expert from the topic with probability ``affinity``,
    otherwise from the whole layer.
    """
    num_topics = min(MAX_TOPICS, moe.num_experts // 2)
    if affinity == 0 or num_topics < 2:
        return by_popularity(moe, share_DLE)
    chance_DLE = inclusion(share_DLE, moe.top_k)
    topic_LE = rng.permuted(
        np.tile(np.arange(moe.num_experts) % num_topics, (share_DLE.shape[1], 1)), axis=1
    )
    is_in_LCE = topic_LE[:, None, :] == np.arange(num_topics)[None, :, None]
    topic_share_DLC = (chance_DLE[:, :, None, :] * is_in_LCE).sum(axis=3)
    topic_share_DLC /= topic_share_DLC.sum(axis=2, keepdims=True)

    # A topic smaller than K cannot serve a token alone, so even full affinity leaves the other
    # experts a chance.
    affinity = min(affinity, LARGEST_INCLUSION)
    boost_DLCE = 1 - affinity + affinity * is_in_LCE / topic_share_DLC[..., None]
    chance_DLCE = chance_DLE[:, :, None, :] * boost_DLCE
    # A chance cannot exceed one, so a small topic's experts cannot be boosted in full. Scaling rows
    # (K experts a token) and columns (the popularity asked for) in turn spreads the rest; it has
    # settled to within a percent after a few rounds.
    for _ in range(12):
        chance_DLCE *= moe.top_k / chance_DLCE.sum(axis=3, keepdims=True)
        chance_DLCE = np.minimum(chance_DLCE, LARGEST_INCLUSION)
        mixed_DLE = (topic_share_DLC[..., None] * chance_DLCE).sum(axis=2)
        chance_DLCE = np.minimum(
            chance_DLCE * (chance_DLE / mixed_DLE)[:, :, None, :], LARGEST_INCLUSION
        )
    return PopularityRouter(moe, _handicap(moe, chance_DLCE), np.cumsum(topic_share_DLC, axis=2))


def with_persistence(
    router: PopularityRouter, persistence_L: Floats, repetition_L: Floats, rng: np.random.Generator
) -> PopularityRouter:
    """Make the router keep enough from token to token that consecutive tokens share
    ``persistence_L`` of their experts in each layer, of which ``repetition_L`` is by tokens that
    keep all of them.

    The share that follows from a probability of keeping has no closed form with groups and topics,
    so it is measured on a sample, over all layers alike. Where popularity alone makes tokens share
    more, nothing is kept.
    """
    holds = np.linspace(0.0, 0.99, 12)
    num_layers = len(persistence_L)
    layers = np.unique(np.linspace(0, num_layers - 1, min(num_layers, 8)).astype(np.int64))
    seed = int(rng.integers(2**32))
    shared = [
        _shared_experts(replace(router, hold_L=np.full(num_layers, hold)), layers, seed)
        for hold in holds
    ]
    # Tokens that keep all of their experts share all; the others are as far apart as without them.
    others_L = (persistence_L - repetition_L) / (1 - repetition_L)
    hold_L = np.interp(others_L, np.maximum.accumulate(shared), holds)
    return replace(router, hold_L=hold_L, repeat_L=repetition_L if repetition_L.any() else None)


def _shared_experts(router: PopularityRouter, layers: Ints, seed: int) -> float:
    """Share of a token's experts that the token before has too, mean over ``layers``."""
    rng = np.random.default_rng(seed)
    # Some 20,000 pairs in all, so that the share is known to within a percent.
    run_lengths = np.full(1 + 512 // (len(layers) * router.moe.top_k), 40, dtype=np.int64)
    shared = []
    for layer in layers:
        topk_ids_TK = router.topk_ids(int(layer), run_lengths, rng)
        uses_TE = np.zeros((len(topk_ids_TK), router.moe.num_experts), dtype=bool)
        np.put_along_axis(uses_TE, topk_ids_TK.astype(np.int64), True, axis=1)
        uses_RTE = uses_TE.reshape(len(run_lengths), -1, router.moe.num_experts)
        shared.append((uses_RTE[:, 1:] & uses_RTE[:, :-1]).sum(axis=2).mean() / router.moe.top_k)
    return float(np.mean(shared))


def _take_over(
    noise_TE: NDArray[np.float32],
    last_noise_E: NDArray[np.float32],
    is_first_T: Bools,
    repeats_T: Bools,
    hold: float,
    rng: np.random.Generator,
) -> None:
    """Replace, in place, each token's noise by its predecessor's: all of it where the token
    repeats, otherwise each value with chance ``hold``, and none at the first of a run.
    """
    holds_TE = rng.integers(1 << 16, size=noise_TE.shape, dtype=np.uint16) < round(hold * (1 << 16))
    holds_TE[repeats_T] = True
    holds_TE[is_first_T] = False
    _pass_on(noise_TE, last_noise_E, holds_TE)


@jit_inner
def _pass_on(
    noise_TE: NDArray[np.float32], last_noise_E: NDArray[np.float32], holds_TE: Bools
) -> None:
    """Replace, in place, kept values by those of the row before, after its own replacement: row by
    row in compiled code, since a loop of numpy's took a third of drawing.

    The row before the first is passed beside the others: a choice between two arrays in the loop
    would keep eight values from being replaced at once (measured: 2.0 against 0.05 ms for 2,048
    rows of 256).
    """
    if len(noise_TE) == 0:
        return
    for e in range(noise_TE.shape[1]):
        if holds_TE[0, e]:
            noise_TE[0, e] = last_noise_E[e]
    for t in range(1, len(noise_TE)):
        for e in range(noise_TE.shape[1]):
            own, previous = noise_TE[t, e], noise_TE[t - 1, e]
            noise_TE[t, e] = previous if holds_TE[t, e] else own


def _handicap(moe: MoE, chance: Floats) -> NDArray[np.float32]:
    handicap = 1 / chance if moe.top_k == 1 else (1 - chance) / chance
    return handicap.astype(np.float32)


def inclusion(share_E: Floats, top_k: int) -> Floats:
    """Probability that a token uses each expert, from the experts' shares of all token-expert
    pairs.

    The chances are ``top_k`` times the shares, and sum to ``top_k``. What exceeds
    :data:`LARGEST_INCLUSION` is spread over the other experts in proportion to their shares.

    Args:
        share_E: not negative, any scale; the last axis is the experts.
        top_k: ``K``, experts a token uses.

    >>> inclusion(np.array([3.0, 1.0, 1.0, 1.0]), top_k=2).round(2).tolist()
    [0.98, 0.34, 0.34, 0.34]
    """
    share_E = share_E / share_E.sum(axis=-1, keepdims=True)
    wanted_E: Floats = top_k * np.maximum(share_E, _SMALLEST_SHARE)
    while True:
        wanted_E = np.minimum(wanted_E, LARGEST_INCLUSION)
        missing = top_k - wanted_E.sum(axis=-1, keepdims=True)
        below_E = np.where(wanted_E < LARGEST_INCLUSION, wanted_E, 0.0)
        room = below_E.sum(axis=-1, keepdims=True)
        if not ((missing > 1e-9 * top_k) & (room > 0)).any():
            return wanted_E
        wanted_E = wanted_E + below_E * np.maximum(missing, 0.0) / np.maximum(room, _SMALLEST_SHARE)


def choose(keys_TE: NDArray[np.float32], moe: MoE, num_ranked: int = 0) -> NDArray[np.int16]:
    """Choose the ``K`` experts with the smallest keys of every token, within the model's group
    limit.

    A key is ``exp(-score)``. With groups, a token first keeps the ``num_limited_groups`` groups
    whose two best scores have the largest sum, then picks its experts among those (DeepSeek-V3,
    arXiv 2412.19437 section 2.1.2); a sum of scores is a product of keys, so no logarithm is
    needed.

    Args:
        keys_TE: positive; smaller is better.
        moe: its top-k and groups.
        num_ranked: experts to choose instead, best first; 0 = ``K`` in no particular order.

    >>> keys = np.array([[0.5, 0.5, 0.1, 9.0]], dtype=np.float32)
    >>> moe = MoE(kind="moe", num_experts=4, top_k=1, intermediate_size=1, num_groups=2)
    >>> choose(keys, moe).tolist()  # expert 2 is the best, but group 0 is the better pair
    [[0]]
    """
    if moe.num_limited_groups == moe.num_groups:
        return _smallest(keys_TE, moe.top_k, num_ranked).astype(np.int16)
    group_size = moe.num_experts // moe.num_groups
    keys_TGe = keys_TE.reshape(len(keys_TE), moe.num_groups, group_size)
    groups_Tg = _smallest(_two_best(keys_TGe), moe.num_limited_groups)
    kept_Tge = np.empty((len(keys_TE), moe.num_limited_groups, group_size), dtype=np.float32)
    _keep_groups(keys_TGe, groups_Tg, kept_Tge)
    picked_TK = _smallest(kept_Tge.reshape(len(keys_TE), -1), moe.top_k, num_ranked)
    group_TK = np.take_along_axis(groups_Tg, picked_TK // group_size, axis=1)
    return (group_TK * group_size + picked_TK % group_size).astype(np.int16)


@jit_inner
def _keep_groups(
    keys_TGe: NDArray[np.float32], groups_Tg: Ints, kept_Tge: NDArray[np.float32]
) -> None:
    """Copy the keys of the groups that each token keeps, a group at a time: numpy would look up
    every key by itself.
    """
    for t in range(kept_Tge.shape[0]):
        for place in range(kept_Tge.shape[1]):
            group = groups_Tg[t, place]
            for e in range(kept_Tge.shape[2]):
                kept_Tge[t, place, e] = keys_TGe[t, group, e]


def _two_best(keys_TGe: NDArray[np.float32]) -> NDArray[np.float32]:
    """Product of the two smallest keys of every group, ``[T, G]``; the smallest alone where a group
    has no second.
    """
    product_TG = np.empty(keys_TGe.shape[:2], dtype=np.float32)
    _multiply_two_best(keys_TGe, product_TG)
    return product_TG


@jit_inner
def _multiply_two_best(keys_TGe: NDArray[np.float32], product_TG: NDArray[np.float32]) -> None:
    """Write the products in one pass: five of numpy's over arrays as large took a fourth of
    drawing.
    """
    for t in range(keys_TGe.shape[0]):
        for group in range(keys_TGe.shape[1]):
            best = second = np.float32(np.inf)
            for key in keys_TGe[t, group]:
                second = min(second, max(best, key))
                best = min(best, key)
            product_TG[t, group] = best if keys_TGe.shape[2] == 1 else best * second


def _smallest(values_TE: NDArray[np.float32], count: int, num_ranked: int = 0) -> Ints:
    """Columns of the ``count`` smallest values of every row, in no particular order, or of the
    ``num_ranked`` smallest ones in theirs.
    """
    if num_ranked:
        columns_TK = _smallest(values_TE, num_ranked)
        order_TK = np.take_along_axis(values_TE, columns_TK, axis=1).argsort(axis=1, kind="stable")
        return np.take_along_axis(columns_TK, order_TK, axis=1)
    if count == 1:
        columns_TK = values_TE.argmin(axis=1, keepdims=True)
    else:
        columns_TK = np.argpartition(values_TE, count - 1, axis=1)[:, :count]
    return columns_TK
