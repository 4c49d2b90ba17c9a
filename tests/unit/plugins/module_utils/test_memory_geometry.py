# SPDX-License-Identifier: Apache-2.0
"""A model's shape, from a catalogue file and from a config.json."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_json import (
    geometry_from_hf_config,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    Attention,
    GatedDeltaNet,
    Geometry,
    GeometryError,
    Mamba2,
    Moe,
    Mtp,
    UnknownGeometryError,
    geometry_from_dict,
)

REPO = Path(__file__).resolve().parents[4]
POINTS = yaml.safe_load((REPO / "benchmarks" / "memory_points.yml").read_text(encoding="utf-8"))

#: config.json of nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B, as far as its shape goes.
NANO_CONFIG: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 2688,
    "num_hidden_layers": 52,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "conv_kernel": 4,
    "chunk_size": 128,
    "mamba_ssm_cache_dtype": "float32",
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "max_position_embeddings": 262144,
    "vocab_size": 131072,
}

QWEN35_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
    "text_config": {
        "dtype": "bfloat16",
        "hidden_size": 4096,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 64,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "moe_intermediate_size": 1024,
        "mtp_num_hidden_layers": 1,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "vocab_size": 248320,
    },
}

QWEN3_MOE_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "torch_dtype": "bfloat16",
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "sliding_window": None,
    "vocab_size": 151936,
}

LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
}


def test_a_whole_geometry() -> None:
    geometry = geometry_from_dict(POINTS["models"]["ultra"]["geometry"])
    assert geometry == Geometry(
        architecture="NemotronHForCausalLM",
        layers=108,
        hidden_size=8192,
        max_position_embeddings=262144,
        attention=Attention(layers=12, heads=64, kv_heads=2, head_dim=128),
        recurrent=Mamba2(
            layers=48,
            heads=256,
            head_dim=64,
            state_size=128,
            groups=8,
            conv_kernel=4,
            state_dtype="float32",
            chunk_size=128,
        ),
        moe=Moe(layers=48, experts=512, experts_per_token=22, expert_intermediate_size=5120, latent_size=2048),
        mtp=Mtp(layers=1, attention_layers=1, weights_gib=20.9),
        vocab_size=131072,
        dtype="bfloat16",
    )


def test_a_dense_attention_only_geometry() -> None:
    geometry = geometry_from_dict(
        {
            "architecture": "Qwen3ForCausalLM",
            "layers": 2,
            "hidden_size": 64,
            "dtype": "float16",
            "max_position_embeddings": 4096,
            "attention": {"layers": 2, "heads": 4, "kv_heads": 4, "head_dim": 16},
        }
    )
    assert geometry.recurrent is None
    assert geometry.moe is None
    assert geometry.mtp is None
    assert geometry.vocab_size is None
    assert geometry.dtype == "float16"


def test_all_problems_of_a_geometry_come_at_once() -> None:
    with pytest.raises(GeometryError) as caught:
        geometry_from_dict({"layers": 0, "atention": {}, "recurrent": {"kind": "rwkv"}})
    assert caught.value.problems == [
        "geometry.atention is not a key that the memory model knows: did you mean attention?",
        "geometry.architecture is missing: it must be a text.",
        "geometry.layers is 0, but it must be a whole number above zero.",
        "geometry.hidden_size is missing: it must be a whole number above zero.",
        "geometry.max_position_embeddings is missing: it must be a whole number above zero.",
        "geometry.attention is missing: it must be a dictionary.",
        "geometry.recurrent.kind is 'rwkv', but it must be one of mamba1, mamba2, gated_delta_net, kda, short_conv.",
    ]
    assert str(caught.value) == " ".join(caught.value.problems)


# --- config.json ----------------------------------------------------------------------------------------


def test_nemotron_h_from_its_config() -> None:
    assert geometry_from_hf_config(NANO_CONFIG) == geometry_from_dict(POINTS["models"]["nano"]["geometry"])


def test_nemotron_h_in_the_spelling_of_transformers_5() -> None:
    names = {"M": "linear_attention", "E": "moe", "*": "full_attention"}
    config = {key: value for key, value in NANO_CONFIG.items() if key != "hybrid_override_pattern"}
    config["layers_block_type"] = [names[letter] for letter in NANO_CONFIG["hybrid_override_pattern"]]
    assert geometry_from_hf_config(config) == geometry_from_hf_config(NANO_CONFIG)


def test_nemotron_h_with_mlp_blocks_and_without_experts() -> None:
    config = {**NANO_CONFIG, "hybrid_override_pattern": "MM*MM*M-"}
    geometry = geometry_from_hf_config(config)
    assert geometry.layers == 8
    assert geometry.attention.layers == 2
    assert isinstance(geometry.recurrent, Mamba2)
    assert geometry.recurrent.layers == 5
    assert geometry.moe is None


def test_nemotron_h_draft_head_and_latent_experts() -> None:
    config = {**NANO_CONFIG, "num_nextn_predict_layers": 1, "moe_latent_size": 1024}
    geometry = geometry_from_hf_config(config)
    assert geometry.mtp == Mtp(layers=1, attention_layers=1)
    assert geometry.moe is not None
    assert geometry.moe.latent_size == 1024
    both = geometry_from_hf_config({**config, "mtp_hybrid_override_pattern": "*E*E"})
    assert both.mtp == Mtp(layers=1, attention_layers=2)


def test_nemotron_h_defaults_are_those_of_vllm() -> None:
    config = {key: value for key, value in NANO_CONFIG.items() if key not in ("mamba_ssm_cache_dtype", "chunk_size")}
    recurrent = geometry_from_hf_config(config).recurrent
    assert isinstance(recurrent, Mamba2)
    assert recurrent.state_dtype == "float32"
    assert recurrent.chunk_size == 2048


def test_qwen35_through_its_text_config() -> None:
    expected = geometry_from_dict(POINTS["models"]["qwen397"]["geometry"])
    assert geometry_from_hf_config(QWEN35_CONFIG) == expected


def test_qwen35_with_named_layers() -> None:
    config = copy.deepcopy(QWEN35_CONFIG)
    config["text_config"]["layer_types"] = (["linear_attention"] * 3 + ["full_attention"]) * 15
    assert geometry_from_hf_config(config) == geometry_from_hf_config(QWEN35_CONFIG)


def test_qwen3_next_keeps_its_state_in_the_models_dtype() -> None:
    config = {"architectures": ["Qwen3NextForCausalLM"], **QWEN35_CONFIG["text_config"]}
    del config["mamba_ssm_dtype"], config["full_attention_interval"], config["mtp_num_hidden_layers"]
    geometry = geometry_from_hf_config(config)
    assert isinstance(geometry.recurrent, GatedDeltaNet)
    assert geometry.recurrent.state_dtype == "bfloat16"
    assert geometry.recurrent.layers == 45
    assert geometry.mtp is None


def test_qwen35_without_experts_is_dense() -> None:
    config = copy.deepcopy(QWEN35_CONFIG)
    config["architectures"] = ["Qwen3_5ForConditionalGeneration"]
    del config["text_config"]["num_experts"]
    assert geometry_from_hf_config(config).moe is None


def test_qwen3_moe() -> None:
    geometry = geometry_from_hf_config(QWEN3_MOE_CONFIG)
    assert geometry.attention == Attention(layers=48, heads=32, kv_heads=4, head_dim=128)
    assert geometry.moe == Moe(layers=48, experts=128, experts_per_token=8, expert_intermediate_size=768)
    assert geometry.recurrent is None


def test_qwen3_moe_with_dense_layers_between() -> None:
    geometry = geometry_from_hf_config({**QWEN3_MOE_CONFIG, "decoder_sparse_step": 2, "mlp_only_layers": [1, 3]})
    assert geometry.moe is not None
    assert geometry.moe.layers == 22


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"])
def test_llama_like_without_a_head_dim(architecture: str) -> None:
    geometry = geometry_from_hf_config({**LLAMA_CONFIG, "architectures": [architecture]})
    assert geometry.attention == Attention(layers=32, heads=32, kv_heads=8, head_dim=128)


def test_as_many_kv_heads_as_heads_when_the_config_is_silent() -> None:
    config = {key: value for key, value in LLAMA_CONFIG.items() if key != "num_key_value_heads"}
    assert geometry_from_hf_config(config).attention.kv_heads == 32


def test_dense_layers_that_are_no_list_are_none() -> None:
    assert geometry_from_hf_config({**QWEN3_MOE_CONFIG, "mlp_only_layers": 3}) == geometry_from_hf_config(
        QWEN3_MOE_CONFIG
    )


def test_a_sliding_window_that_is_off_does_not_matter() -> None:
    config = {**LLAMA_CONFIG, "sliding_window": 4096, "use_sliding_window": False}
    assert geometry_from_hf_config(config).attention.layers == 32


def test_a_window_as_long_as_the_context_is_full_attention() -> None:
    longest = LLAMA_CONFIG["max_position_embeddings"]
    assert geometry_from_hf_config({**LLAMA_CONFIG, "sliding_window": longest}).attention.layers == 32
    with pytest.raises(UnknownGeometryError):
        geometry_from_hf_config({**LLAMA_CONFIG, "sliding_window": longest - 1})


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({}, "config.json names no architecture."),
        ({"architectures": []}, "config.json names no architecture."),
        (
            {"architectures": ["LongcatFlashForCausalLM"]},
            "The memory model has no rules for the architecture LongcatFlashForCausalLM. Describe the model in "
            "`geometry` (docs/memory.md), or give a measured point in expected.kv_cache.",
        ),
        (
            without(LLAMA_CONFIG, "num_hidden_layers"),
            "config.json has no num_hidden_layers that is a whole number above zero.",
        ),
        (
            {**LLAMA_CONFIG, "num_hidden_layers": 10**9},
            "config.json has a num_hidden_layers that is larger than any model's: 10000 at most.",
        ),
        (
            {**LLAMA_CONFIG, "hidden_size": 10**400},
            "config.json has a hidden_size that is larger than any model's: 2147483647 at most.",
        ),
        (
            {**LLAMA_CONFIG, "torch_dtype": ["bfloat16"]},
            "config.json has dtype ['bfloat16'], which is not one of float32, float16, bfloat16.",
        ),
        (
            {**LLAMA_CONFIG, "sliding_window": 4096},
            "config.json has sliding_window 4096 and does not list which layers have it (layer_types), so their cache "
            "cannot be sized.",
        ),
        (
            {**LLAMA_CONFIG, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64},
            "config.json lists 2 layer_types for 32 layers.",
        ),
        (
            {**LLAMA_CONFIG, "layer_types": ["full_attention", "odd_attention"] * 16},
            "config.json has layers of type odd_attention, whose cache the memory model cannot size.",
        ),
        (
            {**LLAMA_CONFIG, "layer_types": ["sliding_attention"] * 32, "sliding_window": 64},
            "config.json has no layer of full attention: the memory model needs one.",
        ),
        (
            {**LLAMA_CONFIG, "torch_dtype": "float8_e4m3fn"},
            "config.json has dtype 'float8_e4m3fn', which is not one of float32, float16, bfloat16.",
        ),
        (
            without(NANO_CONFIG, "hybrid_override_pattern"),
            "config.json has neither layers_block_type nor hybrid_override_pattern.",
        ),
        (
            {**NANO_CONFIG, "hybrid_override_pattern": "ME*X"},
            "config.json has blocks X, which the memory model does not know.",
        ),
        (
            {**NANO_CONFIG, "hybrid_override_pattern": "MEME"},
            "config.json has no attention block: the memory model needs one to size its pages.",
        ),
        (
            {**NANO_CONFIG, "mamba_ssm_cache_dtype": "int8"},
            "config.json has mamba_ssm_cache_dtype 'int8', which is not one of float32, float16, bfloat16.",
        ),
        (
            without(NANO_CONFIG, "n_routed_experts"),
            "config.json has no n_routed_experts or num_experts that is a whole number above zero.",
        ),
        (
            {**QWEN35_CONFIG, "text_config": {**QWEN35_CONFIG["text_config"], "mamba_ssm_dtype": "fp8"}},
            "config.json has mamba_ssm_dtype 'fp8', which is not one of float32, float16, bfloat16.",
        ),
        (
            {**LLAMA_CONFIG, "num_key_value_heads": 5},
            "geometry.attention.heads is 32, which is not a multiple of its 5 kv_heads.",
        ),
    ],
)
def test_an_insufficient_config_says_what_is_missing(config: dict[str, Any], missing: str) -> None:
    with pytest.raises(UnknownGeometryError) as caught:
        geometry_from_hf_config(config)
    assert missing in caught.value.missing
    assert missing in str(caught.value)
