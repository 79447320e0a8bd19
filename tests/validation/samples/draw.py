"""Draw the samples of this folder from the measured tables: ``python
tests/validation/samples/draw.py ../shared/measurements``.

Every kind of row (GPU, engine, number format, phase ...) gives as many rows as any other, drawn
with a seed and kept as they stand.
"""

import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

SEED = 20
ROWS = 300
"""Of one sample, about: each kind gives at least one."""
KINDS = {
    "attention": ["gpu", "phase", "kv_cache_dtype", "window_size"],
    "custom_allreduce": ["gpu", "engine", "kernel_source", "num_gpus"],
    "deepep_low_latency": ["gpu", "node_num"],
    "deepep_normal": ["gpu", "node_num", "num_experts"],
    "gemm": ["gpu", "gemm_dtype"],
    "mla": ["gpu", "engine", "phase", "kv_cache_dtype"],
    "moe_alltoall": ["gpu", "engine", "comm_backend", "phase", "comm_dtype"],
    "moe_eplb_trtllm": ["gpu", "moe_ep_size", "distribution"],
    "moe_grouped_gemm": ["gpu", "engine", "moe_dtype", "distribution"],
    "moe_wide_ep_sglang": ["gpu", "phase", "distribution", "moe_ep_size"],
    "nccl": ["gpu", "op_name", "nccl_dtype", "num_gpus"],
    "serving_points": ["backend", "model_path", "system", "mode"],
}
"""Columns that tell the kinds of rows of each table apart."""


def draw(table, name):
    """About ``ROWS`` rows of a table, in its order."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    kinds = table.groupby(KINDS[name], dropna=False)
    share = max(1, ROWS // kinds.ngroups)
    places = [
        rng.choice(rows, min(share, len(rows)), replace=False) for rows in kinds.indices.values()
    ]
    return table.iloc[np.sort(np.concatenate(places))]


if __name__ == "__main__":
    for stem in KINDS:
        texts = pd.read_csv(Path(sys.argv[1]) / f"{stem}.csv.gz", dtype=str, keep_default_na=False)
        draw(texts, stem).to_csv(Path(__file__).parent / f"{stem}.csv", index=False)
