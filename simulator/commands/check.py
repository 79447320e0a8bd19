"""``moesim check``: everything that ``run`` would refuse of a file, without running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.findings import tell
from simulator.base.frozen import validate
from simulator.base.plugins import build
from simulator.base.quantities import MOST_RANKS
from simulator.base.reading import read_json, read_toml
from simulator.commands.deployments import prepare_run
from simulator.commands.run import list_notes
from simulator.config import cluster as clusters
from simulator.config.accelerator import AcceleratorSpec, list_odd, load_accelerator
from simulator.config.calibration import CalibrationFile, read_calibration
from simulator.config.capacity import Question
from simulator.config.claim import load_claim
from simulator.config.cluster import ClusterSpec
from simulator.config.engine import read_engine
from simulator.config.host import HostCalibration, load_any_calibration
from simulator.config.law_file import LawFile, load_law
from simulator.config.model import load_model, routing_note
from simulator.config.training_question import TrainingQuestion
from simulator.config.workload import WorkloadSpec
from simulator.deployment.counterparts import choose_model
from simulator.deployment.facts import describe_layout, facts_of
from simulator.deployment.fits import list_unseen
from simulator.deployment.training.memory import check_training_memory
from simulator.deployment.training.plan import make_training_plan
from simulator.planner.space import Space, check_variants
from simulator.planner.traffic import check_offered, lasting, traffic_of
from simulator.policies.contracts import make_rules, wire_cluster
from simulator.scenario.jobs import (
    QUESTIONS,
    SCENARIOS,
    Overrides,
    load_job,
    load_question,
    load_scenario,
)
from simulator.scenario.question import ask, list_routing_notes, load_open_requests
from simulator.scenario.scenario import Scenario, TrainingScenario
from simulator.step.training import find_rank_imbalance, price_micro_batch
from simulator.workload.requests import load_requests


class Support(NamedTuple):
    """Basis of a model's figures on a kind of machines with an engine."""

    deployment: str
    """Smallest deployment that holds it."""
    assumptions: list[dict[str, str]]
    """Numbers that its prices are made of, ``what``, ``value``, ``kind`` (``measured``, ``fitted``,
    ``interpolated``, ``published`` or ``assumed``) and ``source`` each."""
    notes: list[str]
    """Notes, those on what fits have not seen first."""


def supports(model: str, cluster: str, engine: str = "vllm") -> Support:
    """Say what is measured, fitted and assumed of a model on machines, by its smallest deployment.

    Args:
        cluster: kind of machines (``h100-sxm``).
        engine: perhaps with a release (``sglang@0.5.23``).

    Raises:
        UserError: if a name is unknown, or the model does not fit.
    """
    asked = ask(model, cluster, 1.0, 1000, 100, {"ttft_s": "1"})
    question = load_question({**asked, "models": [{"model": model, "engine": engine}]})
    space = Space(question, question.folder)
    shape = space.find_smallest(0, 1100)
    plan = space.plan(shape)
    found, unseen = facts_of(plan), list_unseen(plan)
    unseen.pop("release", None)  # which a note tells of
    notes = [f"{text}: bands of its latencies are wider" for text in unseen.values()]
    return Support(space.text(shape), found["assumptions"], [*notes, *found["warnings"]])


_TELLING_KEYS = {
    "training": "training",
    "deployments": "scenario",
    "targets": "plan",
    "clusters": "plan",
    "workload": "scenario",
    "lengths": "workload",
    "law": "law",
    "trial": "claim",
    "mixers": "model",
    "memory_bytes_per_s": "accelerator",
    "tiers": "engine",
    "gemm": "calibration",
    "kernels": "host calibration",
    "topology": "cluster",
    "release": "engine",
    "based_on": "cluster",
}
"""The first of these keys that a file holds tells its kind."""

_TABLES = ("scenario", "plan", "training", "training plan")
"""Kinds that may be given as a table, and whose keys may be overridden."""
_WIRED_NODES = 16
"""Nodes that a cluster's wiring is tried on: further ones are like them, and paths grow with the
square."""


Given: TypeAlias = Path | Mapping[str, object]
"""File, or table that stands for one."""


class Checked(NamedTuple):
    """A file or table that is right."""

    file: str
    """Path of the file, or what else errors call it."""
    kind: str
    details: str
    """Facts about the file, to be put behind the kind."""
    notes: tuple[str, ...] = ()
    """Assumptions made where the file is used."""


_Found: TypeAlias = tuple[str, Iterable[object]]
"""Facts about a file, and notes."""


