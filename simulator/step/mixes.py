"""Mixes of requests that the routed experts of a step are priced for.

What a step's experts and exchanges take depends on its mix of requests through one number, nearly:
the imbalance of the load that is expected of the mix, the busiest rank's over the mean rank's, as a
mean over layers. On DeepSeek-V2-Lite and gpt-oss-20b over 8 ranks a price that is linear in it has
no error in the mean and is within 1.3 % of single decode steps at the 90th percentile, and it is
the same function whichever placement the imbalance comes from. So steps are priced at a few mixes,
and others by their imbalance; when experts move, what was priced stays true, and only the expected
loads of ranks are added up anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Policy
from simulator.base.plugins import build
from simulator.base.streams import open_stream
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.policies.contracts import place_experts
from simulator.policies.placement import Placed
from simulator.policies.routing import RecordedSequences
from simulator.step.prices import Prices

Floats = NDArray[np.float64]

_SMALLEST_STEP = 0.03
"""Least difference of the imbalances of neighbouring mixes: smaller ones change no price."""
_LOADS = 8192
"""Loads that are added up in each step at most, of all profiles, layers and ranks."""
_FEWEST_LAYERS = 8


@dataclass(frozen=True)
class Mixes:
    """Mixes that steps of one pool are priced for, by growing imbalance."""

    imbalance_M: Floats
    """Imbalance of the load that is expected of each mix, ``[M]``."""
    prices_M: tuple[Prices, ...]
    """Prices whose pool of expert choices is drawn from each mix."""
    load_YPR: Floats
    """Token-expert pairs expected on each rank of a token of each load profile, in layers that
    stand for all, ``[Y, P, R]``; without any where requests have no profiles."""

    def place(self, profiles: LoadProfiles, placed: Placed) -> Mixes:
        """Add up the expected loads of ranks for another placement of experts, in as many slots."""
        return replace(self, load_YPR=expect_loads(profiles, placed))


def single_mix(prices: Prices) -> Mixes:
    """Price all steps alike, by the prices' own pool of choices."""
    return Mixes(np.ones(1), (prices,), np.zeros((0, 0, 0)))


def list_mixes(prices: Prices, profiles: LoadProfiles) -> Mixes:
    """List the mixes for a recording: all of it with its experts placed evenly, all of it as they
    are placed, the most uneven profile, and one between these two.
    """
    placement = prices.placement
    assert placement.experts is not None
    placed = placement.experts.placed
    load_YPR = expect_loads(profiles, placed)
    all_P = profiles.share_P
    corners = np.eye(len(all_P))
    worst_P = corners[int(np.argmax([measure_imbalance(load_YPR, one) for one in corners]))]
    even = _place_evenly(prices, profiles)
    found = [(measure_imbalance(expect_loads(profiles, even), all_P), all_P, even)]
    for share in (0.0, 0.5, 1.0):
        mix_P = (1 - share) * all_P + share * worst_P
        found.append((measure_imbalance(load_YPR, mix_P), mix_P, placed))
    kept = [min(found, key=lambda one: one[0])]
    for one in sorted(found, key=lambda one: one[0]):
        if one[0] - kept[-1][0] >= _SMALLEST_STEP:
            kept.append(one)
    return Mixes(
        np.array([imbalance for imbalance, _, _ in kept]),
        tuple(_price_mix(prices, profiles, mix_P, where) for _, mix_P, where in kept),
        load_YPR,
    )


