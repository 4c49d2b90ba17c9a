# SPDX-License-Identifier: Apache-2.0
"""Families of models: read from config.json, and laid out as vLLM's own planner lays them out."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_json import (
    geometry_from_hf_config,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    Attention,
    Geometry,
    GeometryError,
    Moe,
    Mtp,
    UnknownGeometryError,
    Window,
    geometry_from_dict,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import GIB, rules_for, state_bytes
from ansible_collections.gb10.cluster.plugins.module_utils._memory.layout import Asked, fill_pool, plan_layout
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.shape import geometry_values

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "memory"
#: Made by scripts/kv_layouts.py with vLLM's CPU build of the version in the name.
PLANNED: dict[str, Any] = json.loads((FIXTURES / "kv-layouts-0.32.0.json").read_text(encoding="utf-8"))["layouts"]
CASES = yaml.safe_load((FIXTURES / "families.yml").read_text(encoding="utf-8"))
#: What vLLM's own classes build from classes.yml, by scripts/class_specs.py.
BUILT = json.loads((FIXTURES / "class-specs-0.32.0.json").read_text(encoding="utf-8"))["classes"]
CLASSES: dict[str, dict[str, Any]] = yaml.safe_load((FIXTURES / "classes.yml").read_text(encoding="utf-8"))


def geometry_of(case: dict[str, Any], key: str = "geometry") -> Geometry:
    shape = {"architecture": "x", "hidden_size": 1, "layers": 200, "max_position_embeddings": case["max_model_len"]}
    return geometry_from_dict(shape | case[key])


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_the_layout_is_the_one_that_vllm_plans(case: dict[str, Any]) -> None:
    rules = rules_for((0, 32, 0))
    mode = case.get("cache_mode")
    layout = plan_layout(
        geometry_of(case),
        Asked(
            tensor_parallel_size=case["tensor_parallel_size"],
            kv_cache_dtype=case["kv_cache_dtype"],
            ssm_dtype="auto",
            speculative_tokens=case.get("speculative_tokens", 0),
            block_granularity=case.get("block_size", 16),
            prefix_caching=None if mode is None else mode != "none",
            cache_mode=mode,
            rules=rules,
            in_flight_tokens=2 * case["max_num_batched_tokens"],
            draft=geometry_of(case, "draft") if "draft" in case else None,
            own_heads="draft" not in case,
        ),
    )
    pool = fill_pool(layout, int(case["pool_gib"] * GIB), case["max_model_len"], rules)
    planned = PLANNED[case["name"]]
    assert layout.groups == planned["groups"]
    assert layout.sequence_bytes(case["max_model_len"]) == planned["sequence_bytes"]
    assert pool.blocks == planned["blocks"]
    assert pool.max_concurrency == pytest.approx(planned["concurrency"], rel=1e-9)


@pytest.mark.parametrize(("page_states", "groups"), [(None, 6), (64, 18)])
def test_pages_of_so_many_states_put_each_kind_of_source_in_blocks_of_its_own(
    page_states: int | None, groups: int
) -> None:
    case = copy.deepcopy(next(each for each in CASES if each["name"].endswith("draft heads, 300000 tokens")))
    if page_states:
        case["geometry"]["compressed"]["page_states"] = page_states
    asked = Asked(
        tensor_parallel_size=4, kv_cache_dtype="fp8", ssm_dtype="auto", speculative_tokens=5, block_granularity=128,
        prefix_caching=None, cache_mode=None, rules=rules_for((0, 32, 0)), in_flight_tokens=2 * 8192,
    )  # fmt: skip
    layout = plan_layout(geometry_of(case), asked)
    assert layout.groups == groups
    # 64 states of 584 bytes and 64 keys of 132, each filled up to whole strides of 576 bytes; three layers of pairs.
    block = 3 * (37440 + 8640)
    grown = layout.sequence_bytes(600_064) - layout.sequence_bytes(300_032)
    if page_states:
        assert (layout.block_bytes, grown) == (block, (300_032 // 128 + 300_032 // 64) * block)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_keeps_what_vllm_builds(name: str) -> None:
    found = geometry_from_hf_config(CLASSES[name])
    attention, recurrent = found.attention, found.recurrent
    keeps: list[list[int | None]] = [
        [attention.layers, attention.kv_heads, attention.head_dim, attention.head_dim, None]
    ]
    itself = found.architecture in rules_for((0, 32, 0)).windows_count_the_token_itself
    keeps += [
        [each.layers, each.kv_heads, each.head_dim, each.head_dim, each.tokens + itself] for each in found.windows
    ]
    if recurrent:
        keeps.append([recurrent.layers, state_bytes(recurrent, "bfloat16", 1, 0, "auto")])
    assert sorted(keeps, key=str) == sorted(BUILT[name], key=str)
    assert geometry_from_dict(geometry_values(found)) == found


NO_ATTENTION = "config.json has no attention block: the memory model needs one to size its pages."


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("hunyuan-dense", {"use_cla": True},
         "config.json has layers that share keys and values (use_cla), which have no rule here."),
        ("falcon-h1", {"mamba_n_heads": 13},
         "config.json has 13 mamba_n_heads, which do not divide their width of 384."),
        ("granite-4", {"layer_types": ["mamba"] * 5}, NO_ATTENTION),
        ("granite-4", {"layer_types": ["attention", "rwkv"]},
         "layer_types of 5 layers. config.json has layers rwkv, which the memory model does not know."),
        ("jamba", {"attn_layer_offset": 9}, NO_ATTENTION),
        ("jamba", {"attn_layer_offset": None}, "config.json has no attn_layer_offset that is a whole number."),
        ("lfm2", {"full_attn_idxs": None}, "config.json has no layer_types of 8 layers."),
        ("lfm2-moe", {"layer_types": ["conv"] * 7 + ["full"]},
         "config.json has layers full, which the memory model does not know."),
        ("step-3.5", {"layer_types": None},
         "config.json has no layer_types (full_attention, sliding_attention) of 5 layers."),
        ("step-3.5", {"layer_types": ["sliding_attention"] * 5},
         "config.json has no layer of full attention: the memory model needs one."),
        ("gemma-3n", {"num_kv_shared_layers": 10},
         "config.json has no layer of full attention: the memory model needs one."),
        ("exaone-4", {"sliding_window": None}, "config.json has no sliding_window that is a whole number above zero."),
        ("dbrx", {"attn_config": {}}, "config.json has no attn_config.kv_n_heads."),
        ("nemotron-nas", {"block_configs": [{"attention": {"n_heads_in_group": 4}}]},
         "config.json has no block_configs of 4 blocks with attention.n_heads_in_group, or no_op."),
        ("nemotron-nas", {"block_configs": [{"attention": {"no_op": True}}] * 4}, NO_ATTENTION),
        ("nemotron-nas", {"block_configs": [{"attention": {"n_heads_in_group": each}} for each in (1, 2, 4, 4)]},
         "config.json has blocks whose KV heads differ in number, which have no rule here."),
        ("zamba2", {"layers_block_type": ["mamba"] * 6}, NO_ATTENTION),
        ("zamba2", {"layers_block_type": ["mamba", "hybrid"] * 2 + ["rwkv"] * 2},
         "config.json has layers rwkv, which the memory model does not know."),
        ("nemotron-h-puzzle", {"block_configs": None}, "config.json has no block_configs"),
        ("nemotron-h-puzzle", {"block_configs": [{"block_type": "attention", "sliding_window": 512}]}, NO_ATTENTION),
    ],
)  # fmt: skip
def test_a_class_without_what_it_needs_is_unknown(name: str, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnknownGeometryError) as caught:
        geometry_from_hf_config(CLASSES[name] | change)
    assert sentence in " ".join(caught.value.missing)


def test_experts_of_a_list_and_of_some_layers() -> None:
    found = {name: geometry_from_hf_config(CLASSES[name]).moe for name in CLASSES}
    assert found["hunyuan-moe"] == Moe(4, 8, 2, 128)
    assert found["afmoe"] == Moe(6, 8, 2, 128)
    assert found["hy-v3"] == found["step-3.5"] == Moe(3, 8, 2, 128)
    assert found["jamba"] == Moe(4, 4, 2, 512)
    assert found["jamba-dense"] is found["granite-4-dense"] is None


def test_blocks_of_a_puzzle_have_windows_and_experts_of_their_own() -> None:
    values = CLASSES["nemotron-h-puzzle"]
    experts = [
        {"block_type": "moe", "n_routed_experts": 8, "num_experts_per_tok": top_k, "moe_intermediate_size": width}
        for top_k, width in ((2, 512), (6, 256), (4, 128))
    ]
    blocks = [*values["block_configs"], *experts, *[{"block_type": "attention", "sliding_window": 512}] * 2]
    heads = {"mtp_block_configs": [{"block_type": "attention"}, experts[0]], "num_nextn_predict_layers": 1}
    found = geometry_from_hf_config(values | heads | {"block_configs": blocks})
    assert (found.layers, found.attention.layers, found.windows) == (9, 1, (Window(2, 512, 2, 64),))
    assert (found.moe, found.mtp) == (Moe(3, 8, 6, 256), Mtp(1, 1))
    assert geometry_from_hf_config(CLASSES["nemotron-nas"]).intermediate_size == 512


#: As the files of the family are written; the sizes are of our making.
CONVOLVED = {
    "num_hidden_layers": 6, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 32768, "local_layer_ids": [0, 1, 2, 3, 4], "sliding_window_size": 128,
    "swa_num_key_value_heads": 4, "swa_head_dim": 64, "sconv_kernel_size": 4, "intermediate_size": 128,
    "dense_intermediate_size": 1024, "dense_mlp_idx": 2, "n_routed_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


def test_convolutions_beside_the_layers_are_windows_with_blocks_of_their_own() -> None:
    found = geometry_from_hf_config(config("InklingForConditionalGeneration", text_config=CONVOLVED))
    assert (found.layers, found.attention) == (6, Attention(1, 8, 2, 64))
    # Of a KV head: a key, a value and twice 512 / 2 of the streams, filled up from 640 to 1024; then from 384 to 512.
    assert found.windows == (
        Window(1, 4, 2, 512, block_tokens=4), Window(5, 128, 4, 64), Window(5, 4, 4, 256, block_tokens=4),
    )  # fmt: skip
    assert (found.moe, found.intermediate_size) == (Moe(4, 8, 2, 128), 1024)
    assert geometry_from_dict(geometry_values(found)) == found
    for change in ({"local_layer_ids": None}, {"local_layer_ids": [*range(6)]}):
        with pytest.raises(UnknownGeometryError):
            geometry_from_hf_config(config("InklingForCausalLM", **CONVOLVED | change))


def test_the_token_itself_counts_in_a_window_from_0_29_on() -> None:
    """Cohere 2: what a sequence keeps grows at the token behind the window."""
    geometry = geometry_from_hf_config(CLASSES["cohere2"] | {"sliding_window": 128})

    def blocks(version: tuple[int, int, int]) -> int:
        asked = Asked(
            tensor_parallel_size=1, kv_cache_dtype="auto", ssm_dtype="auto", speculative_tokens=0,
            block_granularity=16, prefix_caching=None, cache_mode=None, rules=rules_for(version), in_flight_tokens=1,
        )  # fmt: skip
        return plan_layout(geometry, asked).blocks_per_sequence(4096)

    assert blocks((0, 29, 0)) == blocks((0, 28, 0)) + 3


def test_windows_without_figures_of_their_own_have_those_of_the_full_layers() -> None:
    values = CLASSES["step-3.5"] | {"attention_other_setting": None, "moe_num_experts": None}
    found = geometry_from_hf_config(values)
    assert (found.windows, found.moe, found.mtp) == ((Window(3, 128, 2, 64),), None, None)
    unnamed = geometry_from_hf_config(CLASSES["step-3.5"] | {"moe_layers_enum": None}).moe
    assert unnamed is not None
    assert unnamed.layers == 4


def test_a_layer_of_two_halves_counts_twice() -> None:
    assert geometry_from_hf_config(CLASSES["falcon-h1"]).layers == 8


@pytest.mark.parametrize(
    ("outer", "inner", "around"),
    [
        ("InternVLChatModel", "llm_config", "ministral3"),
        ("Lfm2VlForConditionalGeneration", "text_config", "lfm2"),
        ("Gemma3nForConditionalGeneration", "text_config", "gemma-3n"),
    ],
)
def test_a_model_around_another_is_read_through_it(outer: str, inner: str, around: str) -> None:
    text = geometry_from_hf_config(CLASSES[around])
    assert geometry_from_hf_config({"architectures": [outer], inner: CLASSES[around]}) == replace(
        text, architecture=outer
    )


def test_a_flat_file_of_a_model_around_another_is_read_as_it_is() -> None:
    values = config("Qwen2_5_VLForConditionalGeneration", **GQA, sliding_window=4096, use_sliding_window=False)
    assert geometry_from_hf_config(values).attention == Attention(62, 48, 8, 128)


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ({"hidden_size": 1}, "without a name"),
        ({"architectures": ["LongcatFlashForCausalLM"]}, "LongcatFlashForCausalLM"),
    ],
)
def test_a_model_around_one_without_a_rule_is_unknown(inside: dict[str, Any], named: str) -> None:
    with pytest.raises(UnknownGeometryError) as caught:
        geometry_from_hf_config(config("InternVLChatModel", text_config=inside))
    assert f"the architecture {named} inside InternVLChatModel." in caught.value.missing[0]


def test_without_the_hybrid_manager_a_window_keeps_everything() -> None:
    case = next(each for each in CASES if each["name"] == "gpt-oss-120b")
    options: dict[str, Any] = {
        "tensor_parallel_size": 1, "kv_cache_dtype": "fp8", "ssm_dtype": "auto", "speculative_tokens": 0,
        "block_granularity": 16, "prefix_caching": None, "cache_mode": None, "rules": rules_for((0, 32, 0)),
    }  # fmt: skip
    layout = plan_layout(geometry_of(case), Asked(**options, hybrid_manager=False))
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
                sliding_window_size=128, hybrid_layer_pattern=[0, 1, 1, 1, 1, 0], n_routed_experts=256,
                num_experts_per_tok=8, moe_intermediate_size=2048, moe_layer_freq=[0, 1, 1, 1, 1, 1],
            ),
            Attention(2, 64, 4, 192, 128), (Window(4, 128, 8, 192, 128),), Moe(5, 256, 8, 2048), id="mimo-v2",
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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"indexed_layers": 2, "pair_sources": 1},
         "geometry.compressed has indexed_layers or pooled_layers beside pair_sources or token_sources: two forms."),
        ({"indexed_layers": 2},
         "geometry.compressed needs indexed_layers and pooled_layers (DeepSeek-V4), or pair_sources and token_sources "
         "(DeepSeek-V4.1)."),
        ({"indexed_layers": 1, "pooled_layers": 1, "page_states": 64},
         "geometry.compressed.page_states is for DeepSeek-V4.1 alone, with pair_sources and token_sources."),
        ({"pair_sources": 9}, "geometry.compressed.layers is 4, but 9 layers keep states."),
    ],
)  # fmt: skip
def test_a_wrong_compressed_section_is_named(change: dict[str, Any], sentence: str) -> None:
    shape = {
        "architecture": "x", "hidden_size": 1, "layers": 4, "max_position_embeddings": 1,
        "attention": {"layers": 4, "heads": 1, "kv_heads": 1, "head_dim": 512},
        "compressed": {"layers": 4, "window_tokens": 128, "head_dim": 512, "index_head_dim": 128, **change},
    }  # fmt: skip
    with pytest.raises(GeometryError) as caught:
        geometry_from_dict(shape)
    assert sentence in caught.value.problems


def test_more_indexers_than_layers_are_refused() -> None:
    shape = {
        "architecture": "x", "hidden_size": 1, "layers": 4, "max_position_embeddings": 1,
        "attention": {"layers": 4, "heads": 1, "kv_heads": 1, "head_dim": 64},
        "indexer": {"kind": "msa", "head_dim": 128, "layers": 5},
    }  # fmt: skip
    with pytest.raises(GeometryError) as caught:
        geometry_from_dict(shape)
    assert "geometry.indexer.layers is 5, but only 4 layers have full attention." in caught.value.problems


@pytest.mark.parametrize("architecture", ["DFlash2DraftModel", "Eagle3LlamaForCausalLM", "Qwen3DSparkModel"])
def test_a_draft_model_is_read_from_its_config(architecture: str) -> None:
    values = config(architecture, num_hidden_layers=5, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    assert geometry_from_hf_config(values).attention == Attention(5, 32, 8, 128)
