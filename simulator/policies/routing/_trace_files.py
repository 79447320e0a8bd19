"""Files of recorded routing: per-token ids (``.npz``, ``.npy``, ``.pt``, ``.csv``, ``.parquet``,
``.jsonl``) or counts (``.npz``, ``.json``, ``.pt``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import load_arrays
from simulator.base.errors import UserError, did_you_mean
from simulator.base.reading import parse_json, read_bytes, refuse_damage
from simulator.config.ffns.moe import MoE
from simulator.policies.routing._id_table import is_id_table, read_id_table
from simulator.policies.routing._recording import Counts, Tokens
from simulator.policies.routing._responses import read_responses
from simulator.policies.routing._sglang import Phase, read_sglang
from simulator.policies.routing._torch_file import load_torch_file

_ARRAYS = (
    *("ids", "counts", "seq_lens", "domain", "phase", "layers", "num_experts"),
    "request_id",
)
"""Arrays of an archive that are read; others are not."""
_HIGHEST_ID = 2**15 - 1
"""Largest expert id: a router's choices have 16 bits; the largest published model has 1,024
experts."""
_WHAT = "a recording of expert choices"


def read_trace(
    path: Path,
    moe: MoE,
    num_layers: int,
    model: str | None,
    domain: str | None,
    phase: Phase | None,
) -> Tokens | Counts:
    """Read a recording, and the part of it that ``model``, ``domain`` and ``phase`` select.

    The model's shape (``moe``, ``num_layers``) tells which axis of an array is which, and which
    model of a table is meant when none is named.

    Raises:
        UserError: if the file cannot be read, or has nothing to select from or not what is
            selected.
    """
    where = str(path)
    if path.suffix == ".json":
        _refuse_choice(where, "a table of counts does not tell phases apart", phase=phase)
        with refuse_damage(where, _WHAT):
            return _from_json(path, moe, model, domain)
    _refuse_choice(where, "only a table of counts holds several models", model=model)
    with refuse_damage(where, _WHAT):
        if ".jsonl" in path.suffixes[-2:]:
            _refuse_choice(where, "responses do not tell phases apart", phase=phase)
            return _select_domain(read_responses(path, moe, num_layers), domain, where)
        if is_id_table(path):
            reason = "a table of ids does not tell them apart"
            _refuse_choice(where, reason, domain=domain, phase=phase)
            return read_id_table(path)
        if path.suffix == ".pt":
            saved = load_torch_file(path)
            arrays = _saved_arrays(saved)
            if not arrays:
                _refuse_choice(where, "this format does not tell domains apart", domain=domain)
                return read_sglang(saved, phase, where)
        elif path.suffix in (".npz", ".npy"):
            arrays = load_arrays(path, _ARRAYS)
        else:
            raise UserError(
                f"{where}: unknown kind of recording; "
                "use a .npz, .npy, .pt, .json, .jsonl, .csv or .parquet file"
            )
        if "counts" in arrays:
            return _counts_from_arrays(arrays, domain, phase, where)
        return _tokens_from_arrays(arrays, moe, num_layers, domain, phase, where)


def _refuse_choice(where: str, reason: str, **wanted: str | None) -> None:
    for key, value in wanted.items():
        if value is not None:
            raise UserError(f"{where}: {key} = '{value}' cannot be selected: {reason}")


def _saved_arrays(saved: Any) -> dict[str, NDArray[Any]]:
    """Find the arrays of ``torch.save(ids)`` or ``torch.save({"ids": ids, ...})``; none in what a
    recorder wrote.
    """
    if isinstance(saved, np.ndarray):
        return {"ids": saved}
    if not isinstance(saved, dict) or not {"ids", "counts"} & saved.keys():
        return {}
    return {
        name: np.asarray(saved[name])
        for name in _ARRAYS
        if isinstance(saved.get(name), np.ndarray | int)
    }


def _tokens_from_arrays(
    arrays: dict[str, NDArray[Any]],
    moe: MoE,
    num_layers: int,
    domain: str | None,
    phase: Phase | None,
    where: str,
) -> Tokens:
    ids = arrays.get("ids")
    if ids is None:
        raise UserError(
            f"{where}: missing array 'ids' (or 'counts'); it "
            f"holds: {', '.join(sorted(arrays)) or 'nothing'}"
        )
    if ids.ndim != 3 or ids.dtype.kind not in "iu":
        raise UserError(
            f"{where}: ids must be whole numbers [layers, tokens, top-k], "
            f"got {ids.dtype} {list(ids.shape)}"
        )
    if not ids.size:
        raise UserError(f"{where}: holds no recorded token: ids are {list(ids.shape)}")
    if int(ids.max()) > _HIGHEST_ID:
        raise UserError(f"{where}: names expert {ids.max()}; no model has so many")
    seq_lens = _lengths(arrays.get("seq_lens"), where)
    if _has_tokens_first(ids.shape, num_layers, seq_lens):
        ids = ids.transpose(1, 0, 2)
    num_tokens = ids.shape[1]
    if seq_lens is None:
        seq_lens = np.array([num_tokens])
    if seq_lens.sum() != num_tokens or seq_lens.max() > num_tokens:
        raise UserError(
            f"{where}: seq_lens sum to {seq_lens.sum()}, but ids has {num_tokens} tokens"
        )
    sequence_T = np.repeat(np.arange(len(seq_lens)), seq_lens)
    keep_T = np.ones(num_tokens, dtype=bool)
    for key, wanted in (("domain", domain), ("phase", phase)):
        if wanted is not None:
            keep_T &= _is_wanted(arrays, key, wanted, len(seq_lens), where)[sequence_T]
    return Tokens(
        ids[:, keep_T].astype(np.int64),
        sequence_T[keep_T],
        _layers(arrays.get("layers"), where),
        _num_experts(arrays.get("num_experts"), where),
        _texts(arrays, "domain", len(seq_lens), where),
        _texts(arrays, "request_id", len(seq_lens), where),
    )


def _texts(
    arrays: dict[str, NDArray[Any]], key: str, num_sequences: int, where: str
) -> tuple[str, ...]:
    """Read a text for each sequence, or one for all; none where the recording has no such array."""
    if key not in arrays:
        return ()
    values = arrays[key].astype(str)
    if values.size not in (1, num_sequences):
        raise UserError(
            f"{where}: {key} must be one text, or one for each of the {num_sequences} sequences, "
            f"got {values.size}"
        )
    return tuple(np.broadcast_to(values.reshape(-1), (num_sequences,)).tolist())


def _select_domain(tokens: Tokens, domain: str | None, where: str) -> Tokens:
    """Select the sequences of one kind of text; all without a choice."""
    if domain is None:
        return tokens
    if domain not in tokens.domain_Q:
        known = did_you_mean(domain, set(tokens.domain_Q)) if tokens.domain_Q else "it names none"
        raise UserError(f"{where}: no domain '{domain}'; {known}")
    is_wanted_Q = np.array([name == domain for name in tokens.domain_Q])
    keep_T = is_wanted_Q[tokens.sequence_T]
    return replace(tokens, ids_LTK=tokens.ids_LTK[:, keep_T], sequence_T=tokens.sequence_T[keep_T])


def _lengths(seq_lens: NDArray[Any] | None, where: str) -> NDArray[np.int64] | None:
    """Tokens of each sequence; ``None`` = all are of one."""
    if seq_lens is None:
        return None
    is_right = seq_lens.ndim == 1 and seq_lens.dtype.kind in "iu" and seq_lens.size
    if not is_right or seq_lens.min() < 0:
        raise UserError(f"{where}: seq_lens must be a list of whole numbers of at least 0")
    return seq_lens.astype(np.int64)


def _num_experts(value: NDArray[Any] | None, where: str) -> int | None:
    if value is None:
        return None
    if value.size != 1 or value.dtype.kind not in "iu":
        raise UserError(f"{where}: num_experts must be one whole number, got {list(value.shape)}")
    return int(value.item())


def _has_tokens_first(
    shape: tuple[int, ...], num_layers: int, seq_lens: NDArray[np.int64] | None
) -> bool:
    """Whether ids lie ``[T, L, K]``; ``[L, T, K]`` when nothing tells them apart."""
    first, second, _ = shape
    if seq_lens is not None and first != second:
        return first == int(seq_lens.sum())
    if num_layers in (first, second):
        return first != num_layers
    return first > second


def _is_wanted(
    arrays: dict[str, NDArray[Any]], key: str, wanted: str, num_sequences: int, where: str
) -> NDArray[np.bool_]:
    """Whether each sequence's ``key`` (one text for all, or one for each) is ``wanted``."""
    if key not in arrays:
        raise UserError(
            f"{where}: {key} = '{wanted}' cannot be selected: the recording has no array '{key}'"
        )
    values = _texts(arrays, key, num_sequences, where)
    is_wanted = np.array([value == wanted for value in values])
    if not is_wanted.any():
        raise UserError(f"{where}: no {key} '{wanted}'; {did_you_mean(wanted, set(values))}")
    return is_wanted


