"""The deployment that a point measured: its model, cluster, split, number formats and the engine's
way of batching.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.config.accelerator import load_accelerator
from simulator.config.calibration.engine import release_of
from simulator.config.deployment import DeploymentSpec, ParallelSpec
from simulator.config.model import ModelSpec, load_model
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.validation.hardware import accelerator_name, cluster_of
from simulator.validation.serving.drafts import drafts, speculation_of
from simulator.validation.serving.models import find_model, release_format
from simulator.validation.serving.points import Point

_FORMATS = {
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float16": "bf16",
    "fp16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "fp4": "nvfp4",
    "mxfp4": "mxfp4",
    "w4a16_mxfp4": "mxfp4",
    "w4a8_mxfp4_mxfp8": "mxfp4",
    "int8": "int8",
    "int8_wo": "int8",
    "int4": "int4",
    "int4_wo": "int4",
    "w4afp8": "int4",
}
"""Number formats as tables write them."""
_BLOCK_SCALED_RELEASES = ("qwen",)
"""Owners whose ``-FP8`` repositories hold one scale for each 128 x 128 block."""
_TIGHT = {"memory_fraction": 0.97, "free_memory_fraction": None, "activation_bytes": 0.5e9}
"""Memory of a deployment that fits only just."""


_PROMPT_TRTLLM = (1, 2, 0)
"""Release of TensorRT-LLM from which first tokens do not wait for a whole interval of streaming."""


class Deployment(NamedTuple):
    """What to simulate, and what of it was guessed."""

    spec: DeploymentSpec
    model: ModelSpec
    guesses: tuple[str, ...]
    """Why the answer is an extrapolation; empty where nothing was guessed."""


@cache
def plan_of(key: str) -> DeploymentPlan | str:
    """The plan of a deployment as JSON, or why there is none: points of one deployment share it."""
    spec = DeploymentSpec.model_validate_json(key)
    try:
        return make_plan(spec, 0, "serving point", Path())
    except UserError as error:
        reason = str(error).split("]: ", 1)[-1]
    if "does not fit" not in reason:
        return reason
    try:  # a point that was measured did fit, with less room than engines leave by default
        return make_plan(spec.model_copy(update=_TIGHT), 0, "serving point", Path())
    except UserError:
        return reason


def is_tight(plan: DeploymentPlan) -> bool:
    """Whether weights and cache fit only with less memory held back than by default."""
    return plan.spec.activation_bytes == _TIGHT["activation_bytes"]


@cache
def deployment_of(point: Point) -> Deployment:
    """What the point's decode pool, or only pool, runs.

    Raises:
        UserError: if the engine, the GPU or the model is unknown, or there is no such
            cluster.
    """
    if point.engine not in _ENGINES:
        raise UserError(f"engine '{point.engine}' is not one of {', '.join(_ENGINES)}")
    accelerator = accelerator_name(point.system)
    if accelerator is None:
        raise UserError(f"no accelerator file for '{point.system}'")
    found = find_model(point.repository)
    if found is None:
        raise UserError(f"no model file for '{point.repository}'")
    guesses = () if found.is_listed else (f"'{point.repository}' is taken for {found.model}",)
    if point.engine == "sglang" and point.is_ranged and not point.version:
        guesses = (
            *guesses,
            (
                "kernels of an SGLang whose release is not said may be compiled while the "
                "first requests wait"
            ),
        )
    if point.decode.pp > 1:
        guesses = (*guesses, "no measured point had pipeline stages")
    model = load_model(found.model, "serving point")
    weights, experts = _formats(point, model)
    pool = point.decode
    engine = _ENGINES[point.engine](point, model)
    is_moe = model.moe is not None
    spec = DeploymentSpec(
        name="point",
        model=found.model,
        cluster=cluster_of(accelerator, pool.num_ranks),
        parallel=ParallelSpec(
            tp=pool.tp, attention_dp=pool.attention_dp, ep=pool.ep if is_moe else None, pp=pool.pp
        ),
        engine=f"{point.engine}@{point.version}" if point.version else point.engine,
        replicas=1,
        weight_dtype=weights,  # type: ignore[arg-type]
        expert_dtype=experts if is_moe else None,  # type: ignore[arg-type]
        dispatch={"kind": "per_rank"},
        speculation=speculation_of(point, model),
        **engine,
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


def _vllm(point: Point, _: ModelSpec) -> dict[str, Any]:
    """Prompts in chunks beside decodes: 2,048 tokens a step, InferenceX 8,192
    (``--max-num-batched-tokens``).
    """
    budget = 8192 if point.is_ranged else 2048
    return {
        "scheduling": {
            "kind": "chunked",
            "token_budget": budget,
            "max_sequences": max(256, point.concurrency),
        }
    }


def _sglang(point: Point, _: ModelSpec) -> dict[str, Any]:
    """SGLang: prompts first, in chunks and steps of their own while decodes wait."""
    return {
        "scheduling": {
            "kind": "prefill_first",
            "token_budget": 16384,
            "max_sequences": max(256, point.concurrency),
            "splits_prompts": True,
            "poll_steps": _poll_steps(point),
        },
        "memory_fraction": 0.88,
    }


def _poll_steps(point: Point) -> int:
    """InferenceX starts SGLang on Blackwell with ``--scheduler-recv-interval`` 10 below 16 requests
    in flight, and 30 from there.
    """
    accelerator = load_accelerator(accelerator_name(point.system) or "", "serving point")
    if not point.is_ranged or accelerator.fp4_flops_per_s is None:
        return 1
    return 10 if point.concurrency < 16 else 30


def _trtllm(point: Point, model: ModelSpec) -> dict[str, Any]:
    """TensorRT-LLM: whole prompts beside decodes, room for the whole output reserved, 8-bit keys
    and values with 8- or 4-bit weights.
    """
    # Prompts are not cut, so a step must hold one beside the decodes.
    budget = max(8192, point.num_input + _decode_tokens(point, model))
    scheduling: Policy = {
        "kind": "no_evict",
        "token_budget": budget,
        "max_sequences": max(256, point.concurrency),
    }
    if point.is_ranged:
        scheduling |= _inferencex(point) if model.moe is None else _inferencex_experts(point, model)
    found: dict[str, Any] = {"scheduling": scheduling, "free_memory_fraction": 0.85}
    if _FORMATS.get(point.gemm_format.lower()) in ("fp8", "fp8_block", "nvfp4"):
        found["kv_dtype"] = "fp8"
    return found


def _inferencex(point: Point) -> dict[str, Any]:
    """InferenceX starts TensorRT-LLM for dense models with ``--max_num_tokens 16384``.

    With 1,024 tokens in and out on fewer than eight GPUs its scripts hold prompts back for 20
    steps, or until steps are 0.9 full.
    """
    found: dict[str, Any] = {"token_budget": 16384}
    if point.num_input == point.num_output == 1024 and point.decode.tp < 8:
        found |= {"wait_steps": 20, "wait_share": 0.9}
    return found


def _decode_tokens(point: Point, model: ModelSpec) -> int:
    """Tokens of a step in which all requests decode, each with its draft."""
    return point.concurrency * (1 + drafts(point, model))


def _inferencex_experts(point: Point, model: ModelSpec) -> dict[str, Any]:
    """For models with experts with room for one prompt beside the decodes: its scripts'
    ``MAX_NUM_TOKENS``.
    """
    found: dict[str, Any] = {
        "token_budget": -(-(_decode_tokens(point, model) + point.num_input + 64) // 64) * 64
    }
    if point.decode.attention_dp > 1:  # enable_balance with timeout_iters = 60
        found["balance_steps"] = 60
    return found


def stream_interval(point: Point, model: ModelSpec) -> int:
    """Steps of a request up to the first token that its client sees.

    InferenceX starts TensorRT-LLM with ``stream_interval: 10``. Releases before 1.2 let the first
    token wait for the nine behind it too, unless other processes stream
    (``num_postprocess_workers``), as its scripts for dense models have it.
    """
    is_late = (
        point.engine == "trtllm"
        and point.is_ranged
        and model.moe is not None
        and release_of(point.version) < _PROMPT_TRTLLM
    )
    return 10 if is_late else 1


_ENGINES = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}
"""Engines whose batching is known."""


def table_key(point: Point) -> str:
    """The point's deployment as JSON, without what a plan and its step table do not depend on.

    Raises:
        UserError: as :func:`deployment_of`.
    """
    spec = deployment_of(point).spec
    plain = spec.model_copy(
        update={"engine": spec.engine.partition("@")[0], "scheduling": {"kind": "chunked"}}
    )
    return plain.model_dump_json()
