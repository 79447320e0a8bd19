"""Number formats and their storage, scales included."""

from __future__ import annotations

from typing import Literal

DType = Literal[
    "fp32", "bf16", "fp16", "fp8", "fp8_block", "int8", "mxfp4", "mxfp4_mxfp8", "nvfp4", "int4"
]
"""``fp8`` is E4M3 with a scale for each tensor or channel, ``fp8_block`` with one for each 128x128
block (DeepSeek-V3), ``mxfp4`` has one 8-bit scale per 32 values (OCP MX v1.0), ``mxfp4_mxfp8``
multiplies the same weights with fp8 inputs, ``nvfp4`` has one scale per 16, ``int4`` is weight-only
with one 16-bit scale per 128."""

COMPUTED_HERE = ("fp32", "bf16", "fp16")
"""Formats that shards on processors compute in."""

BYTES_PER_ELEMENT: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4.0 / (128 * 128),
    "int8": 1.0,
    "mxfp4": 0.5 + 1.0 / 32,
    "mxfp4_mxfp8": 0.5 + 1.0 / 32,
    "nvfp4": 0.5 + 1.0 / 16,
    "int4": 0.5 + 2.0 / 128,
}
"""Bytes that one weight takes, its share of the scales included."""

INPUT_BYTES: dict[str, float] = {
    "fp8": 1.0,
    "fp8_block": 1.0 + 4.0 / 128,
    "int8": 1.0,
    "nvfp4": 0.5625,
    "mxfp4_mxfp8": 1.0 + 1.0 / 32,
}
"""Bytes of a number in a product's input as the product reads it; formats without an entry stay in
16 bits, as with weight-only formats."""
