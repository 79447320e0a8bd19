"""Achieved shares of the peaks: data files in ``cluster_configs/calibration``, fitted on
measurements or assumed, and said to be.

A calibration is ``NAME.toml``, and beside it a folder ``NAME/`` whose files hold one table each
(``NAME/gemm.toml`` is ``gemm``): what a command fits is written there, and what a person wrote
stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from simulator.base.data import find_file
from simulator.base.errors import UserError, did_you_mean
from simulator.base.frozen import Frozen, Policy, validate
from simulator.base.home import fetch_files
from simulator.base.quantities import Label
from simulator.base.reading import read_toml
from simulator.config.accelerator import Speeds
from simulator.config.calibration.communication import CollectiveFit, ExchangeFit, ProtocolFit
from simulator.config.calibration.engine import (
    OWN_TIMES,
    DisaggregationFit,
    EngineFit,
    find_engine_fit,
)
from simulator.config.calibration.fit import Fit, Kind, PriceKey
from simulator.config.calibration.kernels import AttentionFit, GemmFit, GroupedGemmFit, PrunedFit
from simulator.config.sparsity import choose_dense

__all__ = [
    "AttentionFit",
    "Calibration",
    "CalibrationFile",
    "CollectiveFit",
    "DisaggregationFit",
    "EngineFit",
    "ExchangeFit",
    "Fit",
    "GemmFit",
    "GroupedGemmFit",
    "Kind",
    "PriceKey",
    "ProtocolFit",
    "PrunedFit",
    "load_calibration",
]

AnyFit = TypeVar("AnyFit")
_OPERATIONS: tuple[Literal["dispatch", "combine"], ...] = ("dispatch", "combine")
_LIKE = {"fp8_block": "fp8", "fp16": "bf16", "mxfp4_mxfp8": "mxfp4"}
"""Formats that are priced as another one where they have no entry."""
FEW_EXPERTS = 16
"""Experts of a layer up to which entries named ``<dtype>_few`` are for it."""
ANY = "any"
"""In the place of a serving engine: where an engine has no entry of its own."""
_BEHIND = {
    ANY: {"low_latency": "sglang-deepep-decode", "normal": "sglang-deepep-prefill"},
    "trtllm": {"low_latency": "trtllm-wide-ep", "normal": "trtllm-wide-ep"},
}
"""Entries that were timed behind an exchange, by its kernels: DeepGEMM's masked and contiguous
kernels, which SGLang and vLLM share, and TensorRT-LLM's."""

_OF_KERNELS = ("gemm", "grouped_gemm", "attention", "expanded", "pruned")
"""Tables whose seconds are what kernels take beside memory and arithmetic."""
_STARTS = ("latency_", "scale_out_latency_", "notify_")
"""Beginnings of an exchange's keys that are seconds before its first byte."""


