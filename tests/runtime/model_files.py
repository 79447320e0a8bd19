"""Files of a mixture of experts and of a dense model that shards run in milliseconds."""

_MODEL = """
hidden_size = 32
vocab_size = 256
weight_dtype = "fp32"
layers = [{ repeat = 2, pattern = [["a", "f"]] }]
[mixers]
a = { kind = "gqa", num_heads = 4, num_kv_heads = 2, head_size = 8 }
[ffns]
"""


def write_models(folder):
    """Write ``moe.toml`` and ``dense.toml``."""
    moe = 'f = { kind = "moe", num_experts = 8, top_k = 2, intermediate_size = 16 }\n'
    (folder / "moe.toml").write_text('routing = { kind = "uniform" }\n' + _MODEL + moe)
    (folder / "dense.toml").write_text(_MODEL + 'f = { kind = "dense", intermediate_size = 64 }\n')
