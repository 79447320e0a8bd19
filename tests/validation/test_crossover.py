"""The measured inversion: on H200, Qwen3-235B-A22B makes 1.27 times a dense 70B model's tokens per
GPU at 1k/1k, and 0.71 times at 1k/8k.

The account states neither split, load nor engine, so only the sign is held against it, at the
reading at which physics gives it: both models over the eight GPUs of a box by tensor parallelism,
each at its full load. Qwen3's 4 KV heads are then stored twice over 8 ranks, so that its cache
holds fewer long sequences, for which the weights of all experts are read. At other readings there
is no inversion, and that is tested too: with its best split the MoE wins at both lengths, and at
small loads the dense model does.
"""

from pathlib import Path

import pytest

from simulator.base.frozen import validate
from simulator.config.capacity import Question
from simulator.planner.crossover import ALIKE, BEST, crossover


def question(engine, kv_dtype, **space):
    table = {
        "name": "inversion",
        "workload": {"requests": "azure-conv"},
        "targets": {"tpot_s": {"p90": 0.05}},
        "models": [
            {
                "model": "qwen3-235b-a22b",
                "engine": engine,
                "weight_dtypes": ["fp8_block"],
                "kv_dtypes": [kv_dtype],
            },
            {
                "model": "llama-3.1-70b",
                "engine": engine,
                "weight_dtypes": ["fp8"],
                "kv_dtypes": [kv_dtype],
            },
        ],
        "clusters": [{"cluster": "h200-sxm", "max_gpus": 8}],
        "space": space,
        "crossover": {
            "inputs": [1024],
            "outputs": [1024, 8192],
            "eps": [1, 8],
            "batches": [1, 8],
            "networks": [1.0],
        },
    }
    return validate(Question, table, "test")


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8"])
def test_over_one_box_by_tensor_parallelism_the_winner_changes_with_the_output(engine, kv_dtype):
    found = crossover(question(engine, kv_dtype, tp=[8], attention_dp=[1]), Path(), [0, 1], 0)
    ratios = {row.output: row.ratio for row in found.at_full_load if row.pairing == ALIKE}
    assert ratios[8192] < 1 < ratios[1024]


def test_with_the_best_splits_it_does_not():
    found = crossover(
        question("trtllm", "fp8", tp=[1, 2, 4, 8], attention_dp=[1, 8], overlap=["none"]),
        Path(),
        [0, 1],
        0,
    )
    assert all(row.ratio > 1 for row in found.at_full_load if row.pairing == BEST)
    assert all(row.ratio < 1 and row.deciding_term == "weight streaming" for row in found.cells)