class Calibration(Frozen):
    """Achieved rates and overheads of one engine on one accelerator family."""

    compute: ClassVar[Policy] = {"kind": "roofline"}
    communication: ClassVar[Policy] = {"kind": "alpha_beta"}
    dispatch: ClassVar[Policy] = {"kind": "deepep_auto"}
    shared_cores: ClassVar[int | None] = None

    title: Label
    """Name of the calibration, for reports."""
    gemm: dict[str, GemmFit]
    """Dense matrices by weight dtype; ``other`` for dtypes that have no entry."""
    grouped_gemm: dict[str, GroupedGemmFit]
    """Routed experts by weight dtype; ``other`` for dtypes that have no entry."""
    attention: dict[str, AttentionFit]
    """``prefill`` and ``decode``; names that begin with ``mla_`` for latent attention and end with
    a cache's format, such as ``mla_decode_fp8``, where those kernels differ."""
    expanded: dict[str, AttentionFit] = {}
    """Kernels for prompts by the names of ``attention``, where the engine's kernel that was timed
    absorbs: in serving, engines expand the keys and values of prompts (SGLang's
    ``MHA_CHUNKED_KV``), and another engine's kernel for that stands in."""
    exchange: dict[str, dict[Literal["dispatch", "combine"], ExchangeFit]]
    """Tokens to experts and back, by the kernels that do it."""
    collective: dict[str, CollectiveFit]
    """NCCL's ``all_reduce``, ``all_gather``, ``reduce_scatter`` and ``alltoall``; the engine's own
    ``custom_all_reduce``."""
    engine: EngineFit
    """Time of the serving engine itself."""
    pools: DisaggregationFit | None = None
    """Further time of prefill and decode in pools of their own; ``None`` where nothing is known."""
    pruned: dict[str, dict[str, PrunedFit]] = {}
    """Pruned matrices by how they are stored (``two_four``, ``csr``, ``tiled_csl``, ``bitmap``),
    then weight dtype."""

    def pruned_matrices(self, kernels: str, dtype: str) -> PrunedFit | None:
        """The fit for pruned matrices stored for ``kernels``; ``None`` where nobody has measured
        such products.
        """
        return find_pruned_fit(self.pruned, kernels, dtype)

    def matrices(self, dtype: str) -> GemmFit:
        """Find the fit for dense matrices of ``dtype``, or the one that the file names for others
        (its ``kind`` says "assumed").
        """
        return _find_entry(self.gemm, dtype)

    def experts(
        self, dtype: str, num_experts: int | None = None, kernels: str | None = None
    ) -> GroupedGemmFit:
        """Find the fit for routed experts of ``dtype``, which engines run by other kernels where an
        exchange brings their rows, or they are few.

        Entries named ``<dtype>_<kernels>`` hold behind an exchange, ``<dtype>_few`` for layers of
        few experts.
        """
        behind = self.grouped_gemm.get(f"{dtype}_{kernels}")
        few = self.grouped_gemm.get(f"{dtype}_few")
        if behind is None and num_experts is not None and num_experts <= FEW_EXPERTS:
            behind = few
        return behind or _find_entry(self.grouped_gemm, dtype)

    def attention_fit(
        self,
        phase: str,
        kv_dtype: str,
        *,
        is_latent: bool,
        computed: str = "",
        is_served: bool = False,
    ) -> AttentionFit:
        """The fit for attention kernels that read a cache of ``kv_dtype``.

        One with fewer words in its name stands in where there is none: ``prefill`` for
        ``mla_prefill_fp8``.

        Args:
            computed: a format that the kernel computes in, other than the usual one.
            is_served: as the engine computes it in serving, not as its kernels were timed.
        """
        suffix = f"_{_LIKE.get(kv_dtype, kv_dtype)}"
        latent = (
            [f"mla_{phase}{suffix}_{computed}", f"mla_{phase}{suffix}", f"mla_{phase}"]
            if is_latent
            else []
        )
        found = next(
            name for name in (*latent, f"{phase}{suffix}", phase) if name in self.attention
        )
        return (
            self.expanded.get(found, self.attention[found]) if is_served else self.attention[found]
        )

    def with_speeds(self, speeds: Speeds) -> Calibration:
        """The calibration with faster kernels, exchanges that start sooner, and a faster engine;
        rates are shares of peaks, which are faster themselves.
        """
        if speeds.kernels == speeds.latency == speeds.engine == 1.0:
            return self
        own: dict[str, Callable[[str], float]] = {
            **dict.fromkeys(_OF_KERNELS, lambda key: speeds.kernels),
            "collective": lambda key: speeds.latency,
            "exchange": lambda key: speeds.latency if key.startswith(_STARTS) else speeds.kernels,
            "engine": lambda key: speeds.kernels if key == "layer_s" else speeds.engine,
        }
        return self.model_copy(
            update={
                name: _divide_seconds(getattr(self, name), factor) for name, factor in own.items()
            }
        )

    def list_fits(self, key: PriceKey) -> dict[str, Fit]:
        """The entries that a plan's prices use, by what they price."""
        found: dict[str, Fit] = {f"{key.weights} matrices": self.matrices(key.weights)}
        pruning = key.pruning
        dtype = key.weights if choose_dense(pruning) else key.experts or key.weights
        pruned = None if pruning is None else self.pruned_matrices(pruning.kernels, dtype)
        if pruned is not None:
            found["pruned matrices"] = pruned
        if key.experts is not None:
            few, *many = (
                self.experts(key.experts, key.num_experts, kernels)
                for kernels in (key.kernels if key.travels else (None,))
            )
            found[f"{key.experts} experts"] = few
            found |= {f"{key.experts} experts of many tokens": fit for fit in many if fit != few}
        for number, name in enumerate(key.kernels if key.travels else ()):
            more = " of many tokens" if number else ""
            if name in self.exchange:
                found |= {
                    f"{operation}{more}": self.exchange[name][operation]
                    for operation in _OPERATIONS
                }
            elif {"all_gather", "reduce_scatter"} <= set(self.collective):
                found |= {
                    f"dispatch{more}": self.collective["all_gather"],
                    f"combine{more}": self.collective["reduce_scatter"],
                }
        if key.is_split:
            own = self.collective.get("custom_all_reduce")
            found |= {"all-reduce": own} if own else {}
            found["all-reduce of large messages" if own else "all-reduce"] = self.collective[
                "all_reduce"
            ]
        for what, phase in (
            ("attention over prompts", "prefill"),
            ("attention in decode", "decode"),
        ):
            found[what] = self.attention_fit(
                phase, key.cache, is_latent=key.is_latent, is_served=True
            )
        found["engine overhead"] = self.engine
        return found


