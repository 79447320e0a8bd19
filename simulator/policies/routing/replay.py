"""Replay of the expert choices that a real model made, from a recording."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simulator.base.arrays import Ints
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.config.ffns.moe import MoE
from simulator.policies.routing import RecordedSequences, Router
from simulator.policies.routing._popularity import by_popularity
from simulator.policies.routing._recording import (
    Counts,
    LayerChoice,
    Tokens,
    check_counts,
    check_tokens,
    without_padding,
)
from simulator.policies.routing._sglang import Phase
from simulator.policies.routing._trace_files import read_trace


class Replay(Frozen):
    """Routing by recorded tokens, or by independent tokens with recorded popularity where only
    counts were kept.

    A run of tokens is consecutive tokens of the recording from a random place on, so neighbours
    share real experts. A recording of other experts, top-k or layers than the model's is refused.
    """

    trace: str = Field(min_length=1)
    """Path of the recording: ids ``[L, T, K]`` or ``[T, L, K]`` in a ``.npz`` (with optional
    ``seq_lens``, ``domain``, ``phase``, ``layers`` and ``num_experts``), a ``.npy``, or a ``.pt``
    (``torch.save(ids)`` or of a dictionary of such arrays); ids in a ``.csv`` (also ``.csv.gz``) or
    ``.parquet`` with the columns ``token``, ``layer``, ``expert`` and perhaps ``sequence``, a row
    for each expert that a token chose in a layer; counts ``[L, E]`` in a ``.npz``, ``.pt`` or
    ``.json``; or a ``.pt`` that SGLang's expert distribution recorder wrote."""
    model: str | None = None
    """Model whose counts are used, where a table holds several; absent = the one with as many
    experts as the model."""
    domain: str | None = None
    """Kind of text to use alone; absent = all, and with counts each run is of one kind, drawn
    evenly."""
    phase: Phase | None = None
    """Phase whose recorded tokens are used alone; absent = all."""
    exact: bool = False
    """Whether every request takes the experts of one recorded sequence, token by token: the
    sequence recorded of it where the trace and the recording name requests (``request_id``),
    otherwise one that is drawn among those of its domain."""
    layers: LayerChoice = "exact"
    """Match of recorded layers to the model's: ``"exact"``, or ``"nearest"`` where in a recording
    of some layers the nearest recorded one stands for each missing one."""

    def prepare(self, moe: MoE, num_layers: int, rng: np.random.Generator) -> Router:
        recorded = read_trace(
            Path(self.trace), moe, num_layers, self.model, self.domain, self.phase
        )
        if isinstance(recorded, Counts):
            if self.exact:
                raise UserError(
                    f"{self.trace}: exact = true takes the experts of every token, and it holds "
                    "counts; leave exact out, or record tokens (moesim trace record)"
                )
            row_L = check_counts(recorded, moe, num_layers, self.layers, self.trace)
            return by_popularity(moe, recorded.count_DLE[:, row_L])
        recorded = without_padding(recorded)
        row_L = check_tokens(recorded, moe, num_layers, self.layers, self.trace)
        router = _RecordedRouter.from_tokens(recorded, row_L)
        if not self.exact:
            return router
        sequences = _list_sequences(recorded, router.ids_LTK[row_L], self.trace)
        return replace(router, recorded=sequences)


def _list_sequences(tokens: Tokens, ids_LTK: NDArray[np.int16], where: str) -> RecordedSequences:
    """List the recorded sequences that have tokens, with what is known of each.

    Args:
        ids_LTK: expert ids in each MoE layer of the model.

    Raises:
        UserError: if several are of the same request.
    """
    start_Q = np.flatnonzero(np.diff(tokens.sequence_T, prepend=-1))
    number_Q = tokens.sequence_T[start_Q]
    domains, requests = (
        [texts[number] for number in number_Q] if texts else []
        for texts in (tokens.domain_Q, tokens.request_Q)
    )
    names, domain_Q = np.unique(np.array(domains, dtype=str), return_inverse=True)
    for name, count in Counter(name for name in requests if name).most_common(1):
        if count > 1:
            raise UserError(f"{where}: {count} sequences are of request '{name}'; leave one")
    return RecordedSequences(
        ids_LTK, start_Q, tuple(names.tolist()), domain_Q.astype(np.int64), tuple(requests)
    )


@dataclass(frozen=True)
class _RecordedRouter:
    """Router that returns recorded tokens."""

    ids_LTK: NDArray[np.int16]
    row_L: Ints
    end_T: Ints
    """One past the last token of each token's sequence."""
    start_Q: Ints
    """First token of each sequence."""
    best_first: ClassVar[bool] = True
    recorded: RecordedSequences | None = None
    """Sequences that requests take their experts from, token by token; ``None`` where they are
    drawn."""

    @classmethod
    def from_tokens(cls, tokens: Tokens, row_L: Ints) -> _RecordedRouter:
        start_Q = np.flatnonzero(np.diff(tokens.sequence_T, prepend=-1))
        lengths = np.diff(start_Q, append=len(tokens.sequence_T))
        return cls(
            tokens.ids_LTK.astype(np.int16), row_L, np.repeat(start_Q + lengths, lengths), start_Q
        )

    def topk_ids(
        self, layer: int, run_lengths: Ints, rng: np.random.Generator
    ) -> NDArray[np.int16]:
        """Choose the experts of a batch of tokens (:class:`simulator.policies.routing.Router`). The
        drawn tokens do not depend on the layer: calls for two layers with streams in the same state
        return the two layers' choices for the same tokens.
        """
        topk_ids_TK: NDArray[np.int16] = self.ids_LTK[
            self.row_L[layer], self._tokens(run_lengths, rng)
        ]
        return topk_ids_TK

    def _tokens(self, run_lengths: Ints, rng: np.random.Generator) -> Ints:
        """Draw recorded tokens, ``[T]``: each run starts anywhere, evenly, and goes on with another
        sequence where its own ends.
        """
        run_N = np.flatnonzero(run_lengths)
        left_N = run_lengths[run_N]
        at_N = rng.integers(len(self.end_T), size=len(run_N))
        runs, starts, counts = [run_N[:0]], [run_N[:0]], [run_N[:0]]
        while len(run_N):
            count_N = np.minimum(left_N, self.end_T[at_N] - at_N)
            runs.append(run_N)
            starts.append(at_N)
            counts.append(count_N)
            is_left_N = count_N < left_N
            run_N, left_N = run_N[is_left_N], (left_N - count_N)[is_left_N]
            at_N = self.start_Q[rng.integers(len(self.start_Q), size=len(run_N))]
        order = np.argsort(np.concatenate(runs), kind="stable")
        start_N, count_N = np.concatenate(starts)[order], np.concatenate(counts)[order]
        first_N = np.cumsum(count_N) - count_N
        return np.repeat(start_N - first_N, count_N) + np.arange(int(count_N.sum()))
