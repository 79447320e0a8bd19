"""Trials under other circumstances: what sensitivities, bands and losses are made of. Every one of
them is kept in the store.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simulator.config.capacity import Percentiles, Question, Spare
from simulator.config.workload import SLO
from simulator.planner.conditions import Conditions, apply
from simulator.planner.explore import ClusterSize, Evaluation, Explorer
from simulator.planner.requests import is_generated, traffic_of
from simulator.planner.screen import Candidate
from simulator.planner.search import identity
from simulator.planner.space import Space
from simulator.planner.store import Store, key_of
from simulator.planner.stored import (
    STORED_EVALUATION,
    STORED_OUTCOME,
    as_json,
    restore_evaluation,
    strip_evaluation,
)
from simulator.planner.traffic import Traffic, subset
from simulator.planner.trial import Outcome

MOST_REQUESTS, MOST_STAYS = 3_000, 2.0
"""Of the busiest stretch that is looked at, at the traffic that was asked for; it lasts longer
where requests stay for long."""
SHORT_REQUESTS = 2_000
"""Where traffic itself is varied over two orders."""
_BLOCKS = 20
"""That a recorded trace is cut into to be drawn anew: long enough to keep most of what makes
arrivals bursty."""
_WORLDS = 32
_LEVELS = ("p99", "p95", "p90", "p50", "mean")


class Change(NamedTuple):
    """What is other than in the question."""

    conditions: Conditions = Conditions()
    slower: float = 1.0
    """Every step takes so many times as long as the calibration says."""
    draw: int = 0
    """Another sample of requests and of the experts' choices."""
    spare: Spare | None = None
    """What may be lost; absent = as asked."""
    most: int = MOST_REQUESTS
    """Requests of the stretch that is looked at, at the rate that was asked for."""


AS_ASKED = Change()


@dataclass(frozen=True)
class Trials:
    """Trials of one question's candidates."""

    text: str
    """The question as JSON."""
    folder: str
    place: str | None
    """Folder of the store."""

    def find(self, candidate: Candidate, change: Change = AS_ASKED) -> Evaluation:
        """The smallest cluster on which a candidate meets the targets; from the store where it is
        there.
        """
        store, explorer = self._store, self.explorer(candidate, change)
        key = key_of(
            identity(explorer.space, explorer.traffic, explorer.candidate), "what if", change
        )
        known = store.get(key, STORED_EVALUATION)
        if known is None:
            found = explorer.find()
            store.put(key, as_json(found))
            known = strip_evaluation(found)
        return restore_evaluation(
            known, candidate, explorer.space.machines[candidate.shape.machines].gpu_hour
        )

    def trial(
        self, candidate: Candidate, cluster_size: ClusterSize, change: Change = AS_ASKED
    ) -> Outcome:
        """What so many replicas do, likewise."""
        store, explorer = self._store, self.explorer(candidate, change)
        key = key_of(
            identity(explorer.space, explorer.traffic, explorer.candidate),
            "trial",
            cluster_size,
            change,
        )
        known = store.get(key, STORED_OUTCOME)
        if known is None:
            known = explorer.trial(cluster_size)
            store.put(key, known._asdict())
        return known

    def explorer(self, candidate: Candidate, change: Change) -> Explorer:
        """Trials of a candidate, whose search begins where the change in traffic would put it."""
        conditions = change.conditions
        space = _space(
            self.text,
            self.folder,
            conditions._replace(rate=1.0, prompts=1.0, price=1.0),
            change.spare,
        )
        traffic = _traffic(
            self.text, self.folder, conditions.rate, conditions.prompts, change.draw, change.most
        )
        context = space.models[candidate.shape.model].max_context_tokens
        if conditions.prompts != 1 and context is not None:
            traffic = _within(traffic, context)
        more = conditions.rate * change.slower
        begun = candidate._replace(
            replicas=max(1, math.ceil(candidate.replicas * more)),
            prefill_replicas=max(
                1, math.ceil(candidate.prefill_replicas * more * conditions.prompts)
            ),
        )
        return Explorer(
            space, begun, traffic, _seed(space.question.seed, change.draw), change.slower
        )

    @property
    def space(self) -> Space:
        """As asked, but that every request is promised something."""
        return _space(self.text, self.folder, Conditions(), None)

    @property
    def _store(self) -> Store:
        return Store(None if self.place is None else Path(self.place))


