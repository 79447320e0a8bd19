"""Names that publications give to models, GPUs and number formats, as the project's files call
them.
"""

from __future__ import annotations

import re
from functools import cache

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.reading import read_toml
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.cluster import available_clusters, load_cluster
from simulator.config.model import load_model

_SAME_SHAPE = {
    "llama-3.3-70b": "llama-3.1-70b",
    "llama-3-70b": "llama-3.1-70b",
    "llama-3-8b": "llama-3.1-8b",
}
"""Later weights of a shape that has a file."""
_VARIANTS = {"sxm", "sxm4", "sxm5", "server", "hgx"}
"""Words in a GPU's file name that a publication may leave out."""
_OTHER_PARTS = {"nvl", "pcie", "mig"}
"""Words that name another part than the plain one."""
_NUM_GB = re.compile(r"(\d+)\s*gb\b")
_SUFFIXES = re.compile(
    r"(-(instruct|chat|hf|it|v\d+(\.\d+)?|99(\.9)?|interactive|fp8|fp4|nvfp4|base|\d{4}))+$"
)
_PRECISIONS = (
    ("nvfp4", ("nvfp4", "fp4")),
    ("mxfp4", ("mxfp4",)),
    ("fp8_block", ("fp8_block", "fp8 block")),
    ("fp8", ("fp8", "w8a8-fp")),
    ("int8", ("int8", "w8a8", "smoothquant")),
    ("int4", ("int4", "w4a16", "awq", "gptq")),
    ("bf16", ("bf16", "fp16", "bfloat16", "float16")),
)


@cache
def model_name(text: str) -> str:
    """The model file that a publication means: ``LLaMA v3.1 70B``, ``mixtral-8x7b``,
    ``llama2-70b-99.9``, ``DeepSeek-V3``.

    Raises:
        UserError: if no file is of that model.
    """
    files = available_files("workloads/models")
    owner_and_name = text.strip().lower()
    for stem, path in files.items():
        repositories = [str(name).lower() for name in read_toml(path).get("repositories", [])]
        if owner_and_name in repositories:
            return stem
    plain = re.sub(r"[\s_]+", "-", owner_and_name.rsplit("/", 1)[-1])
    plain = re.sub(r"^(meta|nvidia|mistral|qwen(?=-qwen))-", "", plain)
    for whole in (plain, _SUFFIXES.sub("", plain)):
        for candidate in (
            whole,
            whole.replace("-v", "-"),
            re.sub(r"^([a-z]+)-?v?(?=\d)", r"\1-", whole),
        ):
            name = _SAME_SHAPE.get(candidate, candidate)
            found = next(
                (stem for stem in files if stem.replace("-", "") == name.replace("-", "")), None
            )
            if found is not None:
                return found
    raise UserError(f"no model file for '{text}'")


@cache
def accelerator_of(text: str) -> AcceleratorSpec:
    """The accelerator file that a publication means: ``H100-80GB``, ``NVIDIA H100-SXM-80GB``,
    ``A100 80GB``, ``MI300X-NPS1-192GB``.

    Raises:
        UserError: if there is none, or its memory is another.
    """
    words = set(re.findall(r"[a-z]+\d*[a-z]*|\d+", text.lower()))
    found: list[tuple[int, str]] = []
    for stem in available_files("cluster_configs/accelerators"):
        parts = stem.split("-")
        needed = {part for part in parts if part not in _VARIANTS}
        if needed <= words and not (words & _OTHER_PARTS) - set(parts):
            found.append((len(set(parts) & words), stem))
    if not found:
        raise UserError(f"no accelerator file for '{text}'")
    accelerator = load_accelerator(max(found)[1], text)
    size = _NUM_GB.search(text.lower().replace("-", " "))
    if size is not None and not 0.8 < float(size[1]) * 1e9 / accelerator.memory_bytes < 1.25:
        raise UserError(f"'{text}' has another memory than {accelerator.title}")
    return accelerator


@cache
def cluster_of(accelerator: str, num_gpus: int) -> str:
    """A cluster of that accelerator with ``num_gpus`` GPUs, or the next larger one that there is.

    Raises:
        UserError: if none is so large.
    """
    found = []
    for name in available_clusters():
        cluster, spec = load_cluster(name, name)
        if spec.name == accelerator and cluster.num_gpus >= num_gpus:
            found.append((cluster.num_gpus, cluster.topology["kind"] == "leaf_spine", name))
    if not found:
        raise UserError(f"no cluster file with {num_gpus} {accelerator}")
    return min(found)[2]


def precision_of(text: str) -> str:
    """The number format that a publication means.

    Raises:
        UserError: if none is named.
    """
    lower = str(text).lower()
    for dtype, words in _PRECISIONS:
        if any(word in lower for word in words):
            return dtype
    raise UserError(f"unknown number format '{text}'")


def released(dtype: str, model: str) -> str:
    """``dtype`` as the model has it: where it is released with a scale for each block, its 8 bits
    are those.
    """
    return (
        "fp8_block"
        if dtype == "fp8" and load_model(model, model).weight_dtype == "fp8_block"
        else dtype
    )


def engine_of(text: str) -> str | None:
    """The serving engine that a publication names, ``None`` where it names none that is known."""
    lower = str(text).lower()
    names = {"trtllm": ("tensorrt", "trt"), "sglang": ("sglang",), "vllm": ("vllm",)}
    return next(
        (engine for engine, words in names.items() if any(word in lower for word in words)), None
    )
