"""Trials under changed conditions, each stored: what sensitivities, bands and losses are made of.

``apply_conditions(Change(network=0.5), question, folder)`` is a :class:`Question` like any other:
pass it to :func:`~simulator.planner.search.search`, or make a
:class:`~simulator.planner.space.Space` of it, and every result follows, since all are keyed by what
is asked.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import zlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simulator.base.contracts import is_shipped
from simulator.base.frozen import Policy
from simulator.base.home import fetch
from simulator.base.reading import read_bytes
from simulator.base.recent import Recent
from simulator.config.capacity import CandidateModel, Question, Spare
from simulator.config.model import ModelSpec, complete_routing
from simulator.config.pairing import model_text
from simulator.config.workload import SLO
from simulator.deployment.counterparts import choose_model
from simulator.planner.explore import ClusterSize, Evaluation, Explorer
from simulator.planner.screen import Candidate
from simulator.planner.space import Space
from simulator.planner.store import STORED_EVALUATION, STORED_OUTCOME, Store, key_of
from simulator.planner.traffic import (
    Traffic,
    find_stretch,
    is_generated,
    lasting,
    subset,
    traffic_of,
)
from simulator.planner.trial import Outcome

_BLOCKS = 20
"""Blocks that a recorded trace is cut into to be resampled: long enough to keep most of what makes
arrivals bursty."""
_NUM_CACHED = 32
"""Spaces and stretches of traffic in memory: some more than a question has conditions."""
_OUTCOMES = Recent[tuple[Hashable, ...], dict[ClusterSize, Outcome]](most=1024)
"""Outcomes of this process, by size, of each candidate under each change: searches that ask for the
same trial share it."""
_SKEW_KEYS = ("sigma", "exponent")
"""Keys of routing policies that say how unevenly experts are popular; 0 is evenly."""


class Change(NamedTuple):
    """Differences from the question under which a trial is made; a factor of 1 is as asked."""

    rate: float = 1.0
    """Factor on ``workload.rate_scale``."""
    prompts: float = 1.0
    """Factor on the length of prompts."""
    network: float = 1.0
    """Factor on the bytes a second of every link, inside fast domains and between them; latencies
    stay."""
    skew: float = 1.0
    """Factor on the spread of the logarithm of the experts' popularity (or on the exponent of a
    power law)."""
    slower: float = 1.0
    """Factor on the seconds of every step that the calibration says."""
    later: float = 1.0
    """Factor on the seconds to first token, whatever the steps take."""
    resample: int = 0
    """Number of another sample of requests and of the experts' choices; 0 = as asked."""
    spare: Spare | None = None
    """GPUs and nodes that may be lost, without spare replicas; absent = as asked."""
    is_whole: bool = False
    """Whether all requests that the question names are served, rather than a stretch of them
    (:func:`~simulator.planner.traffic.find_stretch`)."""


AS_ASKED: Change = Change()
WHOLE: Change = Change(is_whole=True)


@dataclass(frozen=True)
class Trials:
    """Trials of one question's candidates."""

    text: str
    """The question as JSON."""
    folder: str
    """Folder that paths in the question are relative to."""
    place: str | None
    """Folder of the store."""
    default: Change = AS_ASKED
    """Change where none is asked for."""

    def find(self, candidate: Candidate, change: Change | None = None) -> Evaluation:
        """Find the smallest cluster on which a candidate meets the targets."""
        explorer = self.open_explorer(candidate, change)
        gpu_hour = explorer.space.machines_at(candidate.shape).gpu_hour
        quality = explorer.space.variants[candidate.shape.model].quality or 0.0
        key = key_of(identity(explorer))
        known = self._store.get(key, STORED_EVALUATION)
        if known is not None:
            cost = math.inf if known.size is None else known.size * gpu_hour
            return known._replace(
                candidate=candidate, cost_per_hour=cost, quality=quality, was_stored=True
            )
        found = explorer.find()._replace(candidate=candidate, quality=quality)
        self._store.put(key, found, STORED_EVALUATION)
        return found

    def trial(
        self, candidate: Candidate, cluster_size: ClusterSize, change: Change | None = None
    ) -> Outcome:
        """Serve the traffic with so many replicas of a candidate."""
        explorer = self.open_explorer(candidate, change)
        key = key_of(identity(explorer, has_begun=False), cluster_size)
        return self._store.recall(key, STORED_OUTCOME, lambda: explorer.trial(cluster_size))

    def open_explorer(self, candidate: Candidate, change: Change | None = None) -> Explorer:
        """Trials of a candidate, whose search begins where the change in traffic would put it."""
        change = change or self.default
        space = _make_space(self.text, self.folder, change.network, change.skew, change.spare)
        traffic = self.read_traffic(change)
        context = space.models[candidate.shape.model].max_context_tokens
        if change.prompts != 1 and context is not None:
            traffic = _cut_prompts(traffic, context)
        more = change.rate * change.slower
        prompts = candidate.prefill_replicas * more * change.prompts
        begun = candidate._replace(
            replicas=max(1, math.ceil(candidate.replicas * more)),
            prefill_replicas=max(1, math.ceil(prompts)),
        )
        seed = _derive_seed(space.question.seed, change.resample)
        same = candidate.shape, candidate.prefill, candidate.budget
        outcomes = _OUTCOMES.get((self.text, self.folder, *same, change), dict)
        has_floor = space.question.targets.output_tokens_per_s is not None
        share = min(change.rate, 1.0) if has_floor else 1.0
        return Explorer(space, begun, traffic, seed, change.slower, change.later, share, outcomes)

    def read_traffic(self, change: Change = WHOLE) -> Traffic:
        """The requests that are served under a change."""
        return _make_traffic(
            self.text, self.folder, change.rate, change.prompts, change.resample, change.is_whole
        )

    @property
    def space(self) -> Space:
        """The question's space, in which every request has limits of its own."""
        return _make_space(self.text, self.folder, 1.0, 1.0, None)

    @property
    def _store(self) -> Store:
        return Store(None if self.place is None else Path(self.place))


