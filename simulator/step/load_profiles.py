"""Load profiles of recorded sequences: how often a token of each kind of sequence chooses each
expert.

Sequences of one kind of text, and of one request, load the same experts. A step is priced by how
many of its tokens are of each profile (:mod:`simulator.step.mixes`), so there are few: one for each
sequence of a short recording, clusters of alike ones within each domain otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.policies.routing import RecordedSequences

Floats = NDArray[np.float64]
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
