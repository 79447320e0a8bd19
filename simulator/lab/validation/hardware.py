"""Names that measurements give to GPUs, as the files in ``cluster_configs`` call them."""

from __future__ import annotations

import difflib
import re
from functools import cache

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration import Calibration, CalibrationFile, load_calibration
from simulator.config.cluster import choose_num_gpus, read_cluster_table
from simulator.config.host import HostCalibration, load_any_calibration

_SAYS_NOTHING = re.compile(
    r"nvidia|amd|instinct|geforce|tesla|quadro|gpu|tensor|core|blackwell|hopper|server|edition|workstation|oam|ac|hbm\d\w*|nvl\d+|sxm\d*"
)
"""Words of a name that tell no two files apart. ``sxm`` is one since PCIe cards say what they
are."""
_MEMORY = re.compile(r"(\d+)gi?b")
_NEAR = 0.7
"""Least likeness of two names, as :mod:`difflib` counts it."""
_FOLDER = "cluster_configs/accelerators"
_SAME_MEMORY = 0.1
"""Names round what files give exactly; 40 GB are not 80."""

_SEEN = "hopper"
"""The family of GPUs of which most was measured."""


@cache
def accelerator_name(gpu: str) -> str | None:
    """The accelerator file for a GPU as tables or ``nvidia-smi`` name it; ``None`` if there is
    none.

    >>> [accelerator_name(gpu) for gpu in ("h100_sxm", "gb200_sxm", "L40S")]
    ['h100-sxm', 'gb200', 'l40s']
    >>> accelerator_name("NVIDIA H100 80GB HBM3"), accelerator_name("NVIDIA A100 80GB PCIe")
    ('h100-sxm', 'a100-pcie')
    >>> accelerator_name("NVIDIA A100-SXM4-40GB"), accelerator_name("NVIDIA H100 NVL")
    (None, None)
    """
    files = available_files(_FOLDER)
    words = _words(gpu)
    plain = "-".join(_telling(words))
    name = next((name for name in ("-".join(words), plain, f"{plain}-sxm") if name in files), None)
    memory = next(
        (float(found[1]) * 1e9 for word in words if (found := _MEMORY.fullmatch(word))), None
    )
    if name is None or memory is None:
        return name
    has = load_accelerator(name, f"GPU '{gpu}'").memory_bytes
    return name if abs(has / memory - 1.0) < _SAME_MEMORY else None


def near_accelerators(gpu: str) -> tuple[str, ...]:
    """Accelerator files whose names are near the one that a table gives to a GPU that there is none
    of.

    >>> near_accelerators("h10"), near_accelerators("rubin")
    (('h100-pcie', 'h100-sxm'), ())
    >>> near_accelerators("NVIDIA A100-SXM4-40GB")
    ('a100-pcie', 'a100-sxm')
    """
    told = _telling(_words(gpu))
    by_word: dict[str, list[str]] = {}
    for name in sorted(available_files(_FOLDER)):
        by_word.setdefault(name.split("-")[0], []).append(name)
    near = difflib.get_close_matches(told[0], by_word, n=1, cutoff=_NEAR) if told else []
    return tuple(name for word in near if word[0] == told[0][0] for name in by_word[word])


def _words(gpu: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", gpu.lower())


def _telling(words: list[str]) -> list[str]:
    """Words of a GPU's name that tell files apart."""
    return [
        word for word in words if not _SAYS_NOTHING.fullmatch(word) and not _MEMORY.fullmatch(word)
    ]


@cache
def cluster_of(accelerator: str, num_gpus: int) -> str:
    """Name of the smallest cluster of an accelerator with enough GPUs; its own file where several
    have it.

    Raises:
        UserError: if none is so large.
    """
    files = available_files("cluster_configs")
    fitting = []
    for stem in files:
        table = read_cluster_table(stem, files)
        if table.get("accelerator") != accelerator:
            continue
        sizes = table.get("sizes") or []
        named = [(size, f"{stem}-{size}") for size in sizes] or [(choose_num_gpus(table), stem)]
        fitting += [(size, stem != accelerator, name) for size, name in named if size >= num_gpus]
    if not fitting:
        raise UserError(f"no cluster of {num_gpus} {accelerator} in cluster_configs")
    return min(fitting)[2]


@cache
def find_calibrated(gpu: str, engine: str) -> tuple[AcceleratorSpec, Calibration] | None:
    """The accelerator that a table calls ``gpu`` and what ``engine`` achieves on it; ``None`` where
    either is unknown.
    """
    name = accelerator_name(gpu)
    if name is None:
        return None
    accelerator = load_accelerator(name, f"GPU '{gpu}'")
    try:
        return accelerator, load_calibration(accelerator.calibration, name).choose_engine(engine)
    except UserError:  # a machine that moesim calibrate timed: it has tables of its own
        return None


@cache
def load_family(name: str) -> CalibrationFile | None:
    """Calibration of a family of GPUs; ``None`` where it is one machine's own."""
    found = load_any_calibration(name, "serving point")
    return None if isinstance(found, HostCalibration) else found


def load_families() -> dict[str, CalibrationFile]:
    """Calibrations of families of GPUs, by name: without those of one machine, and without a user's
    that are of no use.
    """
    found = {}
    for name in available_files("cluster_configs/calibration"):
        try:
            found[name] = load_calibration(name, "validate")
        except UserError:
            continue
    return found


@cache
def find_most_measured() -> CalibrationFile:
    """Calibration of the family of GPUs of which most was measured."""
    return load_calibration(_SEEN, _SEEN)