def forget_files() -> None:
    """Forget what this process read from files, which may be others by the next search."""
    for cached in (_make_space, _make_traffic, _read_traffic):
        cached.cache_clear()
    _OUTCOMES.clear()


def identity(explorer: Explorer, has_begun: bool = True) -> list[object]:
    """All that trials of a candidate depend on: not the question's name, its other models and
    machines, or its map.

    A search that gets another model or another price therefore finds what it has done already.

    Args:
        has_begun: whether the replicas that a search begins with count.
    """
    space, traffic, candidate = explorer.space, explorer.traffic, explorer.candidate
    question, shape = space.question, candidate.shape
    variant, machines = space.variants[shape.model], space.machines_at(shape)
    prompts = candidate.prefill and candidate.prefill._replace(model=0, machines=0)
    begun = (candidate.replicas, candidate.prefill_replicas) if has_begun else ()
    return [
        [shape._replace(model=0, machines=0), candidate.budget, prompts, *begun],
        [explorer.seed, explorer.slower, explorer.later, explorer.share],
        space.models[shape.model].model_dump(mode="json"),
        variant.entry.model_dump(mode="json", exclude={"quality", "pruned_quality", "prunings"}),
        variant.pruning and variant.pruning.model_dump(mode="json"),
        variant.keys,
        _digest_own_code(space.models[shape.model]),
        _digest_files(
            [variant.entry.routing or space.models[shape.model].routing, variant.table],
            space.folder,
        ),
        machines.spec.model_dump(
            mode="json", exclude={"price_per_gpu_hour", "currency", "sources"}
        ),
        [machines.sizes, machines.offer.network_speed],
        question.targets.model_dump(mode="json"),
        question.workload.slo.model_dump(mode="json"),
        [question.seed, question.spare.nodes, question.spare.gpus, *_list_spare_rates(question)],
        traffic.digest,
    ]


def _list_spare_rates(question: Question) -> list[float]:
    """Numbers that the count of spare replicas depends on; none without any."""
    rates = question.failures
    if rates.availability is None:
        return []
    found = [rates.availability, rates.mtbf_gpu_hours_low, rates.repair_hours]
    if rates.node_share + rates.switch_share > 0:
        found += [rates.node_share, rates.switch_share, rates.nodes_per_switch]
    return found


def _digest_own_code(model: ModelSpec) -> list[str]:
    """Digests of a user's own files of mixers and feed-forward blocks."""
    blocks = (*model.mixers.values(), *model.ffns.values())
    files = {inspect.getfile(type(block)) for block in blocks if not is_shipped(type(block))}
    return [hashlib.sha256(read_bytes(Path(file))).hexdigest() for file in sorted(files)]


