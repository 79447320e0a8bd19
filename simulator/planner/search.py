"""Search from a question to evaluations: screen the whole space, simulate what is left, spend most
on what looks best.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections import Counter
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from simulator.base.contracts import is_shipped
from simulator.base.data import cache_lookups
from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.base.progress import Progress, show_nothing
from simulator.config.capacity import Question
from simulator.config.model import ModelSpec
from simulator.parallel.workers import Workers, use_workers
from simulator.planner.explore import Evaluation, Explorer, resize_candidate
from simulator.planner.requests import lasting, traffic_of
from simulator.planner.ruled_out import Ruled
from simulator.planner.screen import Candidate, Screened, by_cost, count_features, screen
from simulator.planner.space import Space
from simulator.planner.store import Store, key_of
from simulator.planner.stored import STORED_EVALUATION, StoredEvaluation
from simulator.planner.traffic import Traffic

_SHORT_REQUESTS, _SHORT_STAYS = 2000, 2.0
"""Requests of the first round's stretch of traffic, or longer where they stay for long; the second
has all."""
_SPREAD = (0.0, 0.5, 1.0)
"""Places on the front of speeds, where no deployment can keep the targets."""
_ALIKE = 6
"""Deployments of one model on one kind of machines, all with a prefill pool or all without, in the
first round."""
_FIRST_ROUND, _SECOND_ROUND = 20, 8
"""Deployments in each round, besides the best of every model and of every kind of machines."""


class SearchResult(NamedTuple):
    """Everything that a search found."""

    question: Question
    """The question with as many requests as a steady state takes, see
    :func:`simulator.planner.requests.lasting`."""
    asked_requests: int | None
    """Requests of the workload as asked, where it got more."""
    space: Space
    traffic: Traffic
    screened: dict[tuple[int, int], Screened]
    first: list[Evaluation]
    """On the busiest stretch of the traffic."""
    evaluations: list[Evaluation]
    """On all of it; the best first."""

    @property
    def met(self) -> list[Evaluation]:
        """Evaluations of deployments that meet the targets, the best first."""
        return [one for one in self.evaluations if one.cluster_size is not None]

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
    with use_workers(workers) as pool:
        return _search(question, folder, store, tick, pool)


def _search(
    question: Question, folder: Path, store: Store, tick: Progress, pool: Workers
) -> SearchResult:
    question, asked_requests = lasting(question, folder)
    space, traffic = Space(question, folder), traffic_of(question, folder)
    wanted, offered = question.targets.output_tokens_per_s, traffic.rate_per_s * traffic.num_output
    if wanted is not None and wanted > offered:
        raise UserError(
            f"plan [targets]: output_tokens_per_s = {wanted:g} is more than the requests ask "
            f"for, {offered:,.0f} a second; raise workload.rate_scale, or leave it out"
        )
    text = question.model_dump_json()
    parts = list(product(range(len(space.models)), range(len(space.machines))))
    name = "screening models on machines"
    tick(name, 0, len(parts))
    task = partial(_screen_part, text, str(folder))
    judged = pool.map(
        task,
        parts,
        lambda n: tick(name, n, len(parts)),
        group=itemgetter(0),
        weight=partial(_estimate_screen_work, space),
    )
    screened = dict(zip(parts, judged, strict=True))
    possible = {
        candidate.shape.model for part in screened.values() for candidate in part.candidates
    }
    candidates = shortlist(screened) + choose_hopeless(
        space, {key: part for key, part in screened.items() if key[0] not in possible}
    )
    first = _explore(space, text, store, candidates, True, tick, pool)
    chosen = choose_finalists(first)
    if (
        _cut_traffic(traffic).num_requests == traffic.num_requests
    ):  # the first round had all requests
        evaluations = [evaluation for evaluation in first if evaluation.candidate in chosen]
    else:
        begun = {evaluation.candidate: resize_candidate(evaluation) for evaluation in first}
        evaluations = _explore(
            space, text, store, [begun[candidate] for candidate in chosen], False, tick, pool
        )
    evaluations = [
        replace(evaluation, candidate=resize_candidate(evaluation)) for evaluation in evaluations
    ]
    return SearchResult(
        question,
        asked_requests,
        space,
        traffic,
        screened,
        first,
        sorted(evaluations, key=best_first),
    )


def _cut_traffic(traffic: Traffic) -> Traffic:
    return traffic.busiest(_SHORT_REQUESTS, _SHORT_STAYS)


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
    many: Counter[tuple[Any, ...]] = Counter()
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
            per_user, _, shape, budget, _ = part.front[at]
            largest = max(space.sizes(shape), default=0)
            replicas = space.count_replicas(largest, shape)
            if replicas >= 1:
                gpus, cost = replicas * shape.num_ranks, largest * machines.gpu_hour
                chosen.setdefault(
                    Candidate(
                        shape, budget, None, replicas, 0, cost, cost, gpus, gpus, 1 / per_user, 0.0
                    )
                )
    return list(chosen)


def choose_finalists(first: list[Evaluation]) -> list[Candidate]:
    """Candidates of the second round: the best, and the best of every model and of every kind of
    machines.
    """
    ordered = sorted(first, key=best_first)
    chosen = dict.fromkeys(evaluation.candidate for evaluation in ordered[:_SECOND_ROUND])
    seen: set[tuple[str, int]] = set()
    for evaluation in ordered:
        for kind in (
            ("model", evaluation.candidate.shape.model),
            ("machines", evaluation.candidate.shape.machines),
        ):
            if kind not in seen:
                chosen.setdefault(evaluation.candidate)
            seen.add(kind)
    return list(chosen)


def best_first(evaluation: Evaluation) -> tuple[Any, ...]:
    """The order of deployments that were simulated.

    At one price the one that is least likely to miss a target comes first, in tenths: going by how
    far off its calibration was elsewhere, and then within a fifth of a limit by every further tenth
    of it. Of these the one with fewest parts is run most easily; then the one that the screen
    expects to need fewest GPUs has most headroom in a cluster of that price; then the one whose
    tightest target is least tight.
    """
    worst = evaluation.outcome.worst if evaluation.outcome is not None else math.inf
    tight = max(0, math.ceil(round(10 * worst, 6) - 8)) if worst <= 1 else worst
    candidate = evaluation.candidate
    told = (
        count_features(candidate),
        candidate.gpus,
        worst,
        evaluation.num_gpus,
        candidate.shape,
        candidate.prefill or (),
        candidate.budget,
    )
    return (evaluation.cost_per_hour, round(10 * evaluation.risk), tight, *told)


def _explore(
    space: Space,
    text: str,
    store: Store,
    candidates: list[Candidate],
    is_short: bool,
    tick: Progress,
    pool: Workers,
) -> list[Evaluation]:
    name = f"simulating deployments on {'the busiest stretch' if is_short else 'all requests'}"
    tick(name, 0, len(candidates))
    place = None if store.folder is None else str(store.folder)
    task = partial(_explore_candidate, text, str(space.folder), place, is_short)
    met: list[Evaluation] = []

    def note(evaluation: Evaluation) -> None:
        store.num_recalled += evaluation.was_stored
        if evaluation.cluster_size is not None:
            met[:] = [min([*met, evaluation], key=best_first)]

    def show(count: int) -> None:
        tick(name, count, len(candidates), _describe_best(space, met[0]) if met else "")

    return pool.map(task, candidates, show, note, model_of, estimate_work)


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


@lru_cache(maxsize=2)
def _read_world(text: str, folder: str, is_short: bool) -> tuple[Space, Traffic]:
    question = Question.model_validate_json(text)
    traffic = traffic_of(question, Path(folder))
    return Space(question, Path(folder)), _cut_traffic(traffic) if is_short else traffic


def _screen_part(text: str, folder: str, part: tuple[int, int]) -> Screened:
    space, traffic = _read_world(text, folder, False)
    with cache_lookups():
        return screen(space, traffic, *part)


def _explore_candidate(
    text: str, folder: str, place: str | None, is_short: bool, candidate: Candidate
) -> Evaluation:
    """One evaluation, from the store where it is there."""
    space, traffic = _read_world(text, folder, is_short)
    store = Store(None if place is None else Path(place))
    key = key_of(identity(space, traffic, candidate))
    known = store.get(key, STORED_EVALUATION)
    if known is not None:
        return replace(
            known.restore(candidate, space.machines_at(candidate.shape).gpu_hour),
            was_stored=True,
        )
    with cache_lookups():
        found = Explorer(space, candidate, traffic, space.question.seed).find()
    store.put(key, StoredEvaluation.strip(found), STORED_EVALUATION)
    return found


def identity(space: Space, traffic: Traffic, candidate: Candidate) -> list[Any]:
    """All that an evaluation about a candidate depends on: not the question's name, its other
    models and machines, or its map.

    A search that gets another model or another price therefore finds what it has done already.
    """
    question, shape = space.question, candidate.shape
    variant, machines = space.variants[shape.model], space.machines_at(shape)
    prompts = candidate.prefill and candidate.prefill._replace(model=0, machines=0)
    return [
        candidate._replace(
            shape=shape._replace(model=0, machines=0),
            prefill=prompts,
            cost_per_hour=0.0,
            least_cost_per_hour=0.0,
        ),
        space.models[shape.model].model_dump(mode="json"),
        variant.entry.model_dump(mode="json", exclude={"quality", "pruned_quality", "prunings"}),
        variant.pruning and variant.pruning.model_dump(mode="json"),
        _digest_own_code(space.models[shape.model]),
        _digest_files(
            variant.entry.routing or space.models[shape.model].routing or {}, space.folder
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
    """Numbers that the count of spare replicas hangs on; none without any."""
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
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in sorted(files)]


def _digest_files(table: Policy, folder: Path) -> list[str]:
    """Digests of the files that a policy reads."""
    paths = [
        folder / value
        for value in table.values()
        if isinstance(value, str) and (folder / value).is_file()
    ]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
