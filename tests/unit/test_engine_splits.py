"""What engines refuse to start with is refused, and what the refusal names does."""

import re

import pytest

from simulator.base.errors import UserError
from simulator.config.engine import name_release
from simulator.deployment.notes import notes_of
from tests.parts import freeze

QWEN = {"model": "qwen3-235b-a22b", "cluster": "h200-sxm-8", "weight_dtype": "fp8_block"}


def plan(parallel, **keys):
    table = {"name": "x", **QWEN, "parallel": parallel, **keys}
    return freeze(table)


def refusal(parallel, **keys):
    with pytest.raises(UserError) as raised:
        plan(parallel, **keys)
    return str(raised.value)


@pytest.mark.parametrize("engine", ["vllm@0.10.2", "vllm@0.19.0", "vllm@0.28.1", "sglang"])
def test_a_part_of_an_expert_that_is_no_whole_blocks_of_scales_is_refused(engine):
    """Qwen3-235B at TP 8: 1,536 / 8 = 192 (vLLM #17569)."""
    said = refusal({"tp": 8}, engine=engine)
    assert "192 of 1,536 columns a rank are no multiple of 128" in said
    assert said.endswith("tp = 4 does; ep = 8 does")
    plan({"tp": 4}, engine=engine)
    plan({"tp": 8, "ep": 8}, engine=engine)
    plan({"tp": 8}, engine=engine, weight_dtype="fp8")


def test_later_releases_refine_the_scales_and_the_note_says_what_that_takes():
    notes = {one.kind: one.facts for one in notes_of(plan({"tp": 8}, engine="vllm@0.29.0"))}
    assert notes["note.refined_blocks"] == {"plan": "x", "width": 192, "block": 64}
    whole = notes_of(plan({"tp": 4}, engine="vllm"))
    assert "note.refined_blocks" not in {one.kind for one in whole}
    assert plan({"tp": 8}).spec.engine == name_release("vllm"), "the newest release is the default"


def test_other_matrices_are_refused_by_every_release():
    """DeepSeek's dense blocks over 32 ranks, 18,432 / 32 = 576 (SGLang #3345)."""
    keys = {"model": "deepseek-r1", "cluster": "h200-sxm-32", "weight_dtype": "fp8_block"}
    for engine in ("vllm", "sglang"):
        said = refusal({"tp": 32, "ep": 32}, engine=engine, **keys)
        assert "'ffn down' over 32 ranks: 576 of 18,432 columns" in said
        assert said.endswith("; tp = 16 with ep = 16 does")
        plan({"tp": 16, "ep": 16}, engine=engine, **keys)


def test_formats_are_those_of_the_gpus():
    said = refusal({"tp": 8}, engine="trtllm", cluster="l40s-8", model="llama-3.1-70b")
    assert "with fp8_block weights on NVIDIA L40S 48 GB; it has them on hopper, blackwell" in said
    assert "it runs on ampere" in refusal({"tp": 8}, engine="trtllm", cluster="mi300x-8")
    keys = {"model": "deepseek-v3", "cluster": "a100-sxm-32", "weight_dtype": "int4"}
    said = refusal({"tp": 8}, kv_dtype="fp8", **keys)
    assert said.endswith('kv_dtype = "bf16" does')
    plan({"tp": 8}, **keys)


def test_kv_heads_and_experts_are_divided_as_each_engine_does():
    keys = {"model": "llama-3.1-70b", "weight_dtype": "bf16", "cluster": "h200-sxm-16"}
    plan({"tp": 16}, **keys)  # 8 KV heads, repeated
    plan({"tp": 8, "attention_dp": 1}, engine="sglang", **keys)
    deepseek = {"model": "deepseek-v3", "cluster": "h200-sxm-24"}
    plan({"attention_dp": 24, "ep": 24}, **deepseek)  # vLLM spreads 256 unevenly
    for engine in ("sglang", "trtllm"):
        said = refusal({"attention_dp": 24, "ep": 24}, engine=engine, **deepseek)
        eplb = {"kind": "eplb", "num_slots": 264}
        assert 'placement = { kind = "eplb", num_slots = 264 } does' in said
        plan({"attention_dp": 24, "ep": 24}, engine=engine, placement=eplb, **deepseek)


def test_a_refusal_is_one_line_that_names_the_release():
    said = refusal({"tp": 8}, engine="sglang")
    assert re.match(
        r"test \[deployments 'x'\] \[parallel\]: SGLang 0.5.23 and later does not start with ", said
    )
    assert "\n" not in said