def _counts_from_arrays(
    arrays: dict[str, NDArray[Any]], domain: str | None, phase: Phase | None, where: str
) -> Counts:
    _refuse_choice(where, "a table of counts does not tell phases apart", phase=phase)
    counts = arrays["counts"]
    names = arrays["domain"].astype(str).reshape(-1).tolist() if "domain" in arrays else []
    if counts.ndim == 3 and len(names) != len(counts):
        raise UserError(
            f"{where}: counts [domains, layers, experts] need an array 'domain' "
            f"with {len(counts)} names"
        )
    table = dict(zip(names, counts, strict=True)) if counts.ndim == 3 else counts
    return Counts(_stack(table, domain, where), _layers(arrays.get("layers"), where))


def _from_json(path: Path, moe: MoE, model: str | None, domain: str | None) -> Counts:
    where = str(path)
    table = parse_json(read_bytes(path), where)
    if not isinstance(table, dict):
        raise UserError(f"{where}: must be a table with 'models', 'counts' or 'logical_count'")
    if "models" in table:
        counted: Any = _one_model(table["models"], moe, model, where)
    elif model is not None:
        raise UserError(f"{where}: model = '{model}' cannot be selected: the table has no 'models'")
    else:
        counted = table.get("counts", table.get("logical_count"))
    if counted is None:
        raise UserError(f"{where}: missing key 'models', 'counts' or 'logical_count'")
    return Counts(_stack(counted, domain, where), _layers(table.get("layers"), where))