_ENGINES = ("vllm", "sglang", "trtllm")


class CalibrationFile(Frozen):
    """Achieved rates and overheads on one accelerator family, for all engines: each table has an
    entry ``any``, and one for each engine that differs.

    A table may be a file of the folder of the same name beside it instead.
    """

    compute: ClassVar[Policy] = Calibration.compute
    communication: ClassVar[Policy] = Calibration.communication
    dispatch: ClassVar[Policy] = Calibration.dispatch

    title: Label
    """Name of the calibration, for reports."""
    engine_of: str | None = None
    """Name of another calibration whose times of engines hold here, as assumptions, where this one
    has none; absent = none."""
    gemm: dict[str, dict[str, GemmFit]]
    """Dense matrix products by engine (``any`` for all that have no entry), then weight dtype."""
    grouped_gemm: dict[str, dict[str, GroupedGemmFit]]
    """Products of routed experts by engine, then weight dtype."""
    attention: dict[str, dict[str, AttentionFit]]
    """Attention kernels by engine, then name: ``prefill`` and ``decode``, with ``mla_`` before and
    a cache's format behind it where those kernels differ."""
    exchange: dict[str, dict[Literal["dispatch", "combine"], ExchangeFit]]
    """Kernels that carry tokens to experts and back, by name (``low_latency``, ``normal``, ...);
    engines share them."""
    collective: dict[str, dict[str, CollectiveFit]]
    """Collectives by engine, then operation: ``all_reduce``, ``all_gather``, ``reduce_scatter``,
    ``alltoall``, ``custom_all_reduce``."""
    engine: dict[str, EngineFit]
    """Time of serving engines themselves, by name or ``name@release``."""
    disaggregation: dict[str, DisaggregationFit] = {}
    """Further time of prefill and decode in pools of their own, by engine; empty where nothing is
    known."""
    pruned: dict[str, dict[str, PrunedFit]] = {}
    """Pruned matrices by how they are stored, then weight dtype; engines share the kernels. Kernels
    without an entry were measured by nobody."""

    def pools(self, engine: str) -> DisaggregationFit | None:
        """Find the entry for an engine's pools of prefill and decode, or for any engine's."""
        return self.disaggregation.get(engine, self.disaggregation.get(ANY))

    def check_engine(self, engine: str, where: str) -> None:
        """Refuse an engine that nothing is known of, which would be priced as any.

        Raises:
            UserError: naming those that are known.
        """
        known = _list_engines(self)
        if engine.partition("@")[0] not in known | {ANY}:
            raise UserError(
                f"{where}: unknown engine '{engine}'; {did_you_mean(engine, sorted(known))}"
            )

    def choose_engine(self, engine: str) -> Calibration:
        """Choose an engine's own entries, and those of any engine where it has none.

        Args:
            engine: a name, or ``name@version``; only the engine's own time differs by version.
        """
        named, engine = engine, engine.partition("@")[0]
        return Calibration(
            title=self.title,
            gemm=_merge_any(self.gemm, engine),
            grouped_gemm=_merge_any(self.grouped_gemm, engine)
            | _list_behind_exchanges(self.grouped_gemm, engine),
            attention=_merge_any(self.attention, engine),
            expanded=_list_expanding(self.attention, engine),
            exchange=self.exchange,
            collective=_merge_any(self.collective, engine),
            engine=find_engine_fit(self.engine, named, self.engine[ANY]),
            pools=self.pools(engine),
            pruned=self.pruned,
        )


