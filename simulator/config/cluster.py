"""A cluster: accelerators, how many to a node, and the links inside (scale-up) and between
(scale-out) fast domains.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import model_validator

from simulator.base.data import available_files, load_once
from simulator.base.errors import UserError, check_known, did_you_mean
from simulator.base.findings import Finding
from simulator.base.frozen import Frozen, ListOf, Policy, validate
from simulator.base.kinds import PolicyOf
from simulator.base.quantities import (
    BytesPerSecond,
    Gpus,
    Label,
    Price,
    ReplicaGpus,
    Seconds,
    Sources,
)
from simulator.base.reading import read_toml
from simulator.config.accelerator import AcceleratorSpec, list_odd, load_accelerator
from simulator.config.failures import Degraded
from simulator.config.host import HostSpec
from simulator.config.named import Changeable, change, join_name, split_name

_FAMILY = "cluster_configs"


class LinkSpec(Frozen):
    """Link of one kind, seen from one GPU."""

    bytes_per_s: BytesPerSecond
    """Peak rate in one direction of one GPU's port, bytes per second."""
    latency_s: Seconds
    """Seconds that the smallest message takes one way."""

    def with_speed(self, rate: float, latency: float) -> LinkSpec:
        """The link with so many times the rate, and so much shorter a latency."""
        rates = {"bytes_per_s": self.bytes_per_s * rate, "latency_s": self.latency_s / latency}
        return self.model_copy(update=rates)


def list_odd_links(cluster: ClusterSpec) -> Iterator[Finding]:
    """List numbers of a cluster's links that are far from every shipped one's."""
    for name, wire in (("scale_up", cluster.scale_up), ("scale_out", cluster.scale_out)):
        if wire is not None:
            yield from list_odd(wire, f"{cluster.name} {name}")


