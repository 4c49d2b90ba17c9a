# SPDX-License-Identifier: Apache-2.0
"""Read models whose layers keep a state of their own beside attention from their config.json, as vLLM does.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import geometry as shapes
from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_values import (
    Config,
    attention_from_config,
    gated_delta_net,
    moe_of,
    mtp_of,
    plain_geometry,
)

NO_ATTENTION = "config.json has no attention block: the memory model needs one to size its pages."

#: How the block letters and names of Nemotron-H read; both the remote-code spelling
#: (``hybrid_override_pattern``) and that of transformers 5 (``layers_block_type``).
_BLOCK_KINDS = {
    "M": "mamba",
    "*": "attention",
    "E": "moe",
    "-": "mlp",
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
    "moe": "moe",
    "mlp": "mlp",
}


def from_qwen_gdn(config: Config) -> shapes.Geometry:
    layers = config.integer("num_hidden_layers")
    kinds = config.texts("layer_types")
    config.without_rule(kinds or [], "full_attention", "linear_attention")
    if kinds is None:
        every = config.optional("full_attention_interval") or 4  # the default of both config classes
        kinds = ["linear_attention" if (index + 1) % every else "full_attention" for index in range(layers)]
    # Without mamba_ssm_dtype vLLM keeps the state in the model's own dtype.
    state_dtype = config.state_dtype("mamba_ssm_dtype", config.dtype)
    return shapes.Geometry(
        architecture=config.architecture,
        layers=layers,
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        attention=attention_from_config(config, max(1, kinds.count("full_attention"))),
        recurrent=gated_delta_net(config, kinds.count("linear_attention"), state_dtype),
        moe=moe_of(config, layers),
        mtp=mtp_of(config, "mtp_num_hidden_layers", "num_nextn_predict_layers"),
        vocab_size=config.optional("vocab_size"),
        dtype=config.dtype,
    )


def _blocks(config: Config, list_key: str, pattern_key: str) -> list[str]:
    """Return the kinds of Nemotron-H's blocks, from a list of names or a string of letters."""
    named = config.texts(list_key)
    letters = config.values.get(pattern_key)
    spelled = named or (list(letters) if isinstance(letters, str) else [])
    odd = sorted({item for item in spelled if item not in _BLOCK_KINDS})
    if odd:
        config.missing.append(f"config.json has blocks {', '.join(odd)}, which the memory model does not know.")
    return [_BLOCK_KINDS.get(item, "mlp") for item in spelled]


def from_nemotron_h(config: Config) -> shapes.Geometry:
    blocks = _blocks(config, "layers_block_type", "hybrid_override_pattern")
    if not blocks:
        config.missing.append("config.json has neither layers_block_type nor hybrid_override_pattern.")
    counts = {kind: blocks.count(kind) for kind in ("mamba", "attention", "moe")}
    if blocks and not counts["attention"]:
        config.missing.append(NO_ATTENTION)
    state_dtype = config.state_dtype("mamba_ssm_cache_dtype", "float32")  # vLLM's own default for this class
    mtp = None
    heads = config.optional("num_nextn_predict_layers")
    if heads:
        pattern = _blocks(config, "mtp_layers_block_type", "mtp_hybrid_override_pattern") or ["attention", "moe"]
        mtp = shapes.Mtp(layers=heads, attention_layers=heads * pattern.count("attention"))
    return shapes.Geometry(
        architecture=config.architecture,
        layers=len(blocks) or 1,
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        attention=attention_from_config(config, max(1, counts["attention"])),
        recurrent=shapes.Mamba2(
            layers=counts["mamba"],
            heads=config.integer("mamba_num_heads"),
            head_dim=config.integer("mamba_head_dim"),
            state_size=config.integer("ssm_state_size"),
            groups=config.integer("n_groups", "mamba_n_groups"),
            conv_kernel=config.integer("conv_kernel", "mamba_d_conv"),
            state_dtype=state_dtype,
            # vLLM falls back to 2048 when a config names no chunk.
            chunk_size=config.optional("mamba_chunk_size") or config.optional("chunk_size") or 2048,
        )
        if counts["mamba"]
        else None,
        moe=shapes.Moe(
            layers=counts["moe"],
            experts=config.integer("n_routed_experts", "num_experts"),
            experts_per_token=config.integer("num_experts_per_tok"),
            expert_intermediate_size=config.integer("moe_intermediate_size"),
            latent_size=config.optional("moe_latent_size"),
        )
        if counts["moe"]
        else None,
        mtp=mtp,
        vocab_size=config.optional("vocab_size"),
        dtype=config.dtype,
    )


