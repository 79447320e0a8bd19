"""Recorded tokens that each request's tokens take their experts from, by position.

A request has one recorded sequence: its own, where the trace and the recording name requests, else
one that is drawn among those of its domain, or among all where it has none. A token takes the
experts of the recorded token at its position; what is longer than its sequence goes on with the
next ones of that domain. Where popularity drifts, requests are of the stages around their arrival.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.findings import Finding
from simulator.deployment.placement import Placement
from simulator.policies.routing import RecordedSequences
from simulator.step.expert_choices import RecordedTokens
from simulator.step.program import Batch
from simulator.workload.traces import RequestTrace

Ints = NDArray[np.int64]
_MANY = 8
"""Requests for each recorded sequence above which a note warns that they choose alike."""
_ALL = 0
"""Number of the group of all sequences; those of each domain follow."""


class RequestChoices:
    """Recorded token of every token of a trace's requests."""

    def __init__(
        self, recorded: RecordedSequences, trace: RequestTrace, rng: np.random.Generator
    ) -> None:
        """Give every request a sequence.

        Args:
            rng: for the sequences that are drawn; the same for all parts of a trace.
        """
        self.recorded = recorded
        self._numbers = None if trace.part_of is None else trace.part_of.numbers
        num_sequences = len(recorded.start_Q)
        length_Q = np.diff(recorded.start_Q, append=recorded.ids_LTK.shape[1])
        group_Q = recorded.domain_Q + 1 if len(recorded.domain_Q) else np.zeros(num_sequences, int)
        groups = [np.arange(num_sequences)]
        groups += [np.flatnonzero(group_Q == 1 + d) for d in range(len(recorded.domains))]
        first_G = np.cumsum([0] + [int(length_Q[own].sum()) for own in groups])
        self._begin_G, self._length_G = first_G[:-1], np.diff(first_G)
        self._token_G = np.concatenate(
            [_list_tokens(recorded.start_Q[own], length_Q[own]) for own in groups]
        )
        """Recorded tokens of the sequences of each group, one group after another."""
        place_GQ = np.zeros((len(groups), num_sequences), dtype=np.int64)
        for group, own in enumerate(groups):
            place_GQ[group, own] = np.cumsum(length_Q[own]) - length_Q[own]
        self.is_named_N, sequence_N = _find_named(recorded, trace)
        chance_N, *chances = _draw(trace, rng, 1 if recorded.num_stages == 1 else 3)
        self.group_N = (
            _find_stages(recorded, trace, *chances) if chances else _find_groups(recorded, trace)
        )
        self.group_N[self.is_named_N] = group_Q[sequence_N[self.is_named_N]]
        for group, own in enumerate(groups):
            drawn = np.flatnonzero((self.group_N == group) & ~self.is_named_N)
            sequence_N[drawn] = own[(chance_N[drawn] * len(own)).astype(np.int64)]
        self.sequence_N = sequence_N
        """Recorded sequence of each request, ``[N]``."""
        self.length_N = length_Q[sequence_N]
        """Tokens of the sequence of each request, ``[N]``."""
        self._place_N = place_GQ[self.group_N, sequence_N]

    def find_rows(self, number_N: Ints) -> Ints:
        """Find the rows of requests in the trace, by their numbers in the whole of which it may be
        a part.
        """
        return number_N if self._numbers is None else np.searchsorted(self._numbers, number_N)

    def find_tokens(self, batch: Batch) -> Ints:
        """Find the recorded token of every token of a batch, ``[T]``, rank after rank."""
        new_N, context_N, _ = batch.sequences
        request_N = self.find_rows(np.concatenate(batch.requests))
        group_T = np.repeat(self.group_N[request_N], new_N)
        first_N = self._place_N[request_N] + context_N - (np.cumsum(new_N) - new_N)
        place_T = np.repeat(first_N, new_N) + np.arange(int(new_N.sum()))
        return self._token_G[self._begin_G[group_T] + place_T % self._length_G[group_T]]

    def list_tokens(self, placement: Placement, batch: Batch) -> RecordedTokens:
        """List the tokens of a batch, ready to choose experts."""
        assert placement.experts is not None
        recorded_T = self.find_tokens(batch)
        return RecordedTokens(
            placement.experts, placement.layout, batch.tokens_d, self.recorded, recorded_T
        )


def bind_requests(placement: Placement, trace: RequestTrace) -> RequestChoices | None:
    """Give every request of a trace a sequence: a recorded one where routing is exact, one of its
    domain where both the trace and the routing tell domains apart, one of its time where popularity
    drifts; otherwise ``None``.

    Raises:
        UserError: if popularity drifts and the requests have no times (a closed loop).
    """
    experts = placement.experts
    if experts is None:
        return None
    recorded = experts.recorded
    if recorded is None and experts.domains is not None:
        if experts.domains.drifts and trace.concurrency is not None:
            raise UserError(
                f"deployment '{placement.name}' [routing]: a closed loop has no arrival times that "
                "drift_s could follow; leave drift_s out"
            )
        if experts.domains.drifts or trace.domains:
            recorded = experts.domains.sequences
    if recorded is None:
        return None
    return RequestChoices(recorded, trace, placement.rng("recorded sequences"))


