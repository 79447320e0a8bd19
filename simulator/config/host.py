"""A machine whose ranks are processes on shared cores, timed by ``moesim calibrate cpu`` through
the shards that run there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Floats
from simulator.base.data import find_file, load_once
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, ListOf, Policy, SomeOf, validate
from simulator.base.quantities import (
    IS_LABEL,
    Amount,
    BytesPerSecond,
    Cores,
    Factor,
    FlopsPerSecond,
    Label,
    MemoryBytes,
    Ranks,
    Ratio,
    Seconds,
    Share,
    Size,
)
from simulator.config.calibration import (
    CalibrationFile,
    EngineFit,
    Fit,
    PriceKey,
    list_calibration_files,
    read_calibration,
)
from simulator.config.dtypes import DType

Numbers = SomeOf[Amount]
Sizes = SomeOf[Size]


class MatrixTable(Fit):
    """Seconds of a matrix product, measured: by weights, by how much is read between two uses of
    them, by rows.
    """

    rows: Sizes
    """Numbers of rows that were timed."""
    sizes: Sizes
    """Numbers of weights of the matrices that were timed (``in x out``)."""
    working_bytes: Sizes
    """Bytes of weights that were read in turn: small sets stay in a cache, large ones come from
    memory each time."""
    seconds: ListOf[ListOf[Numbers]]
    """Seconds of each product, ``[working_bytes][sizes][rows]``."""

    def seconds_for(self, rows: Floats, size: float, working_bytes: float) -> Floats:
        """Seconds for every entry of ``rows``, interpolated between the logarithms; 0 for no rows.

        Beyond the largest table entries, time grows in proportion.
        """
        cube = np.log(np.array(self.seconds))
        by_size = _interpolate(
            np.log(np.array(self.working_bytes)), cube, np.log(max(working_bytes, 1.0)), clip=True
        )
        by_rows = _interpolate(np.log(np.array(self.sizes)), by_size, np.log(size), clip=False)
        known = np.log(np.array(self.rows))
        wanted = np.log(np.maximum(rows, 1.0))
        found = np.exp(np.interp(wanted, known, by_rows))
        found = np.where(wanted > known[-1], found * np.exp(wanted - known[-1]), found)
        return np.where(rows > 0, found, 0.0)


def _interpolate(points: Floats, values: Floats, at: float, *, clip: bool) -> Floats:
    """Values along the first axis, linear between ``points``; beyond the last one in proportion,
    unless clipped.
    """
    last = len(points) - 1
    if last == 0 or at <= points[0]:
        return np.asarray(values[0])
    if at >= points[-1]:
        return values[-1] if clip else np.asarray(values[-1] + (at - points[-1]))
    upper = int(np.searchsorted(points, at))
    share = (at - points[upper - 1]) / (points[upper] - points[upper - 1])
    return np.asarray(values[upper - 1] * (1 - share) + values[upper] * share)


class Steps(Fit):
    """A duration as a sum of a constant and of amounts times seconds each, fitted by least squares
    of the relative error.
    """

    seconds: dict[str, Seconds]
    """Seconds of one unit of each thing that is counted; ``call`` is the constant."""

    def total(self, **amounts: NDArray[np.number]) -> Floats:
        """Seconds for given amounts."""
        total = np.asarray(
            sum(self.seconds[name] * np.asarray(amount) for name, amount in amounts.items()),
            dtype=np.float64,
        )
        return np.asarray(total + self.seconds["call"])


class ExchangeTable(Fit):
    """Seconds of a collective, measured by the bytes of its busiest rank; linear between them."""

    num_bytes: Numbers
    """Bytes of the busiest rank in each exchange that was timed."""
    seconds: Numbers
    """Seconds of each exchange, from the last rank's coming."""
    stagger_s: Seconds = 0.0
    """Seconds that the mean rank waits for the last one: ranks with equal work do not come at
    once."""

    def seconds_for(self, num_bytes: Floats) -> Floats:
        """Seconds beyond those of an empty exchange."""
        known, seconds = np.array(self.num_bytes), np.array(self.seconds)
        found = np.interp(num_bytes, known, seconds)
        slope = (seconds[-1] - seconds[-2]) / (known[-1] - known[-2]) if len(known) > 1 else 0.0
        return np.asarray(
            found + np.maximum(num_bytes - known[-1], 0.0) * max(slope, 0.0) - seconds[0]
        )

    @property
    def latency_s(self) -> float:
        """An exchange of nothing."""
        return self.seconds[0]


