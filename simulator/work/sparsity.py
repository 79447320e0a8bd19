"""Natural sparsity of a batch, and bytes of sparse matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from simulator.config.model import ModelSpec
from simulator.config.sparsity import (
    FORMATS,
    INDEX_WIDTHS,
    INDEXED,
    SparseFormat,
    find_footprint,
    find_index_bits,
)
from simulator.work.flops import (
    WHOLE,
    count_decode_step,
    expert_bytes,
    matmul_flops_per_token,
    release_precision,
    used_expert_share,
)
from simulator.work.memory import weight_bytes


class IdleShares(NamedTuple):
    """Shares of a model that stay idle, each from 0 to 1; all are 0 in a dense model."""

    weights: float
    """Parameters that no token of the batch uses, of all."""
    compute: float
    """FLOPs that are saved, of those with every expert computed for every token; the batch does not
    matter."""
    read: float
    """Bytes of weights that are not read, of all that are stored, an embedding table left out."""


def count_idle(model: ModelSpec, num_tokens: int) -> IdleShares:
    """Count what a batch leaves idle where all experts are equally likely.

    >>> from simulator.config.model import load_model
    >>> mixtral = count_idle(load_model("mixtral-8x7b", "here"), 1)
    >>> [round(share, 3) for share in mixtral]
    [0.724, 0.726, 0.726]
    """
    moe = model.moe
    if moe is None:
        return IdleShares(0.0, 0.0, 0.0)
    unused = 1.0 - used_expert_share(moe.num_experts, moe.top_k, num_tokens)
    each = moe.num_expert_parameters(model.hidden_size)
    experts = model.num_moe_layers * moe.num_experts * each
    matrices = sum(one.num_parameters for one in moe.expert_linears(model.hidden_size))
    own = matmul_flops_per_token(model, with_head=True)
    skipped = 2.0 * model.num_moe_layers * (moe.num_experts - moe.top_k) * matrices
    step = count_decode_step(model, num_tokens, 1)
    stored = step.weight_bytes + expert_bytes(model) * unused
    return IdleShares(
        unused * experts / model.num_parameters,
        skipped / (own + skipped),
        1.0 - step.weight_bytes / stored,
    )


def stored_bytes_of(model: ModelSpec) -> float:
    """Bytes of all weights as released."""
    return weight_bytes(model, WHOLE, release_precision(model))


class Stored(NamedTuple):
    """A matrix in one format."""

    format: SparseFormat
    index_bits: int | None
    """Bits of a row's or a column's number; ``None`` where the format has none."""
    num_bytes: float
    """Bytes of the values that are kept and of their places."""
    share: float
    """Bytes over those of the whole matrix."""
    break_even_density: float
    """Share of the values below which the format takes fewer bytes than the whole matrix; 0 where
    it never does."""

    @property
    def name(self) -> str:
        """Format for people: ``csr, 16-bit``."""
        return self.format if self.index_bits is None else f"{self.format}, {self.index_bits}-bit"


def list_storage(rows: int, columns: int, value_bytes: float, num_kept: int) -> tuple[Stored, ...]:
    """List the formats that a matrix can be stored in, with every index width that reaches all of
    its rows and columns.

    Args:
        value_bytes: bytes of one value.
        num_kept: values that are not zero.

    >>> by_name = {one.name: one for one in list_storage(1024, 1024, 2.0, 1024 * 512)}
    >>> round(by_name["bitmask"].share, 4), round(by_name["csr, 16-bit"].share, 3)
    (0.5625, 1.002)
    """
    return tuple(_list_formats(rows, columns, value_bytes, num_kept))


def _list_formats(rows: int, columns: int, value_bytes: float, num_kept: int) -> Iterator[Stored]:
    places = rows * columns
    for name in FORMATS:
        least = find_index_bits(name, rows, columns)
        widths = [bits for bits in INDEX_WIDTHS if bits >= least] if name in INDEXED else [None]
        for bits in widths:
            footprint = find_footprint(name, rows, columns, bits or INDEX_WIDTHS[0])
            num_bytes = num_kept * value_bytes + footprint.index_bytes(num_kept)
            density = footprint.break_even_density(places, value_bytes)
            yield Stored(name, bits, num_bytes, num_bytes / (places * value_bytes), density)