def describe_choices(placement: Placement, trace: RequestTrace) -> Iterator[Finding]:
    """Find where the requests of a trace take their experts from, unless all take them from one
    pool.
    """
    choices = bind_requests(placement, trace)
    if choices is None:
        return
    recorded = choices.recorded
    if recorded.is_drawn:
        yield _describe_domains(placement, recorded, trace)
        return
    is_named, is_free = choices.is_named_N, ~choices.is_named_N
    num_sequences = len(recorded.start_Q)
    yield Finding(
        "note.recorded_choices",
        plan=placement.name,
        requests=trace.num_requests,
        named=int(is_named.sum()),
        of_domain=int((is_free & (choices.group_N > 0)).sum()),
        of_all=int((is_free & (choices.group_N == _ALL)).sum()),
        sequences=num_sequences,
        tokens=recorded.ids_LTK.shape[1],
        longer=int((trace.num_input + trace.num_output - 1 > choices.length_N).sum()),
        is_shared=int(is_free.sum()) > _MANY * num_sequences,
        unknown=_list_unknown(recorded, trace, is_free),
        domains=list(map(repr, recorded.domains)),
    )


def _describe_domains(
    placement: Placement, recorded: RecordedSequences, trace: RequestTrace
) -> Finding:
    """Find which domains of a routing policy stand for those of a trace."""
    return Finding(
        "note.drawn_choices",
        plan=placement.name,
        kinds={name: place % recorded.num_kinds + 1 for place, name in enumerate(trace.domains)},
        num_kinds=recorded.num_kinds,
        stage_s=recorded.stage_s if recorded.num_stages > 1 else 0.0,
    )


def _list_tokens(start_Q: Ints, length_Q: Ints) -> Ints:
    """List the tokens of sequences, one sequence after another."""
    before_Q = np.cumsum(length_Q) - length_Q
    return np.repeat(start_Q - before_Q, length_Q) + np.arange(int(length_Q.sum()))


def _find_named(recorded: RecordedSequences, trace: RequestTrace) -> tuple[NDArray[np.bool_], Ints]:
    """Whether a sequence was recorded of each request, and the number of that sequence, ``[N]``."""
    number_of = {name: number for number, name in enumerate(recorded.request_ids) if name}
    if not number_of or not len(trace.request_ids):
        return np.zeros(trace.num_requests, np.bool_), np.zeros(trace.num_requests, np.int64)
    found = np.array([number_of.get(name, -1) for name in trace.request_ids.tolist()])
    return found >= 0, np.maximum(found, 0)


def _find_groups(recorded: RecordedSequences, trace: RequestTrace) -> Ints:
    """Group of sequences that each request draws from, ``[N]``."""
    if not len(trace.domain):
        return np.zeros(trace.num_requests, dtype=np.int64)
    if recorded.is_drawn:
        return np.where(trace.domain < 0, _ALL, trace.domain % len(recorded.domains) + 1)
    names = list(recorded.domains)
    group_D = [names.index(name) + 1 if name in names else _ALL for name in trace.domains]
    return np.array([*group_D, _ALL], dtype=np.int64)[trace.domain]


def _find_stages(
    recorded: RecordedSequences,
    trace: RequestTrace,
    kind_chance_N: NDArray[np.float64],
    stage_chance_N: NDArray[np.float64],
) -> Ints:
    """Group of sequences that each request draws from where popularity drifts, ``[N]``: one of the
    two stages around its arrival, the nearer one more often. Requests without a kind of text are of
    any.
    """
    kind_N = np.floor(kind_chance_N * recorded.num_kinds).astype(np.int64)
    if len(trace.domain):
        kind_N = np.where(trace.domain < 0, kind_N, trace.domain % recorded.num_kinds)
    turned_N = np.floor(trace.arrival_s / recorded.stage_s + stage_chance_N).astype(np.int64)
    return kind_N * recorded.num_stages + turned_N % recorded.num_stages + 1


def _draw(trace: RequestTrace, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Draw ``count`` numbers from 0 to 1 for each request, by its number in the whole trace,
    ``[count, N]``.
    """
    if trace.part_of is None:
        return rng.random((trace.num_requests, count)).T
    numbers = trace.part_of.numbers
    return rng.random((int(numbers.max(initial=-1)) + 1, count))[numbers].T


def _list_unknown(
    recorded: RecordedSequences, trace: RequestTrace, is_free_N: NDArray[np.bool_]
) -> list[str]:
    """List domains that the recording does not have, most requests first.

    Args:
        is_free_N: whether each request draws its sequence.
    """
    drawing = trace.domain[is_free_N].tolist() if len(trace.domain) else []
    counts = Counter(trace.domains[place] for place in drawing if place >= 0)
    return [repr(name) for name, _ in counts.most_common() if name not in recorded.domains]
