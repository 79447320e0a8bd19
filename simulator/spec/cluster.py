"""A cluster: accelerators, how many to a node, and the wires inside (scale-up) and between (scale-out) fast domains."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from simulator.data import available_files
from simulator.errors import UserError, did_you_mean
from simulator.spec.accelerator import AcceleratorSpec, load_accelerator
from simulator.spec.base import Frozen, NonNegative, Policy, Positive, Size, validate
from simulator.spec.loading import read_toml


class WireSpec(Frozen):
    """One kind of wire, seen from one GPU."""

    bytes_per_s: Positive
    """Peak in one direction, per GPU."""
    latency_s: NonNegative
    """One way, for the smallest message."""


class ClusterSpec(Frozen):
    """One machine or several, all alike. ``num_gpus`` is set by the name: ``h100-sxm-32`` is four nodes of ``h100-sxm``."""

    name: str
    title: str
    accelerator: str
    num_gpus: Size
    gpus_per_node: Size
    """GPUs of one fast (scale-up) domain: 8 in an HGX box, 72 in an NVL72 rack, 1 in a laptop."""
    sizes: Annotated[tuple[Size, ...], Field(strict=False)] = ()
    """Numbers of GPUs this cluster comes in; ``<file name>-<size>`` names each."""
    scale_up: WireSpec
    scale_out: WireSpec | None = None
    """Wires between domains; absent where there is one domain only."""
    topology: Policy
    price_per_gpu_hour: NonNegative | None = None
    currency: str = "USD"
    notes: str = ""
    sources: dict[str, str]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.num_gpus > self.gpus_per_node:
            if self.num_gpus % self.gpus_per_node:
                raise ValueError(f"num_gpus ({self.num_gpus}) must be whole nodes of {self.gpus_per_node}")
            if self.scale_out is None:
                raise ValueError(f"num_gpus ({self.num_gpus}) needs several nodes, so scale_out must be given")
        return self

    @property
    def num_nodes(self) -> int:
        """``N``, fast domains."""
        return -(-self.num_gpus // self.gpus_per_node)


def available_clusters() -> list[str]:
    """Every cluster name that :func:`load_cluster` takes."""
    names: list[str] = []
    for stem, path in available_files("cluster_configs").items():
        sizes = read_toml(path).get("sizes")
        names += [f"{stem}-{size}" for size in sizes] if sizes else [stem]
    return names


def load_cluster(name: str, where: str) -> tuple[ClusterSpec, AcceleratorSpec]:
    """The cluster called ``name`` and its accelerator.

    Raises:
        UserError: if there is none, or a file is wrong.
    """
    files = available_files("cluster_configs")
    sized = re.fullmatch(r"(.+)-(\d+)", name)
    if name in files:
        path, size = files[name], None
    elif sized and sized[1] in files:
        path, size = files[sized[1]], int(sized[2])
    else:
        raise UserError(f"{where}: unknown cluster '{name}'; {did_you_mean(name, available_clusters())}")
    table = read_toml(path)
    if size is not None:
        sizes = table.get("sizes", [])
        if size not in sizes:
            raise UserError(
                f"{where}: cluster '{sized[1] if sized else name}' comes in {', '.join(map(str, sizes))} GPUs, not {size}"
            )
        table["num_gpus"] = size
    table.setdefault("num_gpus", table.get("sizes", [table.get("gpus_per_node", 1)])[0])
    cluster = validate(ClusterSpec, {**table, "name": name}, str(path))
    return cluster, load_accelerator(cluster.accelerator, str(path))
