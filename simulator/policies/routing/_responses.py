"""Responses of a serving engine that name the experts of every token, as JSON lines: one response a
line, as it was received.

vLLM (``--enable-return-routed-experts``) writes ``choices[].routed_experts``, base64 of a ``.npy``
file ``[tokens, layers, K]``; SGLang (the same flag, and ``return_routed_experts`` in the request)
``meta_info.routed_experts`` or ``sglext.routed_experts``, base64 of int32 in the same order. Tokens
are those of the prompt and of the output but the last, which no expert computes.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base.arrays import Ints, parse_array
from simulator.base.errors import UserError
from simulator.base.reading import parse_json
from simulator.base.text import shorten
from simulator.base.unpacking import unpack
from simulator.config.ffns.moe import MoE
from simulator.policies.routing._recording import Tokens

_KEY = "routed_experts"
_NUMPY = b"\x93NUMPY"
_PLACES = ("choices", "outputs", "meta_info", "sglext")
"""Keys of a response under which engines put what they return besides the text."""
_IDS = ("request_id", "x_request_id", "id", "rid")
"""Keys of a response, or of its ``meta_info``, that identify the request."""


def read_responses(path: Path, moe: MoE, num_layers: int) -> Tokens:
    """Read the tokens of all responses that name experts, each response a sequence.

    Raises:
        UserError: if a line is no JSON object, names experts in another layout, or identifies the
            same request as another; or no line names any.
    """
    parts: list[Ints] = []
    request_Q: list[str] = []
    domain_Q: list[str] = []
    for line, response in _list_objects(path):
        where = f"{path}, line {line}"
        for choice, payload in enumerate(_find_payloads(response)):
            ids_TLK = _decode(payload, response, moe, num_layers, where)
            if not len(ids_TLK):
                continue
            if ids_TLK.shape[2] != moe.top_k:
                raise UserError(
                    f"{where}: {ids_TLK.shape[2]} experts of a token, and the model uses "
                    f"{moe.top_k}"
                )
            if parts and ids_TLK.shape[1] != parts[0].shape[1]:
                raise UserError(
                    f"{where}: {ids_TLK.shape[1]} layers, and {parts[0].shape[1]} in lines above"
                )
            parts.append(ids_TLK)
            request_Q.append("" if choice else _find_request_id(response))
            domain = response.get("domain", "")
            if not isinstance(domain, str):
                raise UserError(f"{where}: domain must be a text, got {shorten(repr(domain), 60)}")
            domain_Q.append(domain)
    if not parts:
        raise UserError(
            f"{path}: no line has '{_KEY}'; start the engine with --enable-return-routed-experts "
            "(SGLang also wants return_routed_experts in the request), and save a response a line"
        )
    named = Counter(name for name in request_Q if name)
    for name, count in named.most_common(1):
        if count > 1:
            raise UserError(f"{path}: request '{name}' is in {count} lines; leave one")
    ids_TLK = np.concatenate(parts)
    if moe.top_k > 1:
        # Dense layers, in which an engine records nothing: their numbers stay what they were when
        # the memory was taken, the same for all experts of a token.
        is_constant_L = (ids_TLK == ids_TLK[:, :, :1]).all(axis=(0, 2))
        ids_TLK[:, is_constant_L] = -1
    return Tokens(
        ids_TLK.transpose(1, 0, 2),
        np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        domain_Q=tuple(domain_Q) if any(domain_Q) else (),
        request_Q=tuple(request_Q) if named else (),
    )


def _list_objects(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the number and the object of each line."""
    for number, line in enumerate(unpack(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        found = parse_json(line, f"{path}, line {number}")
        if not isinstance(found, dict):
            raise UserError(f"{path}, line {number}: must hold a JSON object, a response")
        yield number, found


def _find_payloads(response: dict[str, object]) -> list[Any]:
    """Find the experts of the tokens of each of a response's outputs."""
    if response.get(_KEY) is not None:
        return [response[_KEY]]
    for place in _PLACES:
        inner = response.get(place)
        parts = inner if isinstance(inner, list) else [inner]
        found = [one for part in parts if isinstance(part, dict) for one in _find_payloads(part)]
        if found:
            return found
    return []


def _find_request_id(response: dict[str, object]) -> str:
    """Identifier of a response's request; empty without any."""
    meta = response.get("meta_info")
    for table in (response, meta if isinstance(meta, dict) else {}):
        for key in _IDS:
            if isinstance(table.get(key), str | int) and not isinstance(table[key], bool):
                return str(table[key])
    return ""


def _decode(
    payload: object, response: dict[str, object], moe: MoE, num_layers: int, where: str
) -> Ints:
    """Decode expert ids, ``[T, L, K]``."""
    if isinstance(payload, str):
        try:
            content = base64.b64decode(payload, validate=True)
        except (binascii.Error, ValueError):
            raise UserError(f"{where}: {_KEY} is not base64") from None
        if content.startswith(_NUMPY):
            ids = parse_array(content, f"{where}, {_KEY}")
        else:
            ids = _shape(content, response, moe, num_layers, where)
    else:
        try:
            ids = np.array(payload)
        except ValueError:
            raise UserError(f"{where}: {_KEY} has rows of different lengths") from None
    if not ids.size:
        return np.zeros((0, num_layers, moe.top_k), dtype=np.int64)
    if ids.ndim != 3 or ids.dtype.kind not in "iu":
        raise UserError(
            f"{where}: {_KEY} must be whole numbers [tokens, layers, top-k], got {ids.dtype} "
            f"{list(ids.shape)}"
        )
    return ids.astype(np.int64)


def _shape(
    content: bytes, response: dict[str, object], moe: MoE, num_layers: int, where: str
) -> np.ndarray:
    """Shape SGLang's flat numbers: the response says how many tokens they are of."""
    if len(content) % 4:
        raise UserError(f"{where}: {_KEY} is neither a .npy file nor int32 numbers")
    flat = np.frombuffer(content, dtype=np.int32)
    num_tokens = _count_tokens(response)
    if not num_tokens:
        num_tokens, rest = divmod(len(flat), num_layers * moe.top_k)
        if rest:
            raise UserError(
                f"{where}: {_KEY} has {len(flat)} numbers, no multiple of {num_layers} layers "
                f"times top-{moe.top_k}; keep the response's counts of tokens (usage or meta_info)"
            )
    if not num_tokens or len(flat) % (num_tokens * moe.top_k):
        raise UserError(
            f"{where}: {_KEY} has {len(flat)} numbers, no multiple of {num_tokens} tokens (of the "
            f"prompt, and of the output but the last) times top-{moe.top_k}"
        )
    return flat.reshape(num_tokens, -1, moe.top_k)


def _count_tokens(response: dict[str, object]) -> int:
    """Tokens of the prompt and of the output but the last; 0 where the response does not say."""
    for place in ("meta_info", "usage"):
        counts = response.get(place)
        if isinstance(counts, dict):
            prompt, output = counts.get("prompt_tokens"), counts.get("completion_tokens")
            if isinstance(prompt, int) and isinstance(output, int):
                return max(prompt + output - 1, 0)
    return 0
