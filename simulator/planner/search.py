"""Search from a question to evaluations: screen the whole space, simulate what is left, spend most
on what looks best.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from simulator.base.data import cache_lookups
from simulator.base.errors import UserError
from simulator.base.progress import Progress, show_nothing
from simulator.config.capacity import Question
from simulator.parallel.workers import Workers, use_workers
from simulator.planner.conditions import AS_ASKED, WHOLE, Change, Trials, forget_files
from simulator.planner.explore import ClusterSize, Evaluation, resize_candidate
from simulator.planner.screen import SLACK, Candidate, Screened, by_cost, count_features, screen
from simulator.planner.space import OTHER_PROMPTS, Ruled, Space, check_variants
from simulator.planner.store import Store
from simulator.planner.traffic import Traffic, check_offered, find_stretch, lasting

_SPREAD = (0.0, 0.5, 1.0)
"""Places on the front of speeds, where no deployment can keep the targets."""
_ALIKE = 6
"""Deployments of one model on one kind of machines, all with a prefill pool or all without, in the
first round."""
_FIRST_ROUND, _SECOND_ROUND = 20, 5
"""Deployments in each round, besides the best of every model and of every kind of machines."""


class SearchResult(NamedTuple):
    """Everything that a search found."""

    question: Question
    """The question with as many requests as a steady state takes, see
    :func:`simulator.planner.traffic.lasting`."""
    asked_requests: int | None
    """Requests of the workload as asked, where it got more."""
    space: Space
    traffic: Traffic
    trials: Trials
    screened: dict[tuple[int, int], Screened]
    first: list[Evaluation]
    """On a busy stretch of the traffic."""
    evaluations: list[Evaluation]
    """On all of it; the best first."""
    twins: Sequence[Candidate] = ()
    """Tried the other way with prompts."""

    @property
    def met(self) -> list[Evaluation]:
        """Evaluations of deployments that meet the targets, the best first."""
        return [one for one in self.evaluations if one.cluster_size is not None]

    @property
    def num_simulated(self) -> int:
        """Searches for a size; one for deployments whose first round was of all requests, however
        many replicas they turned out to need.
        """
        first = [
            one._replace(candidate=resize_candidate(one), was_stored=False) for one in self.first
        ]
        others = (one._replace(was_stored=False) for one in self.evaluations)
        return len(first) + sum(one not in first for one in others)

    @property
    def num_legal(self) -> int:
        """Deployments that were screened and could keep the targets."""
        return sum(part.num_legal for part in self.screened.values())

    @property
    def ruled(self) -> Ruled:
        """Why the others were left out."""
        total = Ruled()
        for part in self.screened.values():
            total.add(part.ruled)
        kept = {one.candidate for one in self.first}
        for twin in self.twins:
            if twin not in kept:
                total.leave_out(OTHER_PROMPTS, self.space.text(twin.shape))
        return total


def search(
    question: Question,
    folder: Path,
    store: Store,
    tick: Progress = show_nothing,
    workers: Workers | int | None = None,
) -> SearchResult:
    """Find the cheapest deployments that meet the targets.

    Args:
        folder: what paths in the question are relative to.
        workers: processes, or how many; by default one a core.

    Raises:
        UserError: if the question names what does not exist.
    """
    forget_files()
    with use_workers(workers) as pool:
        return _search(question, folder, store, tick, pool)


def _search(
    asked: Question, folder: Path, store: Store, tick: Progress, pool: Workers
) -> SearchResult:
    place = None if store.folder is None else str(store.folder)
    trials = Trials(asked.model_dump_json(), str(folder), place)
    question, asked_requests = lasting(asked, folder)
    space, traffic = Space(question, folder), trials.read_traffic()
    check_variants(space, traffic.trace)
    check_offered(question, traffic)
    parts = list(product(range(len(space.models)), range(len(space.machines))))
    name = "screening models on machines"
    tick(name, 0, len(parts))
    judged = pool.map(
        partial(_screen_part, trials),
        parts,
        lambda n: tick(name, n, len(parts)),
        group=itemgetter(0),
        weight=partial(_estimate_screen_work, space),
    )
    screened = dict(zip(parts, judged, strict=True))
    possible = {
        candidate.shape.model for part in screened.values() for candidate in part.candidates
    }
    hopeless = {key: part for key, part in screened.items() if key[0] not in possible}
    longest_prompt = int(traffic.trace.num_input.max())
    candidates = [
        choose_chunks(space, one, longest_prompt)
        for one in shortlist(screened) + choose_hopeless(space, hopeless)
    ]
    explore = partial(_explore, space, store, tick, pool)
    look, serve = (partial(_explore_candidate, trials, change) for change in (AS_ASKED, WHOLE))
    first = explore("simulating deployments on a busy stretch", look, candidates)
    chosen = choose_finalists(space, first)
    finalists = [resize_candidate(one) for one in first if one.candidate in chosen]
    twins = [twin for one in finalists if (twin := find_twin(space, one, longest_prompt))]
    if twins:
        name = "trying the best with prompts whole instead of in chunks, or the reverse"
        first += explore(name, partial(_explore_twin, trials), twins, first)
    chosen = choose_finalists(space, first)
    evaluations = [one for one in first if one.candidate in chosen]
    if find_stretch(question, traffic).num_requests < traffic.num_requests:
        finalists = [resize_candidate(one) for one in evaluations]
        evaluations = explore("simulating the best on all requests", serve, finalists)
    evaluations = [one._replace(candidate=resize_candidate(one)) for one in evaluations]
    return SearchResult(
        question,
        asked_requests,
        space,
        traffic,
        trials,
        screened,
        first,
        sorted(evaluations, key=best_first),
        twins,
    )


def shortlist(screened: dict[tuple[int, int], Screened]) -> list[Candidate]:
    """Candidates of the first round: the cheapest, and the best of every model on every kind of
    machines with and without a prefill pool.

    Of one such kind a few at most: the screen judges splits of one model on the same machines
    alike, and what it may misjudge is rather the model, the machines, or that there are pools.
    """
    ordered = sorted(
        (candidate for part in screened.values() for candidate in part.candidates), key=by_cost
    )
    chosen: dict[Candidate, None] = {}
    many: Counter[tuple[int, int, bool]] = Counter()
    for candidate in ordered:
        kind = (candidate.shape.model, candidate.shape.machines, candidate.prefill is None)
        if not many[kind] or (len(chosen) < _FIRST_ROUND and many[kind] < _ALIKE):
            chosen.setdefault(candidate)
            many[kind] += 1
    return list(chosen)


def choose_hopeless(space: Space, screened: dict[tuple[int, int], Screened]) -> list[Candidate]:
    """Candidates of models that cannot keep the targets: deployments from the fastest to the most
    productive, each as large as the limits allow.

    They are simulated to say which target fails, and by how much.
    """
    chosen: dict[Candidate, None] = {}
    for (_, place), part in screened.items():
        machines, count = space.machines[place], len(part.front)
        for at in sorted({round(share * (count - 1)) for share in _SPREAD}) if count else ():
            per_user, _, _, shape, budget, _ = part.front[at]
            largest = max(space.sizes(shape), default=0)
            replicas = space.count_replicas(largest, shape)
            if replicas >= 1:
                gpus, cost = replicas * shape.num_ranks, largest * machines.gpu_hour
                chosen.setdefault(
                    Candidate(shape, budget, None, replicas, 0, cost, gpus, gpus, 1 / per_user, 0.0)
                )
    return list(chosen)


def choose_chunks(space: Space, candidate: Candidate, longest_prompt: int) -> Candidate:
    """The candidate with prompts chunked where its engine's release does not by itself, and one is
    longer than a step.
    """
    if longest_prompt <= candidate.budget or _splits_prompts(space, candidate) in (None, True):
        return candidate
    return _chunk_prompts(candidate, True)


def find_twin(space: Space, candidate: Candidate, longest_prompt: int) -> Candidate | None:
    """The candidate with prompts in chunks if they are whole, and whole if they are in chunks,
    which the screen prices alike; ``None`` where a question says which, the engine has one way, or
    it refuses whole prompts of this length.
    """
    splits = _splits_prompts(space, candidate)
    if splits is None or (splits and longest_prompt > candidate.budget):
        return None
    return _chunk_prompts(candidate, not splits)


def _splits_prompts(space: Space, candidate: Candidate) -> bool | None:
    """Whether prompts are cut into chunks; ``None`` where a search has no choice."""
    variant = space.variants[candidate.shape.model]
    if not variant.entry.engine.startswith("trtllm"):
        return None
    if "chunked_prompts" in variant.table.get("scheduling", {}):
        return None
    return space.plan(candidate.shape, candidate.budget).serving.rules.splits_prompts


def _chunk_prompts(candidate: Candidate, is_chunked: bool) -> Candidate:
    how = "chunked" if is_chunked else "whole"
    prefill = candidate.prefill and candidate.prefill._replace(prompts=how)
    return candidate._replace(shape=candidate.shape._replace(prompts=how), prefill=prefill)


def choose_finalists(space: Space, first: list[Evaluation]) -> list[Candidate]:
    """Candidates of the second round: the best, the best of every model and of every kind of
    machines, and of every model the one that may be cheapest on all requests, which are not as busy
    as the stretch that it was tried on.
    """
    ordered = sorted(first, key=best_first)
    chosen = dict.fromkeys(evaluation.candidate for evaluation in ordered[:_SECOND_ROUND])
    hopeful = sorted(first, key=partial(_read_hopefully, space))
    seen: set[tuple[str, Hashable]] = set()
    for among, evaluation in [
        *(("machines", one) for one in ordered),
        *(("models", one) for one in ordered),
        *(("hopeful", one) for one in hopeful),
    ]:
        candidate = evaluation.candidate
        is_machine = among == "machines"
        kind = candidate.shape.machines if is_machine else _name_model(space, candidate)
        if (among, kind) not in seen:
            chosen.setdefault(candidate)
        seen.add((among, kind))
    return list(chosen)


def _read_hopefully(space: Space, evaluation: Evaluation) -> tuple[object, ...]:
    """Cost of the smallest cluster that came near to the targets, and how near."""
    gpu_hour = space.machines_at(evaluation.candidate.shape).gpu_hour
    near = [(one.size * gpu_hour, worst) for one, worst in evaluation.tried if worst <= SLACK]
    return (*min(near, default=(math.inf, math.inf)), *best_first(evaluation))


def _name_model(space: Space, candidate: Candidate) -> tuple[int, bool]:
    """A model of the question, whole or pruned."""
    variant = space.variants[candidate.shape.model]
    return variant.number, variant.pruning is not None


def best_first(evaluation: Evaluation) -> tuple[object, ...]:
    """The order of deployments that were simulated.

    At one price the one that is least likely to miss a target comes first, in tenths: going by how
    far off its calibration was elsewhere; then the one of the best model; and then within a fifth
    of a limit by every further tenth of it. Of these the one with fewest parts is run most easily;
    then the one that the screen expects to need fewest GPUs has most headroom in a cluster of that
    price; then the one whose binding target is least tight.
    """
    worst = evaluation.outcome.worst if evaluation.outcome is not None else math.inf
    tight = max(0, math.ceil(round(10 * worst, 6) - 8)) if worst <= 1 else worst
    candidate = evaluation.candidate
    return (
        evaluation.cost_per_hour,
        round(10 * evaluation.risk),
        -evaluation.quality,
        tight,
        count_features(candidate),
        candidate.gpus,
        worst,
        evaluation.num_gpus,
        candidate.shape,
        candidate.prefill or (),
        candidate.budget,
    )


def _explore(
    space: Space,
    store: Store,
    tick: Progress,
    pool: Workers,
    name: str,
    task: Callable[[Candidate], Evaluation | None],
    candidates: list[Candidate],
    before: Iterable[Evaluation] = (),
) -> list[Evaluation]:
    """Explore candidates.

    Args:
        before: what is known of others, for the best so far.
    """
    tick(name, 0, len(candidates))
    met = sorted((one for one in before if one.cluster_size is not None), key=best_first)[:1]

    def note(evaluation: Evaluation | None) -> None:
        if evaluation is None:
            return
        store.num_recalled += evaluation.was_stored
        if evaluation.cluster_size is not None:
            met[:] = [min([*met, evaluation], key=best_first)]

    def show(count: int) -> None:
        tick(name, count, len(candidates), _describe_best(space, met[0]) if met else "")

    found = pool.map(task, candidates, show, note, model_of, estimate_work)
    return [evaluation for evaluation in found if evaluation is not None]


def model_of(candidate: Candidate) -> int:
    """Whose experts' choices its trials share with others'."""
    return candidate.shape.model


def estimate_work(candidate: Candidate) -> float:
    """Roughly how long its trials take: pools have two sizes to find, and serve every request;
    lockstep of experts is drawn.
    """
    pools = [candidate.shape] if candidate.prefill is None else [candidate.shape, candidate.prefill]
    return (1 if candidate.prefill is None else 3) + sum(shape.ep > 1 for shape in pools)


def _estimate_screen_work(space: Space, part: tuple[int, int]) -> float:
    return 1.0 if space.models[part[0]].moe is None else 10.0


def _describe_best(space: Space, evaluation: Evaluation) -> str:
    shape = evaluation.candidate.shape
    where = f"{evaluation.size} x {space.machines_at(shape).offer.cluster}"
    price = ""
    if evaluation.cost_per_hour:
        price = f"{evaluation.cost_per_hour:,.2f} {space.question.power.currency} per hour, "
    return f"{price}{space.name_model(shape)} on {where}"


@cache_lookups()
def _screen_part(trials: Trials, part: tuple[int, int]) -> Screened:
    return screen(trials.space, trials.read_traffic(), *part)


@cache_lookups()
def _explore_candidate(trials: Trials, change: Change, candidate: Candidate) -> Evaluation:
    """One evaluation, from the store where it is there."""
    return trials.find(candidate, change)


@cache_lookups()
def _explore_twin(trials: Trials, twin: Candidate) -> Evaluation | None:
    """The evaluation of a twin; ``None`` where it needs more replicas than it is given."""
    try:
        outcome = trials.trial(twin, ClusterSize(0, twin.replicas, twin.prefill_replicas))
    except UserError:
        return None
    return trials.find(twin) if outcome.met else None