def check(
    source: Scenario | Question | str | Path | Mapping[str, object], overrides: Overrides = ()
) -> Checked:
    """Check a file of any kind, down to every name in it and whether models fit their GPUs, without
    running anything.

    Args:
        source: a path, or the name of a shipped scenario or plan; or a scenario or plan as
            :func:`run` and :func:`plan` take it, such as a table.
        overrides: as for :func:`load_scenario`; for scenarios and plans only.

    Raises:
        UserError: naming the key, its value and what would be right.

    >>> check("mixtral_vs_llama2").kind
    'scenario'
    """
    given: object = source
    if isinstance(source, Scenario | Question):
        kind, place = "scenario" if isinstance(source, Scenario) else "plan", source.where
    elif isinstance(source, Mapping):
        kind, place = _tell_kind(source), "table"
    else:
        given = path = _find_file(str(source))
        kind, place = _read_kind(path), str(path)
    if not kind:
        keys = ", ".join(f"{kind}: {key}" for key, kind in _TELLING_KEYS.items())
        raise UserError(
            f"{place}: is no file that moesim knows; a key would tell its kind ({keys})"
        )
    if overrides and kind not in _TABLES:
        raise UserError(
            f"--set {next(iter(overrides))}: overrides a scenario's or a plan's keys, "
            f"but {place} is a {kind}"
        )
    if isinstance(source, Mapping) and kind not in _TABLES:
        raise UserError(f"{place}: {kind}s are checked as files; write it to one, and name that")
    details, notes = _CHECKS[kind](given, overrides)
    return Checked(place, kind, details, tuple(map(str, notes)))


def _find_file(name: str) -> Path:
    """The file of a path, or of a shipped scenario or plan."""
    path = Path(name)
    for job in (*SCENARIOS, *QUESTIONS):
        if not path.is_file() and name in available_files(job.FAMILY):
            path = available_files(job.FAMILY)[name]
    return path


def _read_kind(path: Path) -> str:
    if path.suffix == ".json":
        read_json(path)
        return "model"
    if path.suffix == ".py":
        raise UserError(f"{path}: is code; check the scenario that names it, with --allow-code")
    return _tell_kind(read_calibration(path) if path.with_suffix("").is_dir() else read_toml(path))


def _tell_kind(table: Mapping[str, object]) -> str:
    kind = next((kind for key, kind in _TELLING_KEYS.items() if key in table), "")
    return "training plan" if kind == "training" and "deployments" not in table else kind


def _check_scenario(source: Scenario | Given, overrides: Overrides) -> _Found:
    scenario = load_scenario(source, overrides)
    plans, trace = prepare_run(scenario)
    fits = "; ".join(
        (
            f"{p.name}: {p.num_gpus} GPUs ({describe_layout(p)}), KV cache "
            f"of {p.serving.capacity.tokens * p.placement.layout.attention_dp:,} tokens a replica"
        )
        for p in plans
    )
    details = f", {trace.num_requests:,} requests; {fits}"
    return details, (*trace.notes, *tell(list_notes(scenario, plans, trace)))


def _check_plan(source: Question | Given, overrides: Overrides) -> _Found:
    question = load_question(source, overrides)
    trace = load_open_requests(question, question.folder, f"{question.where} [workload]")
    check_variants(Space(question, question.folder), trace, question.where)
    lasts, _ = lasting(question, question.folder)
    check_offered(lasts, traffic_of(lasts, question.folder), question.where)
    lasts_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    models, clusters = (
        ", ".join(dict.fromkeys(names))
        for names in ([m.model for m in question.models], [c.cluster for c in question.clusters])
    )
    details = (
        f", {trace.num_requests:,} requests in {lasts_s:,.0f} s; models: {models}; "
        f"clusters: {clusters}"
    )
    return details, list_routing_notes(question)


def _check_training(source: Given, overrides: Overrides) -> _Found:
    scenario = load_job(source, (TrainingScenario,), overrides)
    details = []
    for spec in scenario.deployments:
        plan = make_training_plan(
            spec, scenario.training, scenario.seed, scenario.where, scenario.folder
        )
        imbalance = find_rank_imbalance(price_micro_batch(plan))
        memory = check_training_memory(plan, imbalance, scenario.where)
        for later in spec.later:
            build("routing", later.routing, f"{scenario.where} [deployments '{spec.name}'] [later]")
        details.append(
            f"{spec.name}: {spec.num_gpus:,} GPUs ({plan.text()}), "
            f"{memory.total_bytes / 1e9:,.1f} GB of each"
        )
    if scenario.training.quality is not None:
        load_law(scenario.training.quality.law, f"{scenario.where} [training.quality]")
    return ", " + "; ".join(details), ()


