"""The mixers of a Hugging Face ``config.json``: what its keys say of attention and of recurrent
layers.
"""

from __future__ import annotations

from simulator.config._config_json import ConfigKeys, Table


def mixer_table(read: ConfigKeys, name: str, hidden_size: int) -> Table:
    """The table of the mixer with a name of :func:`simulator.config.huggingface.model_table`."""
    if name == "latent":
        return _latent_attention(read)
    if name == "window" or name.startswith("compressed"):
        return _compressed_attention(read, int(name.rpartition("-")[2]) if name != "window" else 0)
    if name == "linear":
        return {
            "kind": "gated_delta_net",
            "num_key_heads": read.size("linear_num_key_heads"),
            "num_value_heads": read.size("linear_num_value_heads"),
            "key_head_size": read.size("linear_key_head_dim"),
            "value_head_size": read.size("linear_value_head_dim"),
            "conv_size": read.size("linear_conv_kernel_dim"),
        }
    if name == "mamba2":
        if read.flag("mamba_proj_bias") or read.flag("use_bias"):
            raise read.error(
                "mamba_proj_bias and use_bias must be false: "
                "projections with a bias are not understood"
            )
        return {
            "kind": "mamba2",
            "num_heads": read.size("mamba_num_heads"),
            "head_size": read.size("mamba_head_dim"),
            "state_size": read.size("ssm_state_size"),
            "num_groups": read.size("n_groups"),
            "conv_size": read.size("conv_kernel"),
            "has_conv_bias": read.flag("use_conv_bias"),
        }
    return _grouped_query_attention(read, name, hidden_size)


def _grouped_query_attention(read: ConfigKeys, name: str, hidden_size: int) -> Table:
    convention, num_heads = read.convention, read.size("num_attention_heads")
    num_kv_heads, head_size = (
        read.size("num_key_value_heads"),
        read.size_or(hidden_size // num_heads, "head_dim"),
    )
    if read.find("head_dim") is None and hidden_size % num_heads:
        raise read.error(
            f"missing key 'head_dim': num_attention_heads = {num_heads} does not divide "
            f"hidden_size = {hidden_size}"
        )
    has_bias = read.flag("attention_bias")
    table: Table = {
        "kind": "gqa",
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_size": head_size,
        "has_qkv_bias": read.flag("qkv_bias", default=has_bias or convention.has_qkv_bias),
        "has_output_bias": has_bias and convention.has_output_bias,
        "has_output_gate": read.flag("attn_output_gate", default=convention.has_output_gate),
        "num_sinks": num_heads if convention.has_sinks else 0,
        "norms": _qk_norms(read, num_heads, num_kv_heads, head_size)
        + (2 * hidden_size if convention.has_post_norms else 0),
    }
    if name == "sliding":
        table["window"] = read.size("sliding_window")
    if name == "chunked":
        table["window"] = read.size("attention_chunk_size")
    return table


def _qk_norms(read: ConfigKeys, num_heads: int, num_kv_heads: int, head_size: int) -> int:
    """Norm weights on queries and keys."""
    kind = read.convention.qk_norm if read.flag("use_qk_norm", default=True) else "none"
    if kind is None and read.find("use_qk_norm"):
        kind = {"per_layer": "all"}.get(str(read.find("qk_norm_type")))
        if kind is None:
            raise read.error(
                "use_qk_norm is true, but the size of the norms cannot be told "
                "for this architecture"
            )
    return {"head": 2 * head_size, "all": (num_heads + num_kv_heads) * head_size}.get(
        kind or "none", 0
    )


def _latent_attention(read: ConfigKeys) -> Table:
    if read.flag("attention_bias"):
        raise read.error(
            "attention_bias must be false: latent attention with a bias is not understood"
        )
    nope, rope = read.size("qk_nope_head_dim"), read.size("qk_rope_head_dim")
    if read.size_or(nope + rope, "qk_head_dim") != nope + rope:
        raise read.error(
            "contradictory keys: qk_head_dim is not qk_nope_head_dim + "
            f"qk_rope_head_dim = {nope + rope}"
        )
    table: Table = {
        "kind": "mla",
        "num_heads": read.size("num_attention_heads"),
        "kv_rank": read.size("kv_lora_rank"),
        "nope_head_size": nope,
        "rope_head_size": rope,
        "value_head_size": read.size("v_head_dim"),
    }
    if read.find("q_lora_rank") is not None:
        table["query_rank"] = read.size("q_lora_rank")
    if read.find("index_topk") is not None:
        table["index"] = _sparse_index(read)
    return table


def _compressed_attention(read: ConfigKeys, compression: int) -> Table:
    table: Table = {
        "kind": "compressed",
        "num_heads": read.size("num_attention_heads"),
        "head_size": read.size("head_dim"),
        "query_rank": read.size("q_lora_rank"),
        "window": read.size("sliding_window"),
        "compression": compression,
        "output_groups": read.size("o_groups"),
        "output_rank": read.size("o_lora_rank"),
        "rope_head_size": read.size("qk_rope_head_dim"),
    }
    if compression == _INDEXED_COMPRESSION:
        table["index"] = _sparse_index(read)
    return table


_INDEXED_COMPRESSION = 4
"""DeepSeek-V4 selects among entries of 4 tokens with an indexer and reads all entries of 128
tokens."""


def _sparse_index(read: ConfigKeys) -> Table:
    return {
        "num_heads": read.size("index_n_heads"),
        "head_size": read.size("index_head_dim"),
        "top_k": read.size("index_topk"),
    }
