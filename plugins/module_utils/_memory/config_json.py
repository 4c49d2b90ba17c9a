# SPDX-License-Identifier: Apache-2.0
"""Read a model's geometry from the config.json of its repository, by the architecture that it names.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import (
    config_blocks,
    config_hybrid,
    config_sparse,
    parts,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_values import (
    Config,
    attention_from_config,
    is_dtype,
    mtp_of,
    plain_geometry,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    ONE_DTYPE,
    Attention,
    Geometry,
    UnknownGeometryError,
    Window,
    check_consistency,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.whole import MOST

#: Full attention in every layer, or windows where `layer_types` says so; with or without experts.
_PLAIN = (
    "AfmoeForCausalLM",
    "ApertusForCausalLM",
    "ArceeForCausalLM",
    "BailingMoeForCausalLM",
    "BailingMoeV2ForCausalLM",
    "BloomForCausalLM",
    "Cohere2ForCausalLM",
    "CohereForCausalLM",
    "CwmForCausalLM",
    "DbrxForCausalLM",
    "Dots1ForCausalLM",
    "Ernie4_5ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "Exaone4ForCausalLM",
    "ExaoneForCausalLM",
    "ExaoneMoEForCausalLM",
    "ExaoneMoeForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeForCausalLM",
    "GlmForCausalLM",
    "GptOssForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeForCausalLM",
    "GraniteMoeSharedForCausalLM",
    "GraniteSWAForCausalLM",
    "HYV3ForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "HunYuanMoEV1ForCausalLM",
    "HyperCLOVAXForCausalLM",
    "IQuestCoderForCausalLM",
    "InternLM2ForCausalLM",
    "InternLM3ForCausalLM",
    "Jais2ForCausalLM",
    "LagunaForCausalLM",
    "LlamaForCausalLM",
    "MiMoForCausalLM",
    "MiniCPMForCausalLM",
    "MiniMaxM2ForCausalLM",
    "Ministral3ForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "NemotronForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "OlmoForCausalLM",
    "OlmoeForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "PhiMoEForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3ForSequenceClassification",
    "Qwen3MoeForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
    "SolarForCausalLM",
    "SolarOpenForCausalLM",
    "StableLmForCausalLM",
)
#: Draft models with weights of their own: attention like any other's, in the few layers that they have.
_DRAFTS = (
    "DFlash2DraftModel",
    "DFlashDraftModel",
    "Eagle3LlamaForCausalLM",
    "Eagle3MiniMaxM2ForCausalLM",
    "Eagle3Qwen3ForCausalLM",
    "EagleLlamaForCausalLM",
    "EagleMistralForCausalLM",
    "LlamaForCausalLMEagle3",
    "PEagleDraftModel",
    "PeagleLlamaForCausalLM",
    "PeagleQwen3ForCausalLM",
    "Qwen3DSparkModel",
)
#: Draft models that read the target's cache and keep nothing of their own (vllm/model_executor/models/gemma4_mtp.py).
_WITHOUT_A_CACHE = ("Gemma4AssistantForCausalLM", "Gemma4MTPModel", "Gemma4UnifiedAssistantForCausalLM")
#: Layers that read the cache of an earlier one; Gemma 4 also has windows with heads of another width.
_GEMMA_SHARED = (
    "Gemma3nForCausalLM",
    "Gemma3nForConditionalGeneration",
    "Gemma4ForCausalLM",
    "Gemma4ForConditionalGeneration",
    # A draft model that keeps keys of its own.
    "Gemma4DSparkModel",
    "Gemma4UnifiedForConditionalGeneration",
)
#: A model for images around a language model: the class that reads that one's configuration, or nothing where the
#: configuration names its class.
_AROUND = {
    "Cohere2VisionForConditionalGeneration": "",
    "Exaone4_5_ForConditionalGeneration": "Exaone4ForCausalLM",
    "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    "Glm4vForConditionalGeneration": "Glm4ForCausalLM",
    "Glm4vMoeForConditionalGeneration": "Glm4MoeForCausalLM",
    "InternS1ForConditionalGeneration": "",
    "InternVLChatModel": "",
    "KimiK25ForConditionalGeneration": "DeepseekV3ForCausalLM",
    "KimiK3ForConditionalGeneration": "KimiLinearForCausalLM",
    "KimiVLForConditionalGeneration": "DeepseekV3ForCausalLM",
    "Lfm2VlForConditionalGeneration": "",
    "Llama4ForConditionalGeneration": "Llama4ForCausalLM",
    "LlavaForConditionalGeneration": "LlamaForCausalLM",
    "Mistral3ForConditionalGeneration": "MistralForCausalLM",
    "NemotronH_Nano_VL_V2": "",
    "Qwen2VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen3VLForConditionalGeneration": "Qwen3ForCausalLM",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3MoeForCausalLM",
}

#: Classes in which the last of so many layers has full attention and the others a window, unless the file lists them.
_EVERY = {
    "AfmoeForCausalLM": 4,
    "Cohere2ForCausalLM": 4,
    "Exaone4ForCausalLM": 4,
    "Gemma2ForCausalLM": 2,
    "Gemma3ForCausalLM": 6,
    "Olmo3ForCausalLM": 4,
}
_EVERY_KEYS = ("sliding_window_pattern", "global_attn_every_n_layers")


def _kinds(config: Config, layers: int) -> list[str]:
    """Return what each layer's attention is: full, sliding or chunked; note kinds without a rule here.

    Models that do not list it follow the rule of their class in vLLM or in its configuration's defaults.
    """
    kinds = config.texts("layer_types")
    if kinds is None and config.architecture == "GptOssForCausalLM":
        # vllm/model_executor/models/gpt_oss.py: the window is on every even layer.
        kinds = ["full_attention" if index % 2 else "sliding_attention" for index in range(layers)]
    every = next(filter(None, map(config.optional, _EVERY_KEYS)), None) or _EVERY.get(config.architecture)
    if kinds is None and every and config.architecture in _EVERY:
        kinds = ["sliding_attention" if (index + 1) % every else "full_attention" for index in range(layers)]
    if kinds is None:
        # A window as long as the context never cuts anything off.
        whole = (config.optional("sliding_window") or 0) >= (config.optional("max_position_embeddings") or MOST)
        if config.has("sliding_window") and not whole and config.values.get("use_sliding_window", True) is not False:
            config.missing.append(
                f"config.json has sliding_window {config.values['sliding_window']} and does not list which layers have "
                "it (layer_types), so their cache cannot be sized."
            )
        return ["full_attention"] * layers
    config.without_rule(kinds, "full_attention", "sliding_attention")
    config.of_length(kinds, layers)
    return kinds


def _from_plain(config: Config) -> Geometry:
    layers = config.integer("num_hidden_layers")
    if config.values.get("use_cla"):
        config.missing.append("config.json has layers that share keys and values (use_cla), which have no rule here.")
    kinds = _kinds(config, layers)
    attention = attention_from_config(config, config.full(kinds.count("full_attention")))
    windows: tuple[Window, ...] = ()
    if "sliding_attention" in kinds:
        windows = (
            Window(
                layers=kinds.count("sliding_attention"),
                tokens=config.integer("sliding_window"),
                kv_heads=attention.kv_heads,
                head_dim=attention.head_dim,
            ),
        )
    return plain_geometry(config, attention, windows, mtp_of(config, "num_nextn_predict_layers"))


def _from_latent(config: Config) -> Geometry:
    """Read a model with multi-head latent attention (vllm/model_executor/models/deepseek_v2.py).

    A token is one vector: the compressed keys and values, and the part of the key that carries the position.
    """
    layers, heads = config.integer("num_hidden_layers"), config.integer("num_attention_heads")
    if config.has("index_topk") or config.has("compress_ratios"):
        config.missing.append("config.json has a sparse or compressed cache, which the memory model has no rule for.")
    latent = config.integer("kv_lora_rank") + config.integer("qk_rope_head_dim")
    attention = Attention(layers=layers, heads=heads, kv_heads=1, head_dim=latent, latent_dim=latent)
    return plain_geometry(config, attention, (), mtp_of(config, "num_nextn_predict_layers"))


def _from_chunked(config: Config) -> Geometry:
    """Read Llama 4: layers with rotary positions keep a chunk, the others everything (``no_rope_layers``)."""
    layers = config.integer("num_hidden_layers")
    rotary = config.values.get("no_rope_layers")
    if not (isinstance(rotary, list) and len(rotary) == layers and all(item in (0, 1) for item in rotary)):
        every = config.optional("no_rope_layer_interval") or 4  # the default of the configuration's class
        rotary = [int((index + 1) % every != 0) for index in range(layers)]
    chunk, full = config.optional("attention_chunk_size"), rotary.count(0)
    if chunk is None:
        return plain_geometry(config, attention_from_config(config, layers))
    attention = attention_from_config(config, max(1, full))
    chunks = Window(layers - full, chunk, attention.kv_heads, attention.head_dim, chunked=True)
    return plain_geometry(config, attention, (chunks,))


def _from_gemma_shared(config: Config) -> Geometry:
    """Read Gemma 3n and 4 (vllm/model_executor/models/gemma3n.py, gemma4.py; defaults of transformers' classes).

    The last ``num_kv_shared_layers`` read the cache of an earlier layer; in Gemma 4 full attention has wider heads.
    """
    layers = config.integer("num_hidden_layers")
    is_3n = config.architecture.startswith("Gemma3n")
    every, last = (5, layers) if is_3n else (6, layers - 1)
    kinds = config.texts("layer_types") or [
        "sliding_attention" if (index + 1) % every and index < last else "full_attention" for index in range(layers)
    ]
    odd = sorted({kind for kind in kinds if kind not in ("full_attention", "sliding_attention")})
    if odd or len(kinds) != layers:
        config.missing.append(f"config.json lists {len(kinds)} layer_types for {layers} layers: {', '.join(odd)}.")
    if config.values.get("use_bidirectional_attention") == "all":
        config.missing.append(
            "config.json attends in both directions everywhere, which the memory model has no rule for."
        )
    shared = config.values.get("num_kv_shared_layers", 15 if is_3n else 0)
    own = kinds[: max(0, layers - shared)] if isinstance(shared, int) and not isinstance(shared, bool) else kinds
    narrow = attention_from_config(config, config.full(own.count("full_attention")))
    heads = config.optional("num_global_key_value_heads") if config.values.get("attention_k_eq_v") else None
    wide = narrow
    if not is_3n:
        wide = replace(narrow, kv_heads=heads or narrow.kv_heads, head_dim=config.optional("global_head_dim") or 512)
    windows: tuple[Window, ...] = ()
    if "sliding_attention" in own:
        count, tokens = own.count("sliding_attention"), config.integer("sliding_window")
        windows = (Window(count, tokens, narrow.kv_heads, narrow.head_dim),)
    return plain_geometry(config, wide, windows)


def _from_groups(config: Config) -> Geometry:
    """Read Step 3.5 (vllm/model_executor/models/step3p5.py).

    Its list of layers may go on with draft layers, which have no rule here: the geometry has no mtp section.
    """
    layers = config.integer("num_hidden_layers")
    kinds = (config.texts("layer_types") or [])[:layers]
    if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        config.missing.append(f"config.json has no layer_types (full_attention, sliding_attention) of {layers} layers.")
    full = replace(
        attention_from_config(config, config.full(kinds.count("full_attention"))),
        kv_heads=config.integer("num_attention_groups"),
    )
    other = config.values.get("attention_other_setting")
    its = Config(other if isinstance(other, Mapping) and other.get("attention_type") == "sliding_attention" else {})
    windows: tuple[Window, ...] = ()
    if "sliding_attention" in kinds:
        heads = its.optional("num_attention_groups") or full.kv_heads
        width = its.optional("head_dim") or full.head_dim
        windows = (Window(kinds.count("sliding_attention"), config.integer("sliding_window"), heads, width),)
    geometry = plain_geometry(config, full, windows)
    named = config.values.get("moe_layers_enum")
    if geometry.moe is None:
        return geometry
    return replace(
        geometry,
        moe=replace(geometry.moe, layers=len(named.split(",")) if isinstance(named, str) else max(1, layers - 1)),
    )


def _from_two_widths(config: Config) -> Geometry:
    """Read MiMo-V2 (vllm/model_executor/models/mimo_v2.py): windows with heads of their own, values narrower than keys.

    Its draft layers have no rule here: the geometry has no mtp section.
    """
    layers = config.integer("num_hidden_layers")
    pattern = config.values.get("hybrid_layer_pattern")
    if not (isinstance(pattern, list) and len(pattern) == layers and all(item in (0, 1) for item in pattern)):
        config.missing.append(f"config.json has no hybrid_layer_pattern of {layers} zeros and ones.")
        pattern = [0] * layers
    full = attention_from_config(config, config.full(pattern.count(0)))
    attention = replace(full, value_head_dim=config.optional("v_head_dim"))
    windows: tuple[Window, ...] = ()
    if 1 in pattern:
        windows = (
            Window(
                layers=pattern.count(1),
                tokens=config.integer("sliding_window_size", "sliding_window"),
                kv_heads=config.integer("swa_num_key_value_heads"),
                head_dim=config.integer("swa_head_dim"),
                value_head_dim=config.optional("swa_v_head_dim"),
            ),
        )
    return plain_geometry(config, attention, windows)


def checkpoint_kv_dtype(quantization: object) -> str:
    """Return what ``--kv-cache-dtype auto`` is for a quantised checkpoint that brings scales for its cache.

    As ``get_kv_cache_quant_algo_string`` (vllm/utils/torch_utils.py) reads ModelOpt's files, and
    ``_init_kv_cache_quant`` those of compressed-tensors.

    :param quantization: ``quantization_config`` of config.json
    """
    if not isinstance(quantization, Mapping):
        return "auto"
    method = str(quantization.get("quant_method", ""))
    inner = quantization.get("quantization", quantization)
    inner = inner if isinstance(inner, Mapping) else quantization
    keys = ("kv_cache_scheme", "kv_cache_quant_algo")
    found = next((each[key] for key in keys for each in (inner, quantization) if each.get(key)), None)
    if method == "compressed-tensors":
        return "fp8" if quantization.get("kv_cache_scheme") else "auto"
    if not method.startswith("modelopt"):
        return "auto"
    if isinstance(found, Mapping):
        if found.get("type") != "float":
            return "auto"
        scaled = found.get("num_bits") == 8 and found.get("dynamic") is False
        return "fp8" if scaled else "nvfp4" if found.get("num_bits") == 4 else "auto"
    return {"fp8": "fp8", "nvfp4": "nvfp4"}.get(str(found).lower(), "auto")


_READERS: Mapping[str, Callable[[Config], Geometry]] = {
    name: reader
    for reader, names in (
        (_from_plain, (*_PLAIN, *_DRAFTS)),
        (_from_latent, parts.LATENT),
        (_from_chunked, ("Llama4ForCausalLM",)),
        (_from_gemma_shared, _GEMMA_SHARED),
        (_from_groups, ("Step3p5ForCausalLM",)),
        (_from_two_widths, parts.TWO_WIDTHS),
        (config_blocks.from_split_keys, ("MiniCPM3ForCausalLM",)),
        (config_blocks.from_block_configs, ("DeciLMForCausalLM",)),
        (config_blocks.from_convolved, ("InklingForCausalLM", "InklingForConditionalGeneration")),
        (config_hybrid.from_qwen_gdn, parts.DELTA),
        (config_hybrid.from_nemotron_h, ("NemotronHForCausalLM",)),
        (config_hybrid.from_nemotron_puzzle, ("NemotronHPuzzleForCausalLM",)),
        (config_hybrid.from_falcon_h1, ("FalconH1ForCausalLM",)),
        (config_hybrid.from_granite_hybrid, ("GraniteMoeHybridForCausalLM",)),
        (config_hybrid.from_jamba, ("JambaForCausalLM",)),
        (config_hybrid.from_lfm2, ("Lfm2ForCausalLM", "Lfm2MoeForCausalLM")),
        (config_hybrid.from_zamba2, ("Zamba2ForCausalLM",)),
        (config_sparse.from_indexed, parts.INDEXED),
        (config_sparse.from_block_sparse, parts.BLOCK_SPARSE),
        (config_sparse.from_compressed, ("DeepseekV4ForCausalLM",)),
        (config_sparse.from_sources, ("DeepseekV41ForCausalLM",)),
        (config_sparse.from_pooled, ("Glm5NextForConditionalGeneration",)),
        (config_sparse.from_qsa, ("Qwen4ExpForConditionalGeneration",)),
        (config_sparse.from_delta_hybrid, ("KimiLinearForCausalLM",)),
    )
    for name in names
}
KNOWN_ARCHITECTURES: tuple[str, ...] = (*_READERS, *_AROUND)


def _class_of(values: Mapping[str, Any]) -> str | None:
    """Return the class that a configuration names, or None."""
    named = values.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None


def keeps_nothing(values: Mapping[str, Any]) -> bool:
    """Tell whether a configuration is of a draft model without a cache of its own."""
    return _class_of(values) in _WITHOUT_A_CACHE


def geometry_from_hf_config(values: Mapping[str, Any]) -> Geometry:
    """Return the geometry that a Hugging Face ``config.json`` describes.

    Multimodal configurations are read through their ``text_config``, or ``llm_config``.

    :raises UnknownGeometryError: for an architecture without rules here, or with what the file lacks
    """
    architecture = _class_of(values)
    if architecture is None:
        raise UnknownGeometryError(["config.json names no architecture."])
    text = values.get("text_config") or values.get("llm_config")
    inner: Mapping[str, Any] = text if isinstance(text, Mapping) else values
    around = architecture in _AROUND
    if around and inner is values and "num_hidden_layers" not in values:
        raise UnknownGeometryError([f"config.json of {architecture} has no text_config."])
    inner_architecture = _AROUND.get(architecture) or (_class_of(inner) or "" if around else architecture)
    if inner_architecture not in _READERS:
        named = f"{inner_architecture or 'without a name'} inside {architecture}" if around else architecture
        raise UnknownGeometryError(
            [
                f"The memory model has no rules for the architecture {named}. Describe the model in `geometry` "
                "(docs/memory.md), or give a measured point in expected.kv_cache."
            ]
        )
    dtype = inner.get("dtype") or inner.get("torch_dtype") or values.get("dtype") or values.get("torch_dtype")
    dtype = dtype or "bfloat16"
    config = Config(config_blocks.respelled(inner, inner_architecture), inner_architecture, str(dtype))
    if not is_dtype(dtype):
        config.missing.append(f"config.json has dtype {dtype!r}, which is not {ONE_DTYPE}.")
    geometry = replace(
        _READERS[inner_architecture](config),
        architecture=architecture,
        kv_cache_dtype=checkpoint_kv_dtype(values.get("quantization_config") or inner.get("quantization_config")),
    )
    missing = list(dict.fromkeys(config.missing)) or check_consistency(geometry)
    if missing:
        raise UnknownGeometryError(missing)
    return geometry
