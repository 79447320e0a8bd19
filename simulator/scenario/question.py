"""A plan's question, read from a file or by the name of a shipped one, with every name in it looked
up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simulator.base.errors import UserError
from simulator.base.findings import Finding
from simulator.base.plugins import build
from simulator.config.calibration import CalibrationFile
from simulator.config.capacity import Question
from simulator.config.cluster import load_kind
from simulator.config.host import load_any_calibration
from simulator.config.model import load_model
from simulator.config.pairing import has_experts, model_text, reference_name
from simulator.config.routing import complete_routing, routing_note
from simulator.scenario.user_table import Overrides, read_user_table
from simulator.workload.requests import load_requests
from simulator.workload.traces import RequestTrace


def load_question(
    source: Question | str | Path | Mapping[str, Any],
    overrides: Overrides = (),
    seed: int | None = None,
) -> Question:
    """Read a plan's question, validate it, and look up every name in it.

    Args:
        source: path of a TOML file, name of a shipped one, or the same keys as a table. A question
            is changed by ``overrides``.
        overrides: values by dotted path, ``{"clusters.0.price_per_gpu_hour": 2.1}``, or texts as of
            the command line.
        seed: seed of all random numbers; ``None`` = the question's own.

    Raises:
        UserError: if the file is missing or wrong, names what does not exist, or an override names
            no place.

    >>> load_question("azure_conv", {"workload.rate_scale": 2.0}).workload.rate_scale
    2.0
    """
    if isinstance(source, Question):
        found = read_user_table(
            source.model_dump(mode="json", exclude_unset=True), overrides, seed, "", ""
        )
        found = found._replace(where=source.where, folder=source.folder)
    else:
        found = read_user_table(source, overrides, seed, "workloads/plans", "plan")
    if "deployments" in found.table:
        raise UserError(
            f"{found.where}{found.changed}: is a scenario, which moesim run takes; a plan has "
            "[targets], [[models]] and [[clusters]] instead of [[deployments]]"
        )
    question = Question.read(*found)
    _check_names(question, f"{found.where}{found.changed}")
    return question


def _check_names(question: Question, where: str) -> None:
    """Refuse models, machines, engines and policies that do not exist, before anything is
    computed.
    """
    calibrations = []
    for number, offer in enumerate(question.clusters):
        place = f"{where} [{_name_entry('clusters', number, len(question.clusters))}]"
        cluster, accelerator = load_kind(offer.cluster, place)
        if offer.price_per_gpu_hour is None and cluster.price_per_gpu_hour is None:
            raise UserError(
                f"{place}: the file of '{offer.cluster}' has no price; give price_per_gpu_hour, "
                "0 for machines that are there anyway"
            )
        if any(one.gpu is not None or one.node is not None for one in cluster.degraded):
            raise UserError(
                f"{place}: some GPUs of '{offer.cluster}' are slower than others or of another "
                "kind (degraded), and a plan takes all machines to be alike; name a cluster "
                "without them, and try what it recommends on this one with moesim run"
            )
        calibrations.append(load_any_calibration(accelerator.calibration, place))
    known = [one for one in calibrations if isinstance(one, CalibrationFile)]
    for number, candidate in enumerate(question.models):
        place = f"{where} [{_name_entry('models', number, len(question.models))}]"
        model = load_model(reference_name(candidate), place, question.folder)
        made = candidate.dense_of or candidate.moe_of
        if made is not None:
            build("deployment.equal", made.equal, f"{place} [equal]")
        if candidate.routing is not None:
            if not has_experts(candidate, model):
                raise UserError(
                    f"{place} [routing]: {model_text(candidate) if made else model.name} is dense "
                    "and routes nothing; leave it out"
                )
            build("routing", candidate.routing, f"{place} [routing]")
        refusals: list[UserError] = []
        for calibration in known:
            try:
                calibration.check_engine(candidate.engine, place)
            except UserError as refusal:
                refusals.append(refusal)
        if refusals and len(refusals) == len(calibrations):
            raise refusals[0]


def list_routing_notes(question: Question) -> Iterator[Finding]:
    """Assumptions about the routing of the question's models, one for each model."""
    for candidate in question.models:
        model = load_model(reference_name(candidate), "[models]", question.folder)
        if has_experts(candidate, model):
            given = candidate.routing, "the plan"
            own = model.routing, model.routing_source
            _, source = complete_routing(*(given if candidate.routing else own))
            name = model_text(candidate) if candidate.moe_of else model.title or model.name
            yield from routing_note(name, source)


def _name_entry(key: str, number: int, count: int) -> str:
    return f"{key} entry {number + 1} of {count}"


def load_open_requests(question: Question, folder: Path, where: str) -> RequestTrace:
    """Requests of a question's workload, which arrive by the clock.

    Raises:
        UserError: if the workload is wrong, is a closed loop, whose rate follows from the
            deployment, or comes all at once.
    """
    trace = load_requests(question.workload, folder, question.seed, where)
    if trace.concurrency is not None:
        raise UserError(
            f"{where}: is a closed loop, which sends as fast as it is served, "
            "so no deployment is too small for it; a plan needs arrival times, "
            'such as arrivals = { kind = "poisson", rate_per_s = 10.0 }'
        )
    if trace.num_requests < 2:
        raise UserError(f"{where}: one request has no rate; give more, such as num_requests = 1000")
    if float(trace.arrival_s[-1]) <= float(trace.arrival_s[0]):
        raise UserError(
            f"{where}: all requests come at the same moment, which is no rate to plan for; "
            'give an arrival process, such as arrivals = { kind = "poisson", rate_per_s = 10.0 }'
        )
    return trace