def _hybrid(config: Config, attention_layers: int, recurrent: shapes.Recurrent | None) -> shapes.Geometry:
    """Return a plain model with recurrent layers; note one without attention."""
    if not attention_layers:
        config.missing.append(NO_ATTENTION)
    attention = attention_from_config(config, max(1, attention_layers))
    return replace(plain_geometry(config, attention), recurrent=recurrent)


def _kinds(config: Config, *keys: str) -> list[str]:
    """Return the kinds of a model's layers; note a list that is missing or of another length."""
    layers = config.integer("num_hidden_layers")
    kinds = next((found for found in map(config.texts, keys) if found), None)
    if kinds is None or len(kinds) != layers:
        config.missing.append(f"config.json has no {keys[0]} of {layers} layers.")
    return kinds or []


def _known(config: Config, kinds: list[str], *known: str) -> None:
    """Note kinds of layers that are not among the known ones."""
    if odd := sorted(set(kinds) - set(known)):
        config.missing.append(f"config.json has layers {', '.join(odd)}, which the memory model does not know.")


def _mamba2(
    config: Config,
    layers: int,
    width: int | None,
    n_heads: str = "mamba_n_heads",
    groups: str = "mamba_n_groups",
) -> shapes.Mamba2:
    """Return Mamba-2 layers as Falcon-H1's and Granite's files spell them.

    :param width: of all heads; ``mamba_expand`` times the model's unless given
    """
    heads = config.integer(n_heads)
    width = width or config.integer("mamba_expand") * config.integer("hidden_size")
    if width % heads:
        config.missing.append(f"config.json has {heads} mamba_n_heads, which do not divide their width of {width}.")
    return shapes.Mamba2(
        layers=layers,
        heads=heads,
        head_dim=max(1, width // heads),
        state_size=config.integer("mamba_d_state"),
        groups=config.integer(groups),
        conv_kernel=config.integer("mamba_d_conv"),
        state_dtype=config.dtype,
        chunk_size=config.optional("mamba_chunk_size") or config.optional("chunk_size") or 2048,
    )


def from_falcon_h1(config: Config) -> shapes.Geometry:
    """Read Falcon-H1 (vllm/model_executor/models/falcon_h1.py): each layer has attention and Mamba-2 side by side."""
    layers = config.integer("num_hidden_layers")
    recurrent = _mamba2(config, layers, config.optional("mamba_d_ssm"))
    return replace(_hybrid(config, layers, recurrent), layers=2 * layers)


def from_granite_hybrid(config: Config) -> shapes.Geometry:
    """Read Granite 4 (vllm/model_executor/models/granitemoehybrid.py); some have no experts, or no Mamba."""
    kinds = [_BLOCK_KINDS.get(kind, kind) for kind in _kinds(config, "layer_types", "layers_block_type")]
    _known(config, kinds, "mamba", "attention")
    recurrent = _mamba2(config, kinds.count("mamba"), None) if "mamba" in kinds else None
    return _hybrid(config, kinds.count("attention"), recurrent)


def _every(config: Config, what: str, layers: int) -> int:
    """Return how many layers are of a kind of which Jamba's file gives the period and the first."""
    period, offset = config.integer(f"{what}_period"), config.values.get(f"{what}_offset")
    if not isinstance(offset, int) or isinstance(offset, bool):
        config.missing.append(f"config.json has no {what}_offset that is a whole number.")
        return 0
    return sum(index % period == offset for index in range(layers))


def from_jamba(config: Config) -> shapes.Geometry:
    """Read Jamba (vllm/model_executor/models/jamba.py): Mamba-1 with a layer of attention now and then."""
    layers = config.integer("num_hidden_layers")
    attention = _every(config, "attn_layer", layers)
    recurrent = shapes.Mamba1(
        layers=max(1, layers - attention),
        width=config.integer("mamba_expand") * config.integer("hidden_size"),
        state_size=config.integer("mamba_d_state"),
        conv_kernel=config.integer("mamba_d_conv"),
        state_dtype=config.dtype,
    )
    geometry = _hybrid(config, attention, recurrent)
    if geometry.moe is None:
        return geometry
    return replace(geometry, moe=replace(geometry.moe, layers=max(1, _every(config, "expert_layer", layers))))


def from_lfm2(config: Config) -> shapes.Geometry:
    """Read LFM2 (vllm/model_executor/models/lfm2.py, lfm2_moe.py): short convolutions beside attention.

    Early files number the layers of attention (``full_attn_idxs``) instead of listing the kinds.
    """
    layers, numbered = config.integer("num_hidden_layers"), config.values.get("full_attn_idxs")
    if config.texts("layer_types") is None and isinstance(numbered, list):
        kinds = ["full_attention" if index in numbered else "conv" for index in range(layers)]
    else:
        kinds = _kinds(config, "layer_types")
    _known(config, kinds, "conv", "full_attention")
    recurrent = shapes.GatedConv(
        max(1, kinds.count("conv")),
        config.optional("conv_dim") or config.integer("hidden_size"),
        config.integer("conv_L_cache"),
    )
    return _hybrid(config, kinds.count("full_attention"), recurrent)


def from_zamba2(config: Config) -> shapes.Geometry:
    """Read Zamba2 (vllm/model_executor/models/zamba2.py): Mamba-2 in every layer, attention of double width in some."""
    kinds = [_BLOCK_KINDS.get(kind, kind) for kind in _kinds(config, "layers_block_type", "layer_types")]
    _known(config, kinds, "mamba", "hybrid")
    recurrent = _mamba2(config, max(1, len(kinds)), None, "n_mamba_heads", "mamba_ngroups")
    geometry = _hybrid(config, kinds.count("hybrid"), recurrent)
    heads = geometry.attention.heads
    width = config.optional("attention_head_dim") or max(1, 2 * geometry.hidden_size // heads)
    attention = replace(geometry.attention, kv_heads=heads, head_dim=width)
    return replace(geometry, layers=geometry.layers + kinds.count("hybrid"), attention=attention)


def _blocks_of(config: Config, key: str) -> list[Mapping[str, Any]]:
    """Return the blocks that a Nemotron-H puzzle lists under a key."""
    listed = config.values.get(key)
    return [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []


def from_nemotron_puzzle(config: Config) -> shapes.Geometry:
    """Read a Nemotron-H whose blocks have figures of their own (``block_configs``): windows, experts."""
    blocks, heads = _blocks_of(config, "block_configs"), _blocks_of(config, "mtp_block_configs")
    if not blocks or any("ssm_state_size" in each for each in blocks):
        config.missing.append("config.json has no block_configs, or Mamba blocks in them whose states differ.")

    def works_on(block: Mapping[str, Any]) -> int:
        figures = Config(block)
        return (figures.optional("num_experts_per_tok") or 0) * (figures.optional("moe_intermediate_size") or 0)

    # The experts that take most count for all.
    heaviest = max((each for each in blocks if each.get("block_type") == "moe"), key=works_on, default={})
    kinds = {
        "layers_block_type": [str(each.get("block_type")) for each in blocks],
        "mtp_layers_block_type": [str(each.get("block_type")) for each in heads],
    }
    flat = Config({**config.values, **heaviest, **kinds}, config.architecture, config.dtype)
    geometry = from_nemotron_h(flat)
    config.missing += flat.missing
    attention = geometry.attention
    kept = Counter(Config(each).optional("sliding_window") for each in blocks if each.get("block_type") == "attention")
    full = kept.pop(None, 0)
    if not full:
        config.missing.append(NO_ATTENTION)
    windows = [
        shapes.Window(count, tokens, attention.kv_heads, attention.head_dim) for tokens, count in kept.items() if tokens
    ]
    return replace(geometry, attention=replace(attention, layers=max(1, full)), windows=tuple(windows))
