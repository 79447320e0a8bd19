"""The kernels that the table ``exchange`` is fitted on, and which coefficients each has."""

from __future__ import annotations

from typing import NamedTuple


class Kernels(NamedTuple):
    """One library's kernels as one engine calls them."""

    what: str
    dispatch: tuple[str, ...]
    """Coefficients that are fitted, beside those across nodes where rows cross any."""
    combine: tuple[str, ...]
    num_sms: int
    overlap: float


_LATENCY = ("latency_s", "latency_per_expert_s", "scale_up_fraction")
_NORMAL = ("latency_s", "latency_per_byte_s", "scale_up_fraction", "copy_byte_s")
_EAGER = ("floor_s", "latency_s", "scale_up_fraction")
_BACK = ("latency_s", "latency_per_byte_s", "scale_up_fraction")
"""Low-latency kernels that add up what comes back take longer to start for long vectors."""
_BY_TOKEN = ("token_s", "token_byte_s")
"""vLLM's normal kernels take as long for a token of six experts as for one of eight, on as many
ranks."""
KERNELS = {
    "low_latency": Kernels(
        "DeepEP low-latency kernels (SGLang)",
        (*_LATENCY, "token_s"),
        (*_LATENCY, "copy_byte_s"),
        num_sms=0,
        overlap=1.0,
    ),
    "normal": Kernels(
        "DeepEP normal kernels (SGLang)",
        (*_NORMAL, "token_s", "copy_s"),
        (*_NORMAL, "token_byte_s"),
        num_sms=20,
        overlap=3.0,
    ),
    "trtllm_deepep_ht": Kernels(
        "DeepEP normal kernels as TensorRT-LLM calls them",
        ("latency_s", "latency_per_byte_s", "token_s", "copy_s", "copy_byte_s"),
        ("latency_s", "latency_per_byte_s", "token_s", "copy_byte_s"),
        num_sms=20,
        overlap=3.0,
    ),
    "trtllm_deepep_ll": Kernels(
        "DeepEP low-latency kernels as TensorRT-LLM calls them, launched from Python",
        _EAGER,
        _BACK,
        num_sms=0,
        overlap=1.0,
    ),
    **{
        f"trtllm_deepep_ll_{dtype}": Kernels(
            f"DeepEP low-latency kernels that bring results back in {dtype}, "
            "as TensorRT-LLM calls them, launched from Python",
            (),
            _BACK,
            num_sms=0,
            overlap=1.0,
        )
        for dtype in ("fp8", "fp4")
    },
    "deepep_ht": Kernels(
        "DeepEP normal kernels as vLLM calls them, launched from Python",
        ("floor_s", "latency_s", *_BY_TOKEN),
        ("latency_s", "latency_per_byte_s", *_BY_TOKEN),
        num_sms=20,
        overlap=3.0,
    ),
    "deepep_ll": Kernels(
        "DeepEP low-latency kernels as vLLM calls them, launched from Python",
        _EAGER,
        ("floor_s", *_BACK),
        num_sms=0,
        overlap=1.0,
    ),
    "deepep_v2_context": Kernels(
        "DeepEP v2 kernels for prompts as vLLM calls them, launched from Python",
        ("floor_s", "latency_s", "token_byte_s"),
        ("floor_s", "latency_s", "copy_byte_s"),
        num_sms=64,
        overlap=3.0,
    ),
    "deepep_v2_generation": Kernels(
        "DeepEP v2 kernels for decode as vLLM calls them, launched from Python",
        ("floor_s",),
        ("floor_s",),
        num_sms=64,
        overlap=3.0,
    ),
    "one_sided": Kernels(
        "NVLink one-sided kernels",
        ("latency_s", "scale_up_fraction"),
        _EAGER[1:],
        num_sms=0,
        overlap=1.0,
    ),
}
