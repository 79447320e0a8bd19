"""Names and requests of a plan's question, looked up before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simulator.base.errors import UserError
from simulator.base.findings import Finding
from simulator.base.plugins import build
from simulator.config.calibration import CalibrationFile
from simulator.config.capacity import CandidateCluster, Question
from simulator.config.cluster import ClusterSpec, load_kind
from simulator.config.host import load_any_calibration
from simulator.config.model import complete_routing, load_model, routing_note
from simulator.config.pairing import has_experts, model_text, reference_name
from simulator.config.training_question import TrainingCluster, TrainingQuestion
from simulator.workload.requests import load_requests
from simulator.workload.traces import RequestTrace

USUAL_LEVEL = "p95"
"""Percentile that a limit without one is meant for."""
_ASKED_REQUESTS = 2000
"""Requests of a question without a log: as many as the shipped generated workloads have."""


def ask(
    models: str,
    cluster: str,
    rate: float,
    num_input: int,
    num_output: int,
    limits: Mapping[str, str],
) -> dict[str, Any]:
    """Put a question into the keys of a plan's file: requests of one length that come at random.

    Args:
        models: names or paths, between commas.
        cluster: names of kinds of machines, between commas.
        rate: requests a second.
        num_input: tokens of each prompt.
        num_output: tokens of each answer.
        limits: by latency (``ttft_s``), seconds such as ``1.5`` (:data:`USUAL_LEVEL`) or
            ``p50=0.5,p95=1.5``.

    Raises:
        UserError: if a limit is no such text.

    >>> asked = ask("mixtral-8x7b,qwen3-32b", "h200-sxm", 3.0, 2000, 300, {"ttft_s": "1.5"})
    >>> asked["targets"], asked["clusters"]
    ({'ttft_s': {'p95': 1.5}}, [{'cluster': 'h200-sxm'}])
    """
    return {
        "name": f"{models} on {cluster}",
        "workload": {
            "requests": {
                "arrivals": {"kind": "poisson", "rate_per_s": rate},
                "lengths": {"kind": "fixed", "num_input": num_input, "num_output": num_output},
            },
            "num_requests": _ASKED_REQUESTS,
        },
        "targets": {name: _read_limits(text) for name, text in limits.items()},
        "models": [{"model": _locate(name.strip())} for name in models.split(",")],
        "clusters": [{"cluster": name.strip()} for name in cluster.split(",")],
    }


def _locate(model: str) -> str:
    """A model's name, or its path as it holds from every folder."""
    return str(Path(model).resolve()) if model.endswith((".toml", ".json")) else model


def _read_limits(text: str) -> dict[str, float]:
    limits = {}
    for part in text.split(","):
        level, _, seconds = part.rpartition("=")
        try:
            limits[level.strip() or USUAL_LEVEL] = float(seconds)
        except ValueError:
            raise UserError(
                f"'{text}' is no limit: give seconds, such as 1.5 (of {USUAL_LEVEL}) or "
                "p50=0.5,p95=1.5"
            ) from None
    return limits


def check_question(question: Question, where: str) -> None:
    """Refuse models, machines, engines and policies that do not exist, before anything is
    computed.

    Raises:
        UserError: naming the first, and what would be right.
    """
    calibrations = []
    for number, offer in enumerate(question.clusters):
        place = f"{where} [{_name_entry('clusters', number, len(question.clusters))}]"
        cluster, accelerator = load_kind(offer.cluster, place)
        _check_price(offer, cluster, place)
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


def check_training_question(question: TrainingQuestion) -> None:
    """Refuse machines that do not exist or have no price.

    Raises:
        UserError: naming them.
    """
    for offer in question.clusters:
        cluster, _ = load_kind(offer.cluster, question.where)
        _check_price(offer, cluster, f"{question.where} [clusters]")


def _check_price(
    offer: CandidateCluster | TrainingCluster, cluster: ClusterSpec, place: str
) -> None:
    if offer.price_per_gpu_hour is None and cluster.price_per_gpu_hour is None:
        raise UserError(
            f"{place}: the file of '{offer.cluster}' has no price; give price_per_gpu_hour, "
            "0 for machines that are there anyway"
        )


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