class TrainingTables(Fit):
    """Passes of a training step over a forward pass of the same blocks that keeps nothing, and the
    optimizer, measured through the shards that train.
    """

    forward: dict[str, Factor]
    """Ratio of the seconds of a forward pass that keeps its activations, by phase: ``attention``,
    ``dense``, ``experts``."""
    backward: dict[str, Factor]
    """Ratio of the seconds of a backward pass, for gradients of inputs and of weights, by phase."""
    optimizer: Steps
    """AdamW on one rank, seconds by ``parameters``."""


class KernelTables(Frozen):
    """Times of one rank's computation while every core is busy with ranks like it."""

    num_threads: Cores
    """Threads of each rank."""
    reference_s: Seconds | None = None
    """Seconds of the reference products at which the tables hold; absent = not measured."""
    matrix: MatrixTable
    """Matrix products."""
    mixer: Steps
    """Attention without its matrices and without reading the context: norm, rotation, residual.
    Seconds by ``values`` (rows x hidden size) and ``heads`` (rows x width of queries, keys and
    values)."""
    prompt: Steps
    """Attention over the context of prompts, seconds by ``flops``."""
    decode: Steps
    """Attention over the context in decode, seconds by ``bytes``."""
    ffn: Steps
    """Dense block without its matrices, seconds by ``values`` (rows x hidden size) and ``hidden``
    (rows x width)."""
    router: Steps
    """Norm, scores and weights of the chosen experts without the router's matrix, seconds by
    ``values`` (rows x hidden size) and ``scores`` (rows x experts)."""
    experts: Steps
    """Experts without their matrices, seconds by ``touched`` (experts with rows), ``values`` and
    ``hidden`` (rows x width)."""
    pack: Steps
    """Choosing ranks and packing rows, seconds by ``choices`` (rows x top-k) and ``bytes``."""
    unpack: Steps
    """Adding up what came back, seconds by ``bytes``."""
    training: TrainingTables | None = None
    """Passes of training steps; absent = not measured."""


class Collectives(Frozen):
    """Times of collectives of ``num_ranks`` ranks on this machine."""

    num_ranks: Ranks
    """Ranks that took part."""
    dispatch: ExchangeTable
    """Exchange of tokens to their experts."""
    combine: ExchangeTable
    """Exchange of results back to their tokens."""
    all_reduce: ExchangeTable
    """Sum over all ranks."""


class Pruned(Fit):
    """A pruned matrix against the whole one of the same shape: its time over the whole one's, by
    rows.
    """

    pruning: str
    """Kind of pruning, as ``[pruning]`` names it."""
    sparsity: Ratio
    """Share of the weights that are gone."""
    rows: Sizes
    """Numbers of rows that were timed."""
    ratio: Numbers
    """Ratio of the pruned product's time to the whole one's, for each number of rows."""


class Storage(Fit):
    """Reads of single experts from a file on this machine's disk, past the system's cache."""

    bytes_per_s: BytesPerSecond
    """Bytes per second of reads of some megabytes, one after the other."""
    free_bytes: MemoryBytes
    """Bytes that were free in the folder for temporary files."""


