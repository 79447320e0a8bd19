"""Files of recorded routing: per-token ids (``.npz``, ``.npy``, ``.pt``, ``.csv``, ``.parquet``,
``.jsonl``) or counts (``.npz``, ``.json``, ``.pt``).

Tables of ids, CSV (also packed) or Parquet, have a row for each expert that a token chose in a
layer, in any order; every token has as many rows in every layer, the model's top-k.

| column | |
|---|---|
| ``token`` | number of the token, in the order of its sequence |
| ``layer`` | number of the MoE layer, from 0 |
| ``expert`` | number of the chosen expert, from 0; below 0 = padding |
| ``sequence`` | number of the token's sequence, its request's ``request_id``; absent = one |
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base import parquet
from simulator.base.arrays import Floats, Ints, load_arrays
from simulator.base.errors import UserError, did_you_mean
from simulator.base.reading import parse_json, read_bytes, refuse_damage
from simulator.base.unpacking import unpack
from simulator.config.ffns.moe import MoE
from simulator.policies.routing._recording import Counts, Tokens
from simulator.policies.routing._responses import read_responses
from simulator.policies.routing._sglang import Phase, read_sglang
from simulator.policies.routing._torch_file import load_torch_file

_ARRAYS = (*("ids", "counts", "seq_lens", "domain", "phase", "layers", "num_experts"), "request_id")
"""Arrays of an archive that are read; others are not."""
_HIGHEST_ID = 2**15 - 1
"""Largest expert id: a router's choices have 16 bits; the largest published model has 1,024
experts."""
_WHAT = "a recording of expert choices"
_COLUMNS = ("token", "layer", "expert")
_SEQUENCE = "sequence"


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
            responses = read_responses(path, moe, num_layers)
            return _select(responses, "domain", domain, responses.domain_Q, where)
        if _is_id_table(path):
            reason = "a table of ids does not tell them apart"
            _refuse_choice(where, reason, domain=domain, phase=phase)
            return _read_id_table(path)
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


def _saved_arrays(saved: object) -> dict[str, np.ndarray]:
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
    arrays: dict[str, np.ndarray],
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
    seq_lens = _numbers(arrays, "seq_lens", where)
    if _has_tokens_first(ids.shape, num_layers, seq_lens):
        ids = ids.transpose(1, 0, 2)
    num_tokens = ids.shape[1]
    if seq_lens is None:
        seq_lens = np.array([num_tokens])
    if seq_lens.sum() != num_tokens or seq_lens.max() > num_tokens:
        raise UserError(
            f"{where}: seq_lens sum to {seq_lens.sum()}, but ids has {num_tokens} tokens"
        )
    layers, num_experts = (_numbers(arrays, key, where) for key in ("layers", "num_experts"))
    if num_experts is not None and len(num_experts) != 1:
        raise UserError(f"{where}: num_experts must be one whole number, got {len(num_experts)}")
    domain_Q, request_Q = (
        _texts(arrays, key, len(seq_lens), where) for key in ("domain", "request_id")
    )
    phase_Q = _texts(arrays, "phase", len(seq_lens), where) if phase else ()
    tokens = Tokens(
        ids.astype(np.int64),
        np.repeat(np.arange(len(seq_lens)), seq_lens),
        None if layers is None else tuple(layers.tolist()),
        None if num_experts is None else int(num_experts[0]),
        domain_Q,
        request_Q,
    )
    tokens = _select(tokens, "domain", domain, domain_Q, where)
    return _select(tokens, "phase", phase, phase_Q, where)


def _numbers(arrays: dict[str, np.ndarray], key: str, where: str) -> Ints | None:
    """Read a list of whole numbers of at least 0; ``None`` where the recording has none."""
    if key not in arrays:
        return None
    values = arrays[key]
    is_right = values.ndim <= 1 and values.dtype.kind in "iu" and values.size
    if not is_right or values.min() < 0:
        raise UserError(f"{where}: {key} must be a list of whole numbers of at least 0")
    return values.reshape(-1).astype(np.int64)


def _texts(
    arrays: dict[str, np.ndarray], key: str, num_sequences: int, where: str
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


def _select(
    tokens: Tokens, key: str, wanted: str | None, name_Q: tuple[str, ...], where: str
) -> Tokens:
    """Select the sequences of one domain or phase; all without a choice."""
    if wanted is None:
        return tokens
    if not name_Q:
        raise UserError(
            f"{where}: {key} = '{wanted}' cannot be selected: the recording names no {key}"
        )
    if wanted not in name_Q:
        raise UserError(f"{where}: no {key} '{wanted}'; {did_you_mean(wanted, set(name_Q))}")
    keep_T = np.array([name == wanted for name in name_Q])[tokens.sequence_T]
    return replace(tokens, ids_LTK=tokens.ids_LTK[:, keep_T], sequence_T=tokens.sequence_T[keep_T])


def _has_tokens_first(shape: tuple[int, ...], num_layers: int, seq_lens: Ints | None) -> bool:
    """Whether ids lie ``[T, L, K]``; ``[L, T, K]`` when nothing tells them apart."""
    first, second, _ = shape
    if seq_lens is not None and first != second:
        return first == int(seq_lens.sum())
    if num_layers in (first, second):
        return first != num_layers
    return first > second


def _counts_from_arrays(
    arrays: dict[str, np.ndarray], domain: str | None, phase: Phase | None, where: str
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
    layers = _numbers(arrays, "layers", where)
    return Counts(_stack(table, domain, where), None if layers is None else tuple(layers.tolist()))


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
    layers = table.get("layers")
    if layers is None:
        return Counts(_stack(counted, domain, where))
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise UserError(f"{where}: layers must be a list of whole numbers, one a recorded layer")
    return Counts(_stack(counted, domain, where), tuple(layers))


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


def _stack(counted: Any, domain: str | None, where: str) -> Floats:
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


def _is_id_table(path: Path) -> bool:
    """Whether a file's name is that of a table: ``.csv``, ``.csv.gz`` (or ``.xz``, ``.zst``,
    ``.zip``) or ``.parquet``.
    """
    return path.suffix in (".csv", ".parquet") or Path(path.stem).suffix == ".csv"


def _read_id_table(path: Path) -> Tokens:
    """Read a table of ids.

    Raises:
        UserError: if the file cannot be read, lacks a column, holds anything but whole numbers, or
            some token has more or fewer experts in a layer than others.
    """
    columns = _read_columns(path)
    token, layer, expert = (columns[name] for name in _COLUMNS)
    if not len(token):
        raise UserError(f"{path}: holds no recorded token")
    sequence = columns.get(_SEQUENCE, np.zeros(len(token), np.int64))
    order = np.lexsort((layer, token, sequence))
    sequence, token, layer = sequence[order], token[order], layer[order]
    is_first = (np.diff(token, prepend=token[0] - 1) != 0) | (np.diff(sequence, prepend=0) != 0)
    is_first[0] = True
    layers, num_tokens = np.unique(layer), int(is_first.sum())
    top_k, rest = divmod(len(token), num_tokens * len(layers))
    token_of_row = np.cumsum(is_first) - 1
    row = np.arange(len(token))
    expected = layers[row // max(top_k, 1) % len(layers)]
    wrong = (layer != expected) | (token_of_row != row // max(top_k * len(layers), 1))
    if rest or wrong.any():
        at = int(np.argmax(wrong))
        raise UserError(
            f"{path}: token {token[at]} has more or fewer experts in layer {layer[at]} than other "
            "tokens and layers; every token needs as many rows in every layer"
        )
    ids_TLK = expert[order].reshape(num_tokens, len(layers), top_k)
    numbers, sequence_T = np.unique(sequence[is_first], return_inverse=True)
    return Tokens(
        ids_TLK.transpose(1, 0, 2),
        sequence_T.astype(np.int64),
        tuple(layers.tolist()),
        request_Q=tuple(map(str, numbers.tolist())) if _SEQUENCE in columns else (),
    )


def _read_columns(path: Path) -> dict[str, Ints]:
    """Read the columns as whole numbers, by name."""
    data = unpack(path)
    is_parquet = data.startswith(parquet.MAGIC)
    names = parquet.column_names(data, str(path)) if is_parquet else _header(data)
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise UserError(
            f"{path}: missing column '{missing[0]}'; a table of ids has the columns "
            f"{', '.join(_COLUMNS)} and perhaps {_SEQUENCE}, a row for each expert that a token "
            f"chose in a layer, and this one has: {', '.join(names[:8]) or 'none'}"
        )
    wanted = [name for name in (*_COLUMNS, _SEQUENCE) if name in names]
    table = parquet.read_columns(data, wanted, str(path)) if is_parquet else _csv(data, wanted)
    return {name: _read_whole(table.column(name), f"{path}: column {name}") for name in wanted}


def _header(data: bytes) -> tuple[str, ...]:
    return tuple(data.split(b"\n", 1)[0].decode("utf-8").strip().split(","))


def _csv(data: bytes, wanted: list[str]) -> Any:
    """Read CSV columns, untyped as all that is pyarrow's."""
    pa, csv = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.csv")
    options = csv.ConvertOptions(
        include_columns=wanted, column_types={name: pa.int64() for name in wanted}
    )
    return csv.read_csv(pa.BufferReader(data), convert_options=options)


def _read_whole(column: Any, where: str) -> Ints:
    values = column.to_numpy()
    if values.dtype.kind not in "iu" or column.null_count:
        raise UserError(f"{where} must be whole numbers in every row, got {column.type}")
    return np.asarray(values.astype(np.int64))
