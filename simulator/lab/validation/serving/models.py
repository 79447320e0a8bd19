"""Model files of Hugging Face repositories, and formats that their matrices are released in."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from simulator.base.data import available_files
from simulator.base.reading import read_toml

_FAMILY = "workloads/models"
_ENDINGS = {
    "fp8": ("fp8", "fp8-dynamic"),
    "fp8_block": ("fp8-block",),
    "nvfp4": ("fp4", "nvfp4"),
    "mxfp4": ("mxfp4",),
    "int4": ("int4", "awq", "gptq", "gptq-int4", "w4a16"),
    "bf16": ("bf16",),
}
_FORMATS = {ending: dtype for dtype, endings in _ENDINGS.items() for ending in endings}
"""Format by the end of a repository's name."""
_SUFFIXES = re.compile(
    rf"-(v\d+(\.\d+)?|v\d+-\d+|hf|base|chat|instruct|thinking|it|\d{{4}}|{'|'.join(_FORMATS)})$"
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
    found = re.search(rf"-({'|'.join(_FORMATS)})(-v\d+)?$", name)
    return _FORMATS[found[1]] if found else None


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
