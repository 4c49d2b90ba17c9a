# SPDX-License-Identifier: Apache-2.0
"""Read a model's geometry from the config.json of its repository, by the architecture that it names.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_sparse import (
    from_block_sparse,
    from_compressed,
    from_delta_hybrid,
    from_indexed,
    from_pooled,
    from_qsa,
    from_sources,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_values import (
    Config,
    attention_from_config,
    is_dtype,
    moe_of,
    mtp_of,
    plain_geometry,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    ONE_DTYPE,
    Attention,
    GatedDeltaNet,
    Geometry,
    Mamba2,
    Moe,
    Mtp,
    UnknownGeometryError,
    Window,
    check_consistency,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.whole import MOST

#: Full attention in every layer, or windows where `layer_types` says so; with or without experts.
_PLAIN = (
    "ApertusForCausalLM",
    "ArceeForCausalLM",
    "Dots1ForCausalLM",
    "Ernie4_5ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "Exaone4ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeForCausalLM",
    "GptOssForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeForCausalLM",
    "LlamaForCausalLM",
    "MiniMaxM2ForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Olmo2ForCausalLM",
    "OlmoeForCausalLM",
    "Phi3ForCausalLM",
    "PhiMoEForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3ForSequenceClassification",
    "Qwen3MoeForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
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
#: One latent vector of a token instead of keys and values.
_LATENT = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM")
#: The same with an indexer, which chooses what attention reads.
_INDEXED = ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM")
_BLOCK_SPARSE = ("MiniMaxM3SparseForCausalLM", "MiniMaxM3SparseForConditionalGeneration")
_COMPRESSED = ("DeepseekV4ForCausalLM",)
_SOURCES = ("DeepseekV41ForCausalLM",)
_POOLED = ("Glm5NextForConditionalGeneration",)
_QSA = ("Qwen4ExpForConditionalGeneration",)
#: Kimi Delta Attention beside latent attention.
_DELTA_HYBRID = ("KimiLinearForCausalLM",)
_CHUNKED = ("Llama4ForCausalLM",)
#: Windows with heads of another width, and layers that read the cache of an earlier one.
_GEMMA_4 = ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration")
_TWO_WIDTHS = ("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM")
_QWEN_GDN = (
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
)
_NEMOTRON_H = ("NemotronHForCausalLM",)
#: A model for images around a language model of its own ``text_config``: the class that reads it.
_AROUND = {
    "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    "KimiK25ForConditionalGeneration": "DeepseekV3ForCausalLM",
    "KimiVLForConditionalGeneration": "DeepseekV3ForCausalLM",
    "Llama4ForConditionalGeneration": "Llama4ForCausalLM",
    "LlavaForConditionalGeneration": "LlamaForCausalLM",
    "Mistral3ForConditionalGeneration": "MistralForCausalLM",
    "Qwen3VLForConditionalGeneration": "Qwen3ForCausalLM",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3MoeForCausalLM",
}

KNOWN_ARCHITECTURES: tuple[str, ...] = (
    *_PLAIN,
    *_DRAFTS,
    *_LATENT,
    *_INDEXED,
    *_BLOCK_SPARSE,
    *_COMPRESSED,
    *_SOURCES,
    *_POOLED,
    *_QSA,
    *_DELTA_HYBRID,
    *_CHUNKED,
    *_GEMMA_4,
    *_TWO_WIDTHS,
    *_QWEN_GDN,
    *_NEMOTRON_H,
    *_AROUND,
)

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


def _kinds(config: Config, architecture: str, layers: int) -> list[str]:
    """Return what each layer's attention is: full, sliding or chunked; note kinds without a rule here.

    Models that do not list it follow the rule of their class in vLLM or in its configuration's defaults.
    """
    kinds = config.texts("layer_types")
    if kinds is None and architecture == "GptOssForCausalLM":
        # vllm/model_executor/models/gpt_oss.py: the window is on every even layer.
        kinds = ["full_attention" if index % 2 else "sliding_attention" for index in range(layers)]
    every = config.optional("sliding_window_pattern") or (2 if architecture == "Gemma2ForCausalLM" else None)
    if kinds is None and every and architecture.startswith("Gemma"):
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
    odd = sorted({kind for kind in kinds if kind not in ("full_attention", "sliding_attention")})
    if odd:
        config.missing.append(
            f"config.json has layers of type {', '.join(odd)}, whose cache the memory model cannot size."
        )
    if len(kinds) != layers:
        config.missing.append(f"config.json lists {len(kinds)} layer_types for {layers} layers.")
    if "full_attention" not in kinds:
        config.missing.append("config.json has no layer of full attention: the memory model needs one.")
    return kinds


def _from_plain(config: Config, architecture: str, dtype: str) -> Geometry:
    layers = config.integer("num_hidden_layers")
    kinds = _kinds(config, architecture, layers)
    attention = attention_from_config(config, max(1, kinds.count("full_attention")))
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
    return plain_geometry(config, architecture, dtype, attention, windows, mtp_of(config, "num_nextn_predict_layers"))


def _from_latent(config: Config, architecture: str, dtype: str) -> Geometry:
    """Read a model with multi-head latent attention (vllm/model_executor/models/deepseek_v2.py).

    A token is one vector: the compressed keys and values, and the part of the key that carries the position.
    """
    layers, heads = config.integer("num_hidden_layers"), config.integer("num_attention_heads")
    if config.has("index_topk") or config.has("compress_ratios"):
        config.missing.append("config.json has a sparse or compressed cache, which the memory model has no rule for.")
    latent = config.integer("kv_lora_rank") + config.integer("qk_rope_head_dim")
    attention = Attention(layers=layers, heads=heads, kv_heads=1, head_dim=latent, latent_dim=latent)
    return plain_geometry(config, architecture, dtype, attention, (), mtp_of(config, "num_nextn_predict_layers"))


def _from_chunked(config: Config, architecture: str, dtype: str) -> Geometry:
    """Read Llama 4: layers with rotary positions keep a chunk, the others everything (``no_rope_layers``)."""
    layers = config.integer("num_hidden_layers")
    rotary = config.values.get("no_rope_layers")
    if not (isinstance(rotary, list) and len(rotary) == layers and all(item in (0, 1) for item in rotary)):
        every = config.optional("no_rope_layer_interval") or 4  # the default of the configuration's class
        rotary = [int((index + 1) % every != 0) for index in range(layers)]
    chunk, full = config.optional("attention_chunk_size"), rotary.count(0)
    if chunk is None:
        return plain_geometry(config, architecture, dtype, attention_from_config(config, layers))
    attention = attention_from_config(config, max(1, full))
    chunks = Window(layers - full, chunk, attention.kv_heads, attention.head_dim, chunked=True)
    return plain_geometry(config, architecture, dtype, attention, (chunks,))


def _from_gemma_4(config: Config, architecture: str, dtype: str) -> Geometry:
    """Read Gemma 4 (vllm/model_executor/models/gemma4.py; transformers' ``Gemma4TextConfig`` for what is not given).

    The last ``num_kv_shared_layers`` read the cache of an earlier layer; layers of full attention have wider heads.
    """
    layers = config.integer("num_hidden_layers")
    kinds = config.texts("layer_types") or [
        "sliding_attention" if (index + 1) % 6 and index + 1 < layers else "full_attention" for index in range(layers)
    ]
    odd = sorted({kind for kind in kinds if kind not in ("full_attention", "sliding_attention")})
    if odd or len(kinds) != layers:
        config.missing.append(f"config.json lists {len(kinds)} layer_types for {layers} layers: {', '.join(odd)}.")
    if config.values.get("use_bidirectional_attention") == "all":
        config.missing.append(
            "config.json attends in both directions everywhere, which the memory model has no rule for."
        )
    own = kinds[: max(0, layers - (config.optional("num_kv_shared_layers") or 0))]
    if "full_attention" not in own:
        config.missing.append("config.json has no layer of full attention: the memory model needs one.")
    narrow = attention_from_config(config, max(1, own.count("full_attention")))
    heads = config.optional("num_global_key_value_heads") if config.values.get("attention_k_eq_v") else None
    wide = replace(narrow, kv_heads=heads or narrow.kv_heads, head_dim=config.optional("global_head_dim") or 512)
    windows: tuple[Window, ...] = ()
    if "sliding_attention" in own:
        count, tokens = own.count("sliding_attention"), config.integer("sliding_window")
        windows = (Window(count, tokens, narrow.kv_heads, narrow.head_dim),)
    return plain_geometry(config, architecture, dtype, wide, windows)


def _from_two_widths(config: Config, architecture: str, dtype: str) -> Geometry:
    """Read MiMo-V2 (vllm/model_executor/models/mimo_v2.py): windows with heads of their own, values narrower than keys.

    Its draft layers have no rule here: the geometry has no mtp section.
    """
    layers = config.integer("num_hidden_layers")
    pattern = config.values.get("hybrid_layer_pattern")
    if not (isinstance(pattern, list) and len(pattern) == layers and all(item in (0, 1) for item in pattern)):
        config.missing.append(f"config.json has no hybrid_layer_pattern of {layers} zeros and ones.")
        pattern = [0] * layers
    if 0 not in pattern:
        config.missing.append("config.json has no layer of full attention: the memory model needs one.")
    full = attention_from_config(config, max(1, pattern.count(0)))
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
    return plain_geometry(config, architecture, dtype, attention, windows)


def _from_qwen_gdn(config: Config, architecture: str, dtype: str) -> Geometry:
    layers = config.integer("num_hidden_layers")
    kinds = config.texts("layer_types")
    odd = sorted({kind for kind in kinds or [] if kind not in ("full_attention", "linear_attention")})
    if odd:
        config.missing.append(
            f"config.json has layers of type {', '.join(odd)}, whose cache the memory model cannot size."
        )
    if kinds is None:
        every = config.optional("full_attention_interval") or 4  # the default of both config classes
        kinds = ["linear_attention" if (index + 1) % every else "full_attention" for index in range(layers)]
    # Without mamba_ssm_dtype vLLM keeps the state in the model's own dtype.
    state_dtype = config.values.get("mamba_ssm_dtype") or dtype
    if not is_dtype(state_dtype):
        config.missing.append(f"config.json has mamba_ssm_dtype {state_dtype!r}, which is not {ONE_DTYPE}.")
    return Geometry(
        architecture=architecture,
        layers=layers,
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        attention=attention_from_config(config, max(1, kinds.count("full_attention"))),
        recurrent=GatedDeltaNet(
            layers=max(1, kinds.count("linear_attention")),
            k_heads=config.integer("linear_num_key_heads"),
            v_heads=config.integer("linear_num_value_heads"),
            k_head_dim=config.integer("linear_key_head_dim"),
            v_head_dim=config.integer("linear_value_head_dim"),
            conv_kernel=config.integer("linear_conv_kernel_dim"),
            state_dtype=state_dtype,
        ),
        moe=moe_of(config, layers),
        mtp=mtp_of(config, "mtp_num_hidden_layers", "num_nextn_predict_layers"),
        vocab_size=config.optional("vocab_size"),
        dtype=dtype,
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


def _from_nemotron_h(config: Config, architecture: str, dtype: str) -> Geometry:
    blocks = _blocks(config, "layers_block_type", "hybrid_override_pattern")
    if not blocks:
        config.missing.append("config.json has neither layers_block_type nor hybrid_override_pattern.")
    counts = {kind: blocks.count(kind) for kind in ("mamba", "attention", "moe")}
    if blocks and not counts["attention"]:
        config.missing.append("config.json has no attention block: the memory model needs one to size its pages.")
    state_dtype = config.values.get("mamba_ssm_cache_dtype") or "float32"  # vLLM's own default for this class
    if not is_dtype(state_dtype):
        config.missing.append(f"config.json has mamba_ssm_cache_dtype {state_dtype!r}, which is not {ONE_DTYPE}.")
    mtp = None
    heads = config.optional("num_nextn_predict_layers")
    if heads:
        pattern = _blocks(config, "mtp_layers_block_type", "mtp_hybrid_override_pattern") or ["attention", "moe"]
        mtp = Mtp(layers=heads, attention_layers=heads * pattern.count("attention"))
    return Geometry(
        architecture=architecture,
        layers=len(blocks) or 1,
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        attention=attention_from_config(config, max(1, counts["attention"])),
        recurrent=Mamba2(
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
        moe=Moe(
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
        dtype=dtype,
    )


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


def geometry_from_hf_config(values: Mapping[str, Any]) -> Geometry:
    """Return the geometry that a Hugging Face ``config.json`` describes.

    Multimodal configurations are read through their ``text_config``.

    :param values: the parsed file
    :raises UnknownGeometryError: for an architecture without rules here, or with what the file lacks
    """
    architectures = values.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise UnknownGeometryError(["config.json names no architecture."])
    architecture = architectures[0]
    text = values.get("text_config")
    inner: Mapping[str, Any] = text if isinstance(text, Mapping) else values
    if architecture not in KNOWN_ARCHITECTURES:
        raise UnknownGeometryError(
            [
                f"The memory model has no rules for the architecture {architecture}. Describe the model in `geometry` "
                "(docs/memory.md), or give a measured point in expected.kv_cache."
            ]
        )
    if architecture in _AROUND and not isinstance(text, Mapping):
        raise UnknownGeometryError([f"config.json of {architecture} has no text_config."])
    inner_architecture = _AROUND.get(architecture, architecture)
    config = Config(inner)
    dtype = inner.get("dtype") or inner.get("torch_dtype") or values.get("dtype") or values.get("torch_dtype")
    dtype = dtype or "bfloat16"
    if not is_dtype(dtype):
        config.missing.append(f"config.json has dtype {dtype!r}, which is not {ONE_DTYPE}.")
    readers = (
        ((*_PLAIN, *_DRAFTS), _from_plain),
        (_LATENT, _from_latent),
        (_INDEXED, from_indexed),
        (_BLOCK_SPARSE, from_block_sparse),
        (_COMPRESSED, from_compressed),
        (_SOURCES, from_sources),
        (_POOLED, from_pooled),
        (_QSA, from_qsa),
        (_DELTA_HYBRID, from_delta_hybrid),
        (_CHUNKED, _from_chunked),
        (_GEMMA_4, _from_gemma_4),
        (_TWO_WIDTHS, _from_two_widths),
        (_QWEN_GDN, _from_qwen_gdn),
        (_NEMOTRON_H, _from_nemotron_h),
    )
    reader = next(each for names, each in readers if inner_architecture in names)
    geometry = replace(
        reader(config, inner_architecture, str(dtype)),
        architecture=architecture,
        kv_cache_dtype=checkpoint_kv_dtype(values.get("quantization_config") or inner.get("quantization_config")),
    )
    missing = list(dict.fromkeys(config.missing)) or check_consistency(geometry)
    if missing:
        raise UnknownGeometryError(missing)
    return geometry