class ClusterSpec(Frozen):
    """Machines of one kind. ``num_gpus`` is set by the name: ``h100-sxm-32`` is four nodes of
    ``h100-sxm``.
    """

    name: Label
    """Name of the cluster, which is that of its file and, behind a hyphen, its size."""
    title: Label
    """Name in reports."""
    based_on: str | None = None
    """Name of another cluster file, whose keys hold where this one gives none (its sources too)."""
    accelerator: Annotated[str, Changeable("accelerator")]
    """Name of a file in ``cluster_configs/accelerators``."""
    num_gpus: Gpus
    """GPUs where the name says no number; absent = the first of ``sizes``, else one node."""
    gpus_per_node: ReplicaGpus
    """GPUs of one fast (scale-up) domain: 8 in an HGX box, 72 in an NVL72 rack, 1 in a laptop."""
    gpus_per_tray: ReplicaGpus | None = None
    """GPUs of a fast domain that are rented together, such as the 4 of a compute tray in an NVL72
    rack; absent = the whole domain is."""
    sizes: ListOf[Gpus] = ()
    """Numbers of GPUs that the cluster comes in; ``<file name>-<size>`` names each."""
    scale_up: LinkSpec
    """Links inside a fast domain, such as NVLink."""
    scale_out: LinkSpec | None = None
    """Links between fast domains, such as InfiniBand; absent = there is one domain only."""
    topology: Annotated[Policy, PolicyOf("topology")]
    """Wiring of the ranks: the links that a message crosses and shares."""
    host: HostSpec | None = None
    """Memory, storage and processor of the machine, for experts that are offloaded; absent = not
    known."""
    degraded: ListOf[Degraded] = ()
    """GPUs and links that are slower than the others, always or for a while; those beyond the GPUs
    that a deployment uses do not matter to it."""
    price_per_gpu_hour: Price | None = None
    """Price of one GPU for one hour, in ``currency``; absent = costs are not told."""
    currency: Label = "USD"
    """Currency of the price, as reports write it."""
    notes: Label = ""
    """Remarks in free text."""
    sources: Sources = {}
    """A source for each number above; needed in files of the project."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for key, num_gpus in [
            ("num_gpus", self.num_gpus),
            *(("sizes", size) for size in self.sizes),
        ]:
            if num_gpus <= self.gpus_per_node:
                continue
            if num_gpus % self.gpus_per_node:
                raise ValueError(f"{key} ({num_gpus}) must be whole nodes of {self.gpus_per_node}")
            if self.scale_out is None:
                raise ValueError(
                    f"{key} ({num_gpus}) needs several nodes, so scale_out must be given"
                )
        return self

    @property
    def num_nodes(self) -> int:
        """``N``, fast domains."""
        return -(-self.num_gpus // self.gpus_per_node)

    def with_speed(self, rate: float, latency: float = 1.0, below: float = 1.0) -> ClusterSpec:
        """The cluster with faster parts beside its GPUs.

        Args:
            rate: factor on the rate of all its links.
            latency: factor by which their latencies are shorter.
            below: factor on the speed of all that lies below the GPUs' memory.
        """
        if rate == latency == below == 1.0:
            return self
        up, out = self.scale_up, self.scale_out
        return self.model_copy(
            update={
                "scale_up": up.with_speed(rate, latency),
                "scale_out": out and out.with_speed(rate, latency),
                "host": self.host and self.host.with_speed(below),
            }
        )

    def degrade(self, degraded: tuple[Degraded, ...]) -> ClusterSpec:
        """The cluster with some more slower GPUs and links."""
        if not degraded:
            return self
        return self.model_copy(update={"degraded": (*self.degraded, *degraded)})

    def with_price(self, price_per_gpu_hour: float | None) -> ClusterSpec:
        """The cluster at another price; ``None`` = its own."""
        if price_per_gpu_hour is None:
            return self
        return self.model_copy(update={"price_per_gpu_hour": price_per_gpu_hour})


def available_clusters() -> list[str]:
    """List every cluster name that :func:`load_cluster` takes."""
    tables = _read_tables(available_files(_FAMILY))
    return [name for stem, table in tables.items() for name in _list_names(stem, table)]


def _read_tables(files: Mapping[str, Path]) -> dict[str, dict[str, object]]:
    """Tables by file, without those that cannot be read: one is told of when it is asked for."""
    found = {}
    for stem in files:
        with contextlib.suppress(UserError):
            found[stem] = read_cluster_table(stem, files)
    return found


def load_cluster(name: str, where: str) -> tuple[ClusterSpec, AcceleratorSpec]:
    """The cluster called ``name``, perhaps with changes (:mod:`simulator.config.named`), and its
    accelerator.

    ``<file>-<size>`` is one of the ``sizes`` of a file; the bare file name is its ``num_gpus`` (or
    one whole node), which a file with ``sizes`` need not have.

    Raises:
        UserError: if there is none, it does not come in that size, or a file is wrong.
    """
    return load_once(("cluster", name), lambda: _load_cluster(name, where))


def _load_cluster(name: str, where: str) -> tuple[ClusterSpec, AcceleratorSpec]:
    files = available_files(_FAMILY)
    base, changes = split_name(name)
    sized = re.fullmatch(r"(.+)-([1-9][0-9]*)", base)
    if base in files:
        stem, size = base, None
    elif sized and sized[1] in files:
        stem, size = sized[1], int(sized[2])
    else:
        raise UserError(f"{where}: unknown cluster '{base}'; {_suggest(base, files)}")
    cluster, accelerator = _load_file(stem, files, changes)
    cluster = cluster.model_copy(update={"name": name})
    if "num_gpus" in changes:
        return cluster, accelerator
    has_bare_name = stem in _list_names(stem, read_cluster_table(stem, files))
    in_words = ", ".join(map(str, cluster.sizes))
    if size is None and not has_bare_name:
        example = min(cluster.sizes, key=lambda n: abs(n - cluster.gpus_per_node))
        raise UserError(
            f"{where}: cluster '{stem}' comes in {in_words} GPUs: say how many, "
            f"as in '{stem}-{example}'"
        )
    if size is not None:
        if not cluster.sizes:
            only = f"comes in one size only (num_gpus = {cluster.num_gpus}), not {size}"
            raise UserError(f"{where}: cluster '{stem}' {only}; write '{stem}'")
        if size not in cluster.sizes:
            raise UserError(f"{where}: cluster '{stem}' comes in {in_words} GPUs, not {size}")
        cluster = cluster.model_copy(update={"num_gpus": size})
    return cluster, accelerator


def _load_file(
    stem: str, files: Mapping[str, Path], changes: Mapping[str, object]
) -> tuple[ClusterSpec, AcceleratorSpec]:
    table = read_cluster_table(stem, files)
    table.setdefault("num_gpus", choose_num_gpus(table))
    cluster = validate(ClusterSpec, {**table, "name": stem}, str(files[stem]))
    cluster = change(cluster, changes, str(files[stem]))
    return cluster, load_accelerator(cluster.accelerator, str(files[stem]))


def name_size(kind: str, size: int) -> str:
    """Name so many GPUs of a kind of machines.

    >>> name_size("h100-sxm { gpus_per_tray = 4 }", 16)
    'h100-sxm-16 { gpus_per_tray = 4 }'
    """
    stem, changes = split_name(kind)
    return join_name(f"{stem}-{size}", changes)


def load_kind(name: str, where: str) -> tuple[ClusterSpec, AcceleratorSpec]:
    """Machines of one kind, whatever their number, and their accelerator; ``num_gpus`` is the
    smallest size that is listed.

    Raises:
        UserError: if there is no such file, or the name holds a number of GPUs.
    """
    files = available_files(_FAMILY)
    stem, changes = split_name(name)
    if stem not in files:
        sized = re.fullmatch(r"(.+)-([1-9][0-9]*)", stem)
        if sized and sized[1] in files:
            raise UserError(
                f"{where}: '{stem}' holds a number of GPUs, and here a kind of machines is asked "
                f'for: write cluster = "{sized[1]}" and max_gpus = {sized[2]}'
            )
        holding = [name for name in files if stem and stem.lower() in name]
        nearest = "choose one of: " + ", ".join(holding) if holding else did_you_mean(stem, files)
        raise UserError(f"{where}: unknown cluster '{stem}'; {nearest}")
    return _load_file(stem, files, changes)


def read_cluster_table(
    stem: str, files: Mapping[str, Path], below: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The table of a cluster file, completed from the one that it is ``based_on``."""
    path = files[stem]
    own = read_toml(path)
    base = own.get("based_on")
    if not isinstance(base, str):
        return own
    check_known(base, files, f"{path}: based_on names an unknown cluster file")
    chain = (*below, stem)
    if base in chain:
        raise UserError(f"{path}: based_on goes round in a circle: {' -> '.join((*chain, base))}")
    inherited = read_cluster_table(base, files, chain)
    if (
        "num_gpus" in own or "sizes" in own
    ):  # together they say what the file comes in, so they are replaced together
        inherited = {
            key: value for key, value in inherited.items() if key not in ("num_gpus", "sizes")
        }
    merged = {**inherited, **own}
    sources = [
        table["sources"] for table in (inherited, own) if isinstance(table.get("sources"), dict)
    ]
    if sources:
        merged["sources"] = {key: text for table in sources for key, text in table.items()}
    return merged


