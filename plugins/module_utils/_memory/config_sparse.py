# SPDX-License-Identifier: Apache-2.0
"""Read models with compressed, indexed or delta attention from their config.json, as vLLM's classes do.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import geometry as shapes
from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_values import (
    Config,
    attention_from_config,
    gated_delta_net,
    mtp_of,
    plain_geometry,
)

_NEXT = "num_nextn_predict_layers"


def _latent(config: Config, layers: int) -> shapes.Attention:
    """Return latent attention: the compressed keys and values, and the part of the key with the position, if any."""
    latent = config.integer("kv_lora_rank") + (config.optional("qk_rope_head_dim") or 0)
    heads = config.integer("num_attention_heads")
    return shapes.Attention(max(1, layers), heads, kv_heads=1, head_dim=latent, latent_dim=latent)


def _count(config: Config, kinds: list[str] | None, **known: str) -> dict[str, int]:
    """Return how many layers there are of each kind; note what is missing or has no rule.

    :param known: name here -> name in ``layer_types``
    """
    layers = config.integer("num_hidden_layers")
    if kinds is None:
        config.missing.append("config.json does not list which layers are of which kind (layer_types).")
        kinds = []
    config.without_rule(kinds, *known.values())
    if kinds:
        config.of_length(kinds, layers)
    return {name: max(1, kinds.count(kind)) for name, kind in known.items()}


def _indexed_layers(config: Config, layers: int) -> int | None:
    """Return how many layers have an indexer of their own; None for all (``DeepseekV2MLAAttention``).

    The others take the choice of the layer before them: by a letter S in the pattern, or all but every so many.
    """
    pattern = config.values.get("index_topk_pattern")
    if isinstance(pattern, (str, list)):
        shared = sum(1 for each in pattern[:layers] if each == "S")
    else:
        every, offset = config.optional("index_topk_freq") or 1, config.values.get("index_skip_topk_offset", 2)
        start = offset if isinstance(offset, int) else 2
        shared = sum(1 for index in range(layers) if max(index - start + 1, 0) % every)
    if shared >= layers:
        config.missing.append("config.json has an index_topk_pattern that leaves no layer an indexer.")
    return layers - shared if shared else None


def from_indexed(config: Config) -> shapes.Geometry:
    """Read DeepSeek-V3.2 and GLM-5 (vllm/model_executor/models/deepseek_v2.py): the keys of an indexer."""
    layers = config.integer("num_hidden_layers")
    geometry = plain_geometry(config, _latent(config, layers), (), mtp_of(config, _NEXT))
    indexer = shapes.Indexer(shapes.DSA, config.integer("index_head_dim"), layers=_indexed_layers(config, layers))
    return replace(geometry, indexer=indexer)


def _ones(values: object, layers: int) -> int | None:
    """Return how many of a list of one figure a layer are not 0; None when it is no such list."""
    if isinstance(values, list) and len(values) == layers and all(isinstance(each, int) for each in values):
        return sum(1 for each in values if each)
    return None


def from_block_sparse(config: Config) -> shapes.Geometry:
    """Read MiniMax-M3 (vllm/models/minimax_m3): full attention, most layers with keys by which blocks are chosen."""
    layers, section = config.integer("num_hidden_layers"), config.values.get("sparse_attention_config")
    inner = Config(section if isinstance(section, Mapping) else {})
    sparse = _ones(inner.values.get("sparse_attention_freq"), layers)
    if sparse is None:
        config.missing.append(
            f"config.json has no sparse_attention_config with sparse_attention_freq of {layers} figures."
        )
    attention = attention_from_config(config, layers)
    heads = mtp_of(config, "num_mtp_modules", _NEXT)
    geometry = plain_geometry(config, attention, (), heads)
    experts = _ones(config.values.get("moe_layer_freq"), layers)
    if geometry.moe and experts:
        geometry = replace(geometry, moe=replace(geometry.moe, layers=experts))
    if not sparse:
        return geometry
    width = inner.integer("sparse_index_dim")
    config.missing += inner.missing
    return replace(geometry, indexer=shapes.Indexer(shapes.MSA, width, layers=None if sparse == layers else sparse))


def _windowed(config: Config, listed: int, **states: int) -> shapes.Geometry:
    """Return a model whose layers have a window and share compressed states.

    :param listed: length of ``compress_ratios``; what goes beyond the layers are draft layers.
    :param states: the layers by what they keep, as `Compressed` has them.
    """
    layers, head_dim = config.integer("num_hidden_layers"), config.integer("head_dim")
    attention = shapes.Attention(layers, config.integer("num_attention_heads"), kv_heads=1, head_dim=head_dim)
    drafts = max(listed - layers, config.optional(_NEXT) or 0)
    geometry = plain_geometry(config, attention, (), shapes.Mtp(drafts, drafts) if drafts else None)
    compressed = shapes.Compressed(
        layers=layers,
        window_tokens=config.integer("sliding_window"),
        head_dim=head_dim,
        index_head_dim=config.integer("index_head_dim"),
        **states,
    )
    return replace(geometry, compressed=compressed)


def _ratios(value: object, layers: int, known: tuple[int, ...]) -> bool:
    """Tell whether a value has a known ratio for each layer."""
    return isinstance(value, list) and len(value) >= layers and all(each in known for each in value)


def from_compressed(config: Config) -> shapes.Geometry:
    """Read DeepSeek-V4 (vllm/models/deepseek_v4/attention.py).

    ``compress_ratios`` has a ratio for each layer and zeros for the draft layers after them; 0 is a window alone.
    """
    layers = config.integer("num_hidden_layers")
    ratios: Any = config.values.get("compress_ratios")
    if not (_ratios(ratios, layers, (0, 1, 4, 128)) and 4 in ratios and 128 in ratios):
        config.missing.append(f"config.json has no compress_ratios of 4 and 128 (and 0) for its {layers} layers.")
        ratios = [0] * layers
    indexed, pooled = max(1, ratios[:layers].count(4)), max(1, ratios[:layers].count(128))
    return _windowed(config, len(ratios), indexed_layers=indexed, pooled_layers=pooled)


def from_sources(config: Config) -> shapes.Geometry:
    """Read DeepSeek-V4.1 (vllm/models/deepseek_v41/attention.py): ``kv_source_layer_ids`` keep states for the others.

    ``compress_ratios`` has a ratio of 2 or 1 for each layer that reads them, 0 for a window alone.
    """
    layers = config.integer("num_hidden_layers")
    ratios: Any = config.values.get("compress_ratios")
    sources: Any = config.values.get("kv_source_layer_ids")
    if not (_ratios(ratios, layers, (0, 1, 2)) and isinstance(sources, list)):
        config.missing.append(f"config.json has no compress_ratios of 2 and 1 (and 0) for its {layers} layers.")
        ratios, sources = [0] * layers, []
    kept = [ratios[each] for each in sources if isinstance(each, int) and 0 <= each < layers]
    if not kept or 0 in kept or len(kept) != len(sources):
        config.missing.append("config.json has no kv_source_layer_ids of layers whose ratio is 2 or 1.")
    return _windowed(config, len(ratios), pair_sources=kept.count(2), token_sources=kept.count(1))


def from_qsa(config: Config) -> shapes.Geometry:
    """Read Qwen3.8-Flash-Next (vllm/models/qwen4_exp): gated delta nets, sparse attention, n-gram embeddings."""
    layers, every = config.integer("num_hidden_layers"), config.optional("full_attention_interval")
    kinds = config.texts("layer_types")
    if kinds is None and every:
        kinds = ["linear_attention" if (index + 1) % every else "full_attention" for index in range(layers)]
    counts = _count(config, kinds, full="full_attention", linear="linear_attention")
    attention = attention_from_config(config, counts["full"])
    geometry = plain_geometry(config, attention, (), mtp_of(config, "mtp_num_hidden_layers", _NEXT))
    embedded = config.values.get("ple_layer_ids")
    conv = None
    if embedded:
        columns = (config.integer("ple_conv_kernel_size") - 1) * config.integer("ngram_size")
        conv = shapes.ShortConv(len(set(embedded)), geometry.hidden_size * config.integer("hc_count"), max(1, columns))
    return replace(
        geometry,
        recurrent=gated_delta_net(config, counts["linear"], str(config.values.get("mamba_ssm_dtype") or "float32")),
        # Positions have three axes in this family, so they are kept beside the keys.
        indexer=shapes.Indexer(
            shapes.QSA, config.integer("indexer_head_dim"), config.integer("indexer_compress_ratio"), True
        ),
        short_conv=conv,
    )


def _delta(config: Config, layers: int) -> shapes.Kda:
    """Return delta attention from ``linear_attn_config``, or from the keys that newer files have."""
    section = config.values.get("linear_attn_config")
    inner = Config(section) if isinstance(section, Mapping) else config
    found = shapes.Kda(
        layers=layers,
        heads=inner.integer("num_heads", "linear_num_heads"),
        head_dim=inner.integer("head_dim", "linear_head_dim")
        if inner is not config
        else config.integer("linear_head_dim"),
        conv_kernel=inner.integer("short_conv_kernel_size", "linear_conv_kernel_dim"),
        state_dtype="float32",  # vLLM's own, whatever the file says (MambaStateDtypeCalculator.kda_state_dtype)
    )
    if inner is not config:
        config.missing += inner.missing
    return found


def from_pooled(config: Config) -> shapes.Geometry:
    """Read GLM-5.3-Flash (vllm/models/glm5next): latent attention with a pooled indexer beside delta attention."""
    counts = _count(config, config.texts("layer_types"), full="deepseek_sparse_attention", linear="linear_attention")
    geometry = plain_geometry(config, _latent(config, counts["full"]), (), mtp_of(config, _NEXT))
    indexer = shapes.Indexer(shapes.KPOOL, config.integer("index_head_dim"), config.integer("index_kpool"))
    return replace(geometry, recurrent=_delta(config, counts["linear"]), indexer=indexer)


def from_delta_hybrid(config: Config) -> shapes.Geometry:
    """Read Kimi-Linear: delta attention beside plain latent attention, as ``linear_attn_config`` lists them."""
    section = config.values.get("linear_attn_config")
    lists = [section.get(key) if isinstance(section, Mapping) else None for key in ("kda_layers", "full_attn_layers")]
    if not all(isinstance(each, list) and each for each in lists):
        config.missing.append("config.json has no linear_attn_config with kda_layers and full_attn_layers.")
        lists = [[1], [1]]
    linear, full = (len(each) if isinstance(each, list) else 1 for each in lists)
    geometry = plain_geometry(config, _latent(config, full), (), mtp_of(config, _NEXT))
    bounded = isinstance(section, Mapping) and section.get("gate_lower_bound") is not None
    return replace(geometry, recurrent=replace(_delta(config, linear), bounded_gate=bounded))