def _check_training_plan(source: Given, overrides: Overrides) -> _Found:
    question = load_job(source, (TrainingQuestion,), overrides)
    models = [choose_model(one, question.where, question.folder) for one in question.models]
    names = ", ".join(one.title for one in question.models)
    clusters = ", ".join(one.cluster for one in question.clusters)
    return f", {len(models)} models ({names}) in {question.targets.days:g} days on {clusters}", ()


def _check_workload(path: Path, _: Overrides) -> _Found:
    trace = load_requests(WorkloadSpec(requests=str(path.resolve())), Path.cwd(), 0, str(path))
    tokens = f"{trace.num_input.mean():,.0f} tokens in and {trace.num_output.mean():,.0f} out"
    return f", {trace.num_requests:,} requests, {tokens} on average", ()


def _check_model(path: Path, _: Overrides) -> _Found:
    model = load_model(str(path), str(path))
    if model.routing is not None and model.moe is not None:
        build("routing", model.routing, f"{path} [routing]")
    total, active = (n / 1e9 for n in (model.num_parameters, model.num_active_parameters))
    details = f", {total:,.2f} B parameters, {active:,.2f} B active, {model.num_layers} layers"
    return details, routing_note(model.title or model.name, model.routing_source)


def _check_law(path: Path, _: Overrides) -> _Found:
    found = validate(LawFile, {"name": path.stem, **read_toml(path)}, str(path))
    return f", {found.title}", ()


def _check_claim(path: Path, _: Overrides) -> _Found:
    claim = load_claim(str(path))
    build("commands.claim_tests", claim.trial, f"{path} [trial]")
    if claim.real is not None:
        build("commands.claim_measurements", claim.real, f"{path} [real]")
    return f", {claim.title}", ()


def _check_accelerator(path: Path, _: Overrides) -> _Found:
    found = validate(AcceleratorSpec, {"name": path.stem, **read_toml(path)}, str(path))
    load_any_calibration(found.calibration, str(path))
    return f", {found.title}", list_odd(found, found.name)


def _check_engine(path: Path, _: Overrides) -> _Found:
    found = read_engine(path)
    for tier in found.tiers:
        for more in ({}, tier.offline):
            make_rules(build("scheduling", {**found.scheduling, **tier.server, **more}, str(path)))
    return f", {found.title}; {len(found.tiers)} sizes of GPU memory", ()


def _check_calibration(path: Path, _: Overrides) -> _Found:
    return f", {validate(CalibrationFile, read_calibration(path), str(path)).title}", ()


def _check_host_calibration(path: Path, _: Overrides) -> _Found:
    found = validate(HostCalibration, read_toml(path), str(path))
    ranks = ", ".join(str(entry.num_ranks) for entry in found.collectives)
    return f", {found.title}, of {found.machine}; collectives of {ranks or 'no'} ranks", ()


def _check_cluster(path: Path, _: Overrides) -> _Found:
    table = clusters.read_cluster_table(
        path.stem, {**available_files("cluster_configs"), path.stem: path}
    )
    table.setdefault("num_gpus", clusters.choose_num_gpus(table))
    found = validate(ClusterSpec, {**table, "name": path.stem}, str(path))
    load_accelerator(found.accelerator, str(path))
    sizes = found.sizes or (found.num_gpus,)
    topology = build("topology", found.topology, f"{path} [topology]")
    most = min(MOST_RANKS, _WIRED_NODES * found.gpus_per_node)
    for num_gpus in {min(size, most) for size in (min(sizes), max(sizes))}:
        wire_cluster(topology, found.model_copy(update={"num_gpus": num_gpus}), num_gpus)
    details = f", {found.title}; {', '.join(map(str, sizes))} GPUs"
    return details, clusters.list_odd_links(found)


_CHECKS: dict[str, Callable[[Any, Overrides], _Found]] = {
    "scenario": _check_scenario,
    "plan": _check_plan,
    "training": _check_training,
    "training plan": _check_training_plan,
    "workload": _check_workload,
    "model": _check_model,
    "law": _check_law,
    "claim": _check_claim,
    "accelerator": _check_accelerator,
    "engine": _check_engine,
    "calibration": _check_calibration,
    "host calibration": _check_host_calibration,
    "cluster": _check_cluster,
}
