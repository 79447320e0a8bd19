"""Cells of a table as people write them: spellings of number formats, and what is said of a cell
that cannot be used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pandas as pd

from simulator.lab.validation.hardware import accelerator_name, near_accelerators

_SPELLINGS = {"bf16": "bfloat16", "fp16": "float16"}
_ENDS_OF_FORMATS = ("_dtype", "gemm_type")
"""Ends of the names of columns that hold number formats."""
_NO_NUMBER = re.compile(r"unsupported: (\w+) is not a number")
_NO_GPU = re.compile(r"unsupported: no (?:calibrated accelerator|accelerator file for) '(.*)'")
_NO_FORMAT = "unsupported: no number format ''"
_WRITTEN_AS = {
    "num_tokens": ("num_token", "tokens_per_rank"),
    "topk": ("num_topk",),
    "num_ranks": ("ep_size", "node_num", "ep", "num_gpus"),
    "message_elements": ("message_size",),
}
"""Other names of columns in tables, by the name that statuses have."""
_GPU_COLUMNS = ("gpu", "system", "hardware")


def spell_formats(values: pd.DataFrame) -> pd.DataFrame:
    """A table whose number formats are spelled as those that measured write them.

    >>> table = pd.DataFrame({"gpu": ["H100"] * 3, "gemm_dtype": ["bf16", "FP8", "BFLOAT16"]})
    >>> spell_formats(table).to_dict("list")
    {'gpu': ['H100', 'H100', 'H100'], 'gemm_dtype': ['bfloat16', 'fp8', 'bfloat16']}
    """
    found = values.copy(deep=False)
    for name in found.columns:
        if str(name).endswith(_ENDS_OF_FORMATS):
            found[name] = found[name].astype(object).map(_spell)
    return found


def _spell(cell: object) -> object:
    return _SPELLINGS.get(cell.lower(), cell.lower()) if isinstance(cell, str) else cell


def explain_statuses(status: Sequence[str], texts: pd.DataFrame) -> list[str]:
    """Statuses that quote the cell they are about, and name GPUs that may have been meant.

    Args:
        texts: :attr:`simulator.lab.validation.tables.Table.texts`, a row a status.

    >>> no_number = "unsupported: m is not a number"
    >>> explain_statuses(["ok", no_number, no_number], pd.DataFrame({"m": ["8", "abc", ""]}))
    ['ok', 'unsupported: m is not a number: abc', 'unsupported: m is empty']
    """
    return [
        _explain(said, texts, row) if said.startswith("unsupported") else said
        for row, said in enumerate(status)
    ]


def _explain(said: str, texts: pd.DataFrame, row: int) -> str:
    if found := _NO_NUMBER.fullmatch(said):
        column = _write_cell(found[1], texts)
        return f"unsupported: {_of_number(column, _cell(texts, column, row))}" if column else said
    if found := _NO_GPU.fullmatch(said):
        column = next((name for name in _GPU_COLUMNS if name in texts.columns), None)
        if column and not found[1]:
            return f"unsupported: {column} is empty"
        return said if accelerator_name(found[1]) else f"{said}; {_of_gpu(found[1])}"
    if said.startswith(_NO_FORMAT):
        named = [str(name) for name in texts.columns if str(name).endswith(_ENDS_OF_FORMATS)]
        column = next((name for name in named if not _cell(texts, name, row)), None)
        return f"unsupported: {column} is empty" if column else said
    return said


def _write_cell(column: str, texts: pd.DataFrame) -> str | None:
    return next(
        (name for name in (column, *_WRITTEN_AS.get(column, ())) if name in texts.columns), None
    )


def _cell(texts: pd.DataFrame, column: str, row: int) -> str:
    cell = texts[column].iloc[row]
    return "" if pd.isna(cell) else str(cell).strip()


def _of_number(column: str, text: str) -> str:
    if not text:
        return f"{column} is empty"
    try:
        is_large = math.isfinite(float(text))
    except ValueError:
        is_large = False
    return (
        f"{column} is {text}, larger than anything that is counted"
        if is_large
        else f"{column} is not a number: {text}"
    )


def _of_gpu(gpu: str) -> str:
    near = near_accelerators(gpu)
    return (
        f"near it: {', '.join(near)}; 'moesim list accelerators' has all"
        if near
        else "'moesim list accelerators' has all that are"
    )