def promise(question: Question) -> SLO:
    """What each request is promised: the workload's own limits, or else those that the targets set
    at the highest percentile.
    """
    own = question.workload.slo
    if any((own.ttft_s, own.tpot_s, own.e2e_s)):
        return own
    targets = question.targets
    return SLO(
        ttft_s=_limit(targets.ttft_s), tpot_s=_limit(targets.tpot_s), e2e_s=_limit(targets.e2e_s)
    )


def gpu_hour(space: Space, machines: int) -> float:
    """What one GPU costs an hour, with its electricity where that is paid apart."""
    return space.machines[machines].gpu_hour


def cost_of(space: Space, evaluation: Evaluation) -> float:
    """Per hour, likewise; infinite where nothing was found."""
    return (
        math.inf
        if evaluation.cluster_size is None
        else evaluation.cluster_size.size * gpu_hour(space, evaluation.candidate.shape.machines)
    )


def is_whole(traffic: Traffic, most: int = MOST_REQUESTS) -> bool:
    """Whether all requests are looked at rather than the busiest stretch of them."""
    return traffic.busiest(most, MOST_STAYS).num_requests == traffic.num_requests


def _limit(limits: Percentiles) -> float | None:
    given = limits.limits()
    return next((given[level] for level in _LEVELS if level in given), None)


def _seed(seed: int, draw: int) -> int:
    return seed if draw == 0 else zlib.crc32(f"{seed} draw {draw}".encode())


@lru_cache(maxsize=4)
def _question(text: str) -> Question:
    return Question.model_validate_json(text)


@lru_cache(maxsize=_WORLDS)
def _space(text: str, folder: str, conditions: Conditions, spare: Spare | None) -> Space:
    question = apply(conditions, _question(text), Path(folder))
    changes: dict[str, object] = {
        "workload": question.workload.model_copy(update={"slo": promise(question)})
    }
    if spare is not None:
        changes["spare"] = spare
    return Space(question.model_copy(update=changes), Path(folder))


@lru_cache(maxsize=_WORLDS)
def _traffic(text: str, folder: str, rate: float, prompts: float, draw: int, most: int) -> Traffic:
    """The busiest stretch of the requests, at another rate for as long."""
    asked = _question(text)
    drawn = is_generated(asked)
    question = apply(Conditions(prompts=prompts), asked, Path(folder))
    if draw and drawn:
        question = question.model_copy(update={"seed": _seed(question.seed, draw)})
    traffic = _requests(question.model_dump_json(), folder)
    if draw and not drawn:
        traffic = _in_blocks(traffic, np.random.default_rng([asked.seed, draw]))
    return traffic.busiest(most, MOST_STAYS).at_rate(rate)


@lru_cache(maxsize=4)
def _requests(text: str, folder: str) -> Traffic:
    return traffic_of(_question(text), Path(folder))


def _in_blocks(traffic: Traffic, rng: np.random.Generator) -> Traffic:
    """Another sample of recorded requests: blocks of neighbouring ones drawn with replacement, each
    with its own gaps.
    """
    trace, lead = traffic.trace, traffic.lead
    edges = np.linspace(lead, trace.num_requests, min(_BLOCKS, traffic.num_requests) + 1).astype(
        np.int64
    )
    blocks = rng.integers(len(edges) - 1, size=len(edges) - 1)
    chosen = np.concatenate([np.arange(lead), *(np.arange(edges[b], edges[b + 1]) for b in blocks)])
    gaps = np.diff(trace.arrival_s, prepend=trace.arrival_s[0])
    return Traffic.of(
        replace(subset(trace, chosen), arrival_s=np.cumsum(gaps[chosen]) - gaps[chosen[0]]),
        lead,
        traffic.stay_s,
    )


def _within(traffic: Traffic, context: int) -> Traffic:
    """Prompts cut to what a model takes in with its output."""
    trace = traffic.trace
    room = np.maximum(1, context - trace.num_output)
    if bool((trace.num_input <= room).all()):
        return traffic
    return Traffic.of(
        replace(trace, num_input=np.minimum(trace.num_input, room)), traffic.lead, traffic.stay_s
    )