def _one_model(models: Any, moe: MoE, model: str | None, where: str) -> Any:
    if not isinstance(models, dict):
        raise UserError(f"{where}: models must be a table of counts by the model's name")
    if model is not None:
        if model not in models:
            raise UserError(f"{where}: no model '{model}'; {did_you_mean(model, models)}")
        return models[model]
    num_experts = {name: _stack(counted, None, where).shape[2] for name, counted in models.items()}
    fitting = [name for name, number in num_experts.items() if number == moe.num_experts]
    if len(fitting) != 1:
        found = ", ".join(f"{name} ({number} experts)" for name, number in num_experts.items())
        raise UserError(
            f"{where}: set model to one of: {found}; the model has {moe.num_experts} experts"
        )
    return models[fitting[0]]


def _stack(counted: Any, domain: str | None, where: str) -> NDArray[np.float64]:
    """Stack ``count_DLE`` from one table ``[L, E]`` (or ``[steps, L, E]``, which is summed), or
    from one for each domain.
    """
    if isinstance(counted, dict):
        if domain is not None and domain not in counted:
            raise UserError(f"{where}: no domain '{domain}'; {did_you_mean(domain, counted)}")
        tables = [counted[domain]] if domain is not None else list(counted.values())
    elif domain is not None:
        raise UserError(
            f"{where}: domain = '{domain}' cannot be selected: the counts do not tell domains apart"
        )
    else:
        tables = [counted]
    try:
        arrays = [np.asarray(table, dtype=np.float64) for table in tables]
        count_DLE = np.stack([array.sum(axis=0) if array.ndim == 3 else array for array in arrays])
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{where}: counts must be numbers [layers, experts], the same shape for every domain"
        ) from None
    if count_DLE.ndim != 3:
        raise UserError(
            f"{where}: counts must be numbers [layers, experts], got "
            f"shape {list(count_DLE.shape[1:])}"
        )
    return count_DLE


def _layers(layers: Any, where: str) -> tuple[int, ...] | None:
    if layers is None:
        return None
    listed = layers.tolist() if isinstance(layers, np.ndarray) else layers
    if not isinstance(listed, list) or not all(type(layer) is int for layer in listed):
        raise UserError(f"{where}: layers must be a list of whole numbers, one a recorded layer")
    return tuple(listed)