class HostCalibration(Frozen):
    """Times of the shards on one machine, in one file."""

    title: Label
    """Name of the calibration, for reports."""
    machine: Label
    """Machine that was measured, processor and cores. A run on another machine says so."""
    num_cores: Cores
    """Cores of the machine."""
    dtype: DType
    """Number format that was timed."""
    engine: EngineFit
    """Time of the runtime itself: ``step_s`` is starting a step on every rank and hearing of its
    end, seconds."""
    kernels: SomeOf[KernelTables]
    """Kernels by threads of a rank, fewest ranks (most threads) first."""
    collectives: ListOf[Collectives] = ()
    """Collectives by number of ranks."""
    pruned: ListOf[Pruned] = ()
    """Products with pruned matrices against whole ones."""
    storage: Storage | None = None
    """Reads of experts from the disk; absent = not measured."""
    others_share: Annotated[Ratio | None, IS_LABEL] = None
    """Share of the cores that other programs took while it was measured; absent = not known."""
    notes: Label = ""
    """Remarks in free text."""

    @property
    def machine_below(self) -> HostSpec | None:
        """Memory below the ranks' own: the disk, where it was measured."""
        if self.storage is None:
            return None
        tier = MemoryTier(
            memory_bytes=self.storage.free_bytes, bytes_per_s=self.storage.bytes_per_s, achieved=1.0
        )
        return HostSpec(storage=tier)

    compute: ClassVar[Policy] = {"kind": "host"}
    communication: ClassVar[Policy] = {"kind": "host"}
    dispatch: ClassVar[Policy] = {"kind": "per_node"}

    def choose_tables(self, num_ranks: int, working_bytes: float) -> HostRates:
        """Choose the tables for one plan.

        Args:
            num_ranks: on the machine.
            working_bytes: weights that a step of all of them reads.
        """
        threads = max(1, self.num_cores // num_ranks)
        tables = min(self.kernels, key=lambda tables: abs(tables.num_threads - threads))
        return HostRates(self, tables, num_ranks, working_bytes)


@dataclass(frozen=True)
class HostRates:
    """A host's calibration for so many ranks."""

    host: HostCalibration
    tables: KernelTables
    num_ranks: int
    working_bytes: float
    pools: ClassVar[None] = None
    """None: pools of prefill and decode are not timed on a host."""

    @property
    def engine(self) -> EngineFit:
        """The runtime's own time."""
        return self.host.engine

    @property
    def shared_cores(self) -> int | None:
        """Cores that the ranks share, where there are fewer than ranks."""
        return self.host.num_cores if self.num_ranks > self.host.num_cores else None

    @property
    def training(self) -> TrainingTables:
        """Passes of training steps.

        Raises:
            UserError: if they were not measured.
        """
        if self.tables.training is None:
            raise UserError(
                f"the calibration of '{self.host.machine}' has no times of training; measure them "
                "with moesim calibrate cpu"
            )
        return self.tables.training

    @property
    def collectives(self) -> Collectives:
        """Collectives over all ranks.

        Raises:
            UserError: if so many ranks were not measured.
        """
        found = [tables for tables in self.host.collectives if tables.num_ranks == self.num_ranks]
        if not found:
            known = ", ".join(str(tables.num_ranks) for tables in self.host.collectives) or "none"
            raise UserError(
                f"the calibration of '{self.host.machine}' has no collectives of {self.num_ranks} "
                f"ranks (it has {known}); measure them with moesim calibrate cpu "
                f"--ranks {self.num_ranks}"
            )
        return found[0]

    def list_fits(self, key: PriceKey) -> dict[str, Fit]:
        """The entries that a plan's prices use, by what they price.

        Raises:
            UserError: if collectives of so many ranks were not measured.
        """
        tables, pruning = self.tables, key.pruning
        found: dict[str, Fit] = {f"{self.host.dtype} matrices": tables.matrix}
        if pruning is not None:
            measured = [entry for entry in self.host.pruned if entry.pruning == pruning.kind]
            nearest = min(
                measured, key=lambda entry: abs(entry.sparsity - pruning.sparsity), default=None
            )
            found |= {} if nearest is None else {"pruned matrices": nearest}
        if key.experts is not None:
            found |= {"router": tables.router, f"{self.host.dtype} experts": tables.experts}
        if key.travels:
            found |= {
                "packing": tables.pack,
                "dispatch": self.collectives.dispatch,
                "combine": self.collectives.combine,
            }
        if key.is_split:
            found["all-reduce"] = self.collectives.all_reduce
        found |= {"attention over prompts": tables.prompt, "attention in decode": tables.decode}
        found["engine overhead"] = self.engine
        return found


def load_any_calibration(name: str, where: str) -> CalibrationFile | HostCalibration:
    """The calibration called ``name``: of an accelerator family, or of a machine that ``moesim
    calibrate`` timed.

    Raises:
        UserError: if there is none, or its file is wrong.
    """

    def load() -> CalibrationFile | HostCalibration:
        path = find_file("cluster_configs/calibration", name, where)
        return _load(path, *_list_states(path))

    return load_once(("calibration", name), load)


def _list_states(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of a calibration's files: while these stay, so does what is in them."""
    return tuple(
        (str(part), part.stat().st_mtime_ns, part.stat().st_size)
        for part in list_calibration_files(path)
    )


@lru_cache(maxsize=32)
def _load(path: Path, *state: tuple[str, int, int]) -> CalibrationFile | HostCalibration:
    """Read once: it takes a tenth of a second, and a sweep over deployments asks thousands of
    times.
    """
    table = read_calibration(path)
    if "kernels" in table:
        return validate(HostCalibration, table, str(path))
    return validate(CalibrationFile, table, str(path))


# The machine around an accelerator: memory and storage below the accelerator's own, and the
# processor that can compute there.


TierName = Literal["dram", "storage"]
"""Memory below the accelerator's own."""


class MemoryTier(Frozen):
    """Memory that experts lie in and are read from."""

    memory_bytes: MemoryBytes
    """Bytes that experts may take."""
    bytes_per_s: BytesPerSecond
    """Peak rate of reading, bytes per second."""
    achieved: Share
    """Share of the peak that reading whole experts achieves."""

    @property
    def read_bytes_per_s(self) -> float:
        """Rate of reading whole experts, bytes per second."""
        return self.bytes_per_s * self.achieved


class HostLink(Frozen):
    """Links between the memory of a machine and one accelerator's own."""

    bytes_per_s: BytesPerSecond
    """Peak rate towards the accelerator, bytes per second."""
    latency_s: Seconds
    """Seconds until the first byte arrives: a copy is started and waited for."""
    achieved: Share
    """Share of the peak that copies of whole experts achieve."""

    @property
    def copy_bytes_per_s(self) -> float:
        """Rate of copies of whole experts, bytes per second."""
        return self.bytes_per_s * self.achieved


class Processor(Frozen):
    """Cores of a machine, which compute experts where they lie."""

    flops_per_s: FlopsPerSecond
    """Peak rate of products in the format that expert kernels multiply in, FLOP/s."""
    achieved: Share
    """Share of the peak that large products achieve."""


class HostSpec(Frozen):
    """Memory below an accelerator's own. A machine whose processor and GPU share one memory has
    ``storage`` alone.
    """

    dram: MemoryTier | None = None
    """Main memory; absent = it is the accelerator's own (unified memory)."""
    storage: MemoryTier | None = None
    """Solid-state disk or flash; absent = experts are not read from it."""
    link: HostLink | None = None
    """Links from main memory to each accelerator; absent = memory is unified."""
    processor: Processor | None = None
    """Cores that can compute experts; absent = they compute none."""

    @property
    def tiers(self) -> dict[TierName, MemoryTier]:
        """Memories that experts may lie in, by name, the fastest first."""
        named: dict[TierName, MemoryTier | None] = {"dram": self.dram, "storage": self.storage}
        return {name: tier for name, tier in named.items() if tier is not None}

    def with_speed(self, factor: float) -> HostSpec:
        """The machine with all of it so many times as fast."""
        link, processor = self.link, self.processor
        tiers: dict[str, MemoryTier] = {
            name: tier.model_copy(update={"bytes_per_s": tier.bytes_per_s * factor})
            for name, tier in self.tiers.items()
        }
        if link is not None:
            rates = {"bytes_per_s": link.bytes_per_s * factor, "latency_s": link.latency_s / factor}
            link = link.model_copy(update=rates)
        if processor is not None:
            rates = {"flops_per_s": processor.flops_per_s * factor}
            processor = processor.model_copy(update=rates)
        return self.model_copy(update={**tiers, "link": link, "processor": processor})
