# SPDX-License-Identifier: Apache-2.0
"""Read attention models whose files have keys or blocks of their own from their config.json, as vLLM does.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_values import (
    Config,
    attention_from_config,
    plain_geometry,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    Geometry,
    UnknownGeometryError,
    Window,
)

_GPT = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
#: Class -> key as most files have it -> the same in a file of this class, as its configuration's attribute_map has it.
SPELLINGS: Mapping[str, Mapping[str, str]] = {
    "BloomForCausalLM": {
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embed",
        "max_position_embeddings": "seq_length",
    },
    "DbrxForCausalLM": {
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "hidden_size": "d_model",
        "max_position_embeddings": "max_seq_len",
        "num_key_value_heads": "attn_config.kv_n_heads",
        "num_local_experts": "ffn_config.moe_num_experts",
        "num_experts_per_tok": "ffn_config.moe_top_k",
        "moe_intermediate_size": "ffn_config.ffn_hidden_size",
    },
    "ExaoneForCausalLM": {"num_hidden_layers": "num_layers"},
    "GPT2LMHeadModel": _GPT,
    "GPTBigCodeForCausalLM": _GPT,
    "GPTJForCausalLM": _GPT,
}


#: Where Inkling lists the layers with a window.
_LOCAL = "local_layer_ids"


def respelled(values: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Return a configuration with the keys that most files have.

    :raises UnknownGeometryError: a section of the file lacks what the class reads in it
    """
    found = dict(values)
    for key, path in SPELLINGS.get(architecture, {}).items():
        if found.get(key) is not None:
            continue
        value: Any = values
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None and "." in path:
            raise UnknownGeometryError([f"config.json has no {path}."])
        found[key] = value
    if architecture == "GPTBigCodeForCausalLM" and values.get("multi_query", True) is not False:
        found["num_key_value_heads"] = 1
    return found


def from_split_keys(config: Config) -> Geometry:
    """Read MiniCPM3 (vllm/model_executor/models/minicpm3.py): latent projections, of which whole keys are kept."""
    attention = attention_from_config(config, config.integer("num_hidden_layers"))
    width = config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim")
    return plain_geometry(config, replace(attention, kv_heads=attention.heads, head_dim=width))


def _inner_width(feed: Mapping[str, Any], hidden: int) -> int:
    """Return the inner width of a block's MLP, 0 for none (``_ffn_mult_to_intermediate_size``)."""
    given, times = Config(feed).optional("intermediate_size"), feed.get("ffn_mult")
    if given or feed.get("no_op") or not isinstance(times, int | float) or not 0 < times < 1000:
        return given or 0
    return -(-int(2 * times * hidden / 3) // 256) * 256


def from_block_configs(config: Config) -> Geometry:
    """Read Nemotron-NAS (vllm/model_executor/models/nemotron_nas.py): each block with attention or without."""
    layers, blocks = config.integer("num_hidden_layers"), config.values.get("block_configs")
    parts = [
        (each["attention"], each.get("ffn") or {})
        for each in (blocks if isinstance(blocks, list) else [])
        if isinstance(each, Mapping) and isinstance(each.get("attention"), Mapping)
        if isinstance(each.get("ffn") or {}, Mapping)
    ]
    groups = [attention.get("n_heads_in_group") for attention, _feed in parts if not attention.get("no_op")]
    if len(parts) != layers or not all(isinstance(each, int) and each > 0 for each in groups):
        config.missing.append(
            f"config.json has no block_configs of {layers} blocks with attention.n_heads_in_group, or no_op."
        )
        groups = [1]
    if len(set(groups)) > 1:
        config.missing.append("config.json has blocks whose KV heads differ in number, which have no rule here.")
    if not groups:
        config.missing.append("config.json has no attention block: the memory model needs one to size its pages.")
    attention = attention_from_config(config, max(1, len(groups)))
    attention = replace(attention, kv_heads=max(1, attention.heads // (groups or [1])[0]))
    geometry = plain_geometry(config, attention)
    widest = max((_inner_width(feed, geometry.hidden_size) for _attention, feed in parts), default=0)
    return replace(geometry, intermediate_size=widest or geometry.intermediate_size)


def _convolution(layers: int, kv_heads: int, head_dim: int, hidden: int, columns: int) -> Window:
    """Return what the four short convolutions of Inkling's layers keep (sconv_swa_attn.py), as much for each KV head.

    Keys, values and a share of both residual streams, filled up to a power of two.
    """
    width = 1 << (2 * head_dim + 2 * (hidden // kv_heads) - 1).bit_length()
    return Window(layers, columns, kv_heads, width // 2, block_tokens=columns)


def from_convolved(config: Config) -> Geometry:
    """Read Inkling (vllm/models/inkling): windows with heads of their own, and convolutions kept as further windows.

    Its draft layers have no rule here: the geometry has no mtp section.
    """
    layers, hidden, local = (
        config.integer("num_hidden_layers"),
        config.integer("hidden_size"),
        config.values.get(_LOCAL),
    )
    if not (isinstance(local, list) and all(isinstance(each, int) for each in local)):
        config.missing.append(f"config.json has no {_LOCAL} that lists the layers with a window.")
        local = []
    near = len(set(local) & set(range(layers)))
    full = attention_from_config(config, max(1, layers - near))
    if near == layers:
        config.missing.append("config.json has no layer of full attention: the memory model needs one.")
    columns = config.optional("sconv_kernel_size") or config.optional("conv_kernel_size") or 4
    windows = [_convolution(full.layers, full.kv_heads, full.head_dim, hidden, columns)]
    if near:
        heads = config.optional("swa_num_key_value_heads") or full.kv_heads
        width = config.optional("swa_head_dim") or full.head_dim
        tokens = config.integer("sliding_window_size", "sliding_window")
        windows += [Window(near, tokens, heads, width), _convolution(near, heads, width, hidden, columns)]
    geometry = plain_geometry(config, full, tuple(windows))
    wide = config.optional("dense_intermediate_size") or geometry.intermediate_size
    dense = config.optional("dense_mlp_idx") or 0
    experts = replace(geometry.moe, layers=max(1, layers - dense)) if geometry.moe else None
    return replace(geometry, intermediate_size=wide, moe=experts)
