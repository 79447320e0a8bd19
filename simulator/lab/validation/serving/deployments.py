"""The deployment that a point measured: its model, cluster, split, number formats, the engine's way
of batching, and drafts by DeepSeek's multi-token-prediction module. Where a table does not say
whether drafts were on, the point's campaign may tell by its release.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.base.reading import read_toml
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration import ANY
from simulator.config.calibration.engine import UNSAID, Unseen, parse_release
from simulator.config.deployment import DeploymentSpec, ParallelSpec
from simulator.config.model import ModelSpec, load_model
from simulator.deployment.fits import list_unseen
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.lab.validation.hardware import accelerator_name, cluster_of, load_family
from simulator.lab.validation.serving.campaigns import Rule, When, load_campaigns
from simulator.lab.validation.serving.points import Point

_SPELLINGS = {
    "bf16": ("bfloat16", "bf16", "float16", "fp16"),
    "fp8": ("fp8",),
    "fp8_block": ("fp8_block",),
    "nvfp4": ("nvfp4", "fp4"),
    "mxfp4": ("mxfp4", "w4a16_mxfp4", "w4a8_mxfp4_mxfp8"),
    "int8": ("int8", "int8_wo"),
    "int4": ("int4", "int4_wo", "w4afp8"),
}
_FORMATS = {name: dtype for dtype, names in _SPELLINGS.items() for name in names}
"""Number formats as tables write them."""
_BLOCK_SCALED_RELEASES = ("qwen",)
"""Owners whose ``-FP8`` repositories hold one scale for each 128 x 128 block."""
_TIGHT = {"memory_fraction": 0.97, "free_memory_fraction": None, "activation_bytes": 0.5e9}
"""Memory of a deployment that fits only just."""
_LOAD = {"isl": "input length", "osl": "output length", "concurrency": "concurrency"}


class Deployment(NamedTuple):
    """Deployment to simulate, and what of it was guessed."""

    spec: DeploymentSpec
    model: ModelSpec
    guesses: tuple[str, ...]
    """Why the answer is an extrapolation; empty where nothing was guessed."""


@cache
def plan_of(key: str) -> DeploymentPlan:
    """The plan of a deployment as JSON: points of one deployment share it.

    Raises:
        UserError: if there is none.
    """
    spec = DeploymentSpec.model_validate_json(key)
    try:
        return make_plan(spec, 0, "serving point", Path())
    except UserError as error:
        refusal = UserError(str(error).split("]: ", 1)[-1])
    if "does not fit" not in str(refusal):
        raise refusal
    try:  # a point that was measured did fit, with less room than engines leave by default
        return make_plan(spec.model_copy(update=_TIGHT), 0, "serving point", Path())
    except UserError:
        raise refusal from None


def is_tight(plan: DeploymentPlan) -> bool:
    """Whether weights and cache fit only with less memory held back than by default."""
    return plan.spec.activation_bytes == _TIGHT["activation_bytes"]


@cache
def deployment_of(point: Point) -> Deployment:
    """Deployment that the point's decode pool, or only pool, runs.

    Raises:
        UserError: if the engine, the GPU or the model is unknown, or there is no such
            cluster.
    """
    engines = load_campaigns()[point.campaign].engines
    if point.engine not in engines:
        raise UserError(f"engine '{point.engine}' is not one of {', '.join(engines)}")
    accelerator = accelerator_name(point.system)
    if accelerator is None:
        raise UserError(f"no accelerator file for '{point.system}'")
    found = find_model(point.repository)
    if found is None:
        raise UserError(f"no model file for '{point.repository}'")
    guesses = () if found.is_listed else (f"'{point.repository}' is taken for {found.model}",)
    model = load_model(found.model, "serving point")
    guesses = (*guesses, *(rule.guess for rule in _rules(point, model) if rule.guess))
    if point.decode.pp > 1:
        guesses = (*guesses, "no measured point had pipeline stages")
    weights, experts = _formats(point, model)
    pool = point.decode
    is_moe = model.moe is not None
    spec = DeploymentSpec(
        name="point",
        model=found.model,
        cluster=cluster_of(accelerator, pool.num_ranks),
        parallel=ParallelSpec(
            tp=pool.tp, attention_dp=pool.attention_dp, ep=pool.ep if is_moe else None, pp=pool.pp
        ),
        engine=f"{point.engine}@{point.version or UNSAID}",
        replicas=1,
        weight_dtype=weights,  # type: ignore[arg-type]
        expert_dtype=experts if is_moe else None,  # type: ignore[arg-type]
        dispatch={"kind": "per_rank"},
        speculation=speculation_of(point, model),
        **_engine_settings(point, model),
    )
    return Deployment(spec, model, guesses)


def _formats(point: Point, model: ModelSpec) -> tuple[str, str]:
    """Formats of dense matrices and of routed experts.

    ``fp8`` of a model that is released block-scaled means that release. In NVFP4 releases of models
    with latent attention, the attention's matrices stay in 16 bits (nvidia/DeepSeek-R1-FP4: only
    the experts' operators are quantised).
    """
    released = release_format(point.repository)
    formats = []
    for written, own in (
        (point.gemm_format, model.weight_dtype),
        (point.moe_format, model.expert_dtype or model.weight_dtype),
    ):
        found = _FORMATS.get(written.lower(), released or own)
        owner = point.repository.lower().split("/", 1)[0]
        is_block = own == "fp8_block" or (released == "fp8" and owner in _BLOCK_SCALED_RELEASES)
        formats.append("fp8_block" if found == "fp8" and is_block else found)
    weights, experts = formats
    if weights == "nvfp4" and model.moe is not None and model.has_latent_cache:
        weights = "bf16"
    return weights, experts


def _engine_settings(point: Point, model: ModelSpec) -> dict[str, Any]:
    """Scheduling, and other keys of the deployment, as the point's campaign starts its engine."""
    decode_tokens = point.concurrency * (1 + drafts(point, model))
    scheduling: Policy = {}
    found: dict[str, Any] = {"scheduling": scheduling}
    for rule in _rules(point, model):
        if budget := rule.budget:
            wanted = point.num_input + decode_tokens + budget.margin
            rounded = -(-wanted // budget.multiple) * budget.multiple
            scheduling["token_budget"] = max(budget.least, rounded)
        scheduling |= rule.scheduling
        found |= rule.deployment
    if "max_sequences" not in scheduling:
        raise UserError(
            f"campaign '{point.campaign}': no rule of engines.{point.engine} sets "
            "scheduling.max_sequences for this point"
        )
    scheduling["max_sequences"] = max(scheduling["max_sequences"], point.concurrency)
    return found


def stream_interval(point: Point, model: ModelSpec) -> int:
    """Steps of a request up to the first token that its client sees."""
    return max((rule.stream_interval for rule in _rules(point, model)), default=1)


def _rules(point: Point, model: ModelSpec) -> list[Rule]:
    """Rules of the point's campaign for its engine that hold for it."""
    rules = load_campaigns()[point.campaign].engines.get(point.engine, ())
    return [rule for rule in rules if _holds(rule.when, point, model)]


def _holds(when: When, point: Point, model: ModelSpec) -> bool:
    facts = {
        "experts": model.moe is not None,
        "says_release": bool(point.version),
        "data_parallel": point.decode.attention_dp > 1,
        "num_input": point.num_input,
        "num_output": point.num_output,
        "fp4": accelerator_of(point).fp4_flops_per_s is not None,
    }
    return (
        all(getattr(when, name) in (None, fact) for name, fact in facts.items())
        and (not when.weights or _FORMATS.get(point.gemm_format.lower()) in when.weights)
        and (when.tp_below is None or point.decode.tp < when.tp_below)
        and (when.concurrency_below is None or point.concurrency < when.concurrency_below)
        and point.concurrency >= when.concurrency_from
        and (not when.release_below or parse_release(point.version) < when.release_below)
    )


def accelerator_of(point: Point) -> AcceleratorSpec:
    """The GPU of a point."""
    return load_accelerator(accelerator_name(point.system) or "", point.system)


def table_key(point: Point) -> str:
    """The point's deployment as JSON, without what a plan and its step table do not depend on.

    Raises:
        UserError: as :func:`deployment_of`.
    """
    spec = deployment_of(point).spec
    plain = spec.model_copy(
        update={"engine": f"{point.engine}@{UNSAID}", "scheduling": {"kind": "chunked"}}
    )
    return plain.model_dump_json()


def speculation_of(point: Point, model: ModelSpec) -> Policy:
    """The deployment's ``speculation``."""
    drafted = drafts(point, model)
    if not drafted:
        return {"kind": "none"}
    accepted = load_campaigns()[point.campaign].drafts.accepted
    return {"kind": "module", "tokens": drafted, "accepted": accepted}


def drafts(point: Point, model: ModelSpec) -> int:
    """Tokens of the drafts that the point was measured with, as the table says, or else as its
    release suggests; 0 without.
    """
    if point.drafted is not None:
        return point.drafted
    return load_campaigns()[point.campaign].drafts.tokens if _suggests_drafts(point, model) else 0


def doubts_of_drafts(point: Point, model: ModelSpec) -> tuple[str, ...]:
    """Guesses about drafts, in words."""
    if point.drafted is None:
        return ("drafts guessed from the release",) if _suggests_drafts(point, model) else ()
    known = load_campaigns()[point.campaign].drafts
    is_set = point.engine in known.engines and has_drafts(model) and point.drafted == known.tokens
    return (
        ()
        if is_set or not point.drafted
        else (f"what drafts of {point.drafted} tokens save is assumed",)
    )


def _suggests_drafts(point: Point, model: ModelSpec) -> bool:
    return point.is_drafted and has_drafts(model) and point.prefill is None


def has_drafts(model: ModelSpec) -> bool:
    """Whether a model has the module: DeepSeek's, which are those with latent attention and
    experts.
    """
    return model.has_latent_cache and model.moe is not None


class Novelty(NamedTuple):
    """Reasons why an answer is an extrapolation."""

    unseen: dict[Unseen, str] = {}
    """Model, GPU and release without points, which have bands of their own
    (:attr:`~simulator.config.calibration.engine.EngineFit.unseen`), each in words."""
    wider: tuple[str, ...] = ()
    """Loads, which no band is of."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons of both kinds."""
        return (*self.unseen.values(), *self.wider)


def novelty_of(point: Point, plan: DeploymentPlan) -> Novelty:
    """Novelty of a point to the fits of its engine; none where they do not say what they saw."""
    family = load_family(plan.placement.accelerator.calibration)
    if (
        family is None or point.prefill is not None
    ):  # pools have a fit of their own, which says what it has seen
        return Novelty()
    outside = family.engine[ANY].outside(
        isl=point.num_input, osl=point.num_output, concurrency=point.concurrency
    )
    loads = ", ".join(_LOAD[name] for name in outside)
    wider = (f"{loads} outside the range of what was fitted",) if loads else ()
    return Novelty(list_unseen(plan, point.version), wider)


# Model files of Hugging Face repositories, and formats that their matrices are released in.


_FAMILY = "workloads/models"
_ENDINGS = {
    "fp8": ("fp8", "fp8-dynamic"),
    "fp8_block": ("fp8-block",),
    "nvfp4": ("fp4", "nvfp4"),
    "mxfp4": ("mxfp4",),
    "int4": ("int4", "awq", "gptq", "gptq-int4", "w4a16"),
    "bf16": ("bf16",),
}
_RELEASED_IN = {ending: dtype for dtype, endings in _ENDINGS.items() for ending in endings}
"""Format by the end of a repository's name."""
_SUFFIXES = re.compile(
    rf"-(v\d+(\.\d+)?|v\d+-\d+|hf|base|chat|instruct|thinking|it|\d{{4}}|{'|'.join(_RELEASED_IN)})$"
)
"""Ends of names that do not change a model's shape: releases, tuning, formats."""


class Repository(NamedTuple):
    """A repository and the model file that holds its shape."""

    model: str
    is_listed: bool
    """False where only the name without format and release is one that a model file lists."""


@cache
def find_model(repository: str) -> Repository | None:
    """The model file of a repository (``owner/name``, or a name alone), or ``None``.

    >>> find_model("deepseek-ai/DeepSeek-R1")
    Repository(model='deepseek-r1', is_listed=True)
    >>> find_model("someone/Qwen3-32B-AWQ")
    Repository(model='qwen3-32b', is_listed=False)
    """
    listed, plain = _names()
    wanted = repository.strip().lower()
    if wanted in listed:
        return Repository(listed[wanted], True)
    name = wanted.rsplit("/", 1)[-1]
    while True:
        if name in plain:
            return Repository(plain[name], False)
        shorter = _SUFFIXES.sub("", name)
        if shorter == name:
            return None
        name = shorter


def release_format(repository: str) -> str | None:
    """The format that the repository's name says, if any: ``nvidia/Llama-3.1-8B-Instruct-FP8`` is
    ``fp8``.
    """
    name = repository.lower().rsplit("/", 1)[-1]
    found = re.search(rf"-({'|'.join(_RELEASED_IN)})(-v\d+)?$", name)
    return _RELEASED_IN[found[1]] if found else None


@cache
def _names() -> tuple[dict[str, str], dict[str, str]]:
    """Full repository names, and names without owner, format and release, to model files."""
    listed: dict[str, str] = {}
    plain: dict[str, str] = {}
    for model, path in available_files(_FAMILY).items():
        plain.setdefault(model.lower(), model)
        for repository in read_toml(path).get("repositories", ()):
            listed.setdefault(repository.lower(), model)
            name = repository.lower().rsplit("/", 1)[-1]
            plain.setdefault(name, model)
            while (shorter := _SUFFIXES.sub("", name)) != name:
                name = shorter
                plain.setdefault(name, model)
    return listed, plain
