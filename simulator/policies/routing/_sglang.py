"""Files of SGLang's expert distribution recorder (``--expert-distribution-recorder-mode``), read
into one recording.

``stat`` writes counts of logical experts, ``[steps, layers, experts]``, already summed over ranks.
``per_pass`` and ``per_token`` write one record a forward pass, of one rank, in terms of *physical*
experts (slots), with the map from slot to expert; only ``per_token`` has the ids of every token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.errors import UserError
from simulator.base.text import shorten
from simulator.policies.routing._recording import Counts, Tokens

Phase = Literal["prefill", "decode"]

_FORWARD_MODES: dict[int, Phase] = {1: "prefill", 2: "decode"}
"""Phases of SGLang's ``ForwardMode.EXTEND`` and ``DECODE``; others (idle, mixed) belong to
neither."""

_FEW_VALUES = 1 << 23
"""Values that passes may have together however they are shared (64 MiB); beyond, a small file that
refers to one tensor a million times would become large."""


def read_sglang(saved: object, phase: Phase | None, where: str) -> Tokens | Counts:
    """Read a recording or counts from what the recorder saved.

    Args:
        saved: the object in the file, with numpy arrays for tensors.
        phase: use only passes of this phase; ``None`` = all.
        where: the file that errors name.

    Raises:
        UserError: if it is neither layout, or says nothing of the phase asked for.
    """
    if isinstance(saved, dict) and "logical_count" in saved:
        if phase is not None:
            raise UserError(
                f"{where}: phase = '{phase}' cannot be told apart: it holds sums over all passes"
            )
        with _naming(where):
            count = _numbers(saved["logical_count"]).astype(np.float64)
            return _recorded_layers(count if count.ndim == 2 else count.sum(axis=0))
    if (
        not isinstance(saved, dict)
        or not {"records", "last_physical_to_logical_map"} <= saved.keys()
    ):
        raise UserError(
            f"{where}: not written by SGLang's expert distribution recorder (neither "
            "logical_count nor records), and no tensor or table of ids"
        )
    with _naming(where):
        expert_LP = _experts_of_slots(saved["last_physical_to_logical_map"])
        records = [
            r
            for r in saved["records"]
            if phase is None or _FORWARD_MODES.get(r.get("forward_mode", 0)) == phase
        ]
        if not records:
            raise UserError(f"{where}: holds no {phase or 'recorded'} pass")
        if all("topk_ids_of_layer" in record for record in records):
            return _from_tokens(records, expert_LP)
        return _from_passes(records, expert_LP)


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn errors about a record's layout into one that names the recorder, within this context."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: a record is not as SGLang's recorder writes it: {shorten(repr(error), 200)}"
        ) from None


def _numbers(value: object) -> np.ndarray:
    """Read a tensor, or a list of whole numbers; lists of lists could refer to each other without
    end.
    """
    if isinstance(value, list) and all(isinstance(entry, int) for entry in value):
        return np.array(value, dtype=np.int64)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "buif":
        raise TypeError(f"{type(value).__name__} where a tensor of numbers is meant")
    return value


def _whole(value: object) -> Ints:
    return _numbers(value).astype(np.int64)


def _experts_of_slots(value: object) -> Ints:
    expert_LP = _whole(value)
    if expert_LP.ndim != 2 or expert_LP.max() >= expert_LP.shape[1]:
        raise ValueError("a map from slots to experts names more experts than it has slots")
    return expert_LP


def _of_each(records: list[dict[str, object]], key: str) -> list[Ints]:
    """Read one tensor of each record."""
    tensors = [_numbers(record[key]) for record in records]
    different = {id(tensor): tensor.size for tensor in tensors}
    if sum(tensor.size for tensor in tensors) > max(_FEW_VALUES, 2 * sum(different.values())):
        raise ValueError(f"passes share their {key}; write each one's own")
    return [_whole(tensor) for tensor in tensors]


def _recorded_layers(count_LE: Floats) -> Counts:
    """Leave out layers that counted nothing: the recorder numbers a model's dense layers too."""
    if count_LE.ndim != 2:
        raise ValueError(f"counts of the shape {list(count_LE.shape)}")
    return Counts(count_LE[count_LE.sum(axis=1) > 0][None])


def _from_passes(records: list[dict[str, object]], expert_LP: Ints) -> Counts:
    count_LP = np.sum(_of_each(records, "global_physical_count"), axis=0, dtype=np.float64)
    count_LE = np.zeros((len(expert_LP), int(expert_LP.max()) + 1))
    np.add.at(count_LE, (np.arange(len(expert_LP))[:, None], expert_LP), count_LP)
    return _recorded_layers(count_LE)


def _from_tokens(records: list[dict[str, object]], expert_LP: Ints) -> Tokens:
    parts: list[Ints] = []
    sequences: list[Ints] = []
    num_sequences = 0
    last_positions: Ints | None = None
    for record, slots_LTK in zip(records, _of_each(records, "topk_ids_of_layer"), strict=True):
        layer_L11 = np.arange(len(slots_LTK))[:, None, None]
        parts.append(np.where(slots_LTK >= 0, expert_LP[layer_L11, slots_LTK], -1))
        lengths = _whole(record.get("extend_seq_lens") or [])
        positions = _whole(record["positions"])
        is_next = (
            not len(lengths)
            and last_positions is not None
            and np.array_equal(positions, last_positions + 1)
        )
        if is_next and slots_LTK.shape[1] == len(sequences[-1]):
            sequences.append(sequences[-1])
            last_positions = positions
            continue
        # A decode pass (no lengths) has one token of each sequence; rows past the lengths are
        # padding, each on its own.
        sequence = _sequences(lengths, slots_LTK.shape[1])
        alone = np.arange(slots_LTK.shape[1] - len(sequence)) + len(lengths)
        sequences.append(np.concatenate([sequence, alone]) + num_sequences)
        num_sequences += len(lengths) + len(alone)
        last_positions = None if len(lengths) else positions
    sequence_T = np.concatenate(sequences)
    in_sequence = np.argsort(sequence_T, kind="stable")
    num_experts = int(expert_LP.max()) + 1
    return Tokens(
        np.concatenate(parts, axis=1)[:, in_sequence],
        sequence_T[in_sequence],
        num_experts=num_experts,
    )


def _sequences(lengths: Ints, num_tokens: int) -> Ints:
    """Number of the sequence of each token that the lengths cover, of ``num_tokens`` in all."""
    if (lengths < 0).any():
        raise ValueError("a sequence of negative length")
    ends = np.cumsum(np.minimum(lengths, num_tokens))
    covered = min(num_tokens, int(ends[-1])) if len(ends) else 0
    return np.searchsorted(ends, np.arange(covered), side="right")