def _list_names(stem: str, table: Mapping[str, object]) -> list[str]:
    """The names that a file answers to; a wrong ``sizes`` is reported when the file is loaded."""
    sizes = table.get("sizes")
    if not isinstance(sizes, list) or not sizes:
        return [stem]
    bare = [stem] if "num_gpus" in table else []
    return bare + [f"{stem}-{size}" for size in sizes]


def choose_num_gpus(table: Mapping[str, object]) -> int:
    """GPUs where a name gives no size: the first size listed, else one node."""
    sizes = table.get("sizes")
    candidates = [*(sizes if isinstance(sizes, list) else []), table.get("gpus_per_node")]
    return next((n for n in candidates if type(n) is int), 1)


def _suggest(name: str, files: Mapping[str, Path]) -> str:
    """The names that hold what was written, or the nearest one, or each file with its sizes left
    open (all names are too many).
    """
    word = name.lower()
    patterns = [
        stem if stem in _list_names(stem, table) else f"{stem}-<GPUs>"
        for stem, table in _read_tables(files).items()
    ]
    holding = [pattern for pattern in patterns if word and word in pattern]
    near = difflib.get_close_matches(word, available_clusters(), n=1, cutoff=0.7)
    if near and not holding:
        return f"did you mean '{near[0]}'?"
    return "choose one of: " + ", ".join(holding or patterns) if patterns else "there are none"