def _digest_files(value: object, folder: Path) -> list[str]:
    """Digests of the files that policies read."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [digest for one in value for digest in _digest_files(one, folder)]
    if isinstance(value, str) and fetch(folder / value).is_file():
        return [hashlib.sha256(read_bytes(folder / value)).hexdigest()]
    return []


def apply_conditions(change: Change, question: Question, folder: Path) -> Question:
    """The question with another rate, length of prompts, network and skew.

    Raises:
        UserError: if a model is unknown.
    """
    asked = question.workload
    workload = {
        "rate_scale": asked.rate_scale * change.rate,
        "prompt_scale": asked.prompt_scale * change.prompts,
    }
    clusters = (
        offer.model_copy(update={"network_speed": offer.network_speed * change.network})
        for offer in question.clusters
    )
    return question.model_copy(
        update={
            "workload": asked.model_copy(update=workload),
            "models": tuple(_skew(one, change.skew, folder) for one in question.models),
            "clusters": tuple(clusters),
        }
    )


def list_recorded_skews(question: Question, folder: Path) -> list[str]:
    """MoE models whose skew :func:`apply_conditions` cannot change: their experts' popularity was
    recorded, or a policy is not known.
    """
    return [
        model_text(one)
        for one in question.models
        if (routing := _read_routing(one, folder)) and not _skew_keys(routing)
    ]


def _skew(one: CandidateModel, factor: float, folder: Path) -> CandidateModel:
    routing = None if factor == 1 else _read_routing(one, folder)
    if routing is None:
        return one
    changed = {key: routing[key] * factor for key in _skew_keys(routing)}
    return one.model_copy(update={"routing": {**routing, **changed}})


def _read_routing(one: CandidateModel, folder: Path) -> Policy | None:
    """The routing that a model is planned with; ``None`` of a dense one."""
    given = one.routing or choose_model(one, "plan [models]", folder).routing
    return complete_routing(given, "")[0] if given else None


def _skew_keys(routing: Policy) -> list[str]:
    return [key for key in _SKEW_KEYS if isinstance(routing.get(key), int | float)]


def choose_slo(question: Question) -> SLO:
    """Limits of each request: the workload's own, or else those that the targets set at the highest
    percentile.
    """
    if question.workload.slo.is_set:
        return question.workload.slo
    latencies = question.targets.latencies.items()
    return SLO(**{name: list(limits.values())[-1] for name, limits in latencies if limits})


def describe_stretch(trials: Trials, candidate: Candidate) -> str:
    """A sentence on the requests that trials are of; empty where these are all."""
    some, everything = (
        trials.open_explorer(candidate, change).traffic for change in (AS_ASKED, WHOLE)
    )
    if some.num_requests == everything.num_requests:
        return ""
    return (
        f"On the busiest stretch of the traffic, {some.num_requests:,} "
        f"of {everything.num_requests:,} requests."
    )


def _derive_seed(seed: int, resample: int) -> int:
    return zlib.crc32(f"{seed} draw {resample}".encode()) if resample else seed


@lru_cache(maxsize=4)
def _read_question(text: str) -> Question:
    return Question.model_validate_json(text)


@lru_cache(maxsize=_NUM_CACHED)
def _make_space(text: str, folder: str, network: float, skew: float, spare: Spare | None) -> Space:
    change = Change(network=network, skew=skew)
    question = apply_conditions(change, _read_question(text), Path(folder))
    workload = question.workload.model_copy(update={"slo": choose_slo(question)})
    changes: dict[str, object] = {"workload": workload}
    if spare is not None:  # of machines, in place of spare replicas
        changes["spare"] = spare
        changes["failures"] = question.failures.model_copy(update={"availability": None})
    return Space(question.model_copy(update=changes), Path(folder))


@lru_cache(maxsize=_NUM_CACHED)
def _make_traffic(
    text: str, folder: str, rate: float, prompts: float, resample: int, is_whole: bool
) -> Traffic:
    """The requests of the question at another rate, or their busiest stretch."""
    asked = _read_question(text)
    question = apply_conditions(Change(rate=rate, prompts=prompts), asked, Path(folder))
    if is_generated(asked.workload):
        question = question.model_copy(update={"seed": _derive_seed(question.seed, resample)})
    traffic = _read_traffic(question.model_dump_json(), folder)
    if resample and not is_generated(asked.workload):
        traffic = _resample_blocks(traffic, np.random.default_rng([asked.seed, resample]))
    return traffic if is_whole else find_stretch(question, traffic)


@lru_cache(maxsize=4)
def _read_traffic(text: str, folder: str) -> Traffic:
    question, _ = lasting(_read_question(text), Path(folder))
    return traffic_of(question, Path(folder))


def _resample_blocks(traffic: Traffic, rng: np.random.Generator) -> Traffic:
    """Another sample of recorded requests: blocks of neighbouring ones drawn with replacement, each
    with its own gaps.
    """
    trace, lead = traffic.trace, traffic.lead
    count = min(_BLOCKS, traffic.num_requests)
    edges = np.linspace(lead, trace.num_requests, count + 1).astype(np.int64)
    blocks = rng.integers(count, size=count)
    chosen = np.concatenate([np.arange(lead), *(np.arange(edges[b], edges[b + 1]) for b in blocks)])
    gaps_s = np.diff(trace.arrival_s, prepend=trace.arrival_s[0])[chosen]
    arrival_s = np.cumsum(gaps_s) - gaps_s[0]
    return Traffic.measure(
        replace(subset(trace, chosen), arrival_s=arrival_s), lead, traffic.stay_s
    )


def _cut_prompts(traffic: Traffic, context: int) -> Traffic:
    """Traffic with prompts cut to what a model takes in with its output."""
    trace = traffic.trace
    room = np.maximum(1, context - trace.num_output)
    if bool((trace.num_input <= room).all()):
        return traffic
    cut = replace(trace, num_input=np.minimum(trace.num_input, room))
    return Traffic.measure(cut, traffic.lead, traffic.stay_s)