def _divide_seconds(found: Any, factor: Callable[[str], float]) -> Any:
    """Divide all seconds in a table of fits.

    Args:
        factor: divisor by the key of the seconds.
    """
    if isinstance(found, Mapping):
        return {name: _divide_seconds(entry, factor) for name, entry in found.items()}
    if not isinstance(found, Frozen):
        return found
    entries = {name: getattr(found, name) for name in type(found).model_fields}
    return found.model_copy(
        update={
            name: entry / factor(name) if name.endswith("_s") else _divide_seconds(entry, factor)
            for name, entry in entries.items()
        }
    )


def _list_engines(file: CalibrationFile) -> set[str]:
    tables: tuple[Mapping[str, object], ...] = (
        file.gemm,
        file.grouped_gemm,
        file.attention,
        file.collective,
        file.engine,
    )
    named = {key.partition("@")[0] for table in tables for key in table} - {ANY}
    # An engine's kernels behind an exchange have entries of their own, which are named after it.
    return {
        name for name in named if not name.startswith(tuple(f"{engine}-" for engine in _ENGINES))
    } | set(_ENGINES)


def _list_expanding(
    table: dict[str, dict[str, AttentionFit]], engine: str
) -> dict[str, AttentionFit]:
    """Any engine's kernels that expand keys and values, for those of ``engine`` that do not."""
    own, others = table.get(engine, {}), table[ANY]
    return {
        name: others[name]
        for name, fit in own.items()
        if fit.absorbs and name in others and not others[name].absorbs
    }


def _list_behind_exchanges(table: dict[str, dict[str, AnyFit]], engine: str) -> dict[str, AnyFit]:
    """Entries for experts whose rows an exchange brings, named by its kernels."""
    found: dict[str, AnyFit] = {}
    for kernels, measured_as in _BEHIND.get(engine, _BEHIND[ANY]).items():
        found |= {f"{dtype}_{kernels}": fit for dtype, fit in table.get(measured_as, {}).items()}
    return found


def _find_entry(table: dict[str, AnyFit], dtype: str) -> AnyFit:
    return next(table[name] for name in (dtype, _LIKE.get(dtype, dtype), "other") if name in table)


def find_pruned_fit(
    table: dict[str, dict[str, PrunedFit]], kernels: str, dtype: str
) -> PrunedFit | None:
    """Find the fit for pruned matrices stored for ``kernels``; ``None`` where nobody has measured
    such products.
    """
    return table.get(kernels, {}).get("bf16" if dtype == "fp16" else dtype)


def _merge_any(table: dict[str, dict[str, AnyFit]], engine: str) -> dict[str, AnyFit]:
    return {**table[ANY], **table.get(engine, {})}


def list_calibration_files(path: Path) -> list[Path]:
    """The files of a calibration: its own, and those of its folder."""
    return [path, *sorted(fetch_files(path.with_suffix(""), ".toml").glob("*.toml"))]


def read_calibration(path: Path) -> dict[str, Any]:
    """The whole table of a calibration, its folder included.

    Raises:
        UserError: if a file is no TOML, or the same table is in both.
    """
    table = _read_files(path)
    if isinstance(table.get("engine_of"), str):
        table["engine"] = _carry_engines(path, table["engine_of"]) | table.get("engine", {})
    return table


def _read_files(path: Path) -> dict[str, Any]:
    table = read_toml(path)
    for part in list_calibration_files(path)[1:]:
        if part.stem in table:
            raise UserError(f"{path}: [{part.stem}] is in {part} too; keep one")
        table[part.stem] = read_toml(part)
    return table


def _carry_engines(path: Path, name: str) -> dict[str, object]:
    """The engines' own times on the GPUs of another calibration, as assumptions of this one."""
    other = _read_files(find_file("cluster_configs/calibration", name, f"{path}: engine_of"))
    return {
        key: {part: entry[part] for part in OWN_TIMES if part in entry}
        | {
            "kind": "assumed",
            "source": f"as on {other['title']}, since an engine's own time is its host's; there: "
            f"{entry['source']}",
        }
        for key, entry in other.get("engine", {}).items()
    }


def load_calibration(name: str, where: str) -> CalibrationFile:
    """The calibration of an accelerator family called ``name``.

    Raises:
        UserError: if there is none, or its file is wrong.
    """
    path = find_file("cluster_configs/calibration", name, where)
    return validate(CalibrationFile, read_calibration(path), str(path))
