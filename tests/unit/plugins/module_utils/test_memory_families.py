# SPDX-License-Identifier: Apache-2.0
"""Families of models: read from config.json, and laid out as vLLM's own planner lays them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_json import geometry_from_hf_config
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    Attention,
    Geometry,
    GeometryError,
    Moe,
    UnknownGeometryError,
    Window,
    geometry_from_dict,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import GIB, fill_pool, plan_layout, rules_for

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "memory"
#: Made by scripts/kv_layouts.py with vLLM's CPU build of the version in the name.
PLANNED: dict[str, Any] = json.loads((FIXTURES / "kv-layouts-0.32.0.json").read_text(encoding="utf-8"))["layouts"]
CASES = yaml.safe_load((FIXTURES / "families.yml").read_text(encoding="utf-8"))


def geometry_of(case: dict[str, Any]) -> Geometry:
    shape = {"architecture": "x", "hidden_size": 1, "layers": 200, "max_position_embeddings": case["max_model_len"]}
    return geometry_from_dict(shape | case["geometry"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_the_layout_is_the_one_that_vllm_plans(case: dict[str, Any]) -> None:
    rules = rules_for((0, 32, 0))
    layout = plan_layout(
        geometry_of(case),
        tensor_parallel_size=case["tensor_parallel_size"],
        kv_cache_dtype=case["kv_cache_dtype"],
        ssm_dtype="auto",
        speculative_tokens=0,
        block_granularity=16,
        prefix_caching=None,
        cache_mode=None,
        rules=rules,
        in_flight_tokens=2 * case["max_num_batched_tokens"],
    )
    pool = fill_pool(layout, int(case["pool_gib"] * GIB), case["max_model_len"], rules)
    planned = PLANNED[case["name"]]
    assert layout.groups == planned["groups"]
    assert layout.sequence_bytes(case["max_model_len"]) == planned["sequence_bytes"]
    assert pool.blocks == planned["blocks"]
    assert pool.max_concurrency == pytest.approx(planned["concurrency"], rel=1e-9)


def test_without_the_hybrid_manager_a_window_keeps_everything() -> None:
    case = next(each for each in CASES if each["name"] == "gpt-oss-120b")
    options: dict[str, Any] = {
        "tensor_parallel_size": 1, "kv_cache_dtype": "fp8", "ssm_dtype": "auto", "speculative_tokens": 0,
        "block_granularity": 16, "prefix_caching": None, "cache_mode": None, "rules": rules_for((0, 32, 0)),
    }  # fmt: skip
    layout = plan_layout(geometry_of(case), **options, hybrid_manager=False)
    assert (layout.groups, layout.sequence_bytes(160)) == (1, 36 * 2 * 8 * 64 * 160)


COMMON = {"hidden_size": 4096, "vocab_size": 1000, "max_position_embeddings": 131072, "torch_dtype": "bfloat16"}


def config(architecture: str, **values: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **COMMON, **values}


GQA = {"num_hidden_layers": 62, "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128}


@pytest.mark.parametrize(
    ("values", "attention", "windows", "moe"),
    [
        pytest.param(
            config(
                "GptOssForCausalLM", num_hidden_layers=36, num_attention_heads=64, num_key_value_heads=8, head_dim=64,
                sliding_window=128, num_local_experts=128, num_experts_per_tok=4, intermediate_size=2880,
            ),
            Attention(18, 64, 8, 64), (Window(18, 128, 8, 64),), Moe(36, 128, 4, 2880), id="gpt-oss",
        ),
        pytest.param(
            config(
                "MiniMaxM2ForCausalLM", **GQA, num_local_experts=256, num_experts_per_tok=8, intermediate_size=1536
            ),
            Attention(62, 48, 8, 128), (), Moe(62, 256, 8, 1536), id="minimax-m2",
        ),
        pytest.param(
            config(
                "Glm4MoeForCausalLM", num_hidden_layers=46, num_attention_heads=96, num_key_value_heads=8, head_dim=128,
                n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=1408, first_k_dense_replace=1,
                intermediate_size=10944,
            ),
            Attention(46, 96, 8, 128), (), Moe(45, 128, 8, 1408), id="glm-4.5-air",
        ),
        pytest.param(
            config(
                "MixtralForCausalLM", num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                num_local_experts=8, num_experts_per_tok=2, intermediate_size=14336, sliding_window=None,
            ),
            Attention(32, 32, 8, 128), (), Moe(32, 8, 2, 14336), id="mixtral",
        ),
        pytest.param(
            config(
                "Gemma3ForConditionalGeneration",
                text_config={
                    **COMMON, "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16,
                    "head_dim": 128, "sliding_window": 1024, "sliding_window_pattern": 6,
                },
            ),
            Attention(10, 32, 16, 128), (Window(52, 1024, 16, 128),), None, id="gemma-3, pattern",
        ),
        pytest.param(
            config(
                "Gemma2ForCausalLM", num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
                sliding_window=4096,
                layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            ),
            Attention(2, 8, 4, 256), (Window(2, 4096, 4, 256),), None, id="gemma-2, listed",
        ),
        pytest.param(
            config(
                "MiMoV2ForCausalLM", num_hidden_layers=6, num_attention_heads=64, num_key_value_heads=4, head_dim=192,
                v_head_dim=128, swa_num_key_value_heads=8, swa_head_dim=192, swa_v_head_dim=128,
                sliding_window_size=128, hybrid_layer_pattern=[0, 1, 1, 1, 1, 0],
            ),
            Attention(2, 64, 4, 192, 128), (Window(4, 128, 8, 192, 128),), None, id="mimo-v2",
        ),
        pytest.param(
            config(
                "Llama4ForConditionalGeneration",
                text_config={
                    **COMMON, "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
                    "head_dim": 128, "attention_chunk_size": 8192, "num_local_experts": 16, "num_experts_per_tok": 1,
                    "intermediate_size": 8192, "interleave_moe_layer_step": 1,
                },
            ),
            Attention(12, 40, 8, 128), (Window(36, 8192, 8, 128, chunked=True),), Moe(48, 16, 1, 8192), id="llama-4",
        ),
        pytest.param(
            config(
                "DeepseekV3ForCausalLM", num_hidden_layers=61, num_attention_heads=128, num_key_value_heads=128,
                kv_lora_rank=512, qk_rope_head_dim=64, n_routed_experts=256, num_experts_per_tok=8,
                moe_intermediate_size=2048, first_k_dense_replace=3,
            ),
            Attention(61, 128, 1, 576, latent_dim=576), (), Moe(58, 256, 8, 2048), id="deepseek-v3",
        ),
        pytest.param(
            config(
                "KimiK25ForConditionalGeneration",
                text_config={
                    **COMMON, "num_hidden_layers": 61, "num_attention_heads": 64, "kv_lora_rank": 512,
                    "qk_rope_head_dim": 64,
                },
            ),
            Attention(61, 64, 1, 576, latent_dim=576), (), None, id="kimi-k2.5",
        ),
        pytest.param(
            config("Mistral3ForConditionalGeneration", text_config={**COMMON, **GQA}),
            Attention(62, 48, 8, 128), (), None, id="mistral-3",
        ),
        pytest.param(
            config(
                "Qwen3VLMoeForConditionalGeneration",
                text_config={
                    **COMMON, **GQA, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768
                },
            ),
            Attention(62, 48, 8, 128), (), Moe(62, 128, 8, 768), id="qwen3-vl-moe",
        ),
    ],
)  # fmt: skip
def test_a_family_is_read_from_its_config(
    values: dict[str, Any], attention: Attention, windows: tuple[Window, ...], moe: Moe | None
) -> None:
    found = geometry_from_hf_config(values)
    assert (found.attention, found.windows, found.moe) == (attention, windows, moe)
    assert found.architecture == values["architectures"][0]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            config(
                "DeepseekV3ForCausalLM", num_hidden_layers=1, num_attention_heads=1, kv_lora_rank=512,
                qk_rope_head_dim=64, index_topk=2048,
            ),
            "config.json has a sparse or compressed cache, which the memory model has no rule for.",
        ),
        (config("Gemma3ForConditionalGeneration"), "config.json of Gemma3ForConditionalGeneration has no text_config."),
        (
            config(
                "MiMoV2ForCausalLM", num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=64
            ),
            "config.json has no hybrid_layer_pattern of 2 zeros and ones.",
        ),
        (
            config("Qwen2ForCausalLM", **GQA, sliding_window=4096),
            "config.json has sliding_window 4096 and does not list which layers have it (layer_types), so their cache "
            "cannot be sized.",
        ),
    ],
)  # fmt: skip
def test_what_has_no_rule_is_said(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnknownGeometryError) as caught:
        geometry_from_hf_config(values)
    assert sentence in caught.value.missing


def test_an_unused_window_counts_as_full_attention() -> None:
    assert (
        geometry_from_hf_config(
            config("Qwen2ForCausalLM", **GQA, sliding_window=4096, use_sliding_window=False)
        ).windows
        == ()
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"windows": 3}, "geometry.windows is 3, but it must be a list of dictionaries."),
        ({"windows": [3]}, "geometry.windows[0] is 3, but it must be a dictionary."),
        ({"windows": [{"layers": 1}]}, "geometry.windows[0].tokens is missing: it must be a whole number above zero."),
        (
            {"windows": [{"layers": 1, "tokens": 1, "kv_heads": 1, "head_dim": 1, "chunked": "yes"}]},
            "geometry.windows[0].chunked is 'yes', but it must be true or false.",
        ),
        (
            {"attention": {"layers": 1, "heads": 8, "kv_heads": 2, "head_dim": 64, "latent_dim": 64}},
            "geometry.attention.latent_dim is given with 2 kv_heads: a latent cache has one vector of a token, so "
            "kv_heads must be 1.",
        ),
    ],
)
def test_a_wrong_window_is_named(change: dict[str, Any], sentence: str) -> None:
    shape = {
        "architecture": "x", "hidden_size": 1, "layers": 2, "max_position_embeddings": 1,
        "attention": {"layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 1},
    }  # fmt: skip
    with pytest.raises(GeometryError) as caught:
        geometry_from_dict(shape | change)
    assert sentence in caught.value.problems