def expect_loads(profiles: LoadProfiles, placed: Placed) -> Floats:
    """Token-expert pairs that are expected on each rank of a token of each profile, in layers
    spread evenly over the model, ``[Y, P, R]``. Copies of an expert share its tokens.
    """
    num_profiles, num_layers, num_experts = profiles.load_PLE.shape
    most = max(_FEWEST_LAYERS, _LOADS // (num_profiles * placed.num_ranks))
    layers = np.unique(np.linspace(0, num_layers - 1, min(num_layers, most)).round().astype(int))
    load_YPR = np.zeros((len(layers), num_profiles, placed.num_ranks))
    for place, layer in enumerate(layers):
        expert_P, rank_P = placed.expert_LP[layer], placed.rank_LP[layer]
        copies_E = np.bincount(expert_P, minlength=num_experts)
        for slot_expert, rank in zip(expert_P, rank_P, strict=True):
            own_P = profiles.load_PLE[:, layer, slot_expert] / copies_E[slot_expert]
            load_YPR[place, :, rank] += own_P
    return load_YPR


def measure_imbalance(load_YPR: Floats, tokens_P: Floats) -> float:
    """Imbalance of the load that is expected of so many tokens of each profile: the busiest rank's
    over the mean rank's, as a mean over layers.
    """
    load_YR = np.tensordot(load_YPR, tokens_P, axes=(1, 0))
    return float((load_YR.max(axis=1) / load_YR.mean(axis=1)).mean())


def _place_evenly(prices: Prices, profiles: LoadProfiles) -> Placed:
    """Place the experts by their mean loads, in as many slots as they are in, where some policy
    can.
    """
    placement = prices.placement
    assert placement.experts is not None
    placed, load_LE = placement.experts.placed, np.tensordot(profiles.share_P, profiles.load_PLE, 1)
    num_slots = placed.expert_LP.shape[1]
    if num_slots == load_LE.shape[1]:
        policy: Policy = {"kind": "greedy"}
    elif num_slots % placed.num_ranks == 0:
        policy = {"kind": "eplb", "num_slots": num_slots}
    else:  # copies that no shipped policy spreads over so many ranks
        return placed
    built = build("placement", policy, f"deployment '{placement.name}' [placement]")
    return place_experts(built, load_LE, placed.num_ranks, placement.rng("even placement"))


def _price_mix(prices: Prices, profiles: LoadProfiles, mix_P: Floats, placed: Placed) -> Prices:
    """Price steps whose tokens are drawn from a mix, with experts placed so."""
    experts = prices.placement.experts
    assert experts is not None
    rng = open_stream(0, "mixes")
    profile_T = rng.choice(len(mix_P), size=POOL_TOKENS, p=mix_P)
    place_T = rng.random(POOL_TOKENS)
    tokens = profiles.tokens_P
    recorded_T = np.array(
        [tokens[p][int(at * len(tokens[p]))] for p, at in zip(profile_T, place_T, strict=True)]
    )
    recorded = profiles.recorded
    pool_LTK = recorded.ids_LTK[:, recorded_T]
    next_LTN = None if recorded.next_LTN is None else recorded.next_LTN[:, recorded_T]
    mixed = replace(experts, topk_ids_LTK=pool_LTK, next_LTN=next_LTN, placed=placed)
    return Prices(replace(prices.placement, experts=mixed), prices.max_tokens)


# Load profiles of recorded sequences: how often a token of each kind of sequence chooses each
# expert.
#
# Sequences of one kind of text, and of one request, load the same experts. A step is priced by how
# many of its tokens are of each profile, so there are few: one for each sequence of a short
# recording, clusters of alike ones within each domain otherwise.


Ints = NDArray[np.int64]

MOST_PROFILES = 64
"""Most load profiles of a recording. gpt-oss-20b's 64 recorded answers, each of its own profile,
leave single prefill steps 3 % off at the 90th percentile; all in one leave 10 %."""
_DIMENSIONS = 64
"""Random directions that loads are compared in, instead of one for each expert of each layer: they
keep distances within some 15 % (Johnson and Lindenstrauss 1984)."""


@dataclass(frozen=True)
class LoadProfiles:
    """Load profiles of a recording."""

    recorded: RecordedSequences
    profile_Q: Ints
    """Profile of each recorded sequence, ``[Q]``."""
    load_PLE: Floats
    """Probability that a token of each profile chooses each expert, ``[P, L, E]``."""
    tokens_P: tuple[Ints, ...]
    """Recorded tokens of each profile."""

    @property
    def share_P(self) -> Floats:
        """Share of the recording's tokens that each profile has."""
        count_P = np.array([len(tokens) for tokens in self.tokens_P], dtype=np.float64)
        return np.asarray(count_P / count_P.sum())

    def expect_load(self, tokens_P: Floats) -> Floats:
        """Token-expert pairs of each expert that are expected of so many tokens of each profile,
        ``[L, E]``.
        """
        return np.asarray(np.tensordot(tokens_P, self.load_PLE, 1))


def find_profiles(recorded: RecordedSequences, num_experts: int) -> LoadProfiles:
    """Find the load profiles of a recording; the same for the same recording."""
    load_QLE, length_Q = _count_loads(recorded, num_experts)
    num_sequences = len(length_Q)
    if recorded.is_drawn and len(recorded.domains) <= MOST_PROFILES:
        profile_Q = recorded.domain_Q
    elif num_sequences <= MOST_PROFILES:
        profile_Q = np.arange(num_sequences)
    else:
        profile_Q = _cluster(load_QLE / length_Q[:, None, None], recorded)
    num_profiles = int(profile_Q.max()) + 1
    token_T = np.repeat(profile_Q, length_Q)
    count_PLE = np.zeros((num_profiles, *load_QLE.shape[1:]))
    np.add.at(count_PLE, profile_Q, load_QLE)
    tokens_P = tuple(np.flatnonzero(token_T == profile) for profile in range(num_profiles))
    counts = np.array([len(tokens) for tokens in tokens_P])
    return LoadProfiles(recorded, profile_Q, count_PLE / counts[:, None, None], tokens_P)


def _count_loads(recorded: RecordedSequences, num_experts: int) -> tuple[Floats, Ints]:
    """Count the token-expert pairs of each sequence by layer and expert, ``[Q, L, E]``, and its
    tokens, ``[Q]``.
    """
    num_layers, num_tokens, top_k = recorded.ids_LTK.shape
    length_Q = np.diff(recorded.start_Q, append=num_tokens)
    sequence_T = np.repeat(np.arange(len(length_Q)), length_Q)
    load_QLE = np.empty((len(length_Q), num_layers, num_experts))
    for layer, ids_TK in enumerate(recorded.ids_LTK):
        pair_T = np.repeat(sequence_T * num_experts, top_k) + ids_TK.ravel()
        counts = np.bincount(pair_T, minlength=len(length_Q) * num_experts)
        load_QLE[:, layer] = counts.reshape(-1, num_experts)
    return load_QLE, length_Q


def _cluster(load_QLE: Floats, recorded: RecordedSequences) -> Ints:
    """Cluster the sequences of each domain by their loads (k-means), in proportion to how many
    there are.
    """
    from scipy.cluster.vq import kmeans2  # takes a sixth of a second, which few runs need

    rng = np.random.default_rng(0)
    flat_QF = load_QLE.reshape(len(load_QLE), -1)
    directions = rng.standard_normal((flat_QF.shape[1], min(_DIMENSIONS, flat_QF.shape[1])))
    place_QF = flat_QF @ directions
    domain_Q = recorded.domain_Q if len(recorded.domain_Q) else np.zeros(len(flat_QF), np.int64)
    profile_Q, found = np.zeros(len(flat_QF), dtype=np.int64), 0
    domains, sizes = np.unique(domain_Q, return_counts=True)
    for domain, size in zip(domains, sizes, strict=True):
        own = np.flatnonzero(domain_Q == domain)
        count = min(size, max(1, MOST_PROFILES * size // len(flat_QF)))
        _, labels = kmeans2(place_QF[own], count, minit="++", seed=rng, missing="warn")
        used, dense = np.unique(labels, return_inverse=True)
        profile_Q[own] = found + dense
        found += len(used)
    return profile_Q
