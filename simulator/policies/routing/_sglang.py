"""The files of SGLang's expert distribution recorder (``--expert-distribution-recorder-mode``),
read into one recording.

``stat`` writes counts of logical experts, ``[steps, layers, experts]``, already summed over ranks.
``per_pass`` and ``per_token`` write one record a forward pass, of one rank, in terms of *physical*
experts (slots), with the map from slot to expert; only ``per_token`` has the ids of every token.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.policies.routing._recording import Counts, Tokens

Phase = Literal["prefill", "decode"]

_FORWARD_MODES: dict[int, Phase] = {1: "prefill", 2: "decode"}
"""``ForwardMode.EXTEND`` and ``DECODE`` of SGLang; others (idle, mixed) belong to neither phase."""


def read_sglang(saved: Any, phase: Phase | None, where: str) -> Tokens | Counts:
    """A recording or counts from what the recorder saved.

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
        count = np.asarray(saved["logical_count"], dtype=np.float64)
        return _recorded_layers(count if count.ndim == 2 else count.sum(axis=0))
    if (
        not isinstance(saved, dict)
        or not {"records", "last_physical_to_logical_map"} <= saved.keys()
    ):
        raise UserError(
            f"{where}: not written by SGLang's expert distribution recorder (neither "
            "logical_count nor records)"
        )
    expert_LP = np.asarray(saved["last_physical_to_logical_map"], dtype=np.int64)
    records = [
        r
        for r in saved["records"]
        if phase is None or _FORWARD_MODES.get(r.get("forward_mode", 0)) == phase
    ]
    if not records:
        raise UserError(f"{where}: holds no {phase or 'recorded'} pass")
    has_tokens = all("topk_ids_of_layer" in record for record in records)
    try:
        return _from_tokens(records, expert_LP) if has_tokens else _from_passes(records, expert_LP)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: a record is not as SGLang's recorder writes it: {error!r}"
        ) from None


def _recorded_layers(count_LE: NDArray[np.float64]) -> Counts:
    """Leave out layers that counted nothing: the recorder numbers a model's dense layers too."""
    return Counts(count_LE[count_LE.sum(axis=1) > 0][None])


def _from_passes(records: list[dict[str, Any]], expert_LP: NDArray[np.int64]) -> Counts:
    count_LP = np.sum(
        [record["global_physical_count"] for record in records], axis=0, dtype=np.float64
    )
    count_LE = np.zeros((len(expert_LP), int(expert_LP.max()) + 1))
    np.add.at(count_LE, (np.arange(len(expert_LP))[:, None], expert_LP), count_LP)
    return _recorded_layers(count_LE)


def _from_tokens(records: list[dict[str, Any]], expert_LP: NDArray[np.int64]) -> Tokens:
    parts: list[NDArray[np.int64]] = []
    sequences: list[NDArray[np.int64]] = []
    num_sequences = 0
    last_positions: NDArray[np.int64] | None = None
    for record in records:
        slots_LTK = np.asarray(record["topk_ids_of_layer"], dtype=np.int64)
        layer_L11 = np.arange(len(slots_LTK))[:, None, None]
        parts.append(np.where(slots_LTK >= 0, expert_LP[layer_L11, slots_LTK], -1))
        lengths = record.get("extend_seq_lens") or []
        positions = np.asarray(record["positions"], dtype=np.int64)
        is_next = (
            not lengths
            and last_positions is not None
            and np.array_equal(positions, last_positions + 1)
        )
        if is_next and slots_LTK.shape[1] == len(sequences[-1]):
            sequences.append(sequences[-1])
            last_positions = positions
            continue
        # A decode pass (no lengths) has one token of each sequence; rows past the lengths are
        # padding, each on its own.
        sequence = np.repeat(np.arange(len(lengths)), lengths)[: slots_LTK.shape[1]]
        alone = np.arange(slots_LTK.shape[1] - len(sequence)) + len(lengths)
        sequences.append(np.concatenate([sequence, alone]) + num_sequences)
        num_sequences += len(lengths) + len(alone)
        last_positions = None if lengths else positions
    sequence_T = np.concatenate(sequences)
    in_sequence = np.argsort(sequence_T, kind="stable")
    num_experts = int(expert_LP.max()) + 1
    return Tokens(
        np.concatenate(parts, axis=1)[:, in_sequence],
        sequence_T[in_sequence],
        num_experts=num_experts,
    )
