# SPDX-License-Identifier: Apache-2.0
"""Read a model's geometry from the config.json of its repository, by the architecture that it names.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    DTYPE_BYTES,
    ONE_DTYPE,
    WHOLE,
    Attention,
    GatedDeltaNet,
    Geometry,
    Mamba2,
    Moe,
    Mtp,
    UnknownGeometryError,
    check_consistency,
)

_LLAMA_LIKE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_QWEN3_MOE = ("Qwen3MoeForCausalLM",)
_QWEN_GDN = (
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
)
_NEMOTRON_H = ("NemotronHForCausalLM",)

KNOWN_ARCHITECTURES: tuple[str, ...] = (*_LLAMA_LIKE, *_QWEN3_MOE, *_QWEN_GDN, *_NEMOTRON_H)

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


class _Config:
    """A config.json that notes what was asked of it and was not there."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.missing: list[str] = []

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, *keys: str) -> int:
        """Return the first of the keys that is there as a whole number; note their absence otherwise."""
        for key in keys:
            value = self.values.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        self.missing.append(f"config.json has no {' or '.join(keys)} that is {WHOLE}.")
        return 1

    def optional(self, key: str) -> int | None:
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def texts(self, key: str) -> list[str] | None:
        value = self.values.get(key)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return list(value)
        return None


def _attention_from_config(config: _Config, layers: int) -> Attention:
    heads = config.integer("num_attention_heads")
    head_dim = config.optional("head_dim") or config.optional("attention_head_dim")
    if head_dim is None:
        head_dim = max(1, config.integer("hidden_size") // heads)
    return Attention(
        layers=layers,
        heads=heads,
        kv_heads=config.optional("num_key_value_heads") or heads,
        head_dim=head_dim,
    )


def _refuse_windows(config: _Config) -> None:
    """Note layers whose cache does not grow with the sequence: this model has no rule for them."""
    kinds = config.texts("layer_types") or []
    odd = sorted({kind for kind in kinds if kind not in ("full_attention", "linear_attention")})
    if odd:
        config.missing.append(
            f"config.json has layers of type {', '.join(odd)}, whose cache the memory model cannot size: "
            "it knows full and linear attention."
        )
    elif config.has("sliding_window") and config.values.get("use_sliding_window", True) is not False:
        config.missing.append(
            f"config.json has sliding_window {config.values['sliding_window']}, whose cache the memory model "
            "cannot size: it knows full and linear attention."
        )


def _sparse_moe(config: _Config, layers: int) -> Moe:
    """Return the experts of a Qwen model, whose dense layers are those that a step or a list leaves out."""
    step = config.optional("decoder_sparse_step") or 1
    dense = config.values.get("mlp_only_layers") or []
    sparse = sum(1 for index in range(layers) if index not in dense and (index + 1) % step == 0)
    return Moe(
        layers=max(1, sparse),
        experts=config.integer("num_experts", "n_routed_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        expert_intermediate_size=config.integer("moe_intermediate_size"),
    )


def _mtp(config: _Config, *keys: str) -> Mtp | None:
    for key in keys:
        layers = config.optional(key)
        if layers:
            return Mtp(layers=layers, attention_layers=layers)
    return None


def _from_llama(config: _Config, architecture: str, dtype: str) -> Geometry:
    _refuse_windows(config)
    layers = config.integer("num_hidden_layers")
    return Geometry(
        architecture=architecture,
        layers=layers,
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        attention=_attention_from_config(config, layers),
        moe=_sparse_moe(config, layers) if architecture in _QWEN3_MOE else None,
        vocab_size=config.optional("vocab_size"),
        dtype=dtype,
    )


def _from_qwen_gdn(config: _Config, architecture: str, dtype: str) -> Geometry:
    _refuse_windows(config)
    layers = config.integer("num_hidden_layers")
    kinds = config.texts("layer_types")
    if kinds is None:
        every = config.optional("full_attention_interval") or 4  # the default of both config classes
        kinds = ["linear_attention" if (index + 1) % every else "full_attention" for index in range(layers)]
    # Without mamba_ssm_dtype vLLM keeps the state in the model's own dtype.
    state_dtype = config.values.get("mamba_ssm_dtype") or dtype
    if state_dtype not in DTYPE_BYTES:
        config.missing.append(f"config.json has mamba_ssm_dtype {state_dtype!r}, which is not {ONE_DTYPE}.")
    return Geometry(
        architecture=architecture,
        layers=layers,
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        attention=_attention_from_config(config, max(1, kinds.count("full_attention"))),
        recurrent=GatedDeltaNet(
            layers=max(1, kinds.count("linear_attention")),
            k_heads=config.integer("linear_num_key_heads"),
            v_heads=config.integer("linear_num_value_heads"),
            k_head_dim=config.integer("linear_key_head_dim"),
            v_head_dim=config.integer("linear_value_head_dim"),
            conv_kernel=config.integer("linear_conv_kernel_dim"),
            state_dtype=state_dtype,
        ),
        moe=_sparse_moe(config, layers) if config.has("num_experts") else None,
        mtp=_mtp(config, "mtp_num_hidden_layers", "num_nextn_predict_layers"),
        vocab_size=config.optional("vocab_size"),
        dtype=dtype,
    )


def _blocks(config: _Config, list_key: str, pattern_key: str) -> list[str]:
    """Return the kinds of Nemotron-H's blocks, from a list of names or a string of letters."""
    named = config.texts(list_key)
    letters = config.values.get(pattern_key)
    spelled = named or (list(letters) if isinstance(letters, str) else [])
    odd = sorted({item for item in spelled if item not in _BLOCK_KINDS})
    if odd:
        config.missing.append(f"config.json has blocks {', '.join(odd)}, which the memory model does not know.")
    return [_BLOCK_KINDS.get(item, "mlp") for item in spelled]


def _from_nemotron_h(config: _Config, architecture: str, dtype: str) -> Geometry:
    blocks = _blocks(config, "layers_block_type", "hybrid_override_pattern")
    if not blocks:
        config.missing.append("config.json has neither layers_block_type nor hybrid_override_pattern.")
    counts = {kind: blocks.count(kind) for kind in ("mamba", "attention", "moe")}
    if blocks and not counts["attention"]:
        config.missing.append("config.json has no attention block: the memory model needs one to size its pages.")
    state_dtype = config.values.get("mamba_ssm_cache_dtype") or "float32"  # vLLM's own default for this class
    if state_dtype not in DTYPE_BYTES:
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
        attention=_attention_from_config(config, max(1, counts["attention"])),
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
        known = ", ".join(KNOWN_ARCHITECTURES)
        sentence = f"The memory model has no rules for the architecture {architecture}: it knows {known}."
        raise UnknownGeometryError([f"{sentence} Describe the model in `geometry` instead."])
    config = _Config(inner)
    dtype = inner.get("dtype") or inner.get("torch_dtype") or values.get("dtype") or values.get("torch_dtype")
    dtype = dtype or "bfloat16"
    if dtype not in DTYPE_BYTES:
        config.missing.append(f"config.json has dtype {dtype!r}, which is not {ONE_DTYPE}.")
    reader = _from_llama
    if architecture in _QWEN_GDN:
        reader = _from_qwen_gdn
    elif architecture in _NEMOTRON_H:
        reader = _from_nemotron_h
    geometry = reader(config, architecture, str(dtype))
    missing = list(dict.fromkeys(config.missing)) or check_consistency(geometry)
    if missing:
        raise UnknownGeometryError(missing)
    return geometry
